# SPDX-License-Identifier: Apache-2.0
"""Command of the re-study of weighted references."""

from docs.studies.grid.study import main
from docs.studies.restudy.study import ABOUT, study

main(study, ABOUT)
