# SPDX-License-Identifier: Apache-2.0
"""Performance: what a run takes, measured or planned."""
