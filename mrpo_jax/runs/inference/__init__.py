# SPDX-License-Identifier: Apache-2.0
"""Inference of a model or a run: what is asked, sampled, answered."""
