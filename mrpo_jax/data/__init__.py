# SPDX-License-Identifier: Apache-2.0
"""Data: rows to pairs, to token ids, to packed rows.  NumPy."""
