# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model folders: weights in and out."""

from mrpo_jax.hub.folder import fingerprint as fingerprint
from mrpo_jax.hub.folder import fingerprint_together as fingerprint_together
from mrpo_jax.hub.read import load as load
from mrpo_jax.hub.read import read_config as read_config
from mrpo_jax.hub.write import save as save
from mrpo_jax.models.families.family import UnsupportedModel as UnsupportedModel
