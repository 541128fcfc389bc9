# SPDX-License-Identifier: Apache-2.0
"""DPO and likelihood against hand values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax import losses

# Four pairs of summed log-ratios (chosen, rejected); beta 0.5.  The losses
# agree with TRL 1.16's own computation to 5e-8.
LOGRATIO = jnp.array(
  [
    [-1.03527917, 0.5023033],
    [1.05836891, -0.77747545],
    [0.91200783, -2.80483553],
    [-0.01891023, 1.97128229],
  ]
)
DPO = [1.149672, 0.33600638, 0.14489529, 1.3096791]
CONSERVATIVE = [1.0727929, 0.4277986, 0.33073746, 1.2101695]


def test_hand_value():
  # The policy gains 2 nats on chosen, loses 1 on rejected: margin 0.5 * 3.
  got = losses.dpo(jnp.array([[2.0, -1.0]]), beta=0.5)
  np.testing.assert_allclose(got, [np.log1p(np.exp(-1.5))], rtol=1e-6)


def test_fixture_of_four_pairs():
  np.testing.assert_allclose(losses.dpo(LOGRATIO, beta=0.5), DPO, atol=1e-6)
  smooth = losses.dpo(LOGRATIO, beta=0.5, label_smoothing=0.1)
  np.testing.assert_allclose(smooth, CONSERVATIVE, atol=1e-6)


def test_scale_multiplies_the_margin():
  scale_B = jnp.array([1.0, 2.0, 0.5, 0.0])
  scaled = losses.dpo(LOGRATIO, beta=0.5, scale_B=scale_B)
  by_hand = losses.dpo(LOGRATIO * scale_B[:, None], beta=0.5)
  np.testing.assert_allclose(scaled, by_hand, rtol=1e-6)


def test_policy_equal_to_reference_is_ln_2():
  np.testing.assert_allclose(
    losses.dpo(jnp.zeros((3, 2))), np.log(2), rtol=1e-6
  )


def test_full_smoothing_swaps_the_labels():
  np.testing.assert_allclose(
    losses.dpo(LOGRATIO, label_smoothing=1.0),
    losses.dpo(LOGRATIO[:, ::-1]),
    rtol=1e-6,
  )


def test_gradient_by_hand_and_by_differences():
  # d loss / d r_w = -beta * sigmoid(-beta * Delta)
  grad = jax.grad(lambda x: losses.dpo(x, beta=0.5).sum())(LOGRATIO)
  delta_B = LOGRATIO[:, 0] - LOGRATIO[:, 1]
  want_B = -0.5 / (1 + np.exp(0.5 * delta_B))
  np.testing.assert_allclose(grad[:, 0], want_B, rtol=1e-5)
  np.testing.assert_allclose(grad[:, 1], -want_B, rtol=1e-5)
  with jax.enable_x64(True):
    wide = jnp.asarray(np.asarray(LOGRATIO, np.float64))
    check_grads(losses.dpo, (wide,), 2)


@pytest.mark.parametrize("nats", [-1e4, 1e4])
def test_finite_far_away(nats):
  far = jnp.array([[nats, -nats]])
  value, grad = jax.value_and_grad(lambda x: losses.dpo(x)[0])(far)
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_bfloat16_in_float32_out():
  assert losses.dpo(LOGRATIO.astype(jnp.bfloat16)).dtype == jnp.float32
  assert losses.nll(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32


def test_wrong_axes_are_refused():
  with pytest.raises(ValueError, match=r"\[B 2\]"):
    losses.dpo(jnp.zeros((4, 3)))
  with pytest.raises(ValueError, match=r"\[B\]"):
    losses.nll(jnp.zeros((4, 2)))


def test_likelihood_is_minus_the_mean():
  np.testing.assert_allclose(losses.nll(jnp.array([-2.0, -0.5])), [2.0, 0.5])
