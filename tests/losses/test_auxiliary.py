# SPDX-License-Identifier: Apache-2.0
"""HPO's terms beside a host: by hand, after their delay, each for its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses

POLICY_BC = jnp.array([[-4.0, -6.0], [-2.0, -9.0]])
REF_BCK = jnp.array([[[-5.0], [-5.0]], [[-3.0], [-8.0]]])
FIGURES = dict(
  length_BC=jnp.array([[4.0, 3.0], [2.0, 3.0]]),
  aux_reward_BC=jnp.array([[0.7, 0.1], [0.2, 0.3]]),
  value_B=jnp.array([0.2, 0.3]),
)
NOW = dict(name="hpo", delay=0)


def called(method, **more):
  return method(POLICY_BC, REF_BCK, **{**FIGURES, **more})


def test_both_terms_by_hand():
  # Advantages .5, -.1 and -.1, 0; mean log-probabilities -1, -2 and -1, -3.
  # exp(5 A): 12.182494, .606531 and .606531, 1.
  actor_B = np.array([(12.182494 + 0.606531 * 2) / 2, (0.606531 + 1.0 * 3) / 2])
  # .7 * .25, .3 * .01 and .3 * .01, 0.
  value_B = np.array([(0.175 + 0.003) / 2, 0.003 / 2])
  host_B = called(losses.build("dpo"))
  got_B = called(losses.build("dpo", auxiliary=NOW))
  np.testing.assert_allclose(
    got_B, host_B + 0.5 * actor_B + 0.1 * value_B, rtol=1e-6
  )


def test_hpo_is_kto_with_them():
  got = called(losses.build("hpo", auxiliary=NOW))
  want = called(losses.build("kto", auxiliary=NOW))
  np.testing.assert_array_equal(got, want)
  assert losses.build("hpo").auxiliary.delay == 100


def test_no_weight_is_the_host():
  none = dict(NOW, weight=0.0, value_weight=0.0)
  got = called(losses.build("mrpo", auxiliary=none))
  np.testing.assert_array_equal(got, called(losses.build("mrpo")))


def test_the_likelihood_starts_after_its_delay():
  method = losses.build("dpo", auxiliary=dict(NOW, delay=2))
  late = called(losses.build("dpo", auxiliary=NOW))
  early = called(losses.build("dpo", auxiliary=dict(NOW, weight=0.0)))
  state = method.init(1)
  for step in range(4):
    got = called(method, state=state)
    np.testing.assert_array_equal(got, late if step >= 2 else early)
    state = method.update(state, POLICY_BC, REF_BCK, **FIGURES)
  assert state["steps"] == 4


def gradients(**given):
  """Of the loss's sum, by the policy's log-probabilities and by the values."""
  method = losses.build("dpo", auxiliary=dict(NOW, **given))

  def loss(policy_BC, value_B):
    more = {**FIGURES, "value_B": value_B}
    return method(policy_BC, REF_BCK, **more).sum()

  return jax.grad(loss, argnums=(0, 1))(POLICY_BC, FIGURES["value_B"])


def test_neither_term_teaches_the_other():
  policy_BC, value_B = gradients()
  with_more_BC, _ = gradients(value_weight=7.0)
  np.testing.assert_array_equal(policy_BC, with_more_BC)
  _, of_value_B = gradients(weight=0.0)
  np.testing.assert_array_equal(value_B, of_value_B)
  # d/dV of .1 * mean |tau - 1[A < 0]| A^2 at A = (.5, -.1):
  # -.1 * (2 * .7 * .5 + 2 * .3 * -.1) / 2.
  assert value_B[0] == pytest.approx(-0.1 * (0.7 - 0.06) / 2, rel=1e-5)


def test_of_the_policy_it_is_a_weighed_likelihood():
  own_BC, _ = gradients(weight=1.0)
  host_BC, _ = gradients(weight=0.0)
  # -exp(5 A) / length / 2.
  want = -np.array([12.182494 / 4, 0.606531 / 3]) / 2
  np.testing.assert_allclose((own_BC - host_BC)[0], want, rtol=1e-5)


def test_it_is_finite_far_away():
  far = {
    "aux_reward_BC": jnp.full((2, 2), 1e4),
    "value_B": jnp.array([-1e4, 0.0]),
  }
  assert np.isfinite(called(losses.build("dpo", auxiliary=NOW), **far)).all()


@pytest.mark.parametrize(
  ("given", "match"),
  [
    ("hop", "unknown auxiliary 'hop'; known: hpo"),
    (dict(name="hpo", lamda=1.0), "does not take 'lamda'; it takes: delay, la"),
    (dict(name="hpo", tau=1.5), "tau must be from 0 to 1"),
    (dict(name="hpo", lam=-1.0), "lam must be positive"),
    (dict(name="hpo", delay=2.5), "delay must be a whole number from 0 on"),
    (dict(name="hpo", width=0), "width must be a whole number from 1 on"),
    (dict(name="hpo", weight=-0.5), "weight must not be negative"),
    (dict(name="hpo", weight="x"), "weight must be a number"),
  ],
)
def test_what_it_is_not_is_refused(given, match):
  with pytest.raises(ValueError, match=match):
    losses.build("dpo", auxiliary=given)


@pytest.mark.parametrize("name", ["nll", "bradley_terry"])
def test_a_host_has_two_responses_and_their_probabilities(name):
  with pytest.raises(ValueError, match="does not take 'auxiliary'"):
    losses.build(name, auxiliary="hpo")
