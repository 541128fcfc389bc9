# SPDX-License-Identifier: Apache-2.0
"""Layouts of packed rows, and the gradients of an attention kernel on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.models.attention.splash import splash
from mrpo_jax.models.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=8, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8
)
SPLASH = functools.partial(splash, interpret=True, windows=(0, 17))
# Rows of (prompt, chosen, rejected) lengths, and the length of all rows.
ROWS = {
  "several": ([[(30, 20, 5), (40, 31, 50)], [(7, 1, 1)]], 200),
  "one token each": ([[(1, 1, 1)] * 3], 9),
  "longer than a block": ([[(150, 70, 90)]], 311),
  "full to the last": ([[(20, 64, 44)]], 128),
  "sequences": ([[(33, 0, 0), (70, 0, 0)], [(64, 64, 0)]], 130),
}
# Any number of branches after a trunk.
TREES = {
  "few": ([[(30, 20, 5, 40, 1), (9, 40, 2, 2)], [(7, 1, 1, 1)]], 200),
  "many": ([[(70, *[6] * 20)], [(0, 30, 40, 50)]], 210),
}


def layout_of(rows, T):
  layout = np.zeros((3, len(rows), T), np.int32)
  for r, pairs in enumerate(rows):
    t = 0
    for n, (prompt, *responses) in enumerate(pairs):
      own = [prompt + np.arange(size) for size in responses]
      sizes = prompt, *responses
      branch = np.repeat(np.arange(len(sizes)), sizes)
      size = len(branch)
      layout[0, r, t : t + size] = np.concatenate([np.arange(prompt), *own])
      layout[1, r, t : t + size] = n + 1
      layout[2, r, t : t + size] = branch
      t += size
  return RowLayout(*jnp.asarray(layout))


def value_and_gradients(kernel, layout, window, softcap, dtype=np.float32):
  R, T = layout.segments.shape
  rng = np.random.default_rng(0)
  query, key, value, weight = (
    jnp.asarray(rng.normal(size=(R, T, heads, 16)), dtype)
    for heads in (4, 2, 2, 4)
  )
  # What padding sees is nobody's business.
  weight *= (layout.segments > 0)[:, :, None, None]

  def total(query, key, value):
    out = kernel(query, key, value, layout, window, scale=0.3, softcap=softcap)
    return jnp.sum(weight * out)

  return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(query, key, value)
