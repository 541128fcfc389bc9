# SPDX-License-Identifier: Apache-2.0
"""Reports: finished runs and stores, as text and JSON."""
