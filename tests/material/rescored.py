# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities by `transformer.apply`, a sequence in a row of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax.models import transformer

LENGTH = 128  # of a row, so that one program serves all; longer than any text

apply = jax.jit(transformer.apply, static_argnums=0)


def logp_of(config, params, prompt, ids):
  """The log-probability of ids after a prompt, by the path of training."""
  whole = [*prompt, *ids]
  tokens_1T = np.zeros((1, LENGTH), np.int32)
  tokens_1T[0, : len(whole)] = whole
  logp_TV = jax.nn.log_softmax(apply(config, params, tokens_1T)[0])
  places = jnp.arange(len(prompt) - 1, len(whole) - 1)
  return float(logp_TV[places, jnp.array(ids)].sum())
