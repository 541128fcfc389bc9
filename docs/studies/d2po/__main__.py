# SPDX-License-Identifier: Apache-2.0
"""Command of the study of D2PO."""

from docs.studies.d2po.study import main

main()
