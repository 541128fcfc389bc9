# SPDX-License-Identifier: Apache-2.0
"""Parts of a training run that need no training."""

import dataclasses

import jax
import optax
import pytest

from configs import apa, online_dpo, quickstart
from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.models.config import VALUED, ModelConfig
from mrpo_jax.runs.config import read
from mrpo_jax.runs.setup import set_up
from mrpo_jax.runs.train import _logged, _saving
from mrpo_jax.training import checkpoints, train_state


def config_of(**changed):
  values = quickstart.get_config("dpo,debug").to_dict()
  values["data"]["eval"] = ""
  return read(values | {"steps": 12, "checkpoint_every": 0, **changed})


def test_which_steps_had_a_line_follows_from_the_configs_of_then(tmp_path):
  files.write_json(tmp_path / "config-4.json", config_of(log_every=2).to_dict())
  files.write_json(tmp_path / "config-8.json", config_of(log_every=4).to_dict())
  files.write_json(tmp_path / "config-x.json", {})
  had = _logged(tmp_path, config_of(log_every=1))
  assert [n for n in range(1, 13) if had(n)] == [1, 2, 4, 8, 9, 10, 11, 12]
  # Of steps whose config cannot be read none is missed.
  (tmp_path / "config-8.json").write_text("{")
  had = _logged(tmp_path, config_of(log_every=1))
  assert [n for n in range(1, 13) if had(n)] == [1, 2, 4, 9, 10, 11, 12]


@pytest.mark.parametrize(
  "of,key,value",
  [
    (online_dpo, "rounds", 100),
    (online_dpo, "passes", 2),
    (apa, "passes", 1),
    (apa, "samples", 2),
  ],
)
def test_where_a_round_has_its_prompts_from_never_changes(
  tmp_path, of, key, value
):
  values = of.get_config().to_dict()
  files.write_json(tmp_path / "config.json", read(values).to_dict())
  values["online"][key] = value
  with pytest.raises(InputError, match=f"online.{key} cannot change within"):
    set_up(read(values), tmp_path, allow_changed=True)


@pytest.mark.parametrize("head", ["tokens", VALUED])
def test_a_checkpoint_keeps_the_value_head(tmp_path, head):
  config = ModelConfig(61, 16, 1, 2, 1, 8, 32, tied=True, head=head)
  params = parameters.init(config, jax.random.key(0))
  params = jax.tree.map(lambda array: array + 0.5, params)
  state = train_state.create(params, optax.sgd(0.1), {})
  with checkpoints.manager(tmp_path) as manager:
    save = _saving(
      *(manager, config_of().to_dict(), config, None),
      check_owner=lambda: None,
      place=lambda step: {"stream": {"rows": step}},
    )
    save(1, state, None)
  meta = checkpoints.read_meta(tmp_path / "checkpoints" / "1")
  assert meta["stream"] == {"rows": 1}
  found, model, adapter, _ = checkpoints.policy(tmp_path, 1)
  assert dataclasses.replace(model, source="") == config and adapter is None
  assert found.keys() == params.keys()
  if head == VALUED:
    assert (found["value_head"] == 0.5).all()
