# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model or a run: benchmarks and pairs, into a folder."""

RESULTS = "results.json"  # the figures, in a folder of each of them
