# SPDX-License-Identifier: Apache-2.0
"""config.data.rewards: who reads them, and what is refused before a run."""

import types

import numpy as np
import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import read
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.runs.inference.reward import material_of, rewards_of
from mrpo_jax.runs.score import RewardPlan
from tests.material.config import get_config

LENGTH = "mrpo_jax.online.words:length"
WHOLE = {"reward": LENGTH, "weight": 1.0}


def config_of(name="hpo", **changes):
  c = get_config(name)
  c.data.update(changes)
  return read(c.to_dict())


def named(**sections):
  return {"names": tuple(sections), **sections}


def test_a_loss_that_follows_rewards_needs_some():
  assert "aux_reward_BC" in chosen_method(config_of()).needs
  with pytest.raises(InputError, match="name them in config.data.rewards"):
    chosen_method(config_of(rewards={"names": ()}))


def test_rewards_that_nobody_reads_are_refused():
  rewards = named(words={"reward": LENGTH})
  with pytest.raises(InputError, match="loss 'dpo' reads no rewards; set conf"):
    chosen_method(config_of("dpo", rewards=rewards))


def plan_of(config, rewards):
  """A RewardPlan that reads these numbers, of pairs 7 and 9 of the data."""
  rewards = np.array(rewards, np.float32)
  column = types.SimpleNamespace(read=lambda ids: rewards)
  table = types.SimpleNamespace(ids=["a", "b"], places=[7, 9])
  setup = types.SimpleNamespace(
    config=config,
    method=chosen_method(config),
    rewards=rewards_of(config),
    tables={"train": table},
  )
  return RewardPlan(setup, {"words": column})


def test_quantiles_are_from_0_to_1():
  config = config_of("qrpo", rewards=named(words=WHOLE))
  assert chosen_method(config).reads_quantiles
  got = plan_of(config, [[0.0, 1.0], [0.25, 0.5]]).read("train")
  assert got == [[0.0, 1.0], [0.25, 0.5]]
  for outside in (1.5, -0.25):
    with pytest.raises(InputError) as error:
      plan_of(config, [[0.0, 1.0], [0.25, outside]]).read("train")
    sentence = str(error.value)
    assert f"pair 9 has the reward {outside}" in sentence
    assert "config.loss.name='qrpo' reads quantiles" in sentence


def test_other_losses_take_rewards_of_any_size():
  config = config_of(rewards=named(words=WHOLE))
  assert not chosen_method(config).reads_quantiles
  assert plan_of(config, [[9.0, -1.0], [0.25, 0.5]]).read("train")[0][0] == 9.0


def test_a_loss_of_quantiles_needs_rewards():
  with pytest.raises(InputError, match="'qrpo' reads rewards of the responses"):
    chosen_method(config_of("qrpo", rewards={"names": ()}))


def test_without_the_keys_config_json_is_as_it_was():
  assert not {"rewards", "reward_timeout"} & {
    *config_of("dpo").to_dict()["data"]
  }
  found = config_of(reward_timeout=5.0).to_dict()["data"]
  assert found["reward_timeout"] == 5.0
  assert found["rewards"]["words"]["weight"] == 0.001
  assert found["rewards"]["words"]["options"] == {}


@pytest.mark.parametrize(
  ("section", "match"),
  [
    ({"reward": "no_such:thing"}, "config.data.rewards.one.reward=no_such:thi"),
    ({"reward": LENGTH, "options": {"caps": 3}}, "did you mean cap"),
    ({"reward": LENGTH, "wieght": 1.0}, "one.wieght is not known; did you mea"),
    ({}, "config.data.rewards.one.reward is missing"),
    ({"reward": LENGTH, "weight": "x"}, "one.weight must be of type float"),
  ],
)
def test_what_is_no_reward_is_refused_by_its_key(section, match):
  with pytest.raises(InputError, match=match):
    rewards_of(config_of(rewards=named(one=section)))


def test_a_command_that_is_slow_names_the_configs_own_key():
  rewards = named(slow={"reward": "command:sleep 9"})
  config = config_of(rewards=rewards, reward_timeout=0.2)
  (reward,) = rewards_of(config).values()
  with pytest.raises(InputError, match="; config.data.reward_timeout gives it"):
    reward(["q"], ["a"])


def test_options_are_part_of_a_column():
  rewards = named(
    one={"reward": LENGTH}, other={"reward": LENGTH, "options": {"cap": 3}}
  )
  config = config_of(rewards=rewards)
  found = [
    material_of(reward, config.data.rewards[name].options)
    for name, reward in rewards_of(config).items()
  ]
  assert found[0]["script"] == found[1]["script"]
  assert found[1]["options"] == {"cap": 3} and found[0] != found[1]


def test_a_program_that_cannot_be_read_is_said(caplog):
  rewards = named(one={"reward": "command:cat"})
  (reward,) = rewards_of(config_of(rewards=rewards)).values()
  material_of(reward, {})
  assert "a changed one is not told from it" in caplog.text
