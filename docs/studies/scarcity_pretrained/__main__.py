# SPDX-License-Identifier: Apache-2.0
"""Command of the study of scarce pairs on pretrained models."""

from docs.studies.grid.study import main
from docs.studies.scarcity_pretrained.study import ABOUT, study

main(study, ABOUT, real="folder that launch/real.sh left")
