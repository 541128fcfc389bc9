# SPDX-License-Identifier: Apache-2.0
"""Weights of tokens against hand values, counts and laws."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax import losses

INDEX = jnp.broadcast_to(jnp.arange(4), (2, 2, 4))


def test_earlier_tokens_count_more():
  # 0.5^(t + 0) and 0.5^(t + 2)
  index_CT = jnp.array([[0, 1], [3, 0]])
  got = losses.temporal_decay(index_CT, gamma=0.5)
  np.testing.assert_allclose(got, [[1.0, 0.5], [0.125, 1.0]], rtol=1e-6)
  got = losses.temporal_decay(index_CT, gamma=0.5, offset=2)
  np.testing.assert_allclose(got, [[0.25, 0.125], [1 / 32, 0.25]], rtol=1e-6)


def test_decay_may_start_at_each_prompts_own_length():
  offset = jnp.array([[3, 3], [1, 0]])
  got = losses.temporal_decay(
    jnp.array([[0, 1], [0, 2]]), gamma=0.5, offset=offset
  )
  np.testing.assert_allclose(got, [[1 / 8, 1 / 16], [0.5, 0.25]], rtol=1e-6)


def test_the_decays_offset_is_cast_by_hand():
  index = jnp.arange(3)
  with jax.numpy_dtype_promotion("strict"):
    for offset in (index, jnp.float32(2.0), 1):
      call = functools.partial(losses.temporal_decay, offset=offset)
      assert jax.eval_shape(call, index).dtype == jnp.float32


def test_default_decay():
  got = losses.temporal_decay(jnp.array([0, 1, 10, 10_000]))
  want = losses.temporal_decay(
    jnp.array([0, 1, 10, 10_000]), gamma=0.98, offset=0
  )
  np.testing.assert_array_equal(got, want)
  np.testing.assert_allclose(got, [1.0, 0.98, 0.98**10, 0.0], rtol=1e-5)


def test_no_decay_is_no_weighting():
  got = losses.temporal_decay(INDEX, gamma=1, offset=7)
  np.testing.assert_array_equal(got, np.ones((2, 2, 4)))


def test_what_a_response_has_more_counts_less():
  # The responses have 2 and 4 tokens: from the third on alpha.
  shorter = jnp.full(INDEX.shape, 2)
  got = losses.length_desensitized(INDEX, shorter, alpha=0.25)
  np.testing.assert_array_equal(got[0, 1], [1.0, 1.0, 0.25, 0.25])
  assert got.shape == INDEX.shape
  got = losses.length_desensitized(INDEX[0], jnp.array([[4], [1]]), alpha=0.0)
  np.testing.assert_array_equal(got, [[1, 1, 1, 1], [1, 0, 0, 0]])


def test_default_alpha_and_alpha_one():
  shorter = jnp.full(INDEX.shape, 1)
  got = losses.length_desensitized(INDEX, shorter)
  np.testing.assert_array_equal(
    got, losses.length_desensitized(INDEX, shorter, alpha=0.5)
  )
  np.testing.assert_array_equal(got[0, 0], [1.0, 0.5, 0.5, 0.5])
  got = losses.length_desensitized(INDEX, shorter, alpha=1.0)
  np.testing.assert_array_equal(got, np.ones((2, 2, 4)))


# Four pairs of responses of 5 and 4, 3 and 6, ... tokens in 7 places.
LENGTH = np.array([[5, 4], [3, 6], [6, 6], [2, 1]])
PADDED = (
  np.broadcast_to(np.arange(7), (4, 2, 7)),
  np.broadcast_to(LENGTH[..., None], (4, 2, 7)),
  np.broadcast_to(LENGTH.min(1)[:, None, None], (4, 2, 7)),
)


# Responses of 5 and 3 tokens and padding; a prompt's token, a response of 6,
# a prompt's token, two responses of one token, padding.  What is no response
# has index 0 and length 0, and here a senseless number to keep.
PACKED = (
  np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 0, 0], [0, *range(6), *[0] * 5]]),
  np.array([[5] * 5 + [3] * 3 + [0] * 4, [0, *[6] * 6, 0, 1, 1, 0, 0]]),
  np.array([[3] * 5 + [3] * 3 + [9] * 4, [9, *[2] * 6, 9, 1, 0, 9, 9]]),
)


def drawn(given, keys=200):
  """The weights for many keys, stacked in front."""
  draw = jax.jit(jax.vmap(losses.down_sample, in_axes=(0, None, None, None)))
  keys = jax.random.split(jax.random.key(1), keys)
  return np.asarray(draw(keys, *(jnp.asarray(x) for x in given)))


def test_every_padded_response_keeps_as_many_as_the_shorter():
  index, length, keep = PADDED
  weight = drawn(PADDED)
  assert weight.shape == (200, 4, 2, 7) and weight.dtype == np.float32
  assert set(np.unique(weight)) == {0.0, 1.0}
  assert not weight[:, index >= length].any()
  np.testing.assert_array_equal(
    weight.sum(-1), np.broadcast_to(keep[..., 0], (200, 4, 2))
  )


def test_every_packed_response_keeps_its_own_number():
  weight = drawn(PACKED)
  assert not weight[:, PACKED[1] == 0].any()
  spans = {(0, 0): 3, (0, 5): 3, (1, 1): 2, (1, 8): 1, (1, 9): 0}
  for (row, start), keep in spans.items():
    size = PACKED[1][row, start]
    kept = weight[:, row, start : start + size].sum(-1)
    np.testing.assert_array_equal(kept, keep, err_msg=f"{row, start}")


def test_every_subset_is_equally_likely():
  # 2 of 4 tokens: 6 subsets, each 1000 of 6000 times, +- 5 sqrt(6000 5 / 36).
  four = np.arange(4), np.full(4, 4), np.full(4, 2)
  weight = drawn(four, 6000)
  for pair in itertools.combinations(range(4), 2):
    count = weight[:, pair].all(-1).sum()
    assert abs(count - 1000) < 5 * np.sqrt(6000 * 5 / 36), pair


def test_every_token_is_equally_likely_and_responses_are_independent():
  # The response of 6 tokens keeps 3: each 1000 of 2000, +- 5 sqrt(2000 / 4).
  weight = drawn(PADDED, 2000)
  kept = weight[:, 1, 1, :6].sum(0)
  assert (np.abs(kept - 1000) < 5 * np.sqrt(500)).all()
  kept = weight[:, 0, 0, :5].sum(0)  # 4 of 5: 1600, +- 5 sqrt(2000 0.16)
  assert (np.abs(kept - 1600) < 5 * np.sqrt(320)).all()
  # Two responses that lose one token each of 5 and 2: any pair of losses.
  both = (1 - weight[:, 0, 0, :5]).argmax(-1), weight[:, 3, 0, :2].argmax(-1)
  counts = np.histogram2d(*both, bins=(5, 2))[0]
  assert (np.abs(counts - 200) < 5 * np.sqrt(2000 * 0.09)).all()


def test_one_key_is_one_draw():
  given = [jnp.asarray(x) for x in PADDED]
  one = losses.down_sample(jax.random.key(3), *given)
  np.testing.assert_array_equal(
    one, losses.down_sample(jax.random.key(3), *given)
  )
  assert (one != losses.down_sample(jax.random.key(4), *given)).any()
  raw = losses.down_sample(jax.random.PRNGKey(3), *given)
  np.testing.assert_array_equal(one, raw)


def test_the_draw_does_not_depend_on_jax_enable_x64():
  one = losses.down_sample(jax.random.key(3), *PADDED)
  with jax.enable_x64(True):
    two = losses.down_sample(jax.random.key(3), *PADDED)
  assert two.dtype == jnp.float32
  np.testing.assert_array_equal(one, two)


def test_keeping_all_and_keeping_none():
  index, length, _ = (jnp.asarray(x) for x in PADDED)
  key = jax.random.key(0)
  every = losses.down_sample(key, index, length, length)
  np.testing.assert_array_equal(every, index < length)
  assert not losses.down_sample(key, index, length, 0).any()
  # One number for all tokens.
  got = losses.down_sample(key, index, 5, 2)
  assert got.shape == index.shape and (got.sum(-1) == 2).all()
  assert not got[..., 5:].any()


def test_tokens_that_differ_count_by_their_surprise():
  # 1 + min(1 / p, 2.5) = 1 + 2, 1 + 1.25, 1 + 2.5, and 1 where they agree.
  token_logp = jnp.log(jnp.array([[0.5, 0.8], [0.1, 0.1]]))
  differs = jnp.array([[True, True], [True, False]])
  got = losses.bridged(token_logp, differs, cap=2.5)
  np.testing.assert_allclose(got, [[3.0, 2.25], [3.5, 1.0]], rtol=1e-6)
  got = losses.bridged(token_logp, differs.astype(int), cap=2.5)
  np.testing.assert_allclose(got, [[3.0, 2.25], [3.5, 1.0]], rtol=1e-6)


def test_default_cap_holds_for_impossible_tokens():
  token_logp = jnp.array([-1e4, -jnp.inf, 0.0, np.log(0.6)])
  got = losses.bridged(token_logp, jnp.ones(4))
  np.testing.assert_allclose(got, [3.0, 3.0, 2.0, 1 + 1 / 0.6], rtol=1e-6)
  np.testing.assert_array_equal(
    got, losses.bridged(token_logp, jnp.ones(4), cap=2.0)
  )


def test_no_difference_is_no_weighting():
  got = losses.bridged(jnp.array([-1e4, -1.0]), jnp.zeros(2, bool))
  np.testing.assert_array_equal(got, [1.0, 1.0])


def test_no_gradient_through_the_weight_of_a_token():
  # d sum(weight * logp) = weight
  differs = jnp.array([True, False, True])

  def score(token_logp):
    return jnp.sum(losses.bridged(token_logp, differs) * token_logp)

  grad = jax.grad(score)(jnp.log(jnp.array([0.8, 0.8, 0.1])))
  np.testing.assert_allclose(grad, [2.25, 1.0, 3.0], rtol=1e-6)


def test_off_policy_pairs_count_less():
  # exp of the sum over the pair: 1/4 * 2, 3 * 2, 1/8 * 1; at most 1.
  excess_BC = jnp.log(jnp.array([[0.25, 2.0], [3.0, 2.0], [0.125, 1.0]]))
  got = losses.wpo_weight(excess_BC)
  np.testing.assert_allclose(got, [0.5, 1.0, 0.125], rtol=1e-6)
  np.testing.assert_array_equal(got, losses.wpo_weight(excess_BC, clamp=True))
  got = losses.wpo_weight(excess_BC, clamp=False)
  np.testing.assert_allclose(got, [0.5, 6.0, 0.125], rtol=1e-5)


def test_weights_of_pairs_are_finite_and_have_no_gradient():
  far_BC = jnp.array([[1e4, 1e4], [-1e4, 1.0], [0.0, 0.0]])
  got = losses.wpo_weight(far_BC, clamp=False)
  np.testing.assert_allclose(got, [np.exp(80.0), 0.0, 1.0], rtol=1e-5)
  np.testing.assert_array_equal(losses.wpo_weight(far_BC), [1.0, 0.0, 1.0])
  for clamp in (True, False):
    total = lambda x, c=clamp: losses.wpo_weight(x, clamp=c).sum()  # noqa: E731
    assert not jax.grad(total)(jnp.array([[-0.5, 0.25]])).any()


LOGRATIO = jnp.array([[2.0, -1.0], [0.5, 1.0]])
KL = jnp.array([[1.0, 3.0], [4.0, 2.0]])


def test_margins_pay_for_divergence():
  # Delta = 3, -0.5; KL_l - KL_w = 2, -2; beta = 0.5, alpha = 0.25.
  got = losses.tdpo(LOGRATIO, KL, beta=0.5, alpha=0.25, version=1)
  margin_B = np.array([0.5 * (3 - 2), 0.5 * (-0.5 + 2)])
  np.testing.assert_allclose(got, np.logaddexp(0, -margin_B), rtol=1e-6)
  got = losses.tdpo(LOGRATIO, KL, beta=0.5, alpha=0.25, version=2)
  margin_B = np.array([0.5 * (3 - 0.5), 0.5 * (-0.5 + 0.5)])
  np.testing.assert_allclose(got, np.logaddexp(0, -margin_B), rtol=1e-6)


def test_default_divergence():
  want = losses.tdpo(LOGRATIO, KL, beta=0.1, alpha=0.5, version=2)
  np.testing.assert_array_equal(losses.tdpo(LOGRATIO, KL), want)
  # 0.1 * (3 - 0.5 * 2) and 0.1 * (-0.5 + 0.5 * 2)
  margin_B = np.array([0.2, 0.05])
  np.testing.assert_allclose(want, np.logaddexp(0, -margin_B), rtol=1e-6)


def test_no_price_of_divergence_is_dpo():
  got = losses.tdpo(LOGRATIO, KL, beta=0.3, alpha=0.0)
  np.testing.assert_array_equal(got, losses.dpo(LOGRATIO, beta=0.3))
  # Both responses drifted as far: also dpo, in either version.
  same = jnp.broadcast_to(KL[:, :1], (2, 2))
  for version in (1, 2):
    got = losses.tdpo(LOGRATIO, same, version=version)
    np.testing.assert_allclose(got, losses.dpo(LOGRATIO), rtol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_gradients_of_the_divergences(version):
  # d loss = -sigmoid(-m) d m;  m = beta (Delta - price (KL_l - KL_w)).
  price = {1: 1.0, 2: 0.25}[version]

  def loss(logratio_BC, kl_BC):
    given = dict(beta=0.5, alpha=0.25, version=version)
    return losses.tdpo(logratio_BC, kl_BC, **given).sum()

  by_logratio, by_kl = jax.grad(loss, argnums=(0, 1))(LOGRATIO, KL)
  margin_B = 0.5 * (np.array([3, -0.5]) - price * np.array([2, -2]))
  slope_B = 0.5 / (1 + np.exp(margin_B))
  np.testing.assert_allclose(by_logratio[:, 0], -slope_B, rtol=1e-5)
  np.testing.assert_allclose(by_logratio[:, 1], slope_B, rtol=1e-5)
  np.testing.assert_allclose(by_kl[:, 1], price * slope_B, rtol=1e-5)
  chosen_B = -slope_B if version == 1 else np.zeros(2)
  np.testing.assert_allclose(by_kl[:, 0], chosen_B, rtol=1e-5)
  with jax.enable_x64(True):
    logratio_BC, kl_BC = (
      jnp.asarray(np.asarray(x, np.float64)) for x in (LOGRATIO, KL)
    )
    if version == 1:
      check_grads(jax.jit(loss), (logratio_BC, kl_BC), 1, modes=["rev"])
      return
    rejected = lambda x, kl_l: loss(  # noqa: E731
      x, jnp.stack([kl_BC[:, 0], kl_l], axis=1)
    )
    check_grads(jax.jit(rejected), (logratio_BC, kl_BC[:, 1]), 1, modes=["rev"])


def test_divergence_from_vocabularies_by_hand():
  # One chosen token: KL((1/2, 1/4, 1/4) || (1/4, 1/2, 1/4))
  #   = 1/2 log 2 - 1/4 log 2; the label's r_w = log(1/4 / 1/2).
  # Two rejected tokens: the same, and KL((1/2, 1/4, 1/4) || (1/8, 1/8, 3/4))
  #   = 1/2 log 4 + 1/4 log 2 - 1/4 log 3; r_l = log 2 + log 3.
  base = [0.5, 0.25, 0.25]
  ref_logp_CTV = jnp.log(jnp.array([[base, base], [base, base]]))
  near, far = [0.25, 0.5, 0.25], [0.125, 0.125, 0.75]
  logits_CTV = jnp.log(jnp.array([[near, far], [near, far]]))
  real_CT = jnp.array([[1.0, 0.0], [1.0, 1.0]])
  label_CT = jnp.array([[0, 0], [1, 2]])

  def loss(logits_CTV, version):
    logp_CTV = jax.nn.log_softmax(logits_CTV)
    gap_CTV = logp_CTV - ref_logp_CTV
    kl_CT = -jnp.sum(jnp.exp(ref_logp_CTV) * gap_CTV, axis=-1)
    ratio_CT = jnp.take_along_axis(gap_CTV, label_CT[..., None], -1)[..., 0]
    sums = [jnp.sum(x * real_CT, axis=-1)[None] for x in (ratio_CT, kl_CT)]
    return losses.tdpo(*sums, beta=1.0, alpha=0.5, version=version)[0]

  log2, log3 = np.log(2), np.log(3)
  delta = -log2 - (log2 + log3)
  extra = 1.25 * log2 - 0.25 * log3
  for version, price in ((1, 1.0), (2, 0.5)):
    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    got, grad_CTV = value_and_grad(logits_CTV, version)
    want = np.logaddexp(0, -(delta - price * extra))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not grad_CTV[0, 1].any()  # padding
    # d r / d logits = one-hot - p;  d KL / d logits = p - ref.
    slope = 1 / (1 + np.exp(delta - price * extra))
    pays = 1.0 if version == 1 else 0.0
    by_hand = -slope * (np.eye(3)[0] - near + pays * (np.array(near) - base))
    np.testing.assert_allclose(grad_CTV[0, 0], by_hand, atol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_finite_far_away(version):
  sign = jnp.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
  for logratio, kl in itertools.product((-1e4, 1e4), (0.0, 1e4)):
    loss_B, pull = jax.vjp(
      lambda x, kl_BC: losses.tdpo(x, kl_BC, version=version),
      logratio * sign,
      kl * jnp.abs(sign),
    )
    assert np.isfinite(loss_B).all()
    assert all(np.isfinite(x).all() for x in pull(jnp.ones(4)))


def test_a_third_version_is_refused():
  for version in (0, 3):
    with pytest.raises(ValueError, match=f"version.*1 or 2.*{version}"):
      losses.tdpo(LOGRATIO, KL, version=version)


def test_a_wrong_axis_is_refused_by_name():
  for shape, match in (
    ((3, 2), "axis B has size 2 in `logratio_BC`, but 3 in `kl_BC`"),
    ((2, 3), "`kl_BC` has size 3 and must be 2"),
    ((2,), r"`kl_BC` must have axes \[B C\]"),
  ):
    with pytest.raises(ValueError, match=match):
      losses.tdpo(LOGRATIO, jnp.zeros(shape))
  with pytest.raises(ValueError, match=r"`logratio_BC` must have axes \[B C\]"):
    losses.tdpo(LOGRATIO[0], KL)
  with pytest.raises(ValueError, match="`mean_excess_BC` has size 3 and must"):
    losses.wpo_weight(jnp.zeros((2, 3)))


def test_computes_in_float32():
  # Sums and differences of these have more digits than bfloat16.
  half = jnp.array([[-0.25, -96.5], [-2.015625, -8.125]], jnp.bfloat16)
  wide = half.astype(jnp.float32)
  for weigh in (
    lambda x: losses.bridged(x, x < 0),
    losses.wpo_weight,
    lambda x: losses.tdpo(x, -x),
    lambda x: losses.temporal_decay(-x),
    lambda x: losses.length_desensitized(-x, 1),
  ):
    got = weigh(half)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, weigh(wide))
  with jax.enable_x64(True):
    index = np.arange(3)
    assert losses.temporal_decay(index).dtype == jnp.float32
    assert losses.temporal_decay(1.0 * index).dtype == jnp.float64
    assert losses.bridged(1.0 * index, index > 0).dtype == jnp.float64


def test_jit_and_vmap_change_nothing():
  want = losses.tdpo(LOGRATIO, KL)
  np.testing.assert_allclose(
    jax.jit(losses.tdpo)(LOGRATIO, KL), want, rtol=1e-6
  )
  one_by_one = jax.vmap(lambda x, kl: losses.tdpo(x[None], kl[None])[0])
  np.testing.assert_allclose(one_by_one(LOGRATIO, KL), want, rtol=1e-6)
  want = losses.temporal_decay(INDEX)
  np.testing.assert_allclose(
    jax.jit(jax.vmap(losses.temporal_decay))(INDEX), want, rtol=1e-6
  )
  given = [jnp.asarray(x) for x in PADDED]
  key = jax.random.key(5)
  np.testing.assert_array_equal(
    jax.jit(losses.down_sample)(key, *given), losses.down_sample(key, *given)
  )


def test_weights_of_tokens_take_lists():
  key = jax.random.key(0)
  for function, arrays in (
    (losses.temporal_decay, ([0, 1, 2],)),
    (losses.length_desensitized, ([0, 1, 2], [2, 2, 2])),
    (losses.bridged, ([-1.0, -2.0, -0.5], [1, 0, 1])),
    (functools.partial(losses.down_sample, key), ([0, 1], [2, 2], [1, 1])),
  ):
    want = function(*map(jnp.asarray, arrays))
    np.testing.assert_array_equal(function(*arrays), want)
