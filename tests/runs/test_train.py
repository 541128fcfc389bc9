# SPDX-License-Identifier: Apache-2.0
"""Parts of a training run that need no training."""

from configs import quickstart
from mrpo_jax import files
from mrpo_jax.runs.config import read
from mrpo_jax.runs.train import _logged


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
