# SPDX-License-Identifier: Apache-2.0
"""Pairs survive TFDS bit by bit; other data and broken data are refused."""

import json
import re
import subprocess
import sys
import types

import pytest

from mrpo_jax.data import formats, source
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError

ROWS = [
  {"prompt": f"{i}\u2028\x00é", "chosen": f"c{i}", "rejected": ""}
  for i in range(20)
] + [
  {
    "prompt": [{"role": "user", "content": "p"}],
    "chosen": [{"role": "assistant", "content": "q"}],
    "rejected": [
      {"role": "assistant", "content": ""},
      {"role": "assistant", "content": "z"},
    ],
  }
]
OTHER = ROWS[:-1]


@pytest.fixture
def file(tmp_path):
  return written(tmp_path / "rows.jsonl", ROWS)


def written(path, rows):
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


def prepared_by_tfds(to, features, rows):
  import tensorflow_datasets as tfds

  class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("2.0.0")
    code_path = None

    def _info(self):
      features_dict = tfds.features.FeaturesDict(features)
      return tfds.core.DatasetInfo(builder=self, features=features_dict)

    def _split_generators(self, dl_manager):
      return {"test": self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(rows)

  builder = Foreign(data_dir=to, file_format="array_record")
  builder.download_and_prepare(download_dir=to)
  return builder.data_dir


# Preparing.


def test_pairs_survive_tfds_in_their_order(tmp_path, file):
  directory = source.prepare(file, tmp_path / "out")
  assert directory == tmp_path / "out" / "preference_pairs" / "1.0.0"
  assert source.load(directory) == list(formats.read(file))
  assert source.load(f"{directory}:train[:3]") == source.load(file)[:3]


def test_preparing_the_same_again_changes_nothing(tmp_path, file):
  directory = source.prepare(file, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in directory.iterdir()}
  assert source.prepare(file, tmp_path) == directory
  assert {p: p.stat().st_mtime_ns for p in directory.iterdir()} == before


def test_a_place_with_other_data_is_refused_and_kept(tmp_path, file):
  directory = source.prepare(file, tmp_path)
  other = written(tmp_path / "other.jsonl", OTHER)
  with pytest.raises(InputError, match="1.0.0: holds other data than .*other"):
    source.prepare(other, tmp_path)
  with pytest.raises(InputError, match=r"holds other data .*\(split test\)"):
    source.prepare(file, tmp_path, split="test")
  (tmp_path / "mine" / "1.0.0").mkdir(parents=True)
  with pytest.raises(InputError, match="mine/1.0.0: holds other data"):
    source.prepare(file, tmp_path, name="mine")
  assert source.load(directory) == source.load(file)


def test_name_and_split_are_the_callers(tmp_path, file):
  directory = source.prepare(file, tmp_path, name="mine", split="test")
  assert directory.parent.name == "mine"
  assert source.load(f"{directory}:test") == source.load(file)
  with pytest.raises(InputError, match="split train .*Should be one of"):
    source.load(directory)
  with pytest.raises(InputError, match="'My set': TFDS names are lower case"):
    source.prepare(file, tmp_path, name="My set")
  with pytest.raises(InputError, match="'a:b': a split is named by letters"):
    source.prepare(file, tmp_path, split="a:b")


def test_a_bad_row_and_a_failed_write_leave_nothing(
  tmp_path, file, monkeypatch
):
  bad = written(tmp_path / "bad.jsonl", [*ROWS, {}])
  with pytest.raises(InputError, match="line 22: a key is missing"):
    source.prepare(bad, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with pytest.raises(InputError, match="cannot be written .*give a directory"):
    source.prepare(file, bad)

  from mrpo_jax.data.tfds import PreferencePairs

  def fails_half_way(self):
    yield 0, {"prompt": [], "chosen": [], "rejected": []}
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(PreferencePairs, "_generate_examples", fails_half_way)
  with pytest.raises(InputError, match="No space left"):
    source.prepare(file, tmp_path / "out")
  assert list((tmp_path / "out").rglob("*1.0.0*")) == []


def test_preparing_prints_nothing_where_no_terminal_is(tmp_path, file, capfd):
  source.prepare(file, tmp_path)
  output, errors = capfd.readouterr()
  assert output == ""
  assert "\x1b" not in errors and "ownload" not in errors
  assert not re.search(r"\d%", errors)


def test_the_folder_above_a_data_set_names_it(tmp_path, file):
  one = source.prepare(file, tmp_path / "to")
  with pytest.raises(InputError, match=f"/to: is no .* below it: {one}$"):
    source.load(f"{tmp_path}/to:train")
  two = source.prepare(file, tmp_path / "to", name="a")
  with pytest.raises(InputError, match=f"below it: {two} or {one}$"):
    source.load(tmp_path / "to")


def test_a_builder_without_pairs_prepares_nothing(tmp_path):
  from mrpo_jax.data.tfds import PreferencePairs

  builder = PreferencePairs(data_dir=tmp_path)
  with pytest.raises(InputError, match="nothing to prepare; give pairs="):
    builder.download_and_prepare(download_dir=tmp_path)


# Loading.


def test_loading_a_file_imports_neither_tfds_nor_tensorflow(file):
  code = (
    "import sys; from mrpo_jax.data import source; source.load(sys.argv[1]); "
    "print({'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, file],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "set()"


def test_a_foreign_tfds_set_goes_through_the_layouts(tmp_path):
  import numpy as np
  import tensorflow_datasets as tfds

  text, features = tfds.features.Text(), tfds.features
  row = {
    "prompt": "Größe?",
    "responses": ["a", "b"],
    "scores": [0.5, 1.5],
    "image": np.zeros((2, 2, 3), np.uint8),
    "raw": b"\xff\xfe",
  }
  kinds = {
    "prompt": text,
    "responses": features.Sequence(text),
    "scores": features.Sequence(np.float32),
    "image": features.Tensor(shape=(2, 2, 3), dtype=np.uint8),
    "raw": features.Text(),
  }
  directory = prepared_by_tfds(tmp_path, kinds, [row])
  assert source.load(f"{directory}:test") == [
    PreferencePair("Größe?", "b", "a")
  ]


def test_a_foreign_row_that_is_no_pair_is_refused_by_number(tmp_path):
  import tensorflow_datasets as tfds

  kinds = dict.fromkeys(["question"], tfds.features.Text())
  directory = prepared_by_tfds(tmp_path, kinds, [{"question": "q"}])
  with pytest.raises(InputError, match="split test row 1: a key is missing"):
    source.load(f"{directory}:test")


@pytest.mark.parametrize("damage", ["cut", "gone", "info", "format"])
def test_a_broken_tfds_directory_is_refused_in_one_line(tmp_path, file, damage):
  directory = source.prepare(file, tmp_path)
  (records,) = directory.glob("*array_record*")
  info = directory / "dataset_info.json"
  if damage == "cut":
    records.write_bytes(records.read_bytes()[:1000])
  elif damage == "gone":
    records.unlink()
  elif damage == "info":
    info.write_text("{")
  else:
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(InputError) as refusal:
    source.load(directory)
  text = str(refusal.value)
  assert text.startswith(f"{directory}: cannot be read as") and "\n" not in text


@pytest.mark.parametrize("name", ["x", "x/y/z", "/a/b", "x:train", ""])
def test_a_name_of_nothing_is_refused(name):
  with pytest.raises(InputError, match=f"^'{name}': found no such file"):
    source.load(name)


def test_a_missing_file_is_no_hub_name():
  with pytest.raises(InputError, match="x/y.jsonl: no such file; check the pa"):
    source.load("x/y.jsonl")


def test_a_hub_name_needs_the_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(InputError, match="org/name: .*pip install datasets"):
    source.load("org/name:test")


def test_a_hub_set_goes_through_the_layouts(monkeypatch):
  asked = []

  def load_dataset(name, *, split):
    asked.append((name, split))
    if name == "org/none":
      raise RuntimeError("two\nlines")
    return [] if split == "empty" else [{"chosen": "a b", "rejected": "a c"}]

  hub = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", hub)
  pairs = [PreferencePair("a", " b", " c")]
  assert source.load("org/name") == source.load("org/n-1.x:test") == pairs
  assert asked == [("org/name", "train"), ("org/n-1.x", "test")]
  with pytest.raises(InputError, match=r"split train \(RuntimeError: two lin"):
    source.load("org/none")
  with pytest.raises(InputError, match="split empty: holds no pairs; give an"):
    source.load("org/name:empty")


# Identity.


def test_the_fingerprint_is_of_content_and_order():
  pairs = [PreferencePair("a", "b", "c"), PreferencePair("d", "e", "f")]
  whole = source.fingerprint(pairs)
  assert whole == source.fingerprint(list(pairs)) and len(whole) == 64
  turn = [{"role": "user", "content": "a"}]
  others = [
    pairs[::-1],
    pairs[:1],
    [PreferencePair("ab", "", "c"), pairs[1]],
    [PreferencePair("a", "c", "b"), pairs[1]],
    [PreferencePair(turn, turn, turn), pairs[1]],
    [PreferencePair(str(turn), "b", "c"), pairs[1]],
  ]
  assert len({whole, *map(source.fingerprint, others)}) == 7


def test_the_order_of_a_messages_keys_is_not_content():
  turn, same = (
    [{"role": "user", "content": "é"}],
    [{"content": "é", "role": "user"}],
  )
  ids = {source.pair_id(PreferencePair(t, t, t)) for t in (turn, same)}
  assert len(ids) == 1


def test_the_fingerprint_is_the_same_in_every_version():
  # echo -n '["p","c","r"]' | sha256sum, and the sum of that sum.
  pair = PreferencePair("p", "c", "r")
  assert source.pair_id(pair).startswith("70ba417369466f65")
  assert source.fingerprint([pair]).startswith("538dafa00370a608")


def test_what_tfds_cannot_store_is_refused_before_anything_is_written(tmp_path):
  row = {"prompt": "a", "chosen": "\ud800", "rejected": "b"}
  path = written(tmp_path / "rows.jsonl", [ROWS[0], row])
  with pytest.raises(InputError, match="pair 2.*surrogate"):
    source.prepare(path, tmp_path / "to")
  assert not (tmp_path / "to").exists()
