# SPDX-License-Identifier: Apache-2.0
"""The chunked head equals the plain softmax, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax.models import head, weights

R, M, D, V = 2, 13, 8, 37


def inputs(rng, dtype=np.float32):
  hidden_RMD = jnp.asarray(rng.normal(size=(R, M, D)).astype(dtype))
  head_VD = jnp.asarray(rng.normal(size=(V, D)).astype(dtype))
  targets_RM = jnp.asarray(rng.integers(0, V, (R, M)))
  return hidden_RMD, head_VD, targets_RM


def plain(hidden_RMD, head_VD, targets_RM, softcap=None):
  logits_RMV = jnp.einsum("RMD,VD->RMV", hidden_RMD, head_VD)
  if softcap:
    logits_RMV = softcap * jnp.tanh(logits_RMV / softcap)
  logp_RMV = jax.nn.log_softmax(logits_RMV)
  return jnp.take_along_axis(logp_RMV, targets_RM[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 50, None])
@pytest.mark.parametrize("vocabulary", [10, 37])  # 10: the last reaches back
def test_chunks_change_nothing(rng, chunk, vocabulary):
  given = inputs(rng)
  got = head.token_logps(*given, chunk=chunk, vocabulary=vocabulary)
  np.testing.assert_allclose(got, plain(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "chunk,vocabulary,softcap",
  [(4, 37, None), (13, 10, None), (4, 10, 3.0), (4, 37, 3.0)],
)
def test_gradients_equal_the_plain_ones(rng, chunk, vocabulary, softcap):
  hidden_RMD, head_VD, targets_RM = inputs(rng)
  weight_RM = jnp.asarray(rng.normal(size=(R, M)).astype(np.float32))

  def total(function, hidden_RMD, head_VD):
    return jnp.sum(weight_RM * function(hidden_RMD, head_VD, targets_RM))

  def chunked(*given):
    sizes = dict(chunk=chunk, vocabulary=vocabulary)
    capped = (softcap, None)
    return head.token_figures(*given, **sizes, softcaps=capped)["logp"]

  expected = functools.partial(plain, softcap=softcap)
  got = jax.grad(total, (1, 2))(chunked, hidden_RMD, head_VD)
  want = jax.grad(total, (1, 2))(expected, hidden_RMD, head_VD)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_by_differences(rng):
  with jax.enable_x64(True):
    hidden_RMD, head_VD, targets_RM = inputs(rng, np.float64)
    function = lambda h, w: head.token_logps(h, w, targets_RM, 11, chunk=4)  # noqa: E731
    check_grads(function, (hidden_RMD, head_VD), 1, modes=["rev"])


def test_places_past_the_used_ones_cost_and_give_nothing(rng):
  hidden_RMD, head_VD, targets_RM = inputs(rng)
  poisoned_RMD = hidden_RMD.at[:, 9:].set(jnp.nan)

  def total(hidden_RMD, head_VD):
    logp_RM = head.token_logps(hidden_RMD, head_VD, targets_RM, 9, chunk=3)
    return jnp.sum(logp_RM), logp_RM

  (_, logp_RM), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(
    poisoned_RMD, head_VD
  )
  assert not logp_RM[:, 9:].any()
  assert not grads[0][:, 9:].any() and np.isfinite(grads[1]).all()
  want = plain(hidden_RMD, head_VD, targets_RM)[:, :9]
  np.testing.assert_allclose(logp_RM[:, :9], want, rtol=1e-5, atol=1e-5)


def test_bfloat16_sums_in_float32(rng):
  hidden_RMD, head_VD, targets_RM = inputs(rng)
  narrow = [x.astype(jnp.bfloat16) for x in (hidden_RMD, head_VD)]
  got = head.token_logps(*narrow, targets_RM)
  assert got.dtype == jnp.float32
  want = plain(*(x.astype(jnp.float32) for x in narrow), targets_RM)
  np.testing.assert_allclose(got, want, atol=2e-2)


def test_a_chunk_is_at_most_an_eighth_of_a_row():
  for rows in (1, 8, 64):
    for places in (16, 512, 4096):
      assert head.chunk_size(rows, places) <= max(1, places // 8)


def test_wrong_axes_are_refused(rng):
  hidden_RMD, head_VD, targets_RM = inputs(rng)
  with pytest.raises(ValueError, match="D has size 8 in `hidden_RMD`, but 7"):
    head.token_logps(hidden_RMD, head_VD[:, 1:], targets_RM)


def plain_figures(hidden_RMD, head_VD, targets_RM, against):
  """Every figure from full logits."""
  logp_RMV, ref_RMV = (
    jax.nn.log_softmax(jnp.einsum("RMD,VD->RMV", hidden, head))
    for hidden, head in ((hidden_RMD, head_VD), against)
  )
  places = targets_RM[..., None]
  return {
    "logp": jnp.take_along_axis(logp_RMV, places, axis=-1)[..., 0],
    "ref_logp": jnp.take_along_axis(ref_RMV, places, axis=-1)[..., 0],
    "entropy": -jnp.sum(jnp.exp(logp_RMV) * logp_RMV, axis=-1),
    "log_sum_sq": jnp.log(jnp.sum(jnp.exp(2 * logp_RMV), axis=-1)),
    "kl": jnp.sum(jnp.exp(ref_RMV) * (ref_RMV - logp_RMV), axis=-1),
  }


def reference(rng, dtype=np.float32, width=D + 3):
  """A reference of another width and the same vocabulary."""
  hidden_RMD = jnp.asarray(rng.normal(size=(R, M, width)).astype(dtype))
  return hidden_RMD, jnp.asarray(rng.normal(size=(V, width)).astype(dtype))


ALSO = ("entropy", "log_sum_sq")


@pytest.mark.parametrize("chunk,vocabulary", [(4, 37), (13, 10), (13, 1)])
def test_figures_equal_the_plain_ones(rng, chunk, vocabulary):
  given, against = inputs(rng), reference(rng)
  sizes = dict(chunk=chunk, vocabulary=vocabulary)
  got = head.token_figures(*given, also=ALSO, against=against, **sizes)
  want = plain_figures(*given, against)
  assert set(got) == set(want)
  for name, value_RM in want.items():
    np.testing.assert_allclose(
      got[name], value_RM, rtol=1e-5, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize("chunk,vocabulary", [(4, 37), (13, 10), (13, 1)])
def test_greedy_targets_are_the_argmax_of_plain_logits(rng, chunk, vocabulary):
  hidden_RMD, head_VD, targets_RM = inputs(rng)
  likeliest_RM = jnp.einsum("RMD,VD->RMV", hidden_RMD, head_VD).argmax(-1)
  targets_RM = targets_RM.at[:, ::2].set(likeliest_RM[:, ::2])
  got = head.token_figures(
    *(hidden_RMD, head_VD, targets_RM, 11),
    also=("is_greedy",),
    chunk=chunk,
    vocabulary=vocabulary,
  )["is_greedy"]
  want = (likeliest_RM == targets_RM) & (jnp.arange(M)[None] < 11)
  np.testing.assert_array_equal(got, want)


def test_figures_by_hand():
  # Two tokens: p = (1/4, 3/4), r = (1/2, 1/2).
  hidden_RMD = jnp.ones((1, 1, 1))
  head_VD = jnp.log(jnp.array([[1.0], [3.0]]))
  got = head.token_figures(
    hidden_RMD,
    head_VD,
    jnp.array([[1]]),
    also=ALSO,
    against=(hidden_RMD, jnp.zeros((2, 1))),
  )
  want = {
    "logp": np.log(3 / 4),
    "entropy": np.log(4) - 0.75 * np.log(3),
    "log_sum_sq": np.log(10 / 16),
    "ref_logp": np.log(1 / 2),
    "kl": 0.5 * np.log(2) + 0.5 * np.log(2 / 3),
  }
  assert {k: float(v[0, 0]) for k, v in got.items()} == pytest.approx(want)


def test_gradients_of_log_probability_and_divergence(rng):
  given, against = inputs(rng), reference(rng)
  weight_2RM = jnp.asarray(rng.normal(size=(2, R, M)).astype(np.float32))

  def total(function, hidden_RMD, head_VD):
    figures = function(hidden_RMD, head_VD, given[2])
    return jnp.sum(weight_2RM * jnp.stack([figures["logp"], figures["kl"]]))

  def chunked(*given):
    return head.token_figures(*given, against=against, chunk=4, vocabulary=10)

  def plain(*given):
    return plain_figures(*given, against)

  got = jax.grad(total, (1, 2))(chunked, *given[:2])
  want = jax.grad(total, (1, 2))(plain, *given[:2])
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_gradient_of_products_is_the_plain_one(rng, softcap):
  product_RMV, ref_RMV = jnp.asarray(rng.normal(size=(2, R, M, V)))
  targets_RM = inputs(rng)[2]
  grads = dict(zip(("logp", "kl"), rng.normal(size=(2, R, M)), strict=True))

  def capped(product_RMV):
    if softcap is None:
      return product_RMV
    return softcap * jnp.tanh(product_RMV / softcap)

  def total(product_RMV):
    logp_RMV = jax.nn.log_softmax(capped(product_RMV))
    ref_logp_RMV = jax.nn.log_softmax(ref_RMV)
    places = targets_RM[..., None]
    logp_RM = jnp.take_along_axis(logp_RMV, places, axis=-1)[..., 0]
    kl_RM = jnp.sum(jnp.exp(ref_logp_RMV) * (ref_logp_RMV - logp_RMV), axis=-1)
    return jnp.sum(grads["logp"] * logp_RM + grads["kl"] * kl_RM)

  logits = [capped(product_RMV), ref_RMV]
  got = head.grad_logits(
    logits,
    [jax.nn.logsumexp(logits_RMV, axis=-1) for logits_RMV in logits],
    jax.nn.one_hot(targets_RM, V, dtype=bool),
    jax.tree.map(jnp.asarray, grads),
    softcap,
    jnp.arange(V)[None, None] > 3,
  )
  want = jax.grad(total)(product_RMV)
  np.testing.assert_allclose(got[..., 4:], want[..., 4:], atol=1e-6)
  assert not got[..., :4].any()  # a block before has them


def test_other_figures_have_no_gradient(rng):
  given, against = inputs(rng), reference(rng)

  def total(hidden_RMD, head_VD, against):
    figures = head.token_figures(
      hidden_RMD, head_VD, given[2], also=ALSO, against=against, chunk=4
    )
    return sum(figures[name].sum() for name in (*ALSO, "ref_logp"))

  grads = jax.grad(total, (0, 1, 2))(*given[:2], against)
  assert not any(grad.any() for grad in jax.tree.leaves(grads))


def test_a_reference_of_another_vocabulary_is_refused(rng):
  hidden_RMD, head_VD = reference(rng)
  message = f"V has size {V} in .*, but {V - 1} in `against_head_VD`"
  with pytest.raises(ValueError, match=message):
    head.token_figures(*inputs(rng), against=(hidden_RMD, head_VD[1:]))


def test_a_quantised_head_is_projected_block_by_block(rng):
  hidden_RMD, head_VD, targets_RM = inputs(rng)
  params = {"embed": head_VD, "norm": jnp.ones(D), "blocks": {}}
  quantised = weights.quantize(params, {"blocks": {}}, "int8")["embed"]
  whole = weights.dense(quantised, jnp.float32)

  def total(hidden_RMD, head):
    return jnp.sum(token_logps(hidden_RMD, head, targets_RM, vocabulary=10))

  token_logps = head.token_logps
  got, got_grad = jax.value_and_grad(total)(hidden_RMD, quantised)
  want, want_grad = jax.value_and_grad(total)(hidden_RMD, whole)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(got_grad, want_grad, rtol=1e-5, atol=1e-6)
