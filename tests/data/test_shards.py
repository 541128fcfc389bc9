# SPDX-License-Identifier: Apache-2.0
"""Several files under one name: lists, globs, folders of shards."""

import json
import logging

import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax.data import source
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError


def pair(text):
  return PreferencePair(text, "a", "b")


def write(folder, *names):
  """A file of one pair under each name; its prompt is the name's number."""
  for i, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    row = vars(pair(str(i)))
    if name.endswith(".parquet"):
      pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
      path.write_text(json.dumps(row))


def prompts(name):
  return "".join(pair.prompt for pair in source.load(name))


def refused(name):
  with pytest.raises(InputError) as found:
    source.load(name)
  assert "\n" not in str(found.value)
  return str(found.value)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_folder_of_shards_is_read_in_the_order_of_their_names(
  tmp_path, suffix, caplog
):
  caplog.set_level(logging.INFO, "mrpo_jax")
  names = [f"part-0000{i}-of-00003.{suffix}" for i in range(3)]
  write(tmp_path, *names)
  (tmp_path / "README.md").write_text("x")
  (tmp_path / ".cache").mkdir()
  write(tmp_path, f".cache/part-9.{suffix}")
  assert prompts(tmp_path) == "012"
  assert "3 files" in caplog.text and "beside 1 of other kinds" in caplog.text


@pytest.mark.parametrize(
  "there, missing",
  [
    ("02", "train-00001-of-00003.jsonl"),
    ("12", "train-00000-of-00003.jsonl"),
    ("1", "train-00000-of-00003.jsonl"),
    ("13", "train-00002-of-00003.jsonl"),
    ("012", None),
    ("123", None),
  ],
)
def test_a_shard_that_is_missing_is_named(tmp_path, there, missing):
  names = [f"data/train-0000{one}-of-00003.jsonl" for one in there]
  write(tmp_path, "data/test-00000-of-00001.jsonl", *names)
  name = f"{tmp_path}:train"
  if missing is None:
    assert prompts(name) == "123"
  else:
    text = refused(name)
    assert text.startswith(f"{tmp_path}/data/{missing}: no such file, but ")
    assert f"but {len(there)} of these 3 shards" in text
  # What else is named is meant.
  assert prompts(f"{tmp_path}:test") == "0"
  assert len(prompts(f"{tmp_path}/data/train-*.jsonl")) == len(there)
  assert prompts(tmp_path / names[0]) == "1"


def test_shards_may_end_in_a_hash_of_their_own(tmp_path):
  write(tmp_path, "a-00000-of-00002-1f.parquet", "a-00001-of-00002-e2.parquet")
  assert prompts(tmp_path) == "01"


