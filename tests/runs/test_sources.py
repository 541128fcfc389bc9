# SPDX-License-Identifier: Apache-2.0
"""A config is one thing, whether Python, YAML or a name with keys says it."""

import json
import math
import pathlib

import pytest
import yaml

from mrpo_jax import losses
from mrpo_jax.cli.flags import changed_config, changed_values
from mrpo_jax.cli.parser import parse
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import load, read
from mrpo_jax.runs.config.sources import is_loss, values_of
from mrpo_jax.runs.config.yaml_text import parsed, written

ROOT = pathlib.Path(__file__).parents[2]
KEYS = {
  "data.train": "a.jsonl",
  "policy.path": "/models/a",
  "references.second.path": "/models/b",
  "loss.beta": 0.2,
  "optimizer.peak_lr": 5e-7,
}
PYTHON = """
from ml_collections import config_dict

def get_config():
  c = config_dict.ConfigDict()
  c.epochs, c.batch = 1.0, 64
  c.data = dict(train="a.jsonl")
  c.policy = dict(path="/models/a")
  c.references = dict(
    names=("base", "second"),
    base=dict(path="policy"),
    second=dict(path="/models/b"),
  )
  c.loss = dict(name="mrpo", beta=0.2)
  c.optimizer = dict(peak_lr=5e-7)
  return c
"""
YAML = """
epochs: 1
batch: 64
data: {train: a.jsonl}
policy:
  path: /models/a
references:
  names: [base, second]
  base: {path: policy}
  second:
    path: /models/b
loss: {name: mrpo, beta: 0.2}  # per nat
optimizer: {peak_lr: 5e-7}
"""


def test_python_yaml_and_keys_give_the_same_config(tmp_path):
  (tmp_path / "one.py").write_text(PYTHON)
  (tmp_path / "one.yaml").write_text(YAML)
  keys = [f"--config.{key}={value}" for key, value in KEYS.items()]
  found = [
    load(f"{tmp_path}/one.py"),
    load(f"{tmp_path}/one.yaml"),
    changed_config("mrpo", keys),
  ]
  assert found[0] == found[1] == found[2]
  assert found[0].references.names == ("base", "second")
  assert found[0].epochs == 1.0 and found[0].optimizer.peak_lr == 5e-7


