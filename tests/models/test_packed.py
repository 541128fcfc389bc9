# SPDX-License-Identifier: Apache-2.0
"""Packed, prompt-shared and chunked equals each sequence alone in float64."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.models import packed, parameters, transformer
from mrpo_jax.models.attention.layout import RowLayout
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.rope import Rope
from mrpo_jax.rows import micro_batch, micro_batches

CONFIG = ModelConfig(
  vocab_size=257,
  width=32,
  layers=3,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_width=48,
)
# As Gemma 3 has them, windows shorter than a sequence.
SANDWICH = dict(
  family="gemma3_text",
  tied=True,
  norm_shift=1.0,
  norms="both",
  qk_norm="head",
  ropes=(Rope(1e3), Rope(1e2)),
  layer_ropes=(1, 0, 1),
  layer_windows=(20, 0, 20),
  attention_softcap=2.0,
  activation="gelu_tanh",
  embedding_scale=3.0,
  logits_softcap=4.0,
)
# As GPT-NeoX has them, and SmolLM 3's layers without RoPE.
PARALLEL = dict(
  family="gpt_neox",
  norm="layer",
  parallel="two",
  ropes=(Rope(1e3, dims=4), None),
  layer_ropes=(0, 1, 0),
  qkv_bias=True,
  out_bias=True,
  gated=False,
  activation="gelu",
  mlp_bias=True,
  residual_scale=0.7,
  logits_scale=0.5,
)
METHOD = losses.build("mrpo", weights="uniform")
REF = -jnp.array([[330.0, 340.0], [310.0, 320.0], [350.0, 345.0], [6.0, 280.0]])
HH = pathlib.Path(__file__).parents[1] / "material/hh_sample.jsonl"


def params_of(config=CONFIG):
  """Norms away from 1 and a head away from uniform, or errors would hide."""
  params = parameters.init(config, jax.random.key(0))
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    leaf + 0.1 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, leaves)


def real_pairs(limit=60):
  """Ragged human pairs as bytes: the longest start both share is the prompt."""
  pairs = []
  for line in HH.read_text(encoding="utf-8").split("\n"):
    if not line:
      continue
    row = json.loads(line)
    texts = [row["chosen"].encode(), row["rejected"].encode()]
    same = next(
      (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), None
    )
    if same:
      chosen, rejected = (list(text[same : same + limit]) for text in texts)
      prompt = list(texts[0][max(0, same - 2 * limit) : same])
      pairs.append(Encoded(prompt, [*chosen, 256], [*rejected, 256], None))
  return pairs


def chinese_pair():
  """Three bytes a character, responses that differ in length by far."""
  prompt, chosen = list("用中文问：猫为什么怕水？".encode()), [256]
  rejected = list("因为它们的毛湿了以后会变得很重。".encode())
  return Encoded(prompt, chosen, [*rejected, 256], None)


def alone(params, pair, config=CONFIG):
  """logp_C by a plain forward of each sequence, unpadded, full logits."""
  logps = []
  for response in (pair.chosen_ids, pair.rejected_ids):
    tokens = jnp.asarray([pair.prompt_ids + response])
    logits_BTV = transformer.apply(config, params, tokens)
    logp_TV = jax.nn.log_softmax(logits_BTV[0].astype(jnp.float64), axis=-1)
    start = len(pair.prompt_ids)
    places = jnp.arange(start - 1, start - 1 + len(response))
    logps.append(jnp.sum(logp_TV[places, jnp.asarray(response)]))
  return jnp.stack(logps)


def loss_alone(params, pairs, ref_logp_BCK, config):
  logp_BC = jnp.stack([alone(params, pair, config) for pair in pairs])
  return jnp.mean(METHOD(logp_BC, ref_logp_BCK)), logp_BC


def loss_packed(params, filled, ref_logp_BCK, config, kernel):
  B, total, logp_BC = ref_logp_BCK.shape[0], 0.0, 0.0
  for a in range(filled.tokens_RT.shape[0]):
    micro = micro_batch(filled, a)
    sizes = dict(chunk=16, vocabulary=100)
    figures = packed.token_figures(
      config, params, micro, B, packed.Computation(kernel, **sizes)
    )
    one_BC = packed.per_response(figures["logp"], micro.slots_RM, B)
    here_B = packed.response_lengths(micro, B)[:, 0] > 0
    total += jnp.sum(jnp.where(here_B, METHOD(one_BC, ref_logp_BCK), 0.0))
    logp_BC += one_BC
  return total / B, logp_BC


@pytest.mark.parametrize(
  "kernel,changes",
  [
    pytest.param("blockwise", {}, id="llama"),
    # Each compiles for ten seconds; parity tests of families see most breaks.
    pytest.param("xla", dict(tied=True), id="tied", marks=pytest.mark.slow),
    pytest.param("blockwise", SANDWICH, id="sandwich", marks=pytest.mark.slow),
    pytest.param("xla", PARALLEL, id="parallel", marks=pytest.mark.slow),
  ],
)
def test_packed_equals_every_sequence_alone_in_float64(kernel, changes):
  config = dataclasses.replace(CONFIG, **changes)
  # Eight sequences, each of its own length; one response is a single token.
  pairs = [*real_pairs()[:3], chinese_pair()]
  filled = pack.pack(pairs, length=300, rows=1)
  assert micro_batches(filled) == 2
  params = params_of(config)
  ref_logp_BCK = REF[:, :, None] + jnp.array([0.0, 9.0])[None, None]
  got, got_grads = jax.jit(
    jax.value_and_grad(loss_packed, has_aux=True), static_argnums=(3, 4)
  )(params, filled, ref_logp_BCK, config, kernel)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
    plain = functools.partial(loss_alone, pairs=pairs, config=config)
    want, want_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(
      wide, ref_logp_BCK=jnp.asarray(ref_logp_BCK, jnp.float64)
    )
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_float32_rounds_a_token_by_millionths_of_a_nat():
  filled = pack.pack([*real_pairs()[:3], chinese_pair()], length=600)
  micro, params = micro_batch(filled, 0), params_of()
  got = packed.token_figures(CONFIG, params, micro, 4)["logp"]
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
    want = np.asarray(packed.token_figures(CONFIG, wide, micro, 4)["logp"])
  assert want.dtype == np.float64
  off = (np.asarray(got, np.float64) - want)[micro.slots_RM < 8]
  assert np.abs(off).max() < 4e-6
  # The errors of a response's tokens do not add up.
  assert abs(off.mean()) < 2e-7


def test_chosen_never_sees_rejected_nor_another_pair():
  pairs = real_pairs()[:3]
  filled = pack.pack(pairs, length=600)
  micro = micro_batch(filled, 0)
  params = params_of()
  layout = RowLayout(micro.positions_RT, micro.segments_RT, micro.branches_RT)

  def chosen_of_first(embedded_RTD):
    # The embedding is the identity here, so tokens are continuous inputs.
    tokens = jnp.arange(embedded_RTD.shape[1])[None]
    hidden = transformer.hidden(
      CONFIG,
      {**params, "embed": embedded_RTD[0]},
      tokens,
      layout,
    )
    is_chosen = (micro.segments_RT == 1) & (micro.branches_RT == 1)
    return jnp.sum(jnp.square(hidden) * is_chosen[..., None])

  embedded_RTD = jnp.take(params["embed"], micro.tokens_RT, axis=0)
  grad_RT = jnp.abs(jax.grad(chosen_of_first)(embedded_RTD)).sum(-1)
  first = micro.segments_RT == 1
  own = first & (micro.branches_RT <= 1)
  assert (grad_RT[own] > 0).all()
  assert not grad_RT[~own].any()  # exactly zero


def all_logps(params, filled, pairs):
  figures = packed.all_token_figures(CONFIG, params, filled, pairs)
  return packed.per_response(figures["logp"], filled.slots_RM, pairs)


def test_row_layout_does_not_matter(rng):
  pairs = real_pairs()
  params = params_of()
  want = None
  for length, R in ((250, 1), (400, 3), (900, 2)):
    filled = pack.pack(pairs, length=length, rows=R)
    got = all_logps(params, filled, len(pairs) + 1)
    assert not got[-1].any()  # the absent pair
    want = got if want is None else want
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-4)


def test_padding_holds_anything():
  pairs = real_pairs()[:2]
  filled = pack.pack(pairs, length=600)
  params = params_of()
  want = all_logps(params, filled, 2)
  junk = filled.replace(
    tokens_RT=np.where(filled.segments_RT > 0, filled.tokens_RT, 77)
  )
  got = all_logps(params, junk, 2)
  np.testing.assert_array_equal(got, want)


def test_lengths_count_scored_tokens():
  pairs = real_pairs()
  filled = pack.pack(pairs, length=600)
  got = packed.response_lengths(filled, len(pairs))
  want = [[len(p.chosen_ids), len(p.rejected_ids)] for p in pairs]
  assert got.tolist() == want


def test_places_of_scored_tokens():
  pairs = [
    Encoded([9, 9, 9], [1, 2], [3, 4, 5, 6]),
    Encoded([9], [1, 2, 3], [4]),
  ]
  filled = pack.pack(pairs, length=16, slots=np.array([2, 0]))
  got = packed.token_places(micro_batch(filled, 0), 2)
  # The first pair is the longer one, so it stands first; then padding.
  want = {
    "index": [0, 1, 0, 1, 2, 3, 0, 1, 2, 0],
    "length": [2, 2, 4, 4, 4, 4, 3, 3, 3, 1],
    "shorter_length": [2, 2, 2, 2, 2, 2, 1, 1, 1, 1],
    "prompt_length": [3, 3, 3, 3, 3, 3, 1, 1, 1, 1],
  }
  for name, value in want.items():
    assert got[name][0].tolist() == value + [0] * 6, name
  assert got["differs"] is None


def test_sums_of_several_references_at_once(rng):
  filled = pack.pack(real_pairs()[:2], length=600)
  value = rng.normal(size=(*filled.slots_RM.shape, 3)).astype(np.float32)
  got_BCK = packed.per_response(jnp.asarray(value), filled.slots_RM, 2)
  for k in range(3):
    one_BC = packed.per_response(jnp.asarray(value[..., k]), filled.slots_RM, 2)
    np.testing.assert_array_equal(got_BCK[..., k], one_BC)


def test_bfloat16_over_float32_weights_stays_close_and_keeps_them():
  pairs = real_pairs()[:3]
  micro = micro_batch(pack.pack(pairs, length=600), 0)
  params = params_of()

  def total(params, dtype):
    figures = packed.token_figures(
      CONFIG, params, micro, 3, packed.Computation(dtype=dtype)
    )
    return jnp.sum(figures["logp"])

  compute = jax.jit(jax.value_and_grad(total), static_argnums=1)
  want, want_grads = compute(params, None)
  got, grads = compute(params, "bfloat16")
  assert got != want and abs(got - want) < 0.02 * abs(want)
  for a, b in zip(
    jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True
  ):
    assert a.dtype == jnp.float32
    assert jnp.linalg.norm(a - b) < 0.1 * jnp.linalg.norm(b)
