# SPDX-License-Identifier: Apache-2.0
"""Keys under names that they had: taken with a line, in workdirs without."""

import pytest

from mrpo_jax import files
from mrpo_jax.cli.flags import changed_config
from mrpo_jax.cli.parser import parse
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import load, read, renamed
from mrpo_jax.runs.workdir import claim, known_run, recorded_config
from tests.runs.test_config import GOOD, changed

LINE = "config.optimizer.end_lr is called config.optimizer.end_lr_share now"


@pytest.fixture
def file(tmp_path):
  """The path of a config file whose optimizer has further keys."""

  def write(**optimizer):
    values = {**GOOD, "optimizer": {**GOOD["optimizer"], **optimizer}}
    path = tmp_path / "mine.py"
    path.write_text(
      "from ml_collections import ConfigDict\n\n\n"
      f"def get_config(arg=''):\n  return ConfigDict({values!r})\n"
    )
    return str(path)

  return write


def test_a_file_may_have_the_old_key(file, caplog):
  assert load(file(end_lr=0.25)).optimizer.end_lr_share == 0.25
  assert caplog.text.count(LINE) == 1
  caplog.clear()
  assert load(file(end_lr_share=0.5)).optimizer.end_lr_share == 0.5
  assert LINE not in caplog.text


@pytest.mark.parametrize(
  "words",
  [
    ["--config.optimizer.end_lr=0.75"],
    ["--config.optimizer.end_lr", "0.75"],
    ["--config.optimizer.end_lr_share=0.1", "--config.optimizer.end_lr=0.75"],
  ],
)
def test_a_flag_may_have_the_old_key(file, caplog, words):
  given = parse(["train", file(end_lr_share=0.5), "--workdir=W", *words])
  config = changed_config(given.config, given.rest)
  assert config.optimizer.end_lr_share == 0.75
  assert caplog.text.count(LINE) == 1


def test_both_names_in_one_file_are_refused(file):
  message = "config.optimizer.end_lr is the old name of config.optimizer.end_lr"
  with pytest.raises(InputError, match=message):
    load(file(end_lr=0.25, end_lr_share=0.5))


def test_a_wrong_value_is_said_under_the_new_name():
  with pytest.raises(InputError, match="end_lr_share must not be negative"):
    read(changed("optimizer.end_lr", -1.0))


def test_an_old_workdir_goes_on_and_keeps_its_record(tmp_path, caplog):
  now = read(changed("optimizer.end_lr_share", 0.25)).to_dict()
  before = read(changed("optimizer.end_lr_share", 0.25)).to_dict()
  before["optimizer"]["end_lr"] = before["optimizer"].pop("end_lr_share")
  files.write_json(tmp_path / "config.json", before)
  assert known_run(tmp_path, now) == now
  assert recorded_config("here", before).to_dict() == now
  claim(tmp_path, now, step=5)
  assert files.read_json(tmp_path / "config.json") == before
  assert not (tmp_path / "config-5.json").exists()
  assert LINE not in caplog.text
  now["optimizer"]["end_lr_share"] = 0.5
  with pytest.raises(InputError, match="end_lr_share: 0.25 -> 0.5"):
    known_run(tmp_path, now)


def test_values_without_the_section_stay():
  assert renamed({"steps": 3}) == ({"steps": 3}, [])
