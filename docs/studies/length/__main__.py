# SPDX-License-Identifier: Apache-2.0
"""Command of the study of length."""

from docs.studies.grid.study import main
from docs.studies.length.study import ABOUT, study

main(study, ABOUT)
