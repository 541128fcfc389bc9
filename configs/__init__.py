# SPDX-License-Identifier: Apache-2.0
"""One file per experiment: the method section of a paper."""
