# SPDX-License-Identifier: Apache-2.0
"""Losses that need no reference model."""

from mrpo_jax.shapes import check, widen


def nll(mean_logp_B):
  """Negative log-likelihood per response token: supervised fine-tuning.

      loss = -log p(y | x) / |y|

  Args:
    mean_logp_B: log-probability of each response; nats, divided by its count
      of response tokens.

  Returns:
    loss_B: nats per token, float32 or better.

  Source: maximum likelihood; as an extra term of a pair loss see iterative
  RPO, arXiv:2404.19733.

  >>> import jax.numpy as jnp
  >>> nll(jnp.array([-1.5])).tolist()
  [1.5]
  """
  check("B", mean_logp_B)
  return -widen(mean_logp_B)
