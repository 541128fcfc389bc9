# SPDX-License-Identifier: Apache-2.0
"""Folders of PEFT: read, written, and refused where they ask for more."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.hub.folder import Stored
from mrpo_jax.models import lora, parameters, transformer, weights
from tests.material.folders import name_twice

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PLAIN = GOLDEN / "adapter_plain"
QUERY = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@functools.cache
def base():
  return hub.load(GOLDEN / "llama_gqa_tied")


def model():
  return base()[0]


def table():
  return parameters.table(model())


PATTERNS = ["patterns", "patterns_phi3"]


@pytest.mark.parametrize(
  "name", ["plain", "rslora", "phi3", "gpt_neox", "gpt2", *PATTERNS]
)
def test_logits_are_those_of_peft(name):
  folder = GOLDEN / f"adapter_{name}"
  values = json.loads((folder / peft.CONFIG).read_text())
  base = GOLDEN / values["base_model_name_or_path"]
  config, params = hub.load(base, dtype="float32")
  golden = np.load(GOLDEN / "adapter.npz")
  adapter, arrays = peft.load(folder, config)
  logits = jax.jit(functools.partial(transformer.apply, config))
  want = golden[f"{name}_logits"]
  got = logits(lora.attach(params, arrays, adapter), golden["tokens"])
  assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()
  off = logits(params, golden["tokens"])
  assert np.abs(off - want).max() > 1e-2 * np.abs(want).max()


def test_what_a_folder_says():
  adapter, arrays = peft.load(PLAIN, model())
  assert adapter == lora.Adapter(4, 6.0, ("query", "value", "out"))
  adapter, _ = peft.load(GOLDEN / "adapter_rslora", model())
  assert adapter.rslora and adapter.rank == 3
  assert adapter.targets == tuple(weights.matrices(table()))
  want = parameters.map_specs(
    lambda one: one.shape,
    lora.adapter_table(table(), peft.load(PLAIN, model())[0]),
  )
  assert jax.tree.map(lambda array: array.shape, arrays) == want
  # [rank, in] of torch is [inputs, rank] here, and [out, rank] [rank, G, E].
  stored = safetensors.numpy.load_file(PLAIN / peft.WEIGHTS)
  value = QUERY.replace("q_proj", "v_proj")
  np.testing.assert_array_equal(
    arrays["blocks"]["value"]["a"][1, :, 2], stored[value.format(1, "A")][2]
  )
  np.testing.assert_array_equal(
    arrays["blocks"]["value"]["b"][1, 2, 1, 3],
    stored[value.format(1, "B")][8 + 3, 2],
  )


@pytest.mark.parametrize("name", ["plain", "rslora"])
def test_load_after_save_is_bit_equal(tmp_path, name):
  source, to = GOLDEN / f"adapter_{name}", tmp_path / "a"
  adapter, arrays = peft.load(source, model())
  peft.save(to, model(), adapter, arrays, base="b")
  one, two = (
    safetensors.numpy.load_file(folder / peft.WEIGHTS)
    for folder in (source, to)
  )
  assert one.keys() == two.keys()
  for key in one:
    np.testing.assert_array_equal(one[key], two[key])
  here, there = (
    json.loads((folder / peft.CONFIG).read_text()) for folder in (to, source)
  )
  same = ("r", "lora_alpha", "use_rslora", "bias", "peft_type", "task_type")
  assert [here[key] for key in same] == [there[key] for key in same]
  ends = {name.split(".")[-1] for name in there["target_modules"]}
  assert set(here["target_modules"]) == ends
  assert here["base_model_name_or_path"] == "b"
  assert peft.load(to, model())[0] == adapter
  assert peft.fingerprint(to) != peft.fingerprint(source)
  assert "revision" not in here
  with pytest.raises(InputError, match="exists"):
    peft.save(to, model(), adapter, arrays)
  # PEFT reads the revision of a base from a key of its own.
  peft.save(tmp_path / "c", model(), adapter, arrays, base="org/name@v1.0")
  here = json.loads((tmp_path / "c" / peft.CONFIG).read_text())
  assert here["base_model_name_or_path"] == "org/name"
  assert here["revision"] == "v1.0"


def test_module_names_mean_the_targets_alone():
  def one(name):
    spec = parameters.ArraySpec((1, 1), ("layers", None), inputs=1)
    return Stored(spec, f"h.{{}}.{name}.weight", inputs_first=False)

  matrices = dict(
    out=one("attn.c_proj"), up=one("c_fc"), down=one("mlp.c_proj")
  )
  names = peft._module_names
  assert names(matrices, ("out", "up")) == ["attn.c_proj", "c_fc"]
  assert names(matrices, ("out", "down")) == ["c_proj"]


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
  adapter, arrays = peft.load(PLAIN, model())

  def fail(*_):
    raise OSError("no room")

  monkeypatch.setattr(safetensors.numpy, "save_file", fail)
  with pytest.raises(OSError, match="no room"):
    peft.save(tmp_path / "a", model(), adapter, arrays)
  assert not list(tmp_path.iterdir())


def test_a_part_of_a_module_is_read(tmp_path):
  # Query, key and value in one module, as Phi-3 has them: 32 + 16 + 16 rows.
  fused = dataclasses.replace(model(), family="phi3")
  rng = np.random.default_rng(0)
  name = QUERY.replace("q_proj", "qkv_proj")
  stored = {}
  for layer in range(2):
    stored[name.format(layer, "A")] = rng.normal(size=(4, 32)).astype("f4")
    stored[name.format(layer, "B")] = rng.normal(size=(64, 4)).astype("f4")
  shutil.copytree(PLAIN, tmp_path / "a")
  safetensors.numpy.save_file(stored, tmp_path / "a" / peft.WEIGHTS)
  adapter, arrays = peft.load(tmp_path / "a", fused)
  assert adapter.targets == ("query", "key", "value")
  pair = arrays["blocks"]["key"]
  np.testing.assert_array_equal(pair["a"][1], stored[name.format(1, "A")].T)
  np.testing.assert_array_equal(
    pair["b"][1].reshape(4, 16), stored[name.format(1, "B")][32:48].T
  )


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
  "name", ["phi3_partial", "gpt_neox_parallel", "gpt2_bare"]
)
def test_parts_of_a_module_are_written_in_blocks(tmp_path, name, rslora):
  config, params = hub.load(GOLDEN / name, dtype="float32")
  targets = ("query", "value", "up", "down")  # of three parts two
  adapter = lora.Adapter(2, 3.0, targets, rslora)
  keys = iter(jax.random.split(jax.random.key(0), 99))
  arrays = parameters.map_specs(
    lambda one: jax.random.normal(next(keys), one.shape),
    lora.adapter_table(parameters.table(config), adapter),
  )
  peft.save(tmp_path / "a", config, adapter, arrays)
  values = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
  assert 4 in values["rank_pattern"].values()
  again, read = peft.load(tmp_path / "a", config)
  assert again.rank == 4 and again.scale == pytest.approx(adapter.scale)
  tokens = np.arange(12)[None]
  want, got = (
    transformer.apply(config, lora.attach(params, pair, one), tokens)
    for pair, one in ((arrays, adapter), (read, again))
  )
  assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_a_smaller_rank_is_filled_with_zeros(tmp_path):
  shutil.copytree(PLAIN, tmp_path / "a")
  file = tmp_path / "a" / peft.WEIGHTS
  stored = safetensors.numpy.load_file(file)
  for key in stored:
    if "q_proj" in key:
      cut = stored[key][:3] if "lora_A" in key else stored[key][:, :3]
      stored[key] = np.ascontiguousarray(cut)
  safetensors.numpy.save_file(stored, file)
  given = dict(rank_pattern={"q_proj": 3}, alpha_pattern={"q_p.*": 4.5})
  config = tmp_path / "a" / peft.CONFIG
  config.write_text(json.dumps(json.loads(config.read_text()) | given))
  adapter, arrays = peft.load(tmp_path / "a", model())
  assert adapter == lora.Adapter(4, 6.0, ("query", "value", "out"))
  query = arrays["blocks"]["query"]
  assert query["a"].shape == (2, 32, 4) and not query["a"][..., 3].any()
  assert query["b"].shape == (2, 4, 4, 8) and not query["b"][:, 3].any()
  assert query["a"][..., :3].all()


def scales_of(folder):
  """{leaf: scale of each layer} of an adapter of two layers."""
  adapter, _ = peft.load(folder, model())
  own = dict(adapter.scales)
  return {name: own.get(name, (adapter.scale,) * 2) for name in adapter.targets}


@pytest.mark.parametrize(
  "pattern,query",
  [
    ({"model.layers.0.self_attn.q_proj": 64}, (16, 1.5)),
    ({"layers.1.self_attn.q_proj": 64}, (1.5, 16)),
    ({"1.self_attn.q_proj": 64}, (1.5, 16)),
    ({"q_proj": 64}, (16, 16)),
    ({"self_attn.q_proj": 64}, (16, 16)),
    # Of several the first counts, be it the more general one.
    ({"q_proj": 64, "layers.0.self_attn.q_proj": 8}, (16, 16)),
    ({"layers.0.self_attn.q_proj": 8, "q_proj": 64}, (2, 16)),
    # They are regular expressions.
    ({r"layers\.[1-9]\..*": 64}, (1.5, 16)),
    ({"layers.(0|5).self_attn.(q|k)_proj": 64}, (16, 1.5)),
    ({"^model.*0.self_attn.q_proj": 64}, (16, 1.5)),
  ],
)
def test_a_pattern_is_the_end_of_a_whole_name_as_in_peft(
  tmp_path, pattern, query
):
  scales = scales_of(changed(tmp_path, alpha_pattern=pattern))
  assert scales["query"] == query
  assert scales["value"][0] == 1.5


def test_a_pattern_that_tells_layers_apart_has_a_fingerprint_of_its_own(
  tmp_path,
):
  def of(name, **values):
    folder = changed(tmp_path / name, **values)
    parts = [folder / peft.CONFIG, folder / peft.WEIGHTS]
    contents = [hashlib.sha256(path.read_bytes()).digest() for path in parts]
    plain = hashlib.sha256(b"".join(contents)).hexdigest()
    return peft.fingerprint(folder) == plain

  # What was read before as it is read now keeps the one that it had.
  assert of("none") and of("empty", alpha_pattern={})
  assert of("module", alpha_pattern={"q_proj": 6, "self_attn.o_proj": 6})
  assert of("wild", rank_pattern={"[qvo]_p.*": 4})
  assert not of("layer", alpha_pattern={"model.layers.0.self_attn.q_proj": 64})
  assert not of("number", alpha_pattern={"1.self_attn.q_proj": 64})
  assert not of("all", alpha_pattern={r"layers\..*": 64})


def test_layers_of_one_matrix_may_differ_in_rank_and_scale(tmp_path):
  adapter, arrays = peft.load(GOLDEN / "adapter_patterns", model())
  assert (adapter.rank, adapter.scale) == (5, 8 / 5)
  scales = dict(adapter.scales)
  assert scales["query"] == (16, 1.5) and scales["key"] == (1.5, 1.5)
  assert scales["out"] == pytest.approx((8 / 3, 4))
  assert scales["down"] == (2, 1.5 / 4) and scales["up"] == (8 / 5, 0.3)
  assert scales["value"] == scales["gate"] == (2, 2)
  out = arrays["blocks"]["out"]
  assert out["a"].shape[-1] == out["b"].shape[1] == 5
  assert not out["a"][0, ..., 3:].any() and out["a"][0, ..., :3].all()
  assert not out["b"][1, 2:].any() and out["b"][1, :2].all()


@pytest.mark.parametrize("name", PATTERNS)
def test_scales_of_layers_are_written_as_patterns(tmp_path, name):
  source, to = GOLDEN / f"adapter_{name}", tmp_path / "a"
  values = json.loads((source / peft.CONFIG).read_text())
  config, params = hub.load(GOLDEN / values["base_model_name_or_path"])
  adapter, arrays = peft.load(source, config)
  # As a checkpoint keeps it.
  text = json.dumps(adapter.to_json())
  assert lora.Adapter.of_json(json.loads(text)) == adapter
  peft.save(to, config, adapter, arrays)
  again, read = peft.load(to, config)
  tokens = np.arange(12)[None]
  want, got = (
    transformer.apply(config, lora.attach(params, pair, one), tokens)
    for pair, one in ((arrays, adapter), (read, again))
  )
  assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def changed(tmp_path, **values):
  folder = tmp_path / "a"
  shutil.copytree(PLAIN, folder)
  file = folder / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | values))
  return folder


@pytest.mark.parametrize(
  "values,match",
  [
    (dict(peft_type="IA3"), "peft_type='IA3' is not supported"),
    (dict(use_dora=True), "use_dora=True is not computed here"),
    (dict(bias="lora_only"), "bias='lora_only' is not computed"),
    (dict(modules_to_save=["lm_head"]), "modules_to_save=.*lm_head"),
    (dict(layers_to_transform=[0]), "layers_to_transform"),
    (
      dict(rank_pattern={"q_proj": 8}),
      r"layers.0.self_attn.q_proj.lora_A.weight has shape \(4, 32\); want \(8",
    ),
    (
      dict(alpha_pattern={"k_proj": 8}),
      "adapter_config.json: alpha_pattern.k_proj is no module of this adapter; "
      "want the end of a name like model.layers.0.self_attn.o_proj",
    ),
    (
      dict(rank_pattern={"layers.2.self_attn.q_proj": 4}),
      "rank_pattern.layers.2.self_attn.q_proj is no module",
    ),
    (dict(alpha_pattern={"_proj": 8}), "alpha_pattern._proj is no module"),
    (dict(alpha_pattern={"q_proj.": 8}), "alpha_pattern.q_proj. is no module"),
    (
      dict(alpha_pattern={"q_proj(": 8}),
      r"alpha_pattern.q_proj\( is no regular expression",
    ),
    (dict(alpha_pattern={"q_proj": float("inf")}), "q_proj=inf; want a pos"),
    (dict(lora_alpha=float("nan")), "lora_alpha=nan; want a positive"),
    (dict(rank_pattern={"q_proj": 0}), "rank_pattern.q_proj=0; want a pos"),
    (dict(rank_pattern=[8]), r"rank_pattern=\[8\]; want an object"),
    (dict(of_tomorrow=1), "of_tomorrow=1 is not computed"),
    (dict(init_lora_weights="pissa"), "'pissa' changes the base model"),
    (dict(r=0), "r=0; want a positive number"),
    (dict(r=5), r"q_proj.lora_A.weight has shape \(4, 32\); want \(5, 32\)"),
    (dict(lora_alpha=None), "lora_alpha=None"),
  ],
)
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path, values, match):
  with pytest.raises(InputError, match=match):
    peft.load(changed(tmp_path, **values), model())


def without(stored):
  del stored[QUERY.format(1, "B")]


def with_another(stored):
  stored["base_model.model.lm_head.lora_A.weight"] = np.zeros((4, 32), "f4")


def not_finite(stored):
  stored[QUERY.format(0, "A")][0, 0] = np.inf


def integers(stored):
  name = QUERY.format(0, "A")
  stored[name] = stored[name].astype(np.int32)


@pytest.mark.parametrize(
  "change,match",
  [
    (without, "missing tensors: .*layers.1.self_attn.q_proj.lora_B"),
    (with_another, "unexpected tensors: .*lm_head.lora_A"),
    (not_finite, "layers.0.*lora_A.weight holds numbers that are not finite"),
    (integers, "holds int32; want floats"),
    (dict.clear, "holds no tensor"),
  ],
)
def test_what_is_wrong_with_the_tensors_is_named(tmp_path, change, match):
  folder = changed(tmp_path)
  stored = safetensors.numpy.load_file(folder / peft.WEIGHTS)
  change(stored)
  safetensors.numpy.save_file(stored, folder / peft.WEIGHTS)
  with pytest.raises(InputError, match=match):
    peft.load(folder, model())


def test_files_that_are_absent_or_broken_are_named(tmp_path):
  with pytest.raises(InputError, match="no such folder"):
    peft.load(tmp_path / "none", model())
  with pytest.raises(InputError, match="there is no adapter_config.json"):
    peft.load(tmp_path, model())
  folder = changed(tmp_path)
  (folder / peft.WEIGHTS).write_bytes(b"no")
  with pytest.raises(InputError, match="not a whole safetensors file"):
    peft.load(folder, model())
  (folder / peft.WEIGHTS).unlink()
  with pytest.raises(InputError, match="there is no adapter_model.safetensors"):
    peft.load(folder, model())
  (folder / peft.CONFIG).write_text("{")
  with pytest.raises(InputError, match="not JSON"):
    peft.load(folder, model())


def test_what_stands_twice_is_refused(tmp_path):
  folder = changed(tmp_path / "tensor")
  name_twice(folder / peft.WEIGHTS, QUERY.format(0, "A"))
  with pytest.raises(InputError, match="its header: the key 'base_.*' stan"):
    peft.load(folder, model())
  folder = changed(tmp_path / "key")
  file = folder / peft.CONFIG
  file.write_text(file.read_text().replace("{", '{"r": 64, ', 1))
  with pytest.raises(InputError, match="config.json: the key 'r' stands there"):
    peft.load(folder, model())
