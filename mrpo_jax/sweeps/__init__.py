# SPDX-License-Identifier: Apache-2.0
"""Sweeps: a grid of runs, one process after the other, and their report."""
