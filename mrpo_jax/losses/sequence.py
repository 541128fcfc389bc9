# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of sequences from logits, without a full log-softmax."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.shapes import check, widen


@checked
def sequence_logp(
  logits_BTV: ArrayLike, targets_BT: ArrayLike, mask_BT: ArrayLike
) -> jax.Array:
  """Log-probability of each sequence: what every other loss here starts from.

      logp = sum_t  mask_t * ( logits_t[target_t] - logsumexp_v logits_t[v] )

  The logit of the target less the log-sum-exp: no further array of the
  logits' size is kept, but for their gradient.  For a pair, call it
  on both responses and stack: `jnp.stack([chosen_B, rejected_B], axis=-1)`.

  Args:
    logits_BTV: place t predicts `targets_BT[:, t]`.  Of a model that reads
      `tokens_BT` these are `logits[:, :-1]`, with the targets and the mask at
      `[:, 1:]`.
    targets_BT: token ids, integers.  Where the mask is 0 they may be anything,
      -100 included.
    mask_BT: 1 (or true) for response tokens, 0 for prompt and padding; other
      values are weights of tokens.

  Returns:
    logp_B: nats, float32 or better; divided by `mask_BT.sum(-1)` it is
    `mean_logp_B`.  0 where the mask is 0 throughout; nan where a target that
    counts is no token, below 0 or from V on.

  Raises:
    ValueError: targets that are no integers.

  Numerics: log-sum-exp in float32 or better, of bfloat16 logits too.  What
  stands where the mask is 0 reaches neither value nor gradient.  Reverse mode
  alone: `jax.grad`, not `jax.jvp`.

  >>> import jax.numpy as jnp
  >>> logits_BTV = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
  >>> targets_BT, mask_BT = jnp.array([[1, 2]]), jnp.array([[1, 0]])
  >>> got = sequence_logp(logits_BTV, targets_BT, mask_BT)
  >>> bool(jnp.allclose(got, jnp.log(0.25)))
  True
  """
  check(logits_BTV=logits_BTV, targets_BT=targets_BT, mask_BT=mask_BT)
  targets_BT = jnp.asarray(targets_BT)
  if not jnp.issubdtype(targets_BT.dtype, jnp.integer):
    raise ValueError(
      f"`targets_BT` must be token ids, integers, got {targets_BT.dtype}"
    )
  if targets_BT.dtype.itemsize < 4:  # V may be none of these
    targets_BT = targets_BT.astype(jnp.int32)
  mask_BT = widen(mask_BT)
  known_BT = (targets_BT >= 0) & (targets_BT < logits_BTV.shape[-1])
  logp_BT = _token_logp(logits_BTV, jnp.where(known_BT, targets_BT, 0))
  logp_BT = jnp.where(known_BT, logp_BT, jnp.nan)
  return jnp.sum(jnp.where(mask_BT != 0, mask_BT * logp_BT, 0.0), axis=-1)


@jax.custom_vjp
def _token_logp(logits_BTV, targets_BT):
  """Log-probability of each target; its gradient by hand.

  Derived from the lines below it would keep the exponentials of all logits.
  """
  return _forward(logits_BTV, targets_BT)[0]


def _forward(logits_BTV, targets_BT):
  target_BT1 = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
  total_BT = jax.nn.logsumexp(widen(logits_BTV), axis=-1)
  logp_BT = widen(target_BT1[..., 0]) - total_BT
  return logp_BT, (logits_BTV, targets_BT, total_BT)


def _backward(kept, grad_BT):
  logits_BTV, targets_BT, total_BT = kept
  grad_BT1 = grad_BT[..., None]
  tokens_V = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
  is_target_BTV = tokens_V[None, None] == targets_BT[..., None]
  share_BTV = jnp.exp(widen(logits_BTV) - total_BT[..., None])
  slope_BTV = is_target_BTV.astype(share_BTV.dtype) - share_BTV
  # A place that does not count may hold nan; 0 * nan would not be 0.
  grad_BTV = jnp.where(grad_BT1 != 0, grad_BT1 * slope_BTV, 0)
  return grad_BTV.astype(logits_BTV.dtype), None


_token_logp.defvjp(_forward, _backward)