@pytest.mark.parametrize("name", ["quickstart", "real", "d2po", "hpo"])
def test_yaml_says_again_what_a_config_says(name, tmp_path):
  config = load(f"{ROOT}/configs/{name}.py:debug")
  path = tmp_path / "again.yml"
  path.write_text(written(config.to_dict()))
  assert load(str(path)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", losses.names())
def test_a_loss_has_a_config_with_the_reference_that_it_takes(name):
  assert is_loss(name) == (name not in ("apa", "d2po", "hpo"))  # files
  if not is_loss(name):
    return
  values = values_of(name)
  if name in ("awr", "ppo"):
    takes = True  # of rollouts, they name the initial policy themselves
  elif name == "combine":
    takes = True
  else:
    takes = losses.build(name).takes_reference
  assert ("references" in values) == takes
  assert values["epochs"] == 1.0 and values["loss"] == {"name": name}


def test_names_go_to_files_that_ship_and_take_their_arguments():
  assert values_of("quickstart:dpo") == values_of(
    f"{ROOT}/configs/quickstart.py:dpo"
  )
  assert values_of("d2po")["online"]["prompts"]  # the config, not the loss


def test_references_are_named_by_their_keys_alone_for_a_loss():
  keys = [f"--config.{key}={value}" for key, value in KEYS.items()]
  more = [*keys, "--config.references.third.path=/models/c"]
  assert changed_config("dpo", more).references.names == (
    *("base", "second", "third"),
  )
  given = [*keys[:2], "--config.references.base.mode=scored"]
  assert changed_config("dpo", given).references.names == ("base",)
  with pytest.raises(InputError, match="no section 'third'"):
    changed_config("quickstart:mrpo", more[-1:])


def test_a_section_that_a_key_gives_whole_is_a_reference_too():
  keys = [f"--config.{key}={value}" for key, value in KEYS.items()]
  keys.append("--config.references.third={'path': '/models/c'}")
  config = changed_config("dpo", keys)
  assert config.references.names == ("base", "second", "third")
  assert config.references["third"].path == "/models/c"


@pytest.mark.parametrize("names", ["second,base", "second,base,", "base"])
def test_names_are_given_with_commas(names):
  keys = [f"--config.{key}={value}" for key, value in KEYS.items()]
  config = changed_config("dpo", [*keys, f"--config.references.names={names}"])
  assert config.references.names == tuple(filter(None, names.split(",")))


@pytest.mark.parametrize("value", ["0.2", "a=b", "dpo"])
@pytest.mark.parametrize("key", ["loss.gamma", "data.eval"])
def test_the_value_of_a_key_may_be_the_next_word(key, value):
  words = ["train", "--config", "dpo", f"--config.{key}", value, "steps=3"]
  joined = parse([*words, "--workdir=w"])
  assert joined.config == "dpo"
  assert joined.rest == [f"--config.{key}={value}", "--config.steps=3"]
  config = changed_values("dpo", joined.rest)
  section, _, name = key.partition(".")
  assert str(config[section][name]) == value and config["steps"] == 3


def test_a_file_without_suffix_hides_no_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("dpo", "quickstart", "other"):
    (tmp_path / name).write_text("")
  assert is_loss("dpo") and values_of("dpo")["loss"] == {"name": "dpo"}
  assert values_of("quickstart:dpo")["loss"]["name"] == "dpo"
  with pytest.raises(InputError, match="other: want a file .py or .yaml"):
    values_of("other")


def test_epochs_are_steps_over_the_pairs():
  keys = ["--config.policy.path=/a", "--config.data.train=a.jsonl"]
  keys += ["--config.batch=10"]
  config = changed_config("dpo", [*keys, "--config.epochs=0.3"])
  assert config.over(100).steps == 3 and config.over(100).epochs == 0
  assert config.over(139).steps == 4  # 4.17
  assert config.over(100).over(7).steps == 3  # known by then
  with pytest.raises(InputError, match="epochs=0.3 of 33 pairs are less than"):
    config.over(33)
  assert "epochs" not in config.over(100).to_dict()
  assert changed_config("dpo", [*keys, "--config.steps=9"]).steps == 9
  rounds = [*keys, "--config.rounds.count=2"]
  with pytest.raises(InputError, match="of a run by rounds give config.steps"):
    changed_config("dpo", rounds)


@pytest.mark.parametrize(
  "text,match",
  [
    ("steps: 1\nsteps: 2", r"line 2: .*'steps' stands there twice"),
    ("a: &x 1\nb: *x", "line 2: aliases are not read"),
    ("a: &x [1]\nb: {<<: *x}", "aliases are not read"),
    ("1: 2", "line 1: a key must be a text"),
    ("[1]: 2", "line 1: a key must be a text"),
    ("a: !!python/object:os.system x", "tags like .*os.system' are not read"),
    ("a: !!int 3", "tags like"),
    ("a: [", "expected the node content, but found"),
    ("- 1", "want keys and values"),
    ("", "want keys and values"),
    ("steps: " + "9" * 5000, "Exceeds the limit"),
    ("a: " + "[" * 3000, "recursion"),
    ("steps: 1\n---\nsteps: 2", "expected a single document"),
    ("bathc: 3", "bathc is not known; did you mean batch"),
    ("steps: yes", "config.steps must be of type int, got 'yes'"),
    ("steps: 1.5", "config.steps must be of type int"),
    ("steps: .inf", "config.steps must be of type int"),
  ],
)
def test_yaml_that_is_no_config_is_refused_where_it_is_wrong(
  text, match, tmp_path
):
  path = tmp_path / "one.yaml"
  path.write_text(text)
  with pytest.raises(InputError, match=match) as error:
    load(str(path))
  assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
  (tmp_path / "one.yaml").write_bytes(b"a: \xff")
  with pytest.raises(InputError, match=r"one.yaml: .*can't decode byte 0xff"):
    load(f"{tmp_path}/one.yaml")
  (tmp_path / "one.json").write_text("{}")
  with pytest.raises(InputError, match=r"one.json: want a file .py or .yaml"):
    load(f"{tmp_path}/one.json")
  with pytest.raises(InputError, match="YAML takes no arguments"):
    (tmp_path / "two.yaml").write_text(YAML)
    load(f"{tmp_path}/two.yaml:debug")


@pytest.mark.parametrize(
  "text,want",
  [
    *(("1e-5", 1e-5), ("5E3", 5000.0), (".5", 0.5), ("5.", 5.0), ("-3", -3)),
    *(("010", 10), ("+7", 7), ("no", "no"), ("on", "on"), ("1:30", "1:30")),
    *(("2026-01-01", "2026-01-01"), ("0x1f", "0x1f"), ("1_000", "1_000")),
    *(("true", True), ("False", False), ("~", None), ("", None)),
    *(("NULL", None), ("'1e-5'", "1e-5"), ("-.inf", -math.inf)),
  ],
)
def test_scalars_are_what_yaml_1_2_says(text, want):
  found = parsed(f"a: {text}")["a"]
  assert found == want and type(found) is type(want)


def test_what_is_written_is_read_by_both_versions_of_yaml():
  values = {
    "texts": [
      *("1e5", "no", "null", "~", "", "1:30", "true", "010", "a: b", "#"),
      *(" x", "0x1f", ".5", "=", "<<", "y", "2026-01-01", "a\x85b", "é\n"),
    ],
    "numbers": [1e-5, 1e22, 0.1, -0.0, 3.0, 1e16, 10**12, -4],
    "rest": [None, True, {}, [], {"a": {"b": [1]}}],
  }
  assert parsed(written(values)) == values
  # By 1.1, too: yaml.safe_load is what most tools call.
  assert yaml.safe_load(written(values)) == values
  assert json.loads(json.dumps(values)) == values


def test_configs_by_name_are_checked_as_all_are():
  with pytest.raises(InputError, match=r"config.policy.path is empty"):
    read(values_of("simpo"))
