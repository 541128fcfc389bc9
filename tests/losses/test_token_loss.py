# SPDX-License-Identifier: Apache-2.0
"""Losses of tokens by their advantage: hand values, limits, their mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.methods.token_loss import GIVEN
from mrpo_jax.losses.related import MAX_EXPONENT, token_mean


def close(got, want, rtol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


def test_apa_by_hand():
  # (-1 + 1.5 - 0.5 / 0.25)^2 = 1.5^2, (-2 + 1 + 1)^2
  got = losses.apa(
    jnp.array([-1.0, -2.0]),
    jnp.array([-1.5, -1.0]),
    jnp.array([0.5, -0.25]),
    lam=0.25,
  )
  close(got, [2.25, 0.0])


def test_awr_by_hand():
  # e^(0.5 * 2) * 3, e^(-0.5 * 2) * 3 at the authors' 0.5; e^2 * 3 at 1.
  logp, advantage = jnp.full(2, -3.0), jnp.array([2.0, -2.0])
  close(losses.awr(logp, advantage), [3 * np.e, 3 / np.e])
  close(losses.awr(logp, advantage, lam=1.0)[0], 3 * np.exp(2))


def test_awr_clamps_its_exponent_at_70():
  assert MAX_EXPONENT == 70
  advantage = jnp.array([69.0, 70.0, 71.0, 1e4])
  got = losses.awr(jnp.full(4, -1.0), advantage, lam=1.0)
  close(np.log(got), [69.0, 70.0, 70.0, 70.0])


def test_ppo_by_hand():
  # Ratios 1.5, 1.1, 0.5, each with the advantages 2 and -2.  Up to 1.2 a gain
  # counts, down to 0.8 a loss; on the other side all of it.
  logp = jnp.log(jnp.array([[1.5], [1.1], [0.5]])) - 1.0
  got = losses.ppo_clip(logp, jnp.full((3, 1), -1.0), jnp.array([[2.0, -2.0]]))
  close(got, [[-2.4, 3.0], [-2.2, 2.2], [-1.0, 1.6]])
  got = losses.ppo_clip(logp, -jnp.ones(()), jnp.array(2.0), cliprange=0.6)
  close(got, [[-3.0], [-2.2], [-1.0]])


def test_ppo_has_no_gradient_where_it_is_clipped():
  logp = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
  advantage = jnp.array([2.0, -2.0, 2.0, -2.0])
  grad = jax.grad(lambda x: losses.ppo_clip(x, jnp.zeros(4), advantage).sum())(
    logp
  )
  close(grad, [0.0, 3.0, -1.0, 0.0])  # else -ratio * advantage


def test_where_the_policy_has_not_moved_ppo_is_the_policy_gradient(rng):
  logp, advantage = rng.normal(size=(2, 9))
  grad = jax.grad(lambda x: losses.ppo_clip(x, logp, advantage).sum())(logp)
  close(grad, -advantage)


def test_value_loss_by_hand():
  close(losses.value_loss(jnp.array([3.0, -1.0]), jnp.ones(2)), [2.0, 2.0])


def test_a_mean_over_tokens_is_one_over_pairs(rng):
  # Pairs of 3 and 1, 4 and 0 tokens, and none.
  length_BC = jnp.array([[3, 1], [4, 0], [0, 0]])
  value_BC = jnp.array([[6.0, 2.0], [8.0, 0.0], [0.0, 0.0]])
  got = token_mean(value_BC, length_BC)
  close(got, [8 * 2 / 8, 8 * 2 / 8, 0.0])
  is_there_B = np.array([True, True, False])
  close(got[is_there_B].mean(), 16.0 / 8)
  assert not token_mean(jnp.zeros((1, 2)), jnp.zeros((1, 2))).any()
  with pytest.raises(ValueError, match="axis B has size 3"):
    token_mean(value_BC, length_BC[:2])


def some_tokens(rng, *shape):
  return {name: jnp.asarray(rng.normal(size=shape)) for name in GIVEN}


def test_a_method_adds_the_loss_of_the_value(rng):
  given, logp, value = some_tokens(rng, 5), *rng.normal(size=(2, 5))
  for weight in (1.0, 0.25):
    method = losses.build("apa", lam=0.5, value_weight=weight)
    found = method.tokens(logp, value, given)
    own = losses.apa(logp, given["ref_logp"], given["advantage"], lam=0.5)
    squared = losses.value_loss(value, given["returns"])
    close(found["loss"], own + weight * squared)
    close(found["policy"], own)
    close(found["value"], squared)
    close(found["kl"], logp - given["ref_logp"])
    close(found["error"], given["returns"] - value)
    close(found["error_squared"], (given["returns"] - value) ** 2)
  assert "clipped" not in found


def test_ppo_says_which_tokens_are_clipped():
  given = dict.fromkeys(GIVEN, jnp.zeros(6))
  given["advantage"] = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, 0.0])
  logp = jnp.log(jnp.array([1.3, 1.3, 0.7, 0.7, 1.1, 1.9]))
  for hyper, want in (({}, [1, 0, 0, 1, 0, 0]), (dict(cliprange=0.05), None)):
    found = losses.build("ppo", **hyper).tokens(logp, 0 * logp, given)
    want = want or [1, 0, 0, 1, 1, 0]
    assert found["clipped"].tolist() == want
    grad = jax.grad(
      lambda x, method: method.tokens(x, 0 * logp, given)["loss"].sum()
    )(logp, losses.build("ppo", **hyper))
    flat = (np.asarray(grad) == 0) & (np.asarray(given["advantage"]) != 0)
    assert flat.tolist() == [bool(one) for one in want]


def test_gradients_are_of_the_loss_alone(rng):
  given, logp, value = some_tokens(rng, 4), *rng.normal(size=(2, 4))
  tokens = losses.build("awr").tokens

  def others(logp, value):
    found = tokens(logp, value, given)
    return sum(one.sum() for name, one in found.items() if name != "loss")

  assert not any(map(np.any, jax.grad(others, (0, 1))(logp, value)))
  whole = lambda logp, value: tokens(logp, value, given)["loss"].sum()  # noqa: E731
  assert all(map(np.any, jax.grad(whole, (0, 1))(logp, value)))


def test_what_is_not_given_is_named(rng):
  given = some_tokens(rng, 3)
  del given["ref_logp"], given["returns"]
  with pytest.raises(ValueError, match="needs ref_logp, returns of each"):
    losses.build("ppo").tokens(jnp.zeros(3), jnp.zeros(3), given)


@pytest.mark.parametrize(
  "name,hyper,message",
  [
    ("apa", dict(lam=0.0), "lam must be positive"),
    ("awr", dict(lam=-1.0), "lam must be positive"),
    ("ppo", dict(cliprange=0.0), "cliprange must be positive"),
    ("ppo", dict(value_weight=-1.0), "value_weight must be from 0 up"),
    ("ppo", dict(lam=0.1), "takes: cliprange, value_weight"),
    ("apa", dict(nll=1.0), "does not take 'nll'"),
    ("apa", dict(mixture="harmonic"), "does not take 'mixture'"),
    ("apa", dict(value_weight="1"), "value_weight must be a number"),
  ],
)
def test_what_a_loss_of_tokens_does_not_take(name, hyper, message):
  with pytest.raises(ValueError, match=message):
    losses.build(name, **hyper)
