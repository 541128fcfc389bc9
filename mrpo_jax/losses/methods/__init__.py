# SPDX-License-Identifier: Apache-2.0
"""Methods: from a loss's name in a config to one function of arrays."""
