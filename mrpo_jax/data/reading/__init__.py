# SPDX-License-Identifier: Apache-2.0
"""Reading rows: files, and the dialogues that stand in them."""
