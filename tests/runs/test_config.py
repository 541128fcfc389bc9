# SPDX-License-Identifier: Apache-2.0
"""A config is checked before anything else happens."""

import copy
import json
import pathlib

import numpy as np
import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import (
  Folder,
  load,
  read,
  renamed,
  with_defaults,
)
from mrpo_jax.runs.workdir import differences

ROOT = pathlib.Path(__file__).parents[2]
# Checked configs as config.json had them before they were typed, four of them
# with later rows and remat: of each file in configs/ by its argument, and of
# four runs.
BEFORE = {
  path.stem: json.loads(path.read_text())
  for path in (ROOT / "tests/material/configs").glob("*.json")
}
RUNS = BEFORE.pop("runs")
GOOD = dict(
  steps=10,
  batch=4,
  data=dict(train="a.jsonl"),
  policy=dict(path="/models/a"),
  references=dict(
    names=("base", "other"),
    base=dict(path="policy"),
    other=dict(path="/models/b"),
  ),
  loss=dict(name="mrpo", beta=0.1, weights=(1, 2)),
  optimizer=dict(peak_lr=1e-4),
)


def changed(key, value):
  values = copy.deepcopy(GOOD)
  *parents, name = key.split(".")
  section = values
  for parent in parents:
    section = section.setdefault(parent, {})
  section[name] = value
  return values


@pytest.mark.parametrize(
  "name,arg", [(name, arg) for name in sorted(BEFORE) for arg in BEFORE[name]]
)
def test_a_config_file_gives_the_config_json_that_it_gave(name, arg):
  given = f"{ROOT}/configs/{name}.py:{arg}"
  text = json.dumps(load(given).to_dict()).replace(f"{ROOT}/", "")
  assert json.loads(text) == renamed(BEFORE[name][arg])[0]


def test_no_config_file_of_before_is_gone():
  files = {path.stem for path in (ROOT / "configs").glob("*.py")}
  assert files >= {*BEFORE}


@pytest.mark.parametrize("run", RUNS)
def test_the_config_json_of_a_run_is_read_as_it_was_written(run):
  assert read(RUNS[run]).to_dict() == renamed(RUNS[run])[0]


def test_a_config_does_not_change():
  config = read(GOOD)
  with pytest.raises(ValueError, match="frozen"):
    config.steps = 3
  with pytest.raises(ValueError, match="frozen"):
    config.references.base.beta = 0.2
  with pytest.raises(AttributeError, match="peek_lr"):
    _ = config.optimizer.peek_lr


def test_defaults_are_filled_in():
  checked = read(GOOD)
  assert checked.seed == 0 and checked.log_every == 1
  assert checked.references["other"].mode == "online"
  assert checked.policy.dtype == "float32"
  assert checked.references.names == ("base", "other")
  assert checked.loss.keywords == dict(beta=0.1, weights=(1, 2))
  assert checked.to_dict()["references"]["names"] == ["base", "other"]
  assert checked.to_dict()["loss"]["weights"] == [1, 2]


def test_defaults_alone_change_nothing():
  filled = with_defaults(GOOD)
  assert filled["mesh"] == dict(data=-1, fsdp=1, context=1, model=1, rules={})
  assert filled["references"]["other"]["mode"] == "online"
  assert "batch" not in with_defaults({})
  assert read(filled) == read(GOOD)


def test_rules_are_text_that_a_flag_can_change():
  values = changed("mesh.rules", dict(embed=("fsdp", "data"), vocab=None))
  values["references"]["other"]["rules"] = dict(embed=())
  filled = with_defaults(values)
  assert filled["mesh"]["rules"] == dict(embed="fsdp,data", vocab="")
  checked = read(values)
  assert checked == read(filled)
  assert checked.references["other"].rules == dict(embed="")
  assert checked.references["base"].rules == {}


def test_the_largest_seed_and_step_are_taken():
  config = read(changed("seed", 2**31 - 1) | {"steps": 2**31 - 1})
  assert np.int32(config.seed) == config.steps == np.iinfo(np.int32).max


def test_an_integer_serves_as_a_number():
  clip_norm = read(changed("optimizer.clip_norm", 1)).optimizer.clip_norm
  assert isinstance(clip_norm, float) and clip_norm == 1.0


