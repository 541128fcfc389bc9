# SPDX-License-Identifier: Apache-2.0
"""How much each reference is trusted."""

import jax
import jax.numpy as jnp

from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen


def normalised_weight(weight, ref_logp_BCK):
  """[K] or [B, K] non-negative weights as weight_BK that sum to 1 over K."""
  weight = jax.lax.stop_gradient(widen(weight))
  if weight.ndim == 1:
    check("B 2 K", ref_logp_BCK, "K", weight)
    weight = weight[None, :]
  else:
    check("B 2 K", ref_logp_BCK, "B K", weight)
  weight_BK = weight / jnp.sum(weight, axis=-1, keepdims=True)
  pairs, _, references = ref_logp_BCK.shape
  return jnp.broadcast_to(weight_BK, (pairs, references))


def uniform_weights(ref_logp_BCK):
  """weight_BK = 1 / K: reads no label, so it is the same in evaluation.

  Args:
    ref_logp_BCK: only its shape counts.

  Returns:
    weight_BK: sums to 1 over K.

  >>> import jax.numpy as jnp
  >>> uniform_weights(jnp.zeros((1, 2, 4))).tolist()
  [[0.25, 0.25, 0.25, 0.25]]
  """
  pairs, _, references = ref_logp_BCK.shape
  check("B 2 K", ref_logp_BCK)
  dtype = widen(ref_logp_BCK).dtype
  return jnp.full((pairs, references), 1.0 / references, dtype)


def adaptive_weights(ref_logp_BCK):
  """Each reference's share of the absolute margins, per pair (ARWC).

      d_k = | log r_k(y_w) - log r_k(y_l) |
      w_k = d_k / sum_j d_j

  It reads which response is the chosen one only through an absolute value, but
  it is computed from the labelled pair: there is no such weight for a single
  response.

  Args:
    ref_logp_BCK: nats, summed over response tokens, not clipped.

  Returns:
    weight_BK: sums to 1 over K, no gradient; uniform where every d_k is 0.

  Source: released code of MRPO (arXiv:2405.16388), without its 1e-6 in the
  denominator.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[[-1.0, -2.0], [-4.0, -3.0]]])
  >>> adaptive_weights(logp).tolist()
  [[0.75, 0.25]]
  """
  check("B 2 K", ref_logp_BCK)
  ref_logp_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
  gap_BK = jnp.abs(ref_logp_BCK[:, CHOSEN] - ref_logp_BCK[:, REJECTED])
  total_B1 = jnp.sum(gap_BK, axis=-1, keepdims=True)
  share_BK = gap_BK / jnp.where(total_B1 > 0, total_B1, 1.0)
  return jnp.where(total_B1 > 0, share_BK, uniform_weights(ref_logp_BCK))
