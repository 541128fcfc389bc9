# SPDX-License-Identifier: Apache-2.0
"""Command of the study of disagreement."""

from docs.studies.disagreement.study import main

main()
