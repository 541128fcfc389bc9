# SPDX-License-Identifier: Apache-2.0
"""Command of the study of dispersion."""

from docs.studies.dispersion.study import ABOUT, study
from docs.studies.grid.study import main

main(study, ABOUT)