@pytest.mark.parametrize(
  "key,value,match",
  [
    ("steps", 0, "config.steps must be positive, or config.epochs"),
    ("steps", -3, "config.steps must not be negative, got -3"),
    ("epochs", -1.0, "config.epochs must not be negative"),
    ("epochs", 2.0, "config.steps=10 and config.epochs=2 both say"),
    ("steps", 2.5, "must be of type int"),
    ("steps", 2**31, "config.steps must be at most 2147483647, got 2147483648"),
    ("steps", 10**30, "config.steps must be at most 2147483647, got 10000"),
    ("seed", 2**31, "config.seed must be at most 2147483647, got 2147483648"),
    ("seed", 2**64, "config.seed must be at most 2147483647"),
    ("reference_update.every", 2**31, "every must be at most 2147483647"),
    ("steps", True, "must be of type int"),
    ("batch", "8", "config.batch must be of type int"),
    ("seed", -1, "config.seed must not be negative"),
    ("optimizer.peak_lr", float("nan"), "peak_lr must be a finite number"),
    ("optimizer.peak_lr", float("inf"), "finite"),
    ("optimizer.peak_lr", 0.0, "must be positive"),
    ("optimizer.warmup", 1.5, "at most 1"),
    ("optimizer.b1", 1.0, "b1 must be at least 0 and less than 1, got 1.0"),
    ("optimizer.b1", -0.1, "b1 must be at least 0 and less than 1, got -0.1"),
    ("optimizer.b2", 1.5, "b2 must be at least 0 and less than 1, got 1.5"),
    ("optimizer.b2", float("nan"), "b2 must be a finite number"),
    ("optimizer.warmup", -0.1, "must be at least 0 and at most 1, got -0.1"),
    (
      "reference_update.rate",
      1.5,
      "rate must be more than 0 and at most 1,",
    ),
    (
      "optimizer.peek_lr",
      1e-4,
      r"config.optimizer.peek_lr is not known; did you mean peak_lr\? "
      "known here: b1, b2, ",
    ),
    ("optimizer.lr", 0.1, "config.optimizer.lr is not known.*peak_lr"),
    ("mesh.rows", 2, "config.mesh.rows is not known.*context, data.*rules"),
    ("mesh.rules", "fsdp", "config.mesh.rules must be a section"),
    ("mesh.rules.embed", 3, "mesh.rules.embed must be names of mesh axes"),
    ("policy.rules", {}, "config.policy.rules is not known"),
    (
      "stepz",
      1,
      r"is not known; did you mean steps\? known here:.*steps",
    ),
    ("data.trian", "x", "config.data.trian is not known.*train"),
    ("policy.pth", "x", "config.policy.pth is not known.*path"),
    ("policy.path", "", "config.policy.path is empty"),
    ("policy.dtype", "int8", "must be one of 'float32'"),
    ("policy.kernel", "magic", "must be one of 'auto'"),
    ("references.other.mode", "cached", "must be one of 'online', 'scored'"),
    ("references.names", ("base", "none"), "config.references.none is missing"),
    ("references.names", ("base", "base"), "repeats"),
    ("references.names", "base", "must be a tuple of names, got 'base'"),
    ("references.base", "policy", "references.base must be a section, got"),
    ("references.base.pth", "x", r"base.pth is not known; did you mean path\?"),
    ("loss.beta", 0.0, "config.loss.beta must be positive"),
    ("loss.beta", float("nan"), "config.loss.beta must be a finite"),
    (
      "loss.token_weight",
      dict(name="temporal_decay", gamma=float("nan")),
      "config.loss.token_weight.gamma must be a finite number",
    ),
    ("loss.weights", (1.0, float("inf")), "loss.weights.1 must be a finite"),
    ("loss.name", None, "config.loss.name is missing"),
    ("loss", "dpo", "config.loss must be a section"),
    ("mesh.data", 1.0, "must be of type int"),
  ],
)
def test_what_is_wrong_is_named(key, value, match):
  with pytest.raises(InputError, match=match):
    read(changed(key, value))


def test_conversations_stand_in_the_config_only_where_they_are_used():
  assert "conversations" not in read(GOOD).to_dict()["data"]
  given = read(changed("data.conversations", "hh"))
  assert given.to_dict()["data"]["conversations"] == "hh"
  assert read(given.to_dict()) == given
  with pytest.raises(InputError, match="data.conversations must be one of"):
    read(changed("data.conversations", "sharegpt"))


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_list_of_files_is_text_with_commas(kind):
  given = changed("data.train", kind(["a.jsonl", "shards/"]))
  assert read(given).data.train == "a.jsonl,shards/"
  assert with_defaults(given)["data"]["train"] == "a.jsonl,shards/"
  for wrong in (kind(["a.jsonl", 1]), kind([])):
    with pytest.raises(InputError, match="config.data.train must be of type"):
      read(changed("data.train", wrong))


@pytest.mark.parametrize("key", ["batch", "data.train", "optimizer.peak_lr"])
def test_what_has_no_default_must_be_given(key):
  values = copy.deepcopy(GOOD)
  *parents, name = key.split(".")
  section = values
  for parent in parents:
    section = section[parent]
  del section[name]
  with pytest.raises(InputError, match=f"config.{key} is missing"):
    read(values)


