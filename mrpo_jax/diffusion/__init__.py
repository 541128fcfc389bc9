# SPDX-License-Identifier: Apache-2.0
"""Diffusion models of images: denoisers, and preferences between images."""
