# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of a run: given in folders, found in the workdir, or trained."""

import datetime
import logging
import shutil

import pytest

from configs import quickstart
from mrpo_jax import configs, files
from mrpo_jax.data import source
from mrpo_jax.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import read
from mrpo_jax.runs.data import file_weights_of, load_by_file, load_tokenizers
from mrpo_jax.runs.workdir import write_tokenizers
from tests.material.logged import logged


def debug_run(**reference):
  values = quickstart.get_config("mrpo,debug").to_dict()
  values["references"]["second"] |= reference
  return read(values)


@pytest.fixture(scope="module")
def pairs():
  return source.load(configs.HH_HARMLESS / "eval.jsonl.gz")[:20]


def test_a_new_model_takes_the_tokenizer_of_a_folder(pairs, tmp_path):
  found = load_tokenizers(debug_run(), tmp_path, pairs)
  assert list(found.made) == ["tokenizer-policy"]
  mark = found.identity["references.second.tokenizer"]
  # Of the one that earlier versions trained on these pairs for each run.
  assert mark.startswith("b65868747d7f4258")
  assert mark != found.identity["policy.tokenizer"]


def known_of(config, found):
  """What config.json says of a run that found these tokenizers."""
  return {**config.to_dict(), "identity": found.identity}


def test_unigram_is_read_where_an_older_run_left_it_and_not_trained(
  pairs, tmp_path
):
  new = {**configs.TINY, "tokenizer": "unigram"}
  config = debug_run(tokenizer="", new=new)
  with pytest.raises(InputError, match="references.second.new.tokenizer"):
    load_tokenizers(config, tmp_path, pairs)
  shipped = load_tokenizer(configs.TOKENIZERS / "unigram-512")
  shipped.save_pretrained(tmp_path / "tokenizer-references.second")
  known = known_of(config, load_tokenizers(debug_run(), tmp_path, pairs))
  found = load_tokenizers(config, tmp_path, pairs, known)
  mark = found.identity["references.second.tokenizer"]
  assert mark == tokenizer_fingerprint(shipped)


def test_the_day_that_a_template_writes_is_that_of_the_run(
  pairs, tmp_path, monkeypatch, caplog
):
  template = tmp_path / "dated.jinja"
  template.write_text("{{ strftime_now('%F') }}{{ messages }}")

  class Later(datetime.date):
    @classmethod
    def today(cls):
      return cls(2031, 1, 2)

  monkeypatch.setattr(datetime, "date", Later)
  none = load_tokenizers(debug_run(), tmp_path, pairs)
  assert "date" not in none.identity and "writes the day" not in caplog.text
  dated = debug_run(template=str(template))
  with caplog.at_level(logging.INFO, "mrpo_jax"):
    first = load_tokenizers(dated, tmp_path, pairs)
  assert first.identity["date"] == "2031-01-02"
  assert "in this run it is 2031-01-02" in caplog.text
  assert first.identity["policy.tokenizer"] == none.identity["policy.tokenizer"]

  # A run that goes on has the day that it began with; another may be named.
  known = {"identity": first.identity | {"date": "2030-05-06"}}
  again = load_tokenizers(dated, tmp_path, pairs, known)
  assert again.identity["date"] == "2030-05-06"
  values = dated.to_dict()
  values["data"]["date"] = "2030-05-06"
  named = load_tokenizers(read(values), tmp_path, pairs)
  assert named.identity == again.identity != first.identity
  assert "date" not in dated.to_dict()["data"]

  values["data"]["date"] = "yesterday"
  with pytest.raises(InputError, match=r"config\.data\.date must be a day"):
    load_tokenizers(read(values), tmp_path, pairs)


def test_a_tokenizer_of_several_templates_names_the_key(pairs, tmp_path):
  several = load_tokenizer(configs.TOKENIZERS / "unigram-512")
  several.chat_template = {"rag": "a", "tool_use": "b"}
  several.save_pretrained(tmp_path / "several")
  given = {"tokenizer": str(tmp_path / "several")}
  with pytest.raises(InputError, match=r"config\.references\.second\.template"):
    load_tokenizers(debug_run(**given), tmp_path, pairs)
  load_tokenizers(debug_run(**given, template="rag"), tmp_path, pairs)


# What a folder in the workdir is worth.


@pytest.fixture
def kept(pairs, tmp_path):
  """(config, what its config.json says, the folder of its tokenizer)."""
  config = debug_run()
  found = load_tokenizers(config, tmp_path, pairs)
  write_tokenizers(tmp_path, found.made)
  return config, known_of(config, found), tmp_path / "tokenizer-policy"


def half(folder):
  (folder / "tokenizer_config.json").unlink()  # which names the ends


def cut(folder):
  path = folder / "tokenizer.json"
  path.write_bytes(path.read_bytes()[:1000])


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def another(folder):
  shutil.rmtree(folder)
  shutil.copytree(configs.TOKENIZERS / "unigram-512", folder)


def test_a_tokenizer_that_config_json_vouches_for_is_read(kept, pairs):
  config, known, folder = kept
  found = load_tokenizers(config, folder.parent, pairs, known)
  assert found.made == {}
  assert found.identity == known["identity"]


