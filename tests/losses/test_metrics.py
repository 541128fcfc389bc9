# SPDX-License-Identifier: Apache-2.0
"""Metrics against hand values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses

REF = jnp.array([[[-40.0, -44.0, -38.0], [-46.0, -45.0, -47.0]]])


def test_rewards_by_hand():
  policy_logp_BC = jnp.array([[-10.0, -20.0], [-5.0, -5.0]])
  ref_logp_BC = jnp.array([[-12.0, -19.0], [-6.0, -6.0]])
  got = losses.preference_metrics(policy_logp_BC, ref_logp_BC, beta=0.5)
  want = {
    "rewards/chosen": [1.0, 0.5],
    "rewards/rejected": [-0.5, 0.5],
    "rewards/margins": [1.5, 0.0],
    "rewards/accuracies": [1.0, 0.0],  # a tie is not right
    "logps/chosen": [-10.0, -5.0],
    "logps/rejected": [-20.0, -5.0],
  }
  assert set(got) == set(want)
  for name, value_B in want.items():
    np.testing.assert_allclose(got[name], value_B, rtol=1e-6, err_msg=name)


def test_references_by_hand():
  got = losses.reference_metrics(REF, jnp.ones(3), epsilon_max=0.1)
  np.testing.assert_allclose(got["margin"], [[6.0, 1.0, 9.0]])
  np.testing.assert_allclose(got["accuracy"], [[1.0, 1.0, 1.0]])
  np.testing.assert_allclose(got["weight"], [[1 / 3] * 3], rtol=1e-6)
  # Reference 1 is raised to -41.88 at the chosen response, 2 lowered to -38.12.
  np.testing.assert_allclose(got["clipped_low"], [[0.0, 0.5, 0.0]])
  np.testing.assert_allclose(got["clipped_high"], [[0.0, 0.0, 0.5]])
  odds = np.exp([0.0, 1.876923, -1.876923])
  share = odds / odds.sum()
  np.testing.assert_allclose(got["responsibility"][0], share, rtol=1e-5)
  entropy = -(share * np.log(share)).sum()
  np.testing.assert_allclose(
    got["effective_references"], [np.exp(entropy)], rtol=1e-5
  )


@pytest.mark.parametrize("p,winner", [(float("-inf"), 1), (float("inf"), 2)])
def test_an_extreme_belongs_to_one_reference(p, winner):
  got = losses.reference_metrics(REF, jnp.ones(3), p=p)
  assert got["responsibility"][0].tolist() == np.eye(3)[winner].tolist()
  np.testing.assert_allclose(got["effective_references"], [1.0])


def test_geometric_responsibility_is_the_weight():
  weight_K = jnp.array([0.5, 0.3, 0.2])
  got = losses.reference_metrics(REF, weight_K, p=0)
  np.testing.assert_allclose(got["responsibility"], weight_K[None], rtol=1e-6)


def test_a_dropped_reference_has_no_share():
  got = losses.reference_metrics(REF, jnp.array([1.0, 0.0, 0.0]))
  assert got["responsibility"].tolist() == [[1.0, 0.0, 0.0]]
  assert got["effective_references"].tolist() == [1.0]
  assert all(np.isfinite(value).all() for value in got.values())


def test_a_fixed_band_clips_both_responses():
  # Bands of 1 %: -40 +-0.4 and -46 +-0.46; reference 1 is raised and lowered
  # into them, reference 2 lowered and raised.
  got = losses.reference_metrics(
    REF, jnp.ones(3), epsilon_max=0.01, adaptive_epsilon=False
  )
  np.testing.assert_allclose(got["clipped_low"], [[0.0, 0.5, 0.5]])
  np.testing.assert_allclose(got["clipped_high"], [[0.0, 0.5, 0.5]])
  odds = np.exp([0.0, 0.4, -0.4])
  np.testing.assert_allclose(
    got["responsibility"][0], odds / odds.sum(), rtol=1e-5
  )
  adaptive = losses.reference_metrics(REF, jnp.ones(3), epsilon_max=0.01)
  spelled = losses.reference_metrics(
    REF, jnp.ones(3), epsilon_max=0.01, adaptive_epsilon=True
  )
  np.testing.assert_array_equal(
    adaptive["responsibility"], spelled["responsibility"]
  )
  assert (adaptive["responsibility"] != got["responsibility"]).any()


def test_default_arguments():
  got = losses.reference_metrics(REF, jnp.array([1.0, 2.0, 1.0]))
  want = losses.reference_metrics(
    REF,
    jnp.array([0.25, 0.5, 0.25]),
    p=-1,
    epsilon_max=None,
    adaptive_epsilon=True,
  )
  assert set(got) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
  # Shares of 1/4 e^40, 1/2 e^44, 1/4 e^38.
  odds = np.array([1.0, 2 * np.exp(4.0), np.exp(-2.0)])
  np.testing.assert_allclose(
    got["responsibility"][0], odds / odds.sum(), rtol=1e-5
  )
  np.testing.assert_allclose(got["weight"], [[0.25, 0.5, 0.25]])
  for name in ("clipped_low", "clipped_high"):
    np.testing.assert_array_equal(got[name], np.zeros((1, 3)))
  policy_logp_BC = REF[..., 0] + jnp.array([[1.0, -2.0]])
  got = losses.preference_metrics(policy_logp_BC, REF[..., 0])
  want = losses.preference_metrics(policy_logp_BC, REF[..., 0], beta=0.1)
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)
  np.testing.assert_allclose(got["rewards/margins"], [0.3], rtol=1e-5)


def test_each_pair_may_have_its_own_weights():
  # Two pairs; the second trusts two references of different opinion, p = 1.
  ref_logp_BCK = jnp.concatenate([REF, REF[:, ::-1]])
  weight_BK = jnp.array([[1.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
  got = losses.reference_metrics(ref_logp_BCK, weight_BK, p=1)
  np.testing.assert_allclose(got["margin"][1], [-6.0, -1.0, -9.0])
  np.testing.assert_array_equal(got["accuracy"], [[1, 1, 1], [0, 0, 0]])
  odds = np.array([[1.0, np.exp(-4), 2 * np.exp(2)], [3.0, np.exp(1), 0.0]])
  share = odds / odds.sum(1, keepdims=True)
  np.testing.assert_allclose(got["responsibility"], share, rtol=1e-5)
  entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
  np.testing.assert_allclose(
    got["effective_references"], np.exp(entropy), rtol=1e-5
  )


def test_ties_share_an_extreme_and_are_not_right():
  tied = jnp.array([[[-40.0, -40.0, -39.0], [-41.0, -40.0, -38.0]]])
  got = losses.reference_metrics(tied, jnp.ones(3), p=float("-inf"))
  np.testing.assert_allclose(got["responsibility"], [[0.5, 0.5, 0.0]])
  np.testing.assert_allclose(got["effective_references"], [2.0], rtol=1e-6)
  np.testing.assert_array_equal(got["accuracy"], [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("p", [-1, 0, 1, float("inf"), float("-inf")])
def test_a_dropped_reference_may_hold_anything(p):
  weight_K = jnp.array([1.0, 1.0, 0.0])
  want = losses.reference_metrics(REF, weight_K, p=p)
  for dropped in (jnp.nan, jnp.inf, -jnp.inf):
    got = losses.reference_metrics(REF.at[..., 2].set(dropped), weight_K, p=p)
    for name in ("responsibility", "effective_references"):
      np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("p", [float("inf"), float("-inf")])
def test_a_dropped_reference_has_no_share_of_an_extreme(p):
  got = losses.reference_metrics(
    jnp.full((1, 2, 3), -7.0), jnp.array([1.0, 0.0, 1.0]), p=p
  )
  np.testing.assert_allclose(got["responsibility"], [[0.5, 0.0, 0.5]])


def test_relations_by_hand():
  # Margins 6, -1, 0: the last is undecided and agrees with none.
  ref_logp_BCK = jnp.array([[[-40.0, -44.0, -38.0], [-46.0, -43.0, -38.0]]])
  got = losses.reference_relations(ref_logp_BCK, jnp.ones(3))
  assert got["agreement"].tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]]
  # The minimum is reference 1 at the chosen response, 0 at the other.
  assert got["cancels"].tolist() == [0.0]
  assert {value.dtype.name for value in got.values()} == {"float32"}
  alike = losses.reference_relations(REF, jnp.ones(3))
  assert alike["agreement"].tolist() == [np.ones((3, 3)).tolist()]


def pair_of(*rows):
  """One pair whose other reference is this far below the base, in nats."""
  below_BC = jnp.array(rows, jnp.float32)
  base_BC = jnp.full_like(below_BC, -50.0).at[:, 0].add(3.0)
  return jnp.stack([base_BC, base_BC - below_BC], axis=-1)


@pytest.mark.parametrize(
  "p,below,want",
  [
    (-1, (9.0, 5.0), 1.0),  # e^-5 is less than 0.01 of the whole
    (-1, (9.0, 4.0), 0.0),  # e^-4 is more
    (-1, (-9.0, -5.0), 1.0),  # the base alone
    (-1, (9.0, -9.0), 0.0),  # another one at each response
    (1, (9.0, 5.0), 1.0),
    (0, (9.0, 5.0), 0.0),  # weights of a geometric mean never cancel
    (float("-inf"), (0.5, 0.1), 1.0),
    (float("inf"), (0.5, -0.1), 0.0),
  ],
)
def test_where_weights_cancel_none_changes_the_loss(p, below, want):
  ref_logp_BCK = pair_of(below)
  got = losses.reference_relations(ref_logp_BCK, jnp.ones(2), p=p)
  assert got["cancels"].tolist() == [want]
  policy_logp_BC = jnp.array([[-49.0, -50.0]])
  loss = lambda weight_K: losses.mrpo(  # noqa: E731
    policy_logp_BC, ref_logp_BCK, weight=weight_K, p=p, epsilon_max=None
  )
  # A tenth of the weight more moves the margin by what the other adds to it.
  moved = jnp.abs(loss(jnp.array([0.55, 0.45])) - loss(jnp.ones(2)))[0]
  assert moved < 1e-4 if want or abs(p) == float("inf") else moved > 1e-4


def test_a_band_keeps_weights_from_cancelling():
  given = (pair_of((9.0, 8.0)), jnp.ones(2))
  assert losses.reference_relations(*given)["cancels"].tolist() == [1.0]
  # Bands of 0.47 and 0.5 nats, adaptive ones of about half of it; and of 10
  # and 10: adaptive ones of 5.
  for epsilon_max, adaptive, want in (
    (0.01, False, 0.0),
    (0.01, True, 0.0),
    (0.16, False, 1.0),
    (0.16, True, 0.0),
  ):
    got = losses.reference_relations(
      *given, epsilon_max=epsilon_max, adaptive_epsilon=adaptive
    )
    assert got["cancels"].tolist() == [want], (epsilon_max, adaptive)


def test_a_share_by_the_weight_alone_does_not_cancel():
  near = pair_of((0.1, 0.2), (9.0, 9.0))
  for weight in ([1.0, 0.0], [0.0, 1.0], [0.995, 0.005]):
    got = losses.reference_relations(near, jnp.array(weight))
    assert got["cancels"][0] == 0.0, weight
  # Each pair has its own weights, and its own answer.
  weight_BK = jnp.array([[1.0, 1.0], [0.9, 0.1]])
  got = losses.reference_relations(near, weight_BK)
  assert got["cancels"].tolist() == [0.0, 1.0]


def test_one_reference_stands_in_no_relation():
  got = losses.reference_relations(REF[..., :1], jnp.ones(1))
  assert got["cancels"].tolist() == [0.0]
  assert got["agreement"].tolist() == [[[1.0]]]


def test_relations_are_finite_and_have_no_gradient():
  def total(ref_logp_BCK):
    figures = losses.reference_relations(ref_logp_BCK, jnp.ones(3))
    return sum(value.sum() for value in figures.values())

  for ref_logp_BCK in (REF, 1e4 * REF, 0.0 * REF, REF.astype(jnp.bfloat16)):
    assert np.isfinite(total(ref_logp_BCK))
    assert not jax.grad(total)(ref_logp_BCK).any()
  np.testing.assert_allclose(jax.jit(total)(REF), total(REF), rtol=1e-6)


def test_gradient_scales_by_hand():
  # sigmoid(-m): 1/2, 1/4 and 3/4 at log 3, and past 0.01 at log 99 = 4.595.
  margin_B = jnp.array([0.0, np.log(3), -np.log(3), 4.59, 4.6, -4.59, -4.6])
  got = losses.gradient_metrics(margin_B)
  assert set(got) == {
    "gradient_scale",
    "gradient_scale/low",
    "gradient_scale/high",
  }
  np.testing.assert_allclose(
    got["gradient_scale"][:3], [0.5, 0.25, 0.75], rtol=1e-6
  )
  assert got["gradient_scale/low"].tolist() == [0, 0, 0, 0, 1, 0, 0]
  assert got["gradient_scale/high"].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_the_gradient_scale_is_that_of_dpo(rng):
  logratio_BC = jnp.asarray(rng.normal(size=(6, 2)).astype(np.float32))
  grad_BC = jax.grad(lambda x: losses.dpo(x, beta=0.3).sum())(logratio_BC)
  margin_B = 0.3 * (logratio_BC[:, 0] - logratio_BC[:, 1])
  scale_B = losses.gradient_metrics(margin_B)["gradient_scale"]
  np.testing.assert_allclose(-grad_BC[:, 0] / 0.3, scale_B, rtol=1e-5)


def test_gradient_scales_far_out():
  half_B = jnp.array([1e4, -1e4], jnp.bfloat16)
  got = losses.gradient_metrics(half_B)
  assert {value.dtype.name for value in got.values()} == {"float32"}
  assert got["gradient_scale"].tolist() == [0.0, 1.0]
  total = lambda x: losses.gradient_metrics(x)["gradient_scale"].sum()  # noqa: E731
  assert np.isfinite(jax.grad(total)(half_B.astype(jnp.float32))).all()


def test_metrics_are_float32_and_have_no_gradient_through_references():
  got = losses.reference_metrics(REF.astype(jnp.bfloat16), jnp.ones(3))
  got |= losses.preference_metrics(*[REF[..., 0].astype(jnp.bfloat16)] * 2)
  assert {value.dtype.name for value in got.values()} == {"float32"}

  def total(ref_logp_BCK):
    metrics = losses.reference_metrics(
      ref_logp_BCK, jnp.ones(3), epsilon_max=0.1
    )
    return sum(value.sum() for value in metrics.values())

  assert not jax.grad(total)(REF).any()


def test_a_wrong_axis_is_refused_by_name():
  with pytest.raises(ValueError, match=r"`ref_logp_BC` must have axes \[B C\]"):
    losses.preference_metrics(REF[..., 0], REF)
  with pytest.raises(
    ValueError, match=r"`ref_logp_BCK` must have axes \[B C K\]"
  ):
    losses.reference_metrics(REF[..., 0], jnp.ones(3))
  with pytest.raises(
    ValueError, match="K has size 3 in .*, but 2 in `weight_K`"
  ):
    losses.reference_metrics(REF, jnp.ones(2))
  with pytest.raises(
    ValueError, match=r"`ref_logp_BCK` must have axes \[B C K\]"
  ):
    losses.reference_relations(REF[..., 0], jnp.ones(3))
  with pytest.raises(
    ValueError, match="K has size 3 in .*, but 2 in `weight_K`"
  ):
    losses.reference_relations(REF, jnp.ones(2))
  with pytest.raises(ValueError, match=r"`margin_B` must have axes \[B\]"):
    losses.gradient_metrics(REF[..., 0])
