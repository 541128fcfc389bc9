# SPDX-License-Identifier: Apache-2.0
"""Neighbours of preference optimization: hand values, trees, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.related import MAX_EXPONENT
from tests.material.losses_fixture import logistic, sigmoid

TREE = {"w": jnp.array([1.2, -3.0]), "deep": [jnp.array([[0.01]])]}
OTHER = {"w": jnp.array([1.0, 5.0]), "deep": [jnp.array([[100.0]])]}


def close(got, want, rtol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


def close_trees(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(close, got, want)


def test_accelerate_by_hand():
  # 1.2 + 0.3 * 0.2, -3 - 0.3 * 8
  got = losses.accelerate(TREE, OTHER)
  close(got["w"], [1.26, -5.4])
  close(losses.accelerate(TREE, OTHER, alpha=0.5)["w"], [1.3, -7.0])
  close_trees(losses.accelerate(TREE, OTHER, alpha=0.0), TREE)
  close_trees(losses.accelerate(TREE, OTHER, alpha=-1.0), OTHER)


def test_ema_by_hand():
  # 1.2 - 0.25 * 0.2, -3 + 0.25 * 8
  close(losses.ema(TREE, OTHER, rate=0.25)["w"], [1.15, -1.0])


def test_ema_at_its_ends_is_one_of_the_two_exactly():
  for first, second in ((TREE, OTHER), (OTHER, TREE)):
    for rate, want in ((0.0, first), (1.0, second)):
      got = losses.ema(first, second, rate=rate)
      jax.tree.map(np.testing.assert_array_equal, got, want)


def test_ema_needs_its_rate():
  with pytest.raises(TypeError, match="rate"):
    losses.ema(TREE, OTHER)


@pytest.mark.parametrize(
  "update",
  [losses.accelerate, lambda p, q: losses.ema(p, q, rate=0.3)],
)
def test_trees_keep_their_types_and_are_computed_in_float32(update):
  narrow = [
    jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    for tree in (TREE, OTHER)
  ]
  wide = [jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in narrow]
  got = update(*narrow)
  assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
  want = jax.tree.map(lambda x: x.astype(jnp.bfloat16), update(*wide))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  jitted = jax.jit(update)(*wide)
  assert {x.dtype for x in jax.tree.leaves(jitted)} == {jnp.dtype(jnp.float32)}
  close_trees(jitted, update(*wide))


def test_bradley_terry_by_hand():
  got = losses.bradley_terry(jnp.array([[2.0, 0.5], [0.5, 2.0]]))
  close(got, [logistic(1.5), logistic(-1.5)])


def test_diffusion_dpo_by_hand():
  # -50 [ (0.1 - 0.15) - (0.11 - 0.14) ] = 1; the chosen image improved
  error_BC = jnp.array([[0.10, 0.15]])
  ref_error_BC = jnp.array([[0.11, 0.14]])
  got = losses.diffusion_dpo(error_BC, ref_error_BC, beta=100.0)
  close(got, [logistic(1.0)], rtol=1e-5)


def test_diffusion_dpo_gradient_by_hand():
  # at the start: beta / 2 * 1/2, towards a smaller error of the chosen
  error_BC = jnp.array([[0.1, 0.3]])
  grads = jax.grad(
    lambda *x: losses.diffusion_dpo(*x, beta=100.0)[0], argnums=(0, 1)
  )(error_BC, error_BC)
  close(grads[0], [[25.0, -25.0]])
  assert not grads[1].any()


def test_advantage_weighted_by_hand():
  # e^(2 * 0.5) * 3
  got = losses.advantage_weighted(jnp.array([-3.0]), jnp.array([0.5]), lam=2.0)
  close(got, [3 * np.e])


def test_advantage_weighted_clamps_its_exponent_at_70():
  assert MAX_EXPONENT == 70
  advantage_B = jnp.array([69.0, 70.0, 71.0, 1e4])
  got = losses.advantage_weighted(jnp.full(4, -1.0), advantage_B, lam=1.0)
  close(np.log(got), [69.0, 70.0, 70.0, 70.0])


def test_expectile_by_hand():
  # 0.75 * 2^2 above, 0.25 * 2^2 below
  got = losses.expectile(jnp.array([2.0, -2.0, 0.0]), tau=0.75)
  close(got, [3.0, 1.0, 0.0])


def test_expectile_of_one_half_is_half_the_square():
  residual = jnp.array([[1.5, -0.5], [-4.0, 0.0]])
  close(losses.expectile(residual, tau=0.5), 0.5 * residual**2)


def test_centring_of_bradley_terry_by_hand():
  reward_BC = jnp.array([[2.0, 0.5], [-1.0, 1.0]])
  added = losses.bradley_terry(reward_BC, center=0.01) - losses.bradley_terry(
    reward_BC
  )
  np.testing.assert_allclose(added, [0.0625, 0.0], atol=1e-6)
  # What is added to both rewards matters through it alone.
  shifted = losses.bradley_terry(reward_BC + 3.0)
  np.testing.assert_allclose(
    shifted, losses.bradley_terry(reward_BC), rtol=1e-6
  )
  got = jax.grad(lambda x: losses.bradley_terry(x, center=0.5)[0])(
    jnp.array([[1.0, 1.0]])
  )
  np.testing.assert_allclose(got, [[1.5, 2.5]], rtol=1e-6)


def test_rewards_are_no_log_probabilities_to_the_method():
  method = losses.build("bradley_terry", center=0.01)
  assert method.of_rewards and not method.takes_reference
  assert method.start_loss is None  # there is nothing to agree with
  with pytest.raises(ValueError, match="does not take 'nll'"):
    losses.build("bradley_terry", nll=0.1)
  with pytest.raises(ValueError, match="does not take 'scale'"):
    losses.build("bradley_terry", scale="mean")


def test_gradient_of_bradley_terry_by_hand():
  # -sigmoid(-(r_w - r_l))
  grad = jax.grad(lambda x: losses.bradley_terry(x)[0])(jnp.array([[2.0, 0.5]]))
  close(grad, [[-sigmoid(-1.5), sigmoid(-1.5)]])
