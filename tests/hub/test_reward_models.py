# SPDX-License-Identifier: Apache-2.0
"""Folders of reward models: one label of a sequence classifier."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.models import lora, parameters
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.read import config_from_hf, config_to_hf
from tests.golden.make_rewards import NAMES, score
from tests.material.folders import (
  GOLDEN,
  WEIGHTS,
  assert_identical,
  configure,
  edit,
)

SCORE = "base_model.model.score.weight"


def written(folder, name="llama_theta", **given):
  """(config, params) of a reward model, saved into a folder."""
  config, params = hub.load(GOLDEN / name, head="scalar", dtype="float32")
  params["score"] = jnp.asarray(score(config.width))
  hub.save(folder, config, params, **given)
  return config, params


@pytest.mark.parametrize("name", NAMES)
def test_every_family_comes_back(name, tmp_path):
  config, params = written(tmp_path / "m", name)
  again, weights = hub.load(tmp_path / "m")
  assert again == config and again.head == "scalar"
  assert_identical(weights, params)
  values = json.loads((tmp_path / "m/config.json").read_text())
  assert values["architectures"] == [FAMILIES[config.family].classifier]
  assert values["num_labels"] == 1 and len(values["id2label"]) == 1
  tensors = safetensors.numpy.load_file(tmp_path / "m" / WEIGHTS)
  assert tensors["score.weight"].shape == (1, config.width)
  assert not any("lm_head" in name or "embed_out" in name for name in tensors)


def test_a_reward_model_stays_one_where_a_scalar_head_is_asked_for(tmp_path):
  _, params = written(tmp_path / "m")
  _, again = hub.load(tmp_path / "m", head="scalar")
  assert_identical(again, params)


def test_a_config_made_by_hand_is_written_as_a_llama():
  config = ModelConfig(61, 16, 1, 2, 1, 8, 32, tied=True, head="scalar")
  values = config_to_hf(config, "float32")
  assert values["architectures"] == ["LlamaForSequenceClassification"]
  assert config_from_hf(values) == config


@pytest.mark.parametrize(
  "changed,match",
  [
    (dict(num_labels=2), "of 2 labels is not computed here"),
    (dict(num_labels=None, id2label={"0": "a", "1": "b"}), "of None labels"),
  ],
)
def test_a_classifier_of_several_labels_is_refused(changed, match, tmp_path):
  written(tmp_path / "m")
  configure(tmp_path / "m", **changed)
  with pytest.raises(InputError, match=match):
    hub.read_config(tmp_path / "m")


def test_a_classifier_that_counts_no_labels_has_two(tmp_path):
  written(tmp_path / "m")
  file = tmp_path / "m/config.json"
  values = json.loads(file.read_text())
  del values["num_labels"], values["id2label"]
  file.write_text(json.dumps(values))
  with pytest.raises(InputError, match="of 2 labels"):
    hub.read_config(tmp_path / "m")


@pytest.mark.parametrize(
  "change,match",
  [
    (lambda t: t.pop("score.weight") is None, "missing tensors: score.weight"),
    (
      lambda t: t | {"score.weight": t["score.weight"][:, :-1]},
      "score.weight has shape",
    ),
    (
      lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]},
      "unexpected tensors: lm_head.weight",
    ),
  ],
)
def test_other_tensors_are_refused(change, match, tmp_path):
  written(tmp_path / "m")
  edit(tmp_path / "m", change)
  with pytest.raises(InputError, match=match):
    hub.load(tmp_path / "m")


@pytest.mark.parametrize(
  "pad,want", [(5, 5), (1, None), (2, None), (None, None), (10**6, None)]
)
def test_padding_that_ends_texts_is_not_named(pad, want, tmp_path, caplog):
  tokenizer = types.SimpleNamespace(
    pad_token_id=pad, eos_token_id=1, save_pretrained=lambda folder: None
  )
  with caplog.at_level("INFO"):
    written(tmp_path / "m", tokenizer=tokenizer)
  values = json.loads((tmp_path / "m/config.json").read_text())
  assert values["pad_token_id"] == want
  assert ("also ends texts" in caplog.text) == (pad in (1, 2))
  assert not (tmp_path / "m/generation_config.json").exists()


def adapted(tmp_path):
  config, _ = hub.load(GOLDEN / "llama_theta", head="scalar")
  adapter = lora.Adapter(2, 4.0, ("query", "down"))
  own = lora.adapter_table(parameters.table(config), adapter)
  arrays = lora.init_adapters(own, jax.random.key(0))
  arrays["score"] = jnp.asarray(score(config.width))
  peft.save(tmp_path / "a", config, adapter, arrays)
  return config, adapter, arrays


def test_an_adapter_brings_its_head_as_peft_has_it(tmp_path):
  config, adapter, arrays = adapted(tmp_path)
  values = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
  assert values["task_type"] == "SEQ_CLS"
  assert values["modules_to_save"] == ["score"]
  tensors = safetensors.numpy.load_file(tmp_path / "a" / peft.WEIGHTS)
  np.testing.assert_array_equal(tensors[SCORE], arrays["score"])
  again, back = peft.load(tmp_path / "a", config)
  assert again == adapter
  np.testing.assert_array_equal(back["score"], arrays["score"])
  assert peft.fingerprint(tmp_path / "a")


def test_an_adapter_that_peft_wrote_names_a_module_more(tmp_path):
  config, _, arrays = adapted(tmp_path)
  file = tmp_path / "a" / peft.CONFIG
  values = json.loads(file.read_text())
  values["modules_to_save"] = ["classifier", "score"]
  file.write_text(json.dumps(values))
  _, back = peft.load(tmp_path / "a", config)
  np.testing.assert_array_equal(back["score"], arrays["score"])
  file.write_text(json.dumps(values | {"modules_to_save": ["classifier"]}))
  with pytest.raises(InputError, match="modules_to_save"):
    peft.load(tmp_path / "a", config)


def test_an_adapter_of_the_other_head_is_refused(tmp_path):
  config, _, _ = adapted(tmp_path)
  plain = hub.read_config(GOLDEN / "llama_theta")
  with pytest.raises(
    InputError, match=r"modules_to_save=\['score'\]; want \[\]"
  ):
    peft.load(tmp_path / "a", plain)
  file = tmp_path / "a" / peft.WEIGHTS
  tensors = safetensors.numpy.load_file(file)
  del tensors[SCORE]
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(InputError, match=f"missing tensors: {SCORE}"):
    peft.load(tmp_path / "a", config)
