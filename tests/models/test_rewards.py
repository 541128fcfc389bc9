# SPDX-License-Identifier: Apache-2.0
"""A scalar head says of packed responses what torch says of each alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import hub
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.errors import InputError
from mrpo_jax.models import packed, parameters, transformer
from mrpo_jax.rows import micro_batch
from tests.golden.make_rewards import NAMES, score, sequences
from tests.material.folders import GOLDEN

# Three responses of one prompt: two pairs, of which one side recurs.
WANT = np.load(GOLDEN / "rewards.npz")


def model(name):
  config, params = hub.load(GOLDEN / name, head="scalar", dtype="float32")
  return config, params | {"score": jnp.asarray(score(config.width))}


def rows_of(config):
  prompt, (one, single, other) = sequences(config.vocab_size)
  pairs = [Encoded(prompt, one, single), Encoded(prompt, single, other)]
  return pack.pack(pairs, length=64, rows=2)


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_those_of_torch(name):
  config, params = model(name)
  rows = micro_batch(rows_of(config), 0)
  reward_BC = packed.rewards(config, params, rows, 2)
  one, single, other = WANT[name]
  want_BC = [[one, single], [single, other]]
  np.testing.assert_allclose(reward_BC, want_BC, rtol=2e-5, atol=2e-5)


def test_a_response_that_is_not_there_has_none():
  config, params = model("llama_theta")
  rows = micro_batch(rows_of(config), 0)
  reward_BC = packed.rewards(config, params, rows, 3)
  assert reward_BC.shape == (3, 2)
  assert np.all(reward_BC[2] == 0) and np.all(reward_BC[:2] != 0)


def test_only_the_last_tokens_state_counts():
  config, params = model("llama_theta")
  rows = micro_batch(rows_of(config), 0)

  def total(head):
    return jnp.sum(packed.rewards(config, params | {"score": head}, rows, 2))

  # Linear in the head: its gradient is the sum of four hidden states.
  grad = jax.grad(total)(params["score"])
  np.testing.assert_allclose(
    jnp.vdot(grad, params["score"]), total(params["score"]), rtol=1e-5
  )


def test_rewards_start_at_zero_and_leave_the_decoder_as_it_is():
  config, params = hub.load(GOLDEN / "llama_theta", head="scalar")
  _, whole = hub.load(GOLDEN / "llama_theta")
  assert "head" in whole and "head" not in params
  assert not params.pop("score").any()
  del whole["head"]
  assert jax.tree.all(jax.tree.map(jnp.array_equal, whole, params))
  made = parameters.init(config, jax.random.key(0))
  assert made["score"].shape == (1, config.width) and not made["score"].any()


def test_a_reward_model_has_no_logits():
  config, params = model("llama_theta")
  with pytest.raises(InputError, match="no probabilities of tokens"):
    transformer.apply(config, params, jnp.zeros((1, 3), jnp.int32))
