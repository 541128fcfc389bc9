# SPDX-License-Identifier: Apache-2.0
"""Command of the study of which second reference helps."""

from docs.studies.grid.study import main
from docs.studies.which_reference.study import ABOUT, study

main(study, ABOUT)
