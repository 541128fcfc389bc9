# SPDX-License-Identifier: Apache-2.0
"""Weights in and out, and the decoder against torch's numbers.

tests/golden/make_families.py made the folders and the numbers; with --check it
shows that torch loads what `hub.save` writes.
"""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub, parallel
from mrpo_jax.errors import InputError
from mrpo_jax.hub import write as writing
from mrpo_jax.models import parameters, transformer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = ("gqa_tied", "mha_odd", "theta", "bf16")
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


@functools.cache
def golden(name):
  config, params = hub.load(GOLDEN / f"llama_{name}", dtype="float32")
  return config, params, dict(np.load(GOLDEN / f"llama_{name}.npz"))


def logits(name, tokens, **places):
  config, params, _ = golden(name)
  apply = jax.jit(transformer.apply, static_argnums=0)
  return np.asarray(apply(config, params, jnp.asarray(tokens), **places))


def assert_close(ours, torchs):
  assert np.abs(ours - torchs).max() <= 1e-4 * np.abs(torchs).max()


def assert_identical(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Numbers.


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torch(name):
  numbers = golden(name)[2]
  assert_close(logits(name, numbers["tokens"]), numbers["whole_logits"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_padded_logits_are_those_of_torch(name, side):
  numbers = golden(name)[2]
  real = numbers[f"{side}_mask"] > 0
  ours = logits(
    name, numbers["tokens"], segments_BT=jnp.asarray(real.astype(np.int32))
  )
  assert np.isfinite(ours).all()
  assert_close(ours[real], numbers[f"{side}_logits"][real])


@pytest.mark.parametrize("name", NAMES)
def test_what_padding_holds_changes_no_logit(name):
  numbers = golden(name)[2]
  real = numbers["left_mask"] > 0
  segments = jnp.asarray(real.astype(np.int32))
  other = np.where(real, numbers["tokens"], 0)
  np.testing.assert_array_equal(
    logits(name, numbers["tokens"], segments_BT=segments)[real],
    logits(name, other, segments_BT=segments)[real],
  )


@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_have_the_logits_of_single_ones(name):
  numbers = golden(name)[2]
  lengths = (12, 9, 5)
  single = logits(name, numbers["tokens"])
  pieces = [row[:n] for row, n in zip(numbers["tokens"], lengths, strict=True)]
  tokens = np.concatenate([*pieces, [0, 0]])[None]
  segments = np.repeat([1, 2, 3, 0], (*lengths, 2))[None]
  packed = logits(name, tokens, segments_BT=jnp.asarray(segments))
  want = [row[:n] for row, n in zip(single, lengths, strict=True)]
  assert_close(packed[0, :-2], np.concatenate(want))


# Round trips.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_load_after_save_is_bit_identical(name, dtype, tmp_path):
  config, params = hub.load(GOLDEN / f"llama_{name}", dtype=dtype)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
  hub.save(tmp_path / "new/model", config, params)
  again = hub.load(tmp_path / "new/model")
  assert again[0] == config == hub.read_config(tmp_path / "new/model")
  assert_identical(again[1], params)
  written = json.loads((tmp_path / "new/model/config.json").read_text())
  assert written["dtype"] == dtype


def test_without_a_dtype_the_stored_one_stays():
  _, params = hub.load(GOLDEN / "llama_bf16")
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_saved_tensors_are_those_of_the_golden_file(tmp_path):
  hub.save(tmp_path / "m", *hub.load(GOLDEN / "llama_mha_odd"))
  ours = safetensors.numpy.load_file(tmp_path / "m" / WEIGHTS)
  theirs = safetensors.numpy.load_file(GOLDEN / "llama_mha_odd" / WEIGHTS)
  assert ours.keys() == theirs.keys()
  for key in theirs:
    np.testing.assert_array_equal(ours[key], theirs[key])
  with safetensors.safe_open(tmp_path / "m" / WEIGHTS, framework="np") as file:
    assert file.metadata() == {"format": "pt"}


def test_shards_and_their_index_round_trip(tmp_path, monkeypatch):
  config, params, _ = golden("theta")
  monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
  hub.save(tmp_path / "m", config, params)
  files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
  assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
  assert len(files) > 2
  for file in files:
    tensors = safetensors.numpy.load_file(tmp_path / "m" / file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size <= 20_000
  index = json.loads((tmp_path / "m" / INDEX).read_text())
  assert index["metadata"]["total_size"] == 4 * parameters.count_parameters(
    config
  )
  assert_identical(hub.load(tmp_path / "m")[1], params)


def test_a_mesh_places_the_leaves():
  config, params, _ = golden("gqa_tied")
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  _, placed = hub.load(GOLDEN / "llama_gqa_tied", mesh=mesh)
  want = parallel.param_shardings(config, mesh)
  assert jax.tree.map(lambda leaf: leaf.sharding, placed) == want
  assert_identical(placed, params)


def test_sharded_parameters_are_saved_whole(tmp_path):
  config, params, _ = golden("gqa_tied")
  mesh = parallel.make_mesh(data=1, fsdp=4, model=2)
  _, placed = hub.load(GOLDEN / "llama_gqa_tied", mesh=mesh)
  hub.save(tmp_path / "m", config, placed)
  assert_identical(hub.load(tmp_path / "m")[1], params)


def test_generation_config_and_tokenizer_stand_beside(tmp_path):
  class Tokenizer:
    def save_pretrained(self, folder):
      (pathlib.Path(folder) / "tokenizer.json").write_text("{}")

  config, params, _ = golden("gqa_tied")
  hub.save(tmp_path / "m", config, params, tokenizer=Tokenizer())
  assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "tokenizer.json",
  ]
  ids = json.loads((tmp_path / "m/generation_config.json").read_text())
  assert ids == {"bos_token_id": 1, "eos_token_id": 2}


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path):
  config, params, _ = golden("gqa_tied")
  hub.save(tmp_path / "m", config, params)
  modes = {path.stat().st_mode for path in (tmp_path / "m").iterdir()}
  assert len(modes) == 1


# Nothing half-written.


def test_a_failing_save_leaves_nothing(tmp_path, monkeypatch):
  config, params, _ = golden("theta")
  monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
  write, calls = safetensors.numpy.save_file, []

  def fail_at_the_second(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
      raise safetensors.SafetensorError("no space left on device")
    write(*arguments)

  monkeypatch.setattr(safetensors.numpy, "save_file", fail_at_the_second)
  with pytest.raises(OSError, match="model-00002.*no space left"):
    hub.save(tmp_path / "m", config, params)
  assert len(calls) == 2
  assert list(tmp_path.iterdir()) == []


def make_folder(path):
  path.mkdir()
  (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
  "make, left",
  [
    (make_folder, ["m", "notes.txt"]),
    (lambda path: path.write_text("mine"), ["m"]),
    (lambda path: path.symlink_to("elsewhere"), ["m"]),
  ],
  ids=["folder", "file", "link"],
)
def test_what_is_there_is_not_overwritten(make, left, tmp_path):
  config, params, _ = golden("gqa_tied")
  make(tmp_path / "m")
  with pytest.raises(InputError, match="m exists"):
    hub.save(tmp_path / "m", config, params)
  assert [path.name for path in tmp_path.rglob("*")] == left


def test_an_empty_folder_is_filled(tmp_path):
  config, params, _ = golden("gqa_tied")
  (tmp_path / "m").mkdir()
  hub.save(tmp_path / "m", config, params)
  assert_identical(hub.load(tmp_path / "m")[1], params)


@pytest.mark.parametrize(
  "norm, words",
  [
    (jnp.ones(31), r"model\.norm\.weight.*31.*32"),
    (jnp.ones(32, jnp.int8), r"model\.norm\.weight.*int8"),
  ],
  ids=["shape", "integers"],
)
def test_parameters_that_do_not_fit_are_not_saved(norm, words, tmp_path):
  config, params, _ = golden("gqa_tied")
  with pytest.raises(InputError, match=words):
    hub.save(tmp_path / "m", config, {**params, "norm": norm})
  assert list(tmp_path.iterdir()) == []


# Folders as they are found.


@pytest.fixture
def folder(tmp_path):
  """A copy of the untied golden model, in float32."""
  shutil.copytree(GOLDEN / "llama_theta", tmp_path / "model")
  return tmp_path / "model"


def edit(folder, change):
  """Applies `change` to the dict of stored tensors."""
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
  tensors = change(tensors) or tensors
  safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def configure(folder, **values):
  file = folder / "config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def shard(folder, change=lambda index: None):
  """Splits the weights over a.safetensors and b.safetensors, with an index."""
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  weight_map = {}
  for number, name in enumerate(tensors):
    weight_map[name] = "ab"[number % 2] + ".safetensors"
  for file in ("a.safetensors", "b.safetensors"):
    part = {name: t for name, t in tensors.items() if weight_map[name] == file}
    safetensors.numpy.save_file(part, folder / file)
  index = {"weight_map": weight_map}
  index = change(index) or index
  (folder / INDEX).write_text(json.dumps(index))


def assert_loads_as_before(folder):
  assert_identical(hub.load(folder)[1], golden("theta")[1])


def test_an_index_without_metadata_is_enough(folder):
  shard(folder)
  assert_loads_as_before(folder)


def test_a_tensor_that_the_index_forgets_is_found(folder):
  shard(folder, lambda index: index["weight_map"].pop(NORM) and None)
  assert_loads_as_before(folder)


def test_a_symlinked_cache_loads(folder, tmp_path):
  shard(folder)
  for file in ("a.safetensors", "b.safetensors"):
    (folder / file).rename(tmp_path / file)
    (folder / file).symlink_to(tmp_path / file)
  assert_loads_as_before(folder)


def test_buffers_are_ignored(folder):
  def change(tensors):
    layer = "model.layers.0.self_attn"
    tensors[f"{layer}.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["h.0.attn.bias"] = np.ones((1, 1, 4, 4), bool)
    tensors["h.0.attn.masked_bias"] = np.array(-1e9, np.float32)

  edit(folder, change)
  assert_loads_as_before(folder)


def test_names_may_all_be_bare(folder):
  edit(folder, lambda t: {k.removeprefix("model."): v for k, v in t.items()})
  assert_loads_as_before(folder)


def test_a_stored_copy_of_a_tied_head_is_ignored(folder):
  configure(folder, tie_word_embeddings=True)
  edit(folder, lambda t: t.update({"lm_head.weight": t[EMBED].copy()}))
  config, params = hub.load(folder)
  assert config.tied and "head" not in params


def test_a_config_of_transformers_4_loads(folder):
  values = json.loads((folder / "config.json").read_text())
  theta = values.pop("rope_parameters")["rope_theta"]
  values.pop("dtype")
  old = dict(rope_theta=theta, rope_scaling=None, torch_dtype="float32")
  (folder / "config.json").write_text(json.dumps({**values, **old}))
  assert hub.load(folder)[0] == golden("theta")[0]
  assert_loads_as_before(folder)


def test_leaves_have_one_dtype_even_if_the_file_has_several(folder):
  def change(tensors):
    tensors[NORM] = tensors[NORM].astype(np.float16)
    tensors[QUERY] = tensors[QUERY].astype(ml_dtypes.bfloat16)

  edit(folder, change)
  _, params = hub.load(folder)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_stored_float64_becomes_float32_without_x64(folder):
  edit(folder, lambda t: {k: v.astype(np.float64) for k, v in t.items()})
  assert_loads_as_before(folder)


# Refusals.


def set_tensor(name, value):
  return lambda folder: edit(folder, lambda t: t.update({name: value}))


def without(name):
  return lambda folder: edit(
    folder, lambda t: {k: v for k, v in t.items() if k != name}
  )


def rename(old, new):
  return lambda folder: edit(folder, lambda t: t.update({new: t.pop(old)}))


def write(name, text):
  return lambda folder: (folder / name).write_text(text)


def cut(name, size):
  def damage(folder):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:size])

  return damage


def poison(value):
  def damage(folder):
    edit(folder, lambda t: t[QUERY].__setitem__((3, 2), value))

  return damage


def index_says(file):
  return lambda folder: shard(
    folder, lambda index: index["weight_map"].update({NORM: file})
  )


def index_lists_too_much(folder):
  shard(
    folder, lambda index: index["weight_map"].update({"extra": "a.safetensors"})
  )


def index_swaps(folder):
  def swap(index):
    other = dict(a="b.safetensors", b="a.safetensors")
    index["weight_map"][NORM] = other[index["weight_map"][NORM][0]]

  shard(folder, swap)


def twice(folder):
  shard(folder)
  for file in ("a.safetensors", "b.safetensors"):
    tensors = safetensors.numpy.load_file(folder / file)
    tensors["both"] = np.ones(3, np.float32)
    safetensors.numpy.save_file(tensors, folder / file)


def pickled(folder):
  (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def adapter(folder):
  (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
  (folder / "adapter_config.json").write_text("{}")


def adapter_alone(folder):
  adapter(folder)
  (folder / "config.json").unlink()


def no_weights(folder):
  (folder / WEIGHTS).unlink()


def another_tied_head(folder):
  configure(folder, tie_word_embeddings=True)


def unreadable_dtype(folder):
  edit(folder, lambda t: t.update({NORM: t[NORM].astype("float8_e4m3fn")}))


REFUSALS = {
  "no tensor": (without(NORM), r"missing tensors: model\.norm\.weight$"),
  "many missing": (
    lambda f: configure(f, num_hidden_layers=4),
    r"missing.*layers\.2.* more",
  ),
  "unexpected": (set_tensor("model.extra", np.ones(3, np.float32)), "extra"),
  "fewer layers": (
    lambda f: configure(f, num_hidden_layers=1),
    r"unexpected.*layers\.1",
  ),
  "bias": (
    set_tensor("model.layers.0.self_attn.q_proj.bias", np.ones(32, "f4")),
    r"unexpected.*q_proj\.bias",
  ),
  "some bare": (rename(EMBED, "embed_tokens.weight"), "embed_tokens"),
  "misshapen": (
    set_tensor(NORM, np.ones(31, np.float32)),
    r"model\.norm.*31.*32",
  ),
  "transposed": (
    lambda f: configure(f, num_key_value_heads=2),
    r"k_proj.*\(8, 32\).*\(16, 32\)",
  ),
  "nan": (poison(np.nan), r"layers\.1\.self_attn\.q_proj.*finite"),
  "inf": (poison(-np.inf), r"layers\.1\.self_attn\.q_proj.*finite"),
  "integers": (set_tensor(NORM, np.ones(32, np.int32)), "norm.*I32"),
  "bytes": (set_tensor(NORM, np.ones(32, np.uint8)), "norm.*U8"),
  "float8": (unreadable_dtype, "norm.*F8_E4M3"),
  "other tied head": (another_tied_head, "lm_head.*tie_word_embeddings"),
  "absent shard": (index_says("c.safetensors"), r"c\.safetensors.*absent"),
  "up and out": (index_says("../a.safetensors"), r"\.\./a.*leaves the folder"),
  "absolute": (index_says("/etc/passwd"), "/etc/passwd.*leaves the folder"),
  "shard no string": (index_says(3), "3 is no file name"),
  "wrong shard": (index_swaps, r"model\.norm\.weight is not in [ab]\.safe"),
  "listed, not stored": (index_lists_too_much, "extra is not in a.safetens"),
  "stored twice": (twice, "both stands in .*a.safetensors"),
  "empty index": (
    lambda f: shard(f, lambda i: {"weight_map": {}}),
    "weight_map is missing or empty",
  ),
  "index a list": (lambda f: shard(f, lambda i: [1]), "weight_map is missing"),
  "pickle": (pickled, "pickled weights only.*safe_serialization"),
  "adapter": (adapter, "adapter alone; merge it"),
  "adapter without config": (adapter_alone, "adapter alone; merge it"),
  "no weights": (no_weights, r"no model\.safetensors and no"),
  "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
  "no folder": (shutil.rmtree, "no such folder.*hf download"),
  "broken config": (cut("config.json", 40), r"config\.json: not JSON"),
  "empty config": (cut("config.json", 0), r"config\.json: not JSON"),
  "not UTF-8": (
    lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"),
    r"config\.json: not JSON",
  ),
  "a list": (write("config.json", "[]"), r"config\.json: want a JSON object"),
  "cut weights": (cut(WEIGHTS, 4000), r"model\.safetensors: not a whole"),
  "cut header": (cut(WEIGHTS, 100), r"model\.safetensors: not a whole"),
  "empty weights": (cut(WEIGHTS, 0), r"model\.safetensors: not a whole"),
  "git lfs pointer": (
    write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid x\n"),
    r"model\.safetensors: not a whole",
  ),
  "bad number": (
    lambda f: configure(f, hidden_size=-1),
    r"config\.json: hidden_size=-1",
  ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_folder_is_refused_by_name(case, folder):
  damage, words = REFUSALS[case]
  assert_loads_as_before(folder)
  damage(folder)
  with pytest.raises(InputError, match=words):
    hub.load(folder)


def test_an_unsupported_model_is_refused_with_its_file(folder):
  configure(folder, model_type="bert")
  with pytest.raises(hub.UnsupportedModel, match=r"config\.json: .*'bert'"):
    hub.load(folder)


@pytest.mark.parametrize(
  "dtype, words",
  [("int8", "no floating type"), ("float64", "jax_enable_x64")],
)
def test_a_dtype_that_leaves_cannot_have_is_refused(dtype, words):
  with pytest.raises(InputError, match=words):
    hub.load(GOLDEN / "llama_theta", dtype=dtype)


def test_a_weight_too_large_for_the_dtype_is_refused(folder):
  poison(1e30)(folder)
  assert np.isfinite(np.asarray(hub.load(folder)[1]["blocks"]["query"])).all()
  with pytest.raises(InputError, match="q_proj.*not finite in float16"):
    hub.load(folder, dtype="float16")


# Fingerprints.


def test_a_copy_has_the_same_fingerprint(folder):
  assert hub.fingerprint(folder) == hub.fingerprint(GOLDEN / "llama_theta")
  (folder / "README.md").write_text("hello")
  assert hub.fingerprint(folder) == hub.fingerprint(GOLDEN / "llama_theta")


@pytest.mark.parametrize(
  "change",
  [
    lambda f: poison(1.0)(f),
    lambda f: configure(f, rms_norm_eps=1e-5),
  ],
  ids=["weight", "config"],
)
def test_a_change_changes_the_fingerprint(change, folder):
  edit(folder, lambda tensors: None)
  before = hub.fingerprint(folder)
  change(folder)
  assert hub.fingerprint(folder) != before


def test_every_shard_counts_in_the_fingerprint(folder):
  shard(folder)
  seen = {hub.fingerprint(folder)}
  for file in ("a.safetensors", "b.safetensors"):
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    seen.add(hub.fingerprint(folder))
  assert len(seen) == 3


def test_no_fingerprint_without_a_model(tmp_path):
  with pytest.raises(InputError, match=r"no config\.json"):
    hub.fingerprint(tmp_path)
