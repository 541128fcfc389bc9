# SPDX-License-Identifier: Apache-2.0
"""Folders hold no value head: it is added, and never written or lost."""

import jax
import numpy as np
import pytest

from mrpo_jax import hub
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.models import lora, parameters
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.families.read import config_to_hf, with_value_head
from tests.golden.make_rewards import NAMES
from tests.material.folders import GOLDEN, assert_identical


@pytest.mark.parametrize("name", NAMES)
def test_a_head_of_zeros_stands_beside_what_a_folder_holds(name):
  config, params = hub.load(GOLDEN / name, head=VALUED)
  plain, others = hub.load(GOLDEN / name)
  assert config == with_value_head(plain) and config.head == VALUED
  value = params["value_head"]
  assert value.shape == (1, config.width) and not value.any()
  assert value.dtype == params["embed"].dtype
  assert_identical(parameters.language_model(config, params)[1], others)


def test_it_is_neither_written_nor_lost(tmp_path):
  config, params = hub.load(GOLDEN / "llama_theta", head=VALUED)
  with pytest.raises(InputError, match="value head has no place in a model f"):
    hub.save(tmp_path / "m", config, params)
  with pytest.raises(InputError, match="value head has no place in a model f"):
    config_to_hf(config, "float32")
  adapter = lora.Adapter(2, 4.0, ("query",))
  own = lora.adapter_table(parameters.table(config), adapter)
  arrays = lora.init_adapters(own, jax.random.key(0))
  with pytest.raises(InputError, match="value head has no place in an adapter"):
    peft.save(tmp_path / "a", config, adapter, arrays)
  assert not any(tmp_path.iterdir())
  # Nor under another config.
  plain, _ = parameters.language_model(config, params)
  with pytest.raises(ValueError, match="value"):
    hub.save(tmp_path / "m", plain, params)
  hub.save(tmp_path / "m", *parameters.language_model(config, params))
  assert_identical(hub.load(tmp_path / "m", head=VALUED)[1], params)
  peft.save(tmp_path / "a", plain, adapter, {"blocks": arrays["blocks"]})
  _, back = peft.load(tmp_path / "a", config)
  np.testing.assert_array_equal(
    back["blocks"]["query"]["a"], arrays["blocks"]["query"]["a"]
  )
  assert set(back) == {"blocks"}


def test_a_reward_model_has_none(tmp_path):
  config, params = hub.load(GOLDEN / "llama_theta", head="scalar")
  hub.save(tmp_path / "m", config, params)
  with pytest.raises(InputError, match="says nothing whose value") as info:
    hub.load(tmp_path / "m", head=VALUED)
  assert str(tmp_path / "m") in str(info.value)
