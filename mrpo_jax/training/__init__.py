# SPDX-License-Identifier: Apache-2.0
"""Training: arrays in, a better policy out."""