def test_what_a_folder_passes_over_is_said(tmp_path, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  write(tmp_path, "in/a.jsonl", "in/_x.jsonl", "in/.y.jsonl", "out/b.jsonl")
  write(tmp_path, "in/.cache/c.jsonl")
  (tmp_path / "in/linked").symlink_to(tmp_path / "out")
  (tmp_path / "in/.gitattributes").touch()
  assert prompts(tmp_path / "in") == "0"
  assert caplog.messages == [
    f"{tmp_path}/in: 1 files, a.jsonl to a.jsonl, without 3 hidden files and "
    f"linked folders, the first is {tmp_path}/in/.y.jsonl"
  ]


def test_a_split_of_a_folder_is_named(tmp_path):
  write(
    tmp_path,
    "data/train_prefs-00000-of-00002.parquet",
    "data/train_prefs-00001-of-00002.parquet",
    "data/test_prefs-00000-of-00001.parquet",
  )
  (tmp_path / "dataset_infos.json").write_text("{}")
  assert prompts(f"{tmp_path}:train_prefs") == "01"
  assert prompts(f"{tmp_path}:test_prefs") == "2"
  text = refused(tmp_path)
  assert "holds several splits by the names of its files: test_prefs, trai" in (
    text
  )
  assert "holds no split 'dev'; it has test_prefs" in refused(f"{tmp_path}:dev")


@pytest.mark.parametrize("names", [("train/0.jsonl", "test/0.jsonl")])
def test_a_folder_of_each_split_is_one(tmp_path, names):
  write(tmp_path, *names)
  assert prompts(f"{tmp_path}:train") == "0"
  assert prompts(tmp_path / "test") == "1"
  assert "several splits" in refused(tmp_path)


def test_a_folder_of_one_split_needs_no_name(tmp_path):
  write(tmp_path, "eval_0.jsonl", "eval_1.jsonl")
  assert prompts(tmp_path) == prompts(f"{tmp_path}:eval") == "01"


def test_a_folder_that_may_hold_its_pairs_twice_is_refused(tmp_path):
  write(tmp_path, "a.jsonl", "a.parquet")
  text = refused(tmp_path)
  assert "several kinds, .jsonl, .parquet; name one" in text
  assert prompts(f"{tmp_path}/*.jsonl") == "0"


def test_a_glob_is_read_in_order(tmp_path):
  write(tmp_path, "x/b.jsonl", "x/a.jsonl", "y/c.jsonl")
  assert prompts(f"{tmp_path}/*/*.jsonl") == "102"
  assert prompts(f"{tmp_path}/**/[ab].jsonl") == "10"
  assert "finds no file; check" in refused(f"{tmp_path}/*.parquet")
  (tmp_path / "x" / "notes.txt").write_text("")
  assert "notes.txt: unknown file type" in refused(f"{tmp_path}/x/*")


def test_a_list_holds_any_sources(tmp_path):
  write(tmp_path, "a.jsonl", "b.json", "c/0.parquet", "c/1.parquet")
  name = f"{tmp_path}/b.json, {tmp_path}/a.jsonl,{tmp_path}/c"
  assert prompts(name) == "1023"
  assert "x.jsonl: no such file" in refused(f"{tmp_path}/b.json,x.jsonl")
  assert "''" in refused(f"{tmp_path}/b.json,")


def test_a_file_whose_name_has_a_comma_or_stars_is_one(tmp_path):
  write(tmp_path, "a,b.jsonl", "[c].jsonl")
  assert prompts(tmp_path / "a,b.jsonl") == "0"
  assert prompts(tmp_path / "[c].jsonl") == "1"


def test_an_empty_shard_among_others_is_none(tmp_path):
  write(tmp_path, "a.jsonl", "b.jsonl")
  (tmp_path / "a.jsonl").write_text("")
  assert prompts(tmp_path) == "1"
  (tmp_path / "b.jsonl").write_text("")
  assert f"{tmp_path}: has no rows" in refused(tmp_path)


def test_a_bad_row_of_a_shard_is_named_by_its_file(tmp_path):
  write(tmp_path, "a.jsonl", "b.jsonl")
  (tmp_path / "b.jsonl").write_text("{}")
  assert f"{tmp_path}/b.jsonl line 1: a key is missing" in refused(tmp_path)


def test_preparing_takes_what_training_takes(tmp_path):
  write(tmp_path, "in/a.jsonl", "in/b.jsonl")
  for name in (tmp_path / "in", f"{tmp_path}/in/*.jsonl"):
    directory = source.prepare(name, tmp_path / "out")
    assert prompts(directory) == "01"


def test_a_prepared_set_is_read_as_it_was_understood(tmp_path):
  rows = [
    {"prompt": "a b", "chosen": "a ba bc", "rejected": "a ba bd"},
    {
      "chosen": [{"role": "user", "content": "q"}],
      "rejected": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b"},
      ],
    },
  ]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  pairs = source.load(tmp_path / "a.jsonl")
  assert pairs[0] == PreferencePair("a b", "a bc", "a bd")
  assert source.load(source.prepare(tmp_path / "a.jsonl", tmp_path)) == pairs


def test_text_and_conversations_in_one_set_are_said(tmp_path, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  rows = [vars(pair("p")), {"question": "q", "chosen": "a", "rejected": "b"}]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  source.load(tmp_path / "a.jsonl")
  assert "1 of 2 pairs are plain text, the others conversations" in caplog.text


ULTRA = {
  "source": "evol_instruct",
  "instruction": "Sky?",
  "models": ["m", "n", "o"],
  "completions": [
    {"response": "Blue.", "overall_score": 8.5, "annotations": {"x": [1]}},
    {"response": "Green.", "overall_score": 2, "annotations": None},
    {"response": "Azure.", "overall_score": 8.5, "annotations": {"x": []}},
  ],
  "correct_answers": ["None"],
}


@pytest.mark.parametrize("columns", [False, True])
def test_ultrafeedback_rows_give_every_strictly_ordered_pair(
  tmp_path, columns, caplog
):
  caplog.set_level(logging.INFO, "mrpo_jax")
  row, tied = dict(ULTRA), dict(ULTRA, completions=ULTRA["completions"][::2])
  if columns:
    objects = row["completions"]
    row["completions"] = {
      key: [one[key] for one in objects] for key in objects[0]
    }
  rows = [row, tied, dict(ULTRA, completions=[])]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  found = source.load(tmp_path / "a.jsonl")
  user, *answers = (
    [{"role": role, "content": text}]
    for role, text in zip(
      ["user", *["assistant"] * 3],
      ["Sky?", "Blue.", "Green.", "Azure."],
      strict=True,
    )
  )
  blue, green, azure = answers
  assert found == [
    PreferencePair(user, blue, green),
    PreferencePair(user, azure, green),
  ]
  assert "2 of 3 rows prefer no response" in caplog.text


@pytest.mark.parametrize(
  "one, message",
  [
    ({"response": "x"}, "completions[3] has no overall_score; give one each"),
    ({"overall_score": 1}, "completions[3] has no response; give one each"),
    (
      {"response": "x", "overall_score": "7"},
      "completions.overall_score[3] is a string, want a finite number",
    ),
  ],
)
def test_a_completion_without_response_or_score_is_refused(
  tmp_path, one, message
):
  row = dict(ULTRA, completions=[*ULTRA["completions"], one])
  (tmp_path / "a.jsonl").write_text(json.dumps(row))
  assert f"line 1: {message}" in refused(tmp_path / "a.jsonl")
