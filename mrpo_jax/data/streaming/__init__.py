# SPDX-License-Identifier: Apache-2.0
"""Pairs of data sets larger than memory, read as a run reaches them."""