@pytest.mark.parametrize("harm", [half, cut, empty, another])
@pytest.mark.parametrize("is_known", [True, False])
def test_one_that_is_not_what_was_written_is_made_again(
  kept, pairs, harm, is_known
):
  config, known, folder = kept
  harm(folder)
  with logged() as said:
    found = load_tokenizers(
      config, folder.parent, pairs, known if is_known else None
    )
  assert said[0].startswith(f"{folder} is not used")
  assert list(found.made) == ["tokenizer-policy"]
  assert found.identity == known["identity"]
  (folder.parent / ".tokenizer-policy.partial-1").mkdir()  # of one killed
  write_tokenizers(folder.parent, found.made)
  assert load_tokenizers(config, folder.parent, pairs, known).made == {}
  assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_whole_one_without_config_json_is_made_again(kept, pairs):
  config, known, folder = kept
  found = load_tokenizers(config, folder.parent, pairs)
  assert list(found.made) == ["tokenizer-policy"]


def test_a_config_that_asks_for_another_gets_another(kept, pairs):
  config, known, folder = kept
  values = config.to_dict()
  values["policy"]["new"]["vocab_size"] = 280
  found = load_tokenizers(read(values), folder.parent, pairs, known)
  assert len(found.made["tokenizer-policy"]) == 280


def test_a_template_that_writes_the_day_leaves_it_too(pairs, tmp_path):
  template = tmp_path / "dated.jinja"
  template.write_text("{{ strftime_now('%F') }}{{ messages }}")
  values = debug_run().to_dict()
  values["policy"]["template"] = str(template)
  values["data"]["date"] = "2030-05-06"
  config, run = read(values), tmp_path / "run"
  first = load_tokenizers(config, run, pairs)
  write_tokenizers(run, first.made)
  again = load_tokenizers(config, run, pairs, known_of(config, first))
  assert again.made == {} and again.identity == first.identity


def test_a_template_that_does_not_compile_is_named_by_its_key(kept, pairs):
  config, known, folder = kept
  template = folder.parent / "wrong.jinja"
  template.write_text("{% if %}")
  values = config.to_dict()
  values["policy"]["template"] = str(template)
  known |= {"policy": {**known["policy"], "template": str(template)}}
  with pytest.raises(InputError, match=r"config\.policy\.template"):
    load_tokenizers(read(values), folder.parent, pairs, known)


def test_another_template_leaves_the_tokenizer(kept, pairs):
  config, known, folder = kept
  values = config.to_dict()
  values["policy"]["template"] = "chatml"
  found = load_tokenizers(read(values), folder.parent, pairs, known)
  assert found.made == {} and found.identity != known["identity"]


def weighed(tmp_path, weights, counts=(3, 5)):
  """A config of files of so many pairs, mixed by these weights."""
  train = {}
  for name, count in zip("ab", counts, strict=True):
    train[name] = str(tmp_path / f"{name}.jsonl")
    rows = [
      {"prompt": f"{name}{n}", "chosen": " yes", "rejected": " no"}
      for n in range(count)
    ]
    files.write_lines(tmp_path / f"{name}.jsonl", rows)
  values = quickstart.get_config("mrpo,debug").to_dict()
  values["data"] = dict(train=train, weights=weights)
  return read(values)


def test_files_of_a_section_are_mixed_by_weights_of_their_names(tmp_path):
  config = weighed(tmp_path, dict(b=3, a=1))
  assert config.data.train == f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
  assert config.data.weights == (1.0, 3.0)
  assert read(config.to_dict()) == config
  parts = load_by_file(config, ("train",))["train"]
  assert [len(part) for part in parts] == [3, 5]
  with logged() as lines:
    weights, file_N = file_weights_of(config, parts, [0, 2, 3, 7])
  assert weights == (1.0, 3.0) and file_N.tolist() == [0, 0, 1, 1]
  assert f"{tmp_path}/b.jsonl: 2 pairs, 75.0% of what is trained on" in lines
  with pytest.raises(InputError, match="b.jsonl: none of its pairs is left"):
    file_weights_of(config, parts, [0, 1])
  plain = config.changed({"data.weights": ()})
  assert (
    file_weights_of(plain, load_by_file(plain, ("train",))["train"], [0])
    is None
  )
  assert "weights" not in plain.to_dict()["data"]


@pytest.mark.parametrize(
  "weights,match",
  [
    (dict(a=1), "must name what config.data.train does, a, b"),
    (dict(a=1, c=2), "must name what config.data.train does, a, b"),
    (dict(a=1, b=0), r"data.weights\[1\] must be positive, got 0"),
    (dict(a=1, b=float("inf")), r"data.weights\[1\] must be a finite number"),
    ((1.0, 3.0), "must name what config.data.train does, a, b; got"),
  ],
)
def test_weights_that_fit_no_files_are_refused(weights, match, tmp_path):
  with pytest.raises(InputError, match=match):
    weighed(tmp_path, weights)


@pytest.mark.parametrize(
  "weights,match",
  [
    ("1,x", "must be numbers with commas, got '1,x'"),
    (3.0, "data.weights must be a tuple of numbers"),
    ("1,2,3", "of 3 files, but config.data.train names 2"),
    ((1.0,), "of 1 files, but config.data.train names 2"),
  ],
)
def test_there_is_a_weight_for_each_file(weights, match, tmp_path):
  config = weighed(tmp_path, dict(a=1, b=1))
  with pytest.raises(InputError, match=match):
    load_by_file(config.changed({"data.weights": weights}), ("train",))
