# SPDX-License-Identifier: Apache-2.0
"""Losses of one preference pair against one reference.

Every function takes log-ratios (policy minus reference; nats, summed over
response tokens) and returns one value per pair; the caller reduces.
"""

import jax

from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen


def margin(logratio_BC):
  """Delta_B = r_w - r_l: how much more the policy moved towards the chosen."""
  check("B 2", logratio_BC)
  logratio_BC = widen(logratio_BC)
  return logratio_BC[:, CHOSEN] - logratio_BC[:, REJECTED]


def dpo(logratio_BC, *, beta=0.1, scale_B=1.0, label_smoothing=0.0):
  """Direct preference optimization, with conservative label smoothing.

      m    = beta * scale * (r_w - r_l)
      loss = -(1 - eps) * log sigmoid(m) - eps * log sigmoid(-m)

  The logistic loss of a classifier that must prefer the chosen response.
  At policy = reference it is ln 2.

  Args:
    logratio_BC: policy minus reference log-probability; nats, summed over
      response tokens; index 0 chosen, 1 rejected.
    beta: inverse temperature, per nat; smaller lets the policy move further.
    scale_B: factor on the whole margin, per pair or one number.
    label_smoothing: eps, the assumed share of flipped labels, in [0, 1].

  Returns:
    loss_B: nats, float32 or better.

  Source: DPO, arXiv:2305.18290, equation 7; the smoothing is conservative DPO
  (E. Mitchell, "A note on DPO with noisy preferences", 2023).
  Numerics: log sigmoid as -softplus(-m); finite at +-1e4 nats.

  >>> import jax.numpy as jnp
  >>> bool(jnp.isclose(dpo(jnp.zeros((1, 2)))[0], jnp.log(2.0)))
  True
  """
  margin_B = beta * scale_B * margin(logratio_BC)
  keep_B = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(margin_B)
  return keep_B - label_smoothing * jax.nn.log_sigmoid(-margin_B)
