# SPDX-License-Identifier: Apache-2.0
"""Optimizer: AdamW of optax, its schedule, clipping and weight decay."""

import jax
import jax.numpy as jnp
import optax

from mrpo_jax.shapes import widen


def make(
  *,
  peak_lr,
  steps,
  warmup=0.1,
  end_lr_share=0.0,
  clip_norm=1.0,
  weight_decay=0.0,
  b1=0.9,
  b2=0.999,
):
  """(transformation, schedule) of the whole run.

  Args:
    peak_lr: learning rate after the warm-up.
    steps: optimizer steps of the run.
    warmup: share of the steps that rise linearly from 0.
    end_lr_share: where the cosine ends, as a share of peak_lr.
    clip_norm: global gradient norm above which gradients are scaled down.
    weight_decay: decoupled; matrices only, never norms or biases.
    b1: decay of the first moment.
    b2: decay of the second moment.
  """
  rise = round(warmup * steps)
  schedule = optax.warmup_cosine_decay_schedule(
    # A step of learning rate 0 would teach nothing: start one step in.
    init_value=peak_lr / (rise + 1),
    peak_value=peak_lr,
    warmup_steps=rise,
    decay_steps=max(steps, rise + 1),
    end_value=end_lr_share * peak_lr,
  )
  chain = optax.chain(
    clip(clip_norm),
    optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays),
  )

  def init(params):
    # Moments are as wide as the gradient that they average, from the start.
    return chain.init(jax.tree.map(widen, params))

  return optax.GradientTransformation(init, chain.update), schedule


@jax.jit
def lost_share(params, rate):
  """Share of the weights to which a step of that size, up or down, is nothing.

  AdamW's steps are about as large as the learning rate.  Added to a weight in
  bfloat16 those below 1/512 to 1/256 of it are rounded away, each by itself.
  """

  def lost(weight):
    kind, wide = jnp.finfo(weight.dtype), widen(weight)
    # A cast there and back again is one that XLA may leave out.
    up, down = (
      jax.lax.reduce_precision(wide + step, kind.nexp, kind.nmant)
      for step in (rate, -rate)
    )
    return jnp.sum((up == wide) & (down == wide), dtype=jnp.float32)

  leaves = jax.tree.leaves(params)
  return sum(map(lost, leaves)) / sum(leaf.size for leaf in leaves)


def clip(norm):
  """Clipping by the global norm as in optax, but by one factor for all.

  Divided by their norm the gradients were second arrays of their size, which
  XLA's CPU backend keeps for both moments.
  """

  def clipped(grads, params):
    factor = jnp.minimum(norm / optax.tree.norm(grads), 1.0)
    return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), grads)

  return optax.stateless(clipped)


def decays(params):
  """True for every factor of a product, False for norms and biases.

  An adapter's two factors decay, each by itself.
  """
  return jax.tree.map_with_path(
    lambda path, _: not path[-1].key.endswith(("norm", "bias")), params
  )
