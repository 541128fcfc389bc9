# SPDX-License-Identifier: Apache-2.0
"""Help on a config says type, default, bound and meaning of every key."""

import inspect
import json
import pathlib
import re

import pytest

from mrpo_jax import losses
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config.explain import explain, keys

NAME = "loss.name"
# Checked configs, of every file in configs/ by its argument.
CONFIGS = {
  f"{path.stem}:{arg}": config
  for path in (pathlib.Path(__file__).parents[1] / "material").glob(
    "configs/*.json"
  )
  for arg, config in json.loads(path.read_text()).items()
}


def leaves(section, where=""):
  for name, value in section.items():
    yield f"{where}{name}"
    if isinstance(value, dict):
      yield from leaves(value, f"{where}{name}.")


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_of_a_config_is_explained(config):
  for key in leaves(CONFIGS[config]):
    if key.startswith("loss.") and key.count(".") > 1:
      continue  # keywords of a choice within the loss: docs/guide/losses.md
    kind, about = explain(key).split("\n    ")[:2]
    assert ": " in kind and about


def test_every_key_has_a_meaning_and_a_default_or_none():
  for key, (kind, about) in keys().items():
    assert about, key
    wanted = ("section", "default ", "required")
    is_keyword = key.startswith("loss.") and "of " in about
    assert is_keyword or any(word in kind for word in wanted), key


@pytest.mark.parametrize(
  "key,want",
  [
    ("steps", "steps: int, not negative, default 0\n    optimizer steps"),
    ("optimizer.warmup", "float, at least 0 and at most 1, default 0.1\n"),
    # A key that had another name is explained under the one it has.
    ("optimizer.end_lr", "optimizer.end_lr_share: float, not negative"),
    ("policy.remat", "str, one of 'none', 'dots', 'full', default 'dots'\n"),
    ("policy.adapter.rank", "rank: int, positive, required; only without path"),
    ("policy.adapter.dropout", "at least 0 and less than 1, default 0.0\n"),
    ("policy.adapter.targets", ".targets: str or tuple of str, default 'all'"),
    ("data.train", "data.train: str or list of str, default ''\n"),
    ("mesh.rules", "axes (of data, fsdp, context, model) over which an axis"),
    (
      "references.second.mode",
      "references.<name>.mode: str, one of 'onlin",
    ),
    ("references.second.new.width", "references.<name>.new.width: int, posit"),
    ("references.names", "references.names: tuple of str, default ()\n"),
    ("mesh.rules.embed", "mesh.rules: section, default {}\n"),
    ("loss.gamma", "loss.gamma: number\n"),
    ("loss.gamma", "simpo (1)"),
    ("loss.mixture", "loss.mixture: str or number\n"),
    ("loss.weights", "or a rule: uniform, adaptive"),
    ("loss.token_weight", "temporal_decay, length_desensitized"),
    ("loss.weight", "of orpo (0.1)"),
    ("loss.detach_weight", "loss.detach_weight: bool\n"),
    ("loss", "docs/guide/losses.md"),
    ("bandit.betas", "bandit.betas: tuple of float, positive, required\n"),
    ("bandit.links", "bandit.links.<name>: section\n"),
    ("bandit.links.dpo.beta", "loss.beta: number\n"),
  ],
)
def test_a_key_is_explained(key, want):
  assert want in explain(key)


def test_a_section_is_explained_with_all_below_it():
  found = [
    line.split(":")[0]
    for line in explain("rounds").split("\n")
    if not line.startswith(" ")
  ]
  assert found == ["rounds", "rounds.count", "rounds.alpha"]


def test_the_keys_of_a_section_stand_together():
  first, *sections = [
    [line.split(":")[0] for line in block.split("\n") if line[:1] != " "]
    for block in explain().split("\n\n")
  ]
  assert {"steps", "eval_draws"} <= {*first}
  for name, *below in sections:
    assert all(key.startswith(f"{name}.") for key in below), name


def test_every_keyword_of_every_loss_is_explained():
  functions = [losses.build]
  functions += [
    losses.build(name).loss
    for name in losses.names()
    if name != "combine"  # by itself it has no losses
  ]
  known = keys()
  for function in functions:
    for name, one in inspect.signature(function).parameters.items():
      if one.kind is one.KEYWORD_ONLY and not name.endswith("_B"):
        assert f"loss.{name}" in known


def takes(name, key):
  """Does `build` take the keyword for that loss?"""
  given = dict(losses=("dpo",), loss_weights=(1.0,))
  given = given if name == "combine" else {}
  try:
    losses.build(name, **given | {key: "?"})
  except (TypeError, ValueError) as error:
    return f"does not take {key!r}" not in str(error)
  return True


@pytest.mark.parametrize(
  "key", [key for key in keys() if key.startswith("loss.") and key != NAME]
)
def test_help_names_exactly_the_losses_that_take_a_keyword(key):
  said = re.split("(?:^|; )of ", keys()[key][1])[-1]
  if said.startswith("all but "):
    others = said.removeprefix("all but ").partition(";")[0]
    named = {*losses.names()} - {*others.split(", ")}
  else:
    named = {*re.findall(r"(\w+) \(", said)}
  assert named == {
    name for name in losses.names() if takes(name, key.removeprefix("loss."))
  }


@pytest.mark.parametrize(
  "key,match",
  [
    ("optimizer.peek_lr", "did you mean optimizer.peak_lr?"),
    ("references.second.mod", "did you mean references.<name>.mode?"),
    ("colour", "config.colour is not known; mrpo help config lists all keys"),
  ],
)
def test_a_key_that_is_not_known_names_the_nearest(key, match):
  with pytest.raises(InputError) as caught:
    explain(key)
  assert match in str(caught.value)
