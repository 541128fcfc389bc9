# SPDX-License-Identifier: Apache-2.0
"""Every attention kernel equals the oracle, and costs what it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.models.attention import blockwise, kernels
from mrpo_jax.models.attention.layout import RowLayout, dense, sees
from mrpo_jax.models.attention.splash import _expansion, splash
from mrpo_jax.models.config import ModelConfig

CONFIG = ModelConfig(
  vocab_size=8, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8
)
SPLASH = functools.partial(splash, interpret=True, windows=(0, 17))
KERNELS = {"blockwise": blockwise.blockwise, "splash": SPLASH}
# Rows of (prompt, chosen, rejected) lengths, and the length of all rows.
ROWS = {
  "several": ([[(30, 20, 5), (40, 31, 50)], [(7, 1, 1)]], 200),
  "one token each": ([[(1, 1, 1)] * 3], 9),
  "longer than a block": ([[(150, 70, 90)]], 311),
  "full to the last": ([[(20, 64, 44)]], 128),
  "sequences": ([[(33, 0, 0), (70, 0, 0)], [(64, 64, 0)]], 130),
}


def layout_of(rows, T):
  layout = np.zeros((3, len(rows), T), np.int32)
  for r, pairs in enumerate(rows):
    t = 0
    for n, (prompt, chosen, rejected) in enumerate(pairs):
      own = np.arange(prompt + chosen), prompt + np.arange(rejected)
      branch = np.repeat([0, 1, 2], (prompt, chosen, rejected))
      size = len(branch)
      layout[0, r, t : t + size] = np.concatenate(own)
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


@pytest.mark.parametrize("window,softcap", [(None, None), (17, None), (0, 5.0)])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_the_oracle(name, rows, window, softcap):
  layout = layout_of(*ROWS[rows])
  window = None if window is None else jnp.int32(window)
  kernel = KERNELS[name]
  if window is None and name == "splash":
    kernel = functools.partial(kernel, windows=(0,))
  got, got_grads = value_and_gradients(kernel, layout, window, softcap)
  given = layout, window, softcap
  want, want_grads = value_and_gradients(dense, *given)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
  for a, b in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_blocks_in_float64_equal_the_oracle_to_its_last_digits():
  with jax.enable_x64(True):
    given = layout_of(*ROWS["several"]), jnp.int32(17), 5.0, np.float64
    got, got_grads = value_and_gradients(blockwise.blockwise, *given)
    want, want_grads = value_and_gradients(dense, *given)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  for a, b in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_blocks_in_bfloat16_stay_close():
  given = layout_of(*ROWS["several"]), None, None
  got, got_grads = value_and_gradients(
    blockwise.blockwise, *given, jnp.bfloat16
  )
  want, want_grads = value_and_gradients(dense, *given)
  np.testing.assert_allclose(float(got), float(want), rtol=0.02)
  for a, b in zip(got_grads, want_grads, strict=True):
    apart = np.abs(np.asarray(a, np.float32) - b).max()
    assert apart < 0.03 * np.abs(b).max()


@pytest.mark.parametrize("window", [None, 17, 0])
@pytest.mark.parametrize("rows", ROWS)
def test_blocks_left_out_hold_nobody_who_sees_another(rows, window):
  layout = layout_of(*ROWS[rows])
  T = layout.segments.shape[1]
  blocks = -(-T // 16)
  padded = jax.tree.map(
    lambda array: jnp.pad(array, ((0, 0), (0, 16 * blocks - T))), layout
  )
  window = None if window is None else jnp.int32(window)
  plan = blockwise._plan(padded, window, blocks)
  place = jnp.arange(16 * blocks)
  mask = sees(padded, padded, place, place, window)
  seen = mask.any(0).reshape(blocks, 16, blocks, 16).any((1, 3))
  for i in range(blocks):
    computed = np.asarray(plan.order_NN[i, : plan.count_N[i]])
    assert computed[0] == i
    assert set(np.flatnonzero(seen[i])) <= set(computed.tolist())


def test_cost_follows_the_lengths():
  """Of 16 blocks, 16 x 17 / 2 pairs are causal; 16 sequences need 16."""
  one = blockwise._plan(layout_of([[(256, 0, 0)]], 256), None, 16)
  many = blockwise._plan(layout_of([[(16, 0, 0)] * 16], 256), None, 16)
  near = blockwise._plan(layout_of([[(256, 0, 0)]], 256), jnp.int32(17), 16)
  # Prompt 1 block, chosen 4, rejected 4: siblings' 16 are left out.
  pair = blockwise._plan(layout_of([[(16, 64, 64)]], 144), None, 9)
  counts = [int(plan.count_N.sum()) for plan in (one, many, near, pair)]
  # A window of 17 reaches the block before, and one token of that before it.
  assert counts == [136, 16, 16 + 15, 45 - 16]


def test_expansion_by_hand():
  source, target, segments = _expansion(
    16, jnp.array([1, 1, 1, 1, 2, 2, 0]), jnp.array([0, 0, 1, 2, 0, 1, 0])
  )
  #                       p p c p p r | p c p | padding
  assert source.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 4, 6] + [0] * 6
  assert segments.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 4] + [0] * 7
  assert target.tolist() == [0, 1, 2, 5, 6, 7, 9]


@pytest.mark.parametrize(
  "name,dtype,platform,softcap,message",
  [
    (
      "splash",
      "bfloat16",
      "cpu",
      None,
      "'splash' runs on a tpu, this is a cpu",
    ),
    ("cudnn", "bfloat16", "tpu", None, "'cudnn' runs on a gpu, this is a tpu"),
    ("cudnn", "float32", "gpu", None, "half precision, not in float32"),
    ("cudnn", "bfloat16", "gpu", 30.0, "knows no softcap"),
  ],
)
def test_kernels_refuse_what_they_cannot(
  name, dtype, platform, softcap, message
):
  config = dataclasses.replace(CONFIG, attention_softcap=softcap)
  with pytest.raises(ValueError, match=message):
    kernels.check(name, config, dtype, platform)


def test_every_kernel_runs_somewhere():
  for platform in ("cpu", "gpu", "tpu"):
    kernels.check("auto", CONFIG, "float32", platform)
  kernels.check("cudnn", CONFIG, "bfloat16", "gpu")
  kernels.check("splash", CONFIG, "float32", "tpu")
  assert kernels.choose("auto", CONFIG, "float32") is blockwise.blockwise
