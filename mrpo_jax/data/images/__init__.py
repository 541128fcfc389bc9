# SPDX-License-Identifier: Apache-2.0
"""Images: preference pairs and labelled images as arrays in [-1, 1]."""
