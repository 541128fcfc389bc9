# SPDX-License-Identifier: Apache-2.0
"""Tasks of the harness that read local files, in the harness's prompt forms."""
