# SPDX-License-Identifier: Apache-2.0
"""References: scored once, kept in a store, watched."""
