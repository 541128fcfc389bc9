# SPDX-License-Identifier: Apache-2.0
"""Exports carry what stood beside the weights that a run started from."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import files, hub
from mrpo_jax.data.templates import TEMPLATES
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  tokenizer_fingerprint,
)
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.models.config import VALUED
from mrpo_jax.runs.export import export
from mrpo_jax.runs.inference import policy
from mrpo_jax.training import checkpoints
from tests.material.runs import mrpo
from tests.material.standing import run_of

GENERATION = {"eos_token_id": [1, 7], "temperature": 0.6, "do_sample": True}
ADAPTER = dict(rank=2, alpha=4.0)


@pytest.fixture
def source(inputs, tmp_path):
  """A bfloat16 model that ends with two tokens, and no chat template."""
  folder = tmp_path / "source"
  config, params = hub.load(inputs / "base", dtype="bfloat16")
  tokenizer = load_tokenizer(inputs / "base")
  hub.save(folder, config, params, tokenizer=tokenizer, generation=GENERATION)
  return folder


def test_an_export_has_the_generation_config_of_its_source(source, tmp_path):
  workdir = run_of(tmp_path, source)
  export(workdir, tmp_path / "to")
  assert files.read_json(tmp_path / "to/generation_config.json") == GENERATION
  (source / "generation_config.json").unlink()
  export(workdir, tmp_path / "without")
  assert not (tmp_path / "without/generation_config.json").exists()


def test_a_merged_adapter_has_it_too(source, tmp_path):
  workdir = run_of(tmp_path, source, adapter=ADAPTER)
  export(workdir, tmp_path / "to", merge=True)
  assert files.read_json(tmp_path / "to/generation_config.json") == GENERATION


def test_a_source_that_is_gone_is_said(source, tmp_path, caplog, inputs):
  workdir = run_of(tmp_path, source, tokenizer=f"{inputs}/base")
  shutil.rmtree(source)
  with caplog.at_level("INFO", "mrpo_jax"):
    export(workdir, tmp_path / "to")
  assert f"warning: {source}/config.json is gone" in caplog.text
  ids = files.read_json(tmp_path / "to/generation_config.json")
  assert ids == {"bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize("text", ['{"a": ', "[1]"])
def test_a_generation_config_that_is_none_is_named(source, tmp_path, text):
  workdir = run_of(tmp_path, source)
  (source / "generation_config.json").write_text(text)
  with pytest.raises(
    InputError, match="source/generation_config.json (is not JSON|holds)"
  ):
    export(workdir, tmp_path / "to")
  assert not (tmp_path / "to").exists()


def test_what_a_killed_export_left_is_removed_by_the_next(source, tmp_path):
  workdir, left = run_of(tmp_path, source), tmp_path / ".to.partial-1"
  left.mkdir()
  (left / "model.safetensors").write_bytes(b"half")
  export(workdir, tmp_path / "to")
  assert not left.exists() and hub.load(tmp_path / "to")


# The type of the weights.


def test_another_type_than_the_sources_is_said(source, tmp_path, caplog):
  workdir = run_of(tmp_path, source)
  with caplog.at_level("INFO", "mrpo_jax"):
    export(workdir, tmp_path / "to")
  assert "the weights are float32, as trained" in caplog.text
  assert "--dtype=bfloat16 writes that" in caplog.text
  assert hub.load(tmp_path / "to")[1]["embed"].dtype == jnp.float32


def test_the_type_that_is_asked_for_is_written(source, tmp_path, caplog):
  workdir, to = run_of(tmp_path, source), tmp_path / "to"
  argv = [f"--workdir={workdir}", f"--to={to}", "--dtype=bfloat16"]
  assert mrpo("export", *argv) == 0
  assert "as trained" not in caplog.text
  assert files.read_json(to / "config.json")["dtype"] == "bfloat16"
  weights = [path / "model.safetensors" for path in (to, source)]
  assert len({path.stat().st_size for path in weights}) == 1
  for a, b in zip(*map(_leaves, (to, source)), strict=True):
    np.testing.assert_array_equal(a, b)


def _leaves(folder):
  return jax.tree.leaves(hub.load(folder)[1])


def test_an_adapter_has_the_type_that_is_asked_for(source, tmp_path):
  workdir, to = run_of(tmp_path, source, adapter=ADAPTER), tmp_path / "to"
  export(workdir, to, dtype="bfloat16")
  config = hub.read_config(source)
  adapter, arrays = peft.load(to, config)
  assert adapter.scale == 2.0
  sizes = [(folder / peft.WEIGHTS).stat().st_size for folder in (to,)]
  export(workdir, tmp_path / "wide")
  assert sizes[0] < 0.7 * (tmp_path / "wide" / peft.WEIGHTS).stat().st_size
  a = arrays["blocks"]["up"]["a"]
  np.testing.assert_array_equal(a, a.astype(jnp.bfloat16).astype("float32"))


def test_an_unknown_type_is_one_line(tmp_path, capsys):
  argv = [f"--workdir={tmp_path}", f"--to={tmp_path}/a", "--dtype=int8"]
  assert mrpo("export", *argv) == 2
  error = capsys.readouterr().err
  assert "--dtype: 'int8'; want float32, bfloat16, float16" in error


def test_weights_that_are_not_finite_are_not_written(
  source, tmp_path, monkeypatch
):
  with monkeypatch.context() as before:  # earlier versions saved such a state
    before.setattr(checkpoints, "_not_finite", lambda tree: "")
    workdir = run_of(tmp_path, source, poison=True)
  with pytest.raises(InputError, match="'norm'. not finite"):
    export(workdir, tmp_path / "to")
  assert not (tmp_path / "to").exists()


# The chat template.


def test_a_named_template_goes_out(source, tmp_path):
  workdir = run_of(tmp_path, source, template="chatml")
  export(workdir, tmp_path / "to")
  template = load_tokenizer(tmp_path / "to").chat_template
  assert template == "{{ bos_token }}" + TEMPLATES["chatml"]


def test_the_template_of_a_tokenizer_without_one_goes_out(
  source, tmp_path, caplog
):
  workdir = run_of(tmp_path, source)
  with caplog.at_level("INFO", "mrpo_jax"):
    export(workdir, tmp_path / "to")
  assert "has no chat template: the export has 'transcript'" in caplog.text
  there = load_tokenizer(tmp_path / "to")
  assert there.chat_template == "{{ bos_token }}" + TEMPLATES["transcript"]
  # The run that goes on from the export reads its pairs as this one did.
  before = tokenizer_fingerprint(load_tokenizer(source))
  assert tokenizer_fingerprint(there) == before


def test_a_template_that_has_changed_since_is_said(source, tmp_path, caplog):
  file = tmp_path / "mine.jinja"
  file.write_text("{{ messages[0]['content'] }}")
  workdir = run_of(tmp_path, source, template=str(file))
  export(workdir, tmp_path / "same")
  assert "not the one that was trained with" not in caplog.text
  file.write_text("{{ messages[0]['content'] }}.")
  export(workdir, tmp_path / "other")
  assert "its chat template, is not the one that was trained" in caplog.text


# The base of an adapter.


def test_a_base_that_is_written_nowhere_is_said(
  source, tmp_path, caplog, monkeypatch
):
  workdir = run_of(tmp_path, source, adapter=ADAPTER)
  export(workdir, tmp_path / "one")
  assert "written nowhere" not in caplog.text
  monkeypatch.setattr(policy.Checkpoint, "origin", None)  # made there
  export(workdir, tmp_path / "two")
  assert "written nowhere" in caplog.text
  assert "--merge-adapters writes a whole model" in caplog.text


def test_an_adapter_is_not_merged_into_another_base(source, tmp_path):
  workdir = run_of(tmp_path, source, adapter=ADAPTER)
  file = source / "config.json"
  values = json.loads(file.read_text()) | {"rope_theta": 7.0}
  file.write_text(json.dumps(values))
  with pytest.raises(InputError, match="not the model that the adapter was"):
    export(workdir, tmp_path / "to", merge=True)
  export(workdir, tmp_path / "adapter")


@pytest.mark.parametrize("merge", [None, False, True])
def test_a_value_head_is_left_out_and_that_is_said(
  inputs, tmp_path, caplog, merge
):
  source, given = inputs / "base", {} if merge is None else {"adapter": ADAPTER}
  for name in ("w", "plain"):
    (tmp_path / name).mkdir()
  run = run_of(tmp_path / "w", source, moved=0.5, head=VALUED, **given)
  params, model, _, _ = checkpoints.policy(run, 1)
  assert model.head == VALUED and (params["value_head"] == 0.5).all()
  with caplog.at_level("INFO"):
    export(run, tmp_path / "to", merge=bool(merge))
  assert caplog.text.count("the value head is left out") == 1
  plain = run_of(tmp_path / "plain", source, moved=0.5, **given)
  export(plain, tmp_path / "without", merge=bool(merge))
  assert caplog.text.count("the value head is left out") == 1
  weights = peft.WEIGHTS if merge is False else "model.safetensors"
  one, two = (tmp_path / to / weights for to in ("to", "without"))
  assert one.read_bytes() == two.read_bytes()
