# SPDX-License-Identifier: Apache-2.0
"""Attention over packed rows: the dense oracle and the kernels."""
