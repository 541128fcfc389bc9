# SPDX-License-Identifier: Apache-2.0
"""Reading rows: files, values, and the dialogues that stand in them."""
