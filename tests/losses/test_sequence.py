# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of sequences against a full log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses

B, T, V = 3, 5, 11


def inputs(rng, dtype=np.float32):
  logits_BTV = jnp.asarray(rng.normal(0, 4, (B, T, V)), dtype)
  targets_BT = jnp.asarray(rng.integers(0, V, (B, T)))
  mask_BT = jnp.asarray([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
  return logits_BTV, targets_BT, mask_BT


def oracle(logits_BTV, targets_BT, mask_BT):
  """The same by a whole log-softmax."""
  logp_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
  logp_BT = jnp.take_along_axis(logp_BTV, targets_BT[..., None], -1)[..., 0]
  return jnp.sum(mask_BT * logp_BT, -1)


def test_a_sequence_by_hand():
  probability_BTV = jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
  shifted_BTV = jnp.log(probability_BTV) + 700.0  # logits have no zero point
  got = losses.sequence_logp(shifted_BTV, jnp.array([[1, 2]]), jnp.ones((1, 2)))
  np.testing.assert_allclose(got, [np.log(0.25 * 0.8)], rtol=1e-3)


def test_values_and_gradients_equal_the_log_softmax(rng):
  logits_BTV, targets_BT, mask_BT = inputs(rng)
  given = (targets_BT, mask_BT)
  got = jax.jit(losses.sequence_logp)(logits_BTV, *given)
  np.testing.assert_allclose(got, oracle(logits_BTV, *given), rtol=1e-5)
  assert got[2] == 0.0  # nothing counts
  grad = jax.grad(lambda x: (losses.sequence_logp(x, *given) ** 2).sum())
  want = jax.grad(lambda x: (oracle(x, *given) ** 2).sum())(logits_BTV)
  np.testing.assert_allclose(grad(logits_BTV), want, rtol=1e-4, atol=1e-5)


def test_it_maps_over_a_further_axis(rng):
  given = inputs(rng)
  twice = [jnp.stack([x, x[::-1]]) for x in given]
  got = jax.vmap(losses.sequence_logp)(*twice)
  want = losses.sequence_logp(*given)
  np.testing.assert_allclose(got, [want, want[::-1]], rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32(rng):
  logits_BTV, *given = inputs(rng, jnp.bfloat16)
  got = losses.sequence_logp(logits_BTV, *given)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, oracle(logits_BTV, *given), rtol=1e-6)
  grad = jax.grad(lambda x: losses.sequence_logp(x, *given).sum())(logits_BTV)
  assert grad.dtype == jnp.bfloat16


def test_types_are_cast_by_hand_alone(rng):
  logits_BTV, *given = inputs(rng)
  call = jax.value_and_grad(lambda x: losses.sequence_logp(x, *given).sum())
  with jax.numpy_dtype_promotion("strict"):
    for one in jax.eval_shape(call, logits_BTV):
      assert one.dtype == jnp.float32


def test_what_the_mask_leaves_out_reaches_nothing(rng):
  logits_BTV, targets_BT, mask_BT = inputs(rng)
  out_BT = mask_BT == 0
  spoilt = (
    jnp.where(out_BT[..., None], jnp.nan, logits_BTV),
    jnp.where(out_BT, -100, targets_BT),
    mask_BT.astype(bool),
  )
  call = jax.value_and_grad(lambda *given: losses.sequence_logp(*given).sum())
  value, grad = call(*spoilt)
  want, want_grad = call(logits_BTV, targets_BT, mask_BT)
  assert value == want
  np.testing.assert_array_equal(grad, want_grad)


@pytest.mark.parametrize("target", [-100, -1, V])
def test_a_target_that_is_no_token_is_not_taken_for_another(rng, target):
  logits_BTV, targets_BT, mask_BT = inputs(rng)
  got = losses.sequence_logp(
    logits_BTV, targets_BT.at[0, 1].set(target), mask_BT
  )
  assert np.isnan(got[0]) and np.isfinite(got[1:]).all()


def test_a_mask_may_weigh_tokens(rng):
  logits_BTV, targets_BT, mask_BT = inputs(rng)
  weight_BT = 0.25 * mask_BT
  got = losses.sequence_logp(logits_BTV, targets_BT, weight_BT)
  want = 0.25 * losses.sequence_logp(logits_BTV, targets_BT, mask_BT)
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32])
def test_targets_of_fewer_bits_than_the_vocabulary(rng, dtype):
  # 256 is no uint8, nor 128 an int8: they must not pass for 0 and -128.
  logits_BTV = jnp.asarray(rng.normal(size=(1, 2, 300)), np.float32)
  call = jax.value_and_grad(
    lambda x, ids: losses.sequence_logp(x, ids, jnp.ones((1, 2))).sum()
  )
  value, grad = call(logits_BTV, jnp.array([[0, 100]], dtype))
  want, want_grad = call(logits_BTV, jnp.array([[0, 100]]))
  assert value == want
  np.testing.assert_array_equal(grad, want_grad)


def test_targets_are_integers(rng):
  logits_BTV, targets_BT, mask_BT = inputs(rng)
  with pytest.raises(ValueError, match="`targets_BT` must be token ids"):
    losses.sequence_logp(logits_BTV, targets_BT * 1.0, mask_BT)


def test_no_array_of_the_size_of_the_logits_is_kept():
  B, T, V = 2, 64, 4096
  given = (
    jax.ShapeDtypeStruct((B, T, V), np.float32),
    jax.ShapeDtypeStruct((B, T), np.int32),
    jax.ShapeDtypeStruct((B, T), np.float32),
  )
  forward = losses.sequence_logp
  backward = jax.grad(lambda *given: losses.sequence_logp(*given).sum())
  for function in (forward, backward):
    compiled = jax.jit(function).lower(*given).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < 0.05 * B * T * V * 4
