# SPDX-License-Identifier: Apache-2.0
"""Command of the study of scarce pairs."""

from docs.studies.grid.study import main
from docs.studies.scarcity.study import ABOUT, study

main(study, ABOUT)