def test_a_named_reference_needs_its_section():
  values = copy.deepcopy(GOOD)
  del values["references"]["other"]
  with pytest.raises(InputError, match="config.references.other is missing"):
    read(values)


def test_a_section_that_is_not_named_is_not_used():
  checked = read(changed("references.names", ("base",)))
  assert [name for name, _ in checked.references.items()] == ["base"]
  assert set(checked.to_dict()["references"]) == {"names", "base"}


def test_a_new_model_is_not_used_beside_a_path():
  checked = read(changed("policy.new", dict(layers=0, colour="red")))
  assert checked.policy.new is None and "new" not in checked.to_dict()["policy"]


def test_a_new_model_is_described_in_full():
  values = changed("policy.path", "")
  values["policy"]["new"] = dict(layers=2)
  with pytest.raises(InputError, match="config.policy.new.width is missing"):
    read(values)


LORA = dict(rank=8, alpha=16)


def test_an_adapter_is_filled_in_and_none_is_none():
  def adapter(given):
    return read(changed("policy.adapter", given)).to_dict()["policy"]["adapter"]

  want = dict(rank=8, alpha=16.0, targets=["all"], rslora=False, dropout=0.0)
  for given in (LORA, {**LORA, "path": ""}, {**LORA, "targets": "all"}):
    assert adapter(given) == want
  several = {**LORA, "targets": ("query", "value")}
  assert adapter(several)["targets"] == ["query", "value"]
  assert adapter({**LORA, "targets": "query,value"}) == adapter(several)
  assert adapter(dict(path="a")) == dict(path="a", dropout=0.0)
  assert adapter(None) is adapter({}) is None
  nothing = read(changed("references.other.quantize", None))
  assert nothing.references["other"].quantize == ""


def test_the_policy_as_a_reference_is_what_the_policy_is():
  values = changed("policy.adapter", LORA)
  values["policy"] |= dict(dtype="bfloat16", quantize="int4", quantize_group=64)
  (_, base), (_, other) = read(values).references.items()
  assert base.dtype == "bfloat16" and other.dtype == "float32"
  assert (base.quantize, base.quantize_group) == ("int4", 64)
  assert (other.quantize, other.quantize_group) == ("", 32)


@pytest.mark.parametrize(
  "adapter,match",
  [
    (4, "config.policy.adapter must be a section, got 4"),
    (dict(rank=8), "config.policy.adapter.alpha is missing"),
    ({**LORA, "rank": -1}, "adapter.rank must be positive, got -1"),
    ({**LORA, "rank": True}, "adapter.rank must be of type int"),
    ({**LORA, "rslora": 1}, "adapter.rslora must be of type bool"),
    ({**LORA, "dropout": -0.1}, "adapter.dropout must be at least 0"),
    ({**LORA, "dropout": float("nan")}, "dropout must be a finite number"),
    ({**LORA, "targets": ()}, "adapter.targets must be a tuple of names"),
    ({**LORA, "targets": (1,)}, "adapter.targets must be a tuple of names"),
    ({**LORA, "r": 8}, "adapter.r is not known; known here: alpha,.*path"),
    (dict(path="a", alpha=1), "adapter.alpha is not known.*dropout, path"),
  ],
)
def test_a_wrong_adapter_is_named(adapter, match):
  with pytest.raises(InputError, match=match):
    read(changed("policy.adapter", adapter))


def test_integers_are_not_trained():
  with pytest.raises(InputError, match="needs config.policy.adapter"):
    read(changed("policy.quantize", "int8"))
  values = changed("references.base.quantize", "int8")
  values["policy"] |= dict(adapter=LORA, quantize="int4")
  with pytest.raises(InputError, match="'int8', but the policy is int4"):
    read(values)


def sections(**changes):
  """The ModelSections of GOOD with other values at dotted keys."""
  return read(GOOD).changed(changes).models()


def test_the_models_of_a_run_have_names_and_keys():
  found = sections()
  assert list(found) == ["policy", "base", "other"]
  keys = [section.key for section in found.values()]
  assert keys == ["policy", "references.base", "references.other"]
  assert [one.is_policy for one in found.values()] == [True, False, False]


def test_the_path_of_the_policy_is_its_weights_and_its_tokenizer():
  found = sections(**{"policy.template": "chatml", "policy.tokenizer": "/t"})
  policy, base, other = found.values()
  assert base.base == policy.base and base.base.weights == Folder("/models/a")
  assert base.tokenizer == policy.tokenizer and base.tokenizer.folder == "/t"
  assert other.base.weights == Folder("/models/b")
  assert (other.tokenizer.folder, other.tokenizer.template) == ("/models/b", "")
  # The policy's tokenizer with a template of its own.
  own = sections(**{"references.other.tokenizer": "policy"})["other"]
  assert own.tokenizer.folder == "/models/a"
  own = sections(**{"references.base.template": "zephyr"})["base"]
  assert own.tokenizer.template == "zephyr"


