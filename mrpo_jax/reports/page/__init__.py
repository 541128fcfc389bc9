# SPDX-License-Identifier: Apache-2.0
"""report.html: a comparison of runs as one page that fetches nothing."""
