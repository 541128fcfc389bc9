# SPDX-License-Identifier: Apache-2.0
"""Command of the study of benchmarks after training."""

from docs.studies.downstream.study import main

main()