def test_new_models_alike_are_different_weights_but_the_policys_start():
  new = dict(layers=2, width=8, heads=2, kv_heads=1, mlp_width=8, vocab_size=99)
  values = changed("policy", dict(path="", new=new))
  values["references"]["other"] = dict(path="", new=new)
  policy, base, other = read(values).models().values()
  assert base.base == policy.base != other.base
  assert policy.base.weights.key == "policy"
  assert other.base.weights.key == "references.other"
  assert base.tokenizer.key == "policy"


def test_rules_of_the_mesh_are_changed_for_one_reference():
  found = sections(
    **{
      "mesh.rules": dict(embed=""),
      "references.other.rules": dict(embed="data"),
    }
  )
  rules = [dict(one.base.rules)["embed"] for one in found.values()]
  assert rules == [(), (), ("data",)]
  with pytest.raises(InputError, match="config.references.other.rules.rows is"):
    sections(**{"references.other.rules": dict(rows="data")})


def test_adapters_and_modes_of_models():
  found = sections(
    **{
      "policy.adapter": LORA,
      "references.other.adapter": "/peft",
      "references.other.mode": "scored",
    }
  )
  assert found["policy"].adapter.rank == 8 and found["base"].adapter is None
  assert found["other"].adapter.path == "/peft"
  assert [one.scored for one in found.values()] == [False, False, True]


def test_the_path_of_the_policy_is_its_start_with_an_imported_adapter():
  values = changed("policy.adapter", dict(path="/sft", dropout=0.1))
  found = read(values).models()
  assert found["base"].adapter.path == "/sft"
  assert found["base"].adapter.dropout == 0.0
  assert found["base"].base == found["policy"].base
  assert found["other"].adapter is None
  # Without it, and with another one in its place.
  values["references"]["base"] = dict(path="policy-base")
  off = read(values).models()["base"]
  assert off.adapter is None and off.base == found["policy"].base
  assert off.tokenizer == found["policy"].tokenizer
  values["references"]["base"] = dict(path="policy", adapter="/other")
  assert read(values).models()["base"].adapter.path == "/other"


def test_a_new_adapter_is_off_in_the_policys_start():
  values = changed("policy.adapter", LORA)
  assert read(values).models()["base"].adapter is None
  start = read(values).models()["base"]
  values["references"]["base"] = dict(path="policy-base")
  assert read(values).models()["base"] == start


def test_experts_of_none_are_refused():
  config = load(f"{ROOT}/configs/quickstart.py:dpo,debug")
  with pytest.raises(InputError, match="give config.policy.new.experts, too"):
    config.changed({"policy.new.experts_per_token": 3})


def test_no_reference_is_called_policy():
  values = changed("references.names", ("policy",))
  values["references"]["policy"] = dict(path="policy")
  with pytest.raises(InputError, match="'policy' is the policy; name the re"):
    read(values)


def test_a_changed_config_is_checked_again():
  config = read(GOOD).changed({"references.other.mode": "scored", "steps": 20})
  assert config.references["other"].mode == "scored" and config.steps == 20
  with pytest.raises(InputError, match="config.steps must be positive"):
    config.changed({"steps": 0})


def test_differences_name_the_keys():
  here = dict(a=1, b=dict(c=2, d=[1]))
  there = dict(a=1, b=dict(c=3, d=[1]), e=5)
  found = list(differences(here, there))
  assert found == [("b.c", 3, 2), ("e", 5, None)]
  assert list(map(str, found)) == ["b.c: 3 -> 2", "e: 5 -> None"]


def test_the_tilde_is_home_in_every_path_of_a_config(monkeypatch):
  monkeypatch.setenv("HOME", "/h")
  given = {
    **dict.fromkeys(("data.train", "data.eval", "data.validation"), "~/a"),
    **{f"policy.{key}": "~/b" for key in ("path", "tokenizer", "template")},
    "policy.adapter": dict(path="~/c"),
    **{f"references.other.{key}": "~/d" for key in ("path", "adapter")},
    **{f"references.other.{key}": "~/e" for key in ("tokenizer", "template")},
  }
  values = GOOD
  for key, value in given.items():
    *parents, name = key.split(".")
    values = copy.deepcopy(values)
    section = values
    for parent in parents:
      section = section.setdefault(parent, {})
    section[name] = value
  text = json.dumps(read(values).to_dict())
  assert "~" not in text
  assert [text.count(f"/h/{letter}") for letter in "abcde"] == [3, 3, 1, 2, 2]


def test_a_path_that_is_no_unicode_is_refused():
  with pytest.raises(InputError, match="data.train must be Unicode text"):
    read(changed("data.train", "a\udcff"))
