# SPDX-License-Identifier: Apache-2.0
"""Generation: samples of a model after prompts, with a key-value cache."""

from mrpo_jax.generation.decoder import Decoder
from mrpo_jax.generation.generate import Sample, generate, samples
from mrpo_jax.generation.sampling import Sampling

__all__ = ["Decoder", "Sample", "Sampling", "generate", "samples"]
