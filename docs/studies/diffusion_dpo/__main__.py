# SPDX-License-Identifier: Apache-2.0
"""Command of the study of Diffusion-DPO."""

from docs.studies.diffusion_dpo.study import main

main()
