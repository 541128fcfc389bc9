# SPDX-License-Identifier: Apache-2.0
"""Rounds of an online run: prompts, samples, labels, pairs, batches."""
