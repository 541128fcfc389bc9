# SPDX-License-Identifier: Apache-2.0
"""The unit of log-probabilities, and what is measured before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax import losses

RNG = np.random.default_rng(11)
POLICY_BC = -jnp.asarray(RNG.uniform(20, 40, (4, 2)).astype(np.float32))
REF_BCK = -jnp.asarray(RNG.uniform(20, 40, (4, 2, 3)).astype(np.float32))
TRAIN_NCK = -jnp.asarray(RNG.uniform(20, 40, (9, 2, 3)).astype(np.float32))


def margins(*margin_NK):
  """One pair for each row, one reference for each column."""
  margin_NK = jnp.array(margin_NK, jnp.float32)
  return jnp.stack([margin_NK - 50.0, jnp.full_like(margin_NK, -50.0)], axis=1)


def measured(method, ref_logp_NCK=TRAIN_NCK, **figures):
  """Its state after one data set, which is all its splits."""
  split = dict(ref_logp_NCK=ref_logp_NCK, **figures)
  state = method.init(ref_logp_NCK.shape[-1])
  return method.measure(state, **dict.fromkeys(method.measures, split))


# Per character.


def test_every_model_is_divided_by_the_same_characters():
  # Of 6 and 3 characters: the policy has -2 and -3 nats each, the first
  # reference -3 and -2, the second -1 and -4.
  policy_BC = jnp.array([[-12.0, -9.0]])
  ref_BCK = jnp.array([[[-18.0, -6.0], [-6.0, -12.0]]])
  character_BC = jnp.array([[6, 3]])
  for weights, margin in (((1, 0), 2.0), ((0, 1), -2.0), ((1, 1), 0.0)):
    method = losses.build(
      "dpo", beta=1.0, scale="character", mixture="geometric", weights=weights
    )
    # Tokens do not enter, whoever's they are.
    got = method(
      policy_BC,
      ref_BCK,
      character_BC=character_BC,
      length_BC=jnp.array([[2, 5]]),
      ref_length_BCK=jnp.array([[[7, 1], [3, 3]]]),
    )
    np.testing.assert_allclose(got, [np.log1p(np.exp(-margin))], rtol=1e-6)
  policy_BC, ref_BCK = method.scaled(
    policy_BC, ref_BCK, character_BC=character_BC
  )
  np.testing.assert_allclose(policy_BC, [[-2.0, -3.0]])
  np.testing.assert_allclose(ref_BCK, [[[-3.0, -1.0], [-2.0, -4.0]]])


def test_characters_are_needed_and_named():
  method = losses.build("dpo", scale="character")
  assert method.needs == {"character_BC"}
  with pytest.raises(ValueError, match="'dpo' needs character_BC"):
    method(POLICY_BC, REF_BCK[..., :1], length_BC=jnp.ones((4, 2)))
  assert losses.build("cpo", scale="character").needs == {"character_BC"}
  for scale in ("sum", "zscore"):
    assert losses.build("dpo", scale=scale).needs == set()


def test_an_empty_response_has_no_characters_to_divide_by():
  method = losses.build("dpo", scale="character")
  zero_BC = jnp.zeros((1, 2))
  got = method(zero_BC, zero_BC[..., None], character_BC=zero_BC)
  np.testing.assert_allclose(got, [np.log(2)], rtol=1e-6)


def test_a_memory_is_per_character_too():
  # |margins| of 12 and 4 nats in sum; 2 and 4 per character.
  ref_BCK = jnp.array([[[-6.0, -6.0], [-18.0, -10.0]]])
  character_BC = jnp.array([[3, 2]])
  per = {"sum": [12 / 16, 4 / 16], "character": [7 / 10, 3 / 10]}
  for scale, want in per.items():
    method = losses.build(
      "mrpo", scale=scale, weights=dict(name="sliding_window")
    )
    state = method.update(
      method.init(2), POLICY_BC[:1], ref_BCK, character_BC=character_BC
    )
    np.testing.assert_allclose(
      method.mixing.weights(state, ref_BCK), want, rtol=1e-6
    )


# Factors of references.


def test_factors_by_hand():
  # Root mean squares of 3, -4; 30, -40; 0, 0; 0.75, 1 (signs do not count).
  ref_NCK = margins([3, 30, 0, 0.75], [-4, -40, 0, 1])
  got = losses.scale_factors(ref_NCK)
  np.testing.assert_allclose(got, [1.0, 0.1, 1.0, 4.0], rtol=1e-6)
  # A base that tells no pair apart gives no unit.
  np.testing.assert_array_equal(losses.scale_factors(ref_NCK[..., 2:]), [1, 1])


def test_factors_read_no_label():
  want = losses.scale_factors(TRAIN_NCK)
  for pairs in (slice(None), slice(3), slice(2, 7)):
    flipped_NCK = TRAIN_NCK.at[pairs].set(TRAIN_NCK[pairs, ::-1])
    np.testing.assert_allclose(
      losses.scale_factors(flipped_NCK), want, rtol=1e-6
    )


def test_factors_are_wide_finite_and_have_no_gradient():
  half_NCK = TRAIN_NCK.astype(jnp.bfloat16)
  got = losses.scale_factors(half_NCK)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(
    got, losses.scale_factors(half_NCK.astype(jnp.float32))
  )
  far_NCK = margins([1e4, -1e-4], [-1e4, 1e-4])
  assert np.isfinite(losses.scale_factors(far_NCK)).all()
  total = lambda x: losses.scale_factors(x).sum()  # noqa: E731
  assert not jax.grad(total)(TRAIN_NCK).any()
  assert np.isfinite(jax.grad(total)(jnp.zeros((2, 2, 2)))).all()
  with pytest.raises(
    ValueError, match=r"`ref_logp_NCK` must have axes \[N C K\]"
  ):
    losses.scale_factors(TRAIN_NCK[0])


def test_the_margins_get_the_bases_spread():
  method = losses.build("dpo", mixture="harmonic", scale="zscore")
  state = measured(method)
  _, ref_NCK = method.scaled(TRAIN_NCK[..., 0], TRAIN_NCK, state=state)
  spread_K = np.sqrt(((ref_NCK[:, 0] - ref_NCK[:, 1]) ** 2).mean(0))
  np.testing.assert_allclose(spread_K, [spread_K[0]] * 3, rtol=1e-5)
  np.testing.assert_array_equal(ref_NCK[..., 0], TRAIN_NCK[..., 0])
  # The base and the policy are as they were.
  policy_BC, ref_BCK = method.scaled(POLICY_BC, REF_BCK, state=state)
  np.testing.assert_array_equal(policy_BC, POLICY_BC)
  np.testing.assert_array_equal(ref_BCK[..., 0], REF_BCK[..., 0])
  assert (ref_BCK[..., 1:] != REF_BCK[..., 1:]).all()


MIXED = [
  dict(name="mrpo"),
  dict(name="mrpo", weights="sliding_window"),
  dict(name="mrpo", weights="discrimination"),
  dict(name="ipo", mixture="geometric", weights=(1.0, 2.0, 3.0)),
  dict(name="dpo", mixture="arithmetic", betas=(0.1, 0.2, 0.3)),
  dict(name="multi_dpo", clip=dict(epsilon_max=0.1)),
  dict(name="mnpo", weights=(1.0, 2.0, 3.0)),
  dict(name="beta_dpo", mixture="geometric"),
]


@pytest.mark.parametrize("c", [0.01, 3.0, 100.0])
@pytest.mark.parametrize("section", MIXED, ids=str)
def test_how_loud_a_reference_is_does_not_matter(section, c):
  method = losses.build(**section, scale="zscore")
  loud_11K = jnp.array([[[1.0, c, 1.0]]])

  def loss(factor_11K):
    state = measured(method, TRAIN_NCK * factor_11K)
    state = method.update(state, POLICY_BC, REF_BCK * factor_11K)
    return method(POLICY_BC, REF_BCK * factor_11K, state=state)

  want = loss(jnp.ones((1, 1, 3)))
  np.testing.assert_allclose(loss(loud_11K), want, rtol=1e-3)
  # Without the factors it does.
  plain = losses.build(**section)
  state = measured(plain)
  apart_B = plain(POLICY_BC, REF_BCK * loud_11K, state=state)
  apart_B -= plain(POLICY_BC, REF_BCK, state=state)
  assert jnp.abs(apart_B).max() > 2e-3


@pytest.mark.parametrize("section", MIXED, ids=str)
def test_before_it_is_measured_the_scale_is_the_sum(section):
  method, plain = (
    losses.build(**section, scale="zscore"),
    losses.build(**section),
  )
  want = plain(POLICY_BC, REF_BCK)
  np.testing.assert_array_equal(method(POLICY_BC, REF_BCK), want)
  state = method.init(3)
  np.testing.assert_array_equal(state["scale"], np.ones(3))
  got = method(POLICY_BC, REF_BCK, state=state)
  np.testing.assert_array_equal(got, want)


def test_one_reference_is_untouched():
  method = losses.build("dpo", scale="zscore")
  ref_BCK = REF_BCK[..., :1]
  got = method(POLICY_BC, ref_BCK, state=measured(method, TRAIN_NCK[..., 1:2]))
  want = losses.dpo(POLICY_BC - ref_BCK[..., 0])
  np.testing.assert_array_equal(got, want)


def test_gradients_of_a_measured_method():
  method = losses.build("mrpo", scale="zscore", clip=None)
  state = measured(method)
  call = lambda policy: method(policy, REF_BCK, state=state)  # noqa: E731
  check_grads(call, (POLICY_BC,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)
  total = lambda ref: method(POLICY_BC, ref, state=state).sum()  # noqa: E731
  assert not jax.grad(total)(REF_BCK).any()
  got = jax.jit(method)(POLICY_BC, REF_BCK, state=state)
  np.testing.assert_allclose(got, call(POLICY_BC), rtol=1e-5)


def test_a_scale_of_other_references_is_refused():
  method = losses.build("dpo", mixture="harmonic", scale="zscore")
  for K in (1, 2):
    with pytest.raises(ValueError, match=f"K has size 3 in .*, but {K} in"):
      method(POLICY_BC, REF_BCK, state=method.init(K))
    with pytest.raises(ValueError, match=f"K has size 3 in .*, but {K} in"):
      split = dict(ref_logp_NCK=TRAIN_NCK)
      method.measure(method.init(K), train=split)


# What a method measures.


def test_which_splits_a_method_measures():
  assert losses.build("mrpo").measures == set()
  assert losses.build("mrpo", scale="zscore").measures == {"train"}
  for rule in ("discrimination", dict(name="accuracy")):
    method = losses.build("mrpo", weights=rule)
    assert method.measures == {"validation"} and not method.learns
    both = losses.build("mrpo", weights=rule, scale="zscore")
    assert both.measures == {"train", "validation"}


def test_a_missing_split_is_named():
  split = dict(ref_logp_NCK=TRAIN_NCK)
  method = losses.build("mrpo", weights="accuracy", scale="zscore")
  state = method.init(3)
  with pytest.raises(ValueError, match="'mrpo' measures the train pairs"):
    method.measure(state)
  with pytest.raises(ValueError, match="measures the train pairs"):
    method.measure(state, validation=split)
  with pytest.raises(ValueError, match="measures the validation pairs"):
    method.measure(state, train=split)


def test_measured_weights_are_those_of_held_out_pairs():
  split = dict(ref_logp_NCK=TRAIN_NCK)
  for name in ("discrimination", "accuracy"):
    method = losses.build("mrpo", weights=name)
    state = method.init(3)
    np.testing.assert_allclose(
      method.mixing.weights(state, REF_BCK), [1 / 3] * 3
    )
    state = method.measure(state, validation=split)
    want_K = getattr(losses, f"{name}_weights")(TRAIN_NCK)
    np.testing.assert_array_equal(method.mixing.weights(state, REF_BCK), want_K)
    np.testing.assert_allclose(
      method(POLICY_BC, REF_BCK, state=state),
      losses.mrpo(POLICY_BC, REF_BCK, weight=want_K),
      rtol=1e-6,
    )
    # Training changes them no more.
    after = method.update(state, POLICY_BC, REF_BCK)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_weights_are_measured_in_the_unit_of_the_method():
  # Margins of 8 and 6 nats in sum.
  ref_NCK = jnp.array([[[-12.0, -12.0], [-20.0, -18.0]]])
  token_NCK = jnp.array([[[6, 4], [4, 9]]])  # means -2, -3; -5, -2: 3 and 1
  character_NC = jnp.array([[12, 10]])  # -1, -1; -2, -1.8: 1 and 0.8
  figures = dict(ref_length_NCK=token_NCK, character_NC=character_NC)
  per = {"sum": [8, 6], "mean": [3, 1], "character": [1, 0.8]}
  for scale, margin_K in per.items():
    method = losses.build("mrpo", weights="discrimination", scale=scale)
    state = measured(method, ref_NCK, **figures)
    want_K = np.array(margin_K) / sum(margin_K)
    np.testing.assert_allclose(state["weights"], want_K, rtol=1e-6)
  # A loss of means measures means.
  method = losses.build(
    "rainbow_po", mixture="geometric", weights="discrimination"
  )
  state = measured(method, ref_NCK, **figures)
  np.testing.assert_allclose(state["weights"], [0.75, 0.25], rtol=1e-6)
  with pytest.raises(ValueError, match="needs length_BC"):
    measured(method, ref_NCK)


def test_factors_are_measured_before_weights():
  # Training margins of 2 and 20: factors 1, 1/10.  Held-out margins of 1 and
  # 30 are then 1 and 3.
  method = losses.build("mrpo", scale="zscore", weights="discrimination")
  state = method.measure(
    method.init(2),
    train=dict(ref_logp_NCK=margins([2, 20])),
    validation=dict(ref_logp_NCK=margins([1, 30])),
  )
  np.testing.assert_allclose(state["scale"], [1.0, 0.1], rtol=1e-6)
  np.testing.assert_allclose(state["weights"], [0.25, 0.75], rtol=1e-6)


def test_measuring_leaves_the_rest_alone():
  method = losses.build("beta_dpo", mixture="harmonic", scale="zscore")
  before = method.init(3)
  after = method.measure(before, train=dict(ref_logp_NCK=TRAIN_NCK))
  assert (after["scale"] != 1.0).any()
  assert set(after) == set(before) == {"weights", "scale", "margin"}
  np.testing.assert_array_equal(before["scale"], np.ones(3))
  np.testing.assert_array_equal(after["margin"], before["margin"])
  assert after["scale"].dtype == before["scale"].dtype
  nothing = losses.build("mrpo")
  assert nothing.measure(nothing.init(3)) == {"weights": ()}
