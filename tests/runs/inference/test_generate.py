# SPDX-License-Identifier: Apache-2.0
"""Files of samples: their lines, where they go on, what ends a sample."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import pytest

from mrpo_jax import files, hub, processes
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from mrpo_jax.runs.inference import model
from mrpo_jax.runs.inference import prompts as asked
from mrpo_jax.runs.inference import sampling as sampled
from mrpo_jax.runs.inference.generate import OWN, generate
from mrpo_jax.runs.inference.model import Source
from mrpo_jax.runs.inference.policy import adapted_params, read_checkpoint
from tests.material.families import MIXTRAL, add_model
from tests.material.rescored import logp_of
from tests.material.rows import user
from tests.material.standing import run_of

NEW = 12
PROMPTS = [
  {"prompt": "Hello there, what", "id": 7, "chosen": "x", "rejected": "y"},
  {"prompt": [user("How are you?")], "id": "\u00e9"},
  {"prompt": "\n\nHuman: What is it?\n\nAssistant:"},
  {"prompt": "A"},
]


@pytest.fixture(scope="module")
def prompts(shared):
  def write(folder):
    files.write_lines(folder / "prompts.jsonl", PROMPTS)

  return shared("prompts", write) / "prompts.jsonl"


def say(source, prompts, to, samples=2, **more):
  given = dict.fromkeys(sampled.NAMES) | {"max_new_tokens": NEW}
  given |= {key: more.pop(key) for key in [*more] if key in given}
  generate(source, prompts, to, given={**given, "samples": samples}, **more)
  return files.read_lines(to)


@pytest.fixture(scope="module")
def said(inputs, prompts, shared):
  """A finished file, and its lines."""

  def run(folder):
    say(Source(model=str(inputs / "base")), prompts, folder / "to.jsonl")

  to = shared("said", run) / "to.jsonl"
  return to, files.read_lines(to)


def copy_of(said, folder):
  """The finished file with what stands beside it, to write to."""
  shutil.copy(f"{said[0]}.run.json", folder)
  return pathlib.Path(shutil.copy(said[0], folder))


def test_a_line_is_the_row_and_what_was_said(said, inputs):
  _, lines = said
  config, params = hub.load(inputs / "base")
  tokenizer = load_tokenizer(inputs / "base")
  assert len(lines) == 2 * len(PROMPTS)
  for number, line in enumerate(lines):
    assert (line["index"], line["sample"]) == divmod(number, 2)
    row = PROMPTS[line["index"]]
    assert [*line] == [*row, *OWN]
    assert {key: line[key] for key in row} == row
    assert line["tokens"] == len(line["ids"]) <= NEW
    assert (line["finish"] == "stop") == (line["ids"][-1] == 1)
    text = tokenizer.decode(line["ids"], skip_special_tokens=True)
    assert line["response"] == text
    prompt = row["prompt"]
    if isinstance(prompt, list):
      prompt = f"<bos>\n\nHuman: {prompt[0]['content']}\n\nAssistant:"
      ids = tokenizer(prompt, add_special_tokens=False).input_ids
    else:
      ids = tokenizer(prompt).input_ids
    expected = logp_of(config, params, ids, line["ids"])
    assert abs(line["logp"] - expected) < 2e-3
    assert line["behaviour_logp"] == line["logp"]
  assert len({line["response"] for line in lines}) == len(lines)


@pytest.mark.parametrize("slots", [1, 4])  # and 64, of the file itself
def test_slots_change_no_byte(said, inputs, prompts, tmp_path, slots):
  to = tmp_path / "to.jsonl"
  say(Source(model=str(inputs / "base")), prompts, to, slots=slots)
  assert to.read_bytes() == said[0].read_bytes()


@pytest.mark.parametrize("cut", [0, 5])
def test_the_same_command_goes_on(said, inputs, prompts, tmp_path, cut, caplog):
  """After so many whole lines and the half of one."""
  to, source = tmp_path / "to.jsonl", Source(model=str(inputs / "base"))
  whole = said[0].read_bytes()
  lines = whole.splitlines(keepends=True)
  kept = b"".join(lines[:cut])
  to.write_bytes(kept + lines[cut][:9])
  shutil.copy(f"{said[0]}.run.json", f"{to}.run.json")
  with caplog.at_level("INFO", "mrpo_jax"):
    say(source, prompts, to)
  assert to.read_bytes() == whole
  assert "its last line is cut short" in caplog.text
  made = sum(line["tokens"] for line in said[1][cut:])  # and no more
  assert f"holds all 8 samples; {made} tokens" in caplog.text
  with caplog.at_level("INFO", "mrpo_jax"):
    say(source, prompts, to)
  assert "is done: it holds all 8 samples" in caplog.text
  assert to.read_bytes() == whole


@pytest.mark.parametrize(
  "change,match",
  [
    (dict(seed=3), "seed: 0 -> 3"),
    (dict(temperature=0.5), "sampling.temperature: 1.0 -> 0.5"),
    (dict(samples=3), "sampling.samples: 2 -> 3"),
    (dict(stops=("x",)), r"stop: \[\] -> \['x'\]"),
    (dict(cache_dtype="bfloat16"), "cache_dtype: None -> 'bfloat16'"),
    (dict(source=dict(template="chatml")), "tokenizer: "),
    (dict(source=dict(dtype="bfloat16")), "dtype: None -> 'bfloat16'"),
    (dict(source=dict(quantize="int8")), "quantize: None -> 'int8'"),
    (dict(source=dict(model="second")), "model: "),
  ],
)
def test_another_command_is_refused(
  said, inputs, prompts, tmp_path, change, match
):
  to, before = copy_of(said, tmp_path), said[0].read_bytes()
  changed = dict(change.pop("source", {}))
  model = inputs / changed.pop("model", "base")
  with pytest.raises(InputError, match=f"is of another command: .*{match}"):
    say(Source(model=str(model), **changed), prompts, to, **change)
  assert to.read_bytes() == before


def test_other_prompts_are_refused(said, inputs, tmp_path):
  other = tmp_path / "prompts.jsonl"
  files.write_lines(other, PROMPTS[:2])
  with pytest.raises(InputError, match="another command: prompts: "):
    say(Source(model=str(inputs / "base")), other, copy_of(said, tmp_path))


def test_a_file_of_something_else_is_left_alone(inputs, prompts, tmp_path):
  to, source = tmp_path / "to.jsonl", Source(model=str(inputs / "base"))
  to.write_text("mine\n")
  with pytest.raises(InputError, match="exists, and no to.jsonl.run.json"):
    say(source, prompts, to)
  assert to.read_text() == "mine\n"


@pytest.mark.parametrize(
  "line,match",
  [
    (b'{"index": 0, "sample": 1}\n', "line 1 is not the one that was written"),
    (b"{}\n", "line 1 is not the one that was written"),
    (b"mine\n", "line 1 is not JSON"),
  ],
)
def test_lines_of_something_else_are_not_gone_on_with(
  said, inputs, prompts, tmp_path, line, match
):
  to = tmp_path / "to.jsonl"
  to.write_bytes(line)
  shutil.copy(f"{said[0]}.run.json", f"{to}.run.json")
  with pytest.raises(InputError, match=match):
    say(Source(model=str(inputs / "base")), prompts, to)
  assert to.read_bytes() == line


@pytest.mark.parametrize(
  "old,new",
  [
    (b'"response": "', b'"response": "mine '),
    (b'"id": 7', b'"id": 8'),
    (b'"tokens": ', b'"tokens": 1'),
    (b'"ids": [', b'"ids": ["a", '),
    (b'"ids": [', b'"ids": [9999999999999999999999, '),
    (b'"logp": ', b'"logp": "x", "l": '),
    (b"}\n", b"}\r\n"),
    (b"}\n", b"}\n\n"),
  ],
)
def test_lines_that_were_changed_are_not_gone_on_with(
  said, inputs, prompts, tmp_path, old, new
):
  to = tmp_path / "to.jsonl"
  line = said[0].read_bytes().splitlines(keepends=True)[0]
  to.write_bytes(changed := line.replace(old, new, 1))
  assert changed != line
  shutil.copy(f"{said[0]}.run.json", f"{to}.run.json")
  with pytest.raises(InputError, match="line [12] is not "):
    say(Source(model=str(inputs / "base")), prompts, to)
  assert to.read_bytes() == changed


def test_processes_that_are_given_other_commands_are_refused(
  inputs, prompts, tmp_path, monkeypatch
):
  """They would compute one sample together, of two seeds."""

  def gather(value):
    is_given = isinstance(value, dict) and "seed" in value
    return [value, {**value, "seed": 5}] if is_given else [value]

  monkeypatch.setattr(processes, "gather", gather)
  with pytest.raises(InputError, match="process 1 is .*: seed: 0 -> 5; give"):
    say(Source(f"{inputs}/base"), prompts, tmp_path / "to.jsonl")
  assert not list(tmp_path.iterdir())


def test_one_command_at_a_time_writes_a_file(inputs, prompts, tmp_path):
  to = tmp_path / "to.jsonl"
  with files.alone(to), pytest.raises(InputError, match="another command is"):
    say(Source(model=str(inputs / "base")), prompts, to)
  assert not to.exists()


# What ends a sample.


def test_a_stop_text_ends_samples_before_it(said, inputs, prompts, tmp_path):
  """One that spans tokens of a line, seen without it."""
  line = said[1][0]
  stop, at = line["response"][2:5], line["response"].index
  found = say(
    Source(model=str(inputs / "base")),
    *(prompts, tmp_path / "to.jsonl"),
    stops=(stop,),
  )
  for before, after in zip(said[1], found, strict=True):
    if stop in before["response"]:
      assert after["response"] == before["response"].partition(stop)[0]
      assert after["finish"] == "stop"
      assert after["ids"] == before["ids"][: after["tokens"]]
      assert after["tokens"] < before["tokens"]
    else:
      assert after == before
  assert at(stop) <= 2 and found[0]["response"] == line["response"][: at(stop)]


def test_a_stop_that_is_a_token_ends_samples_at_it(inputs, tmp_path, prompts):
  """Special tokens have no text in which it could be found."""
  to = tmp_path / "to.jsonl"
  say(Source(model=str(inputs / "base")), prompts, to, stops=("<pad>",))
  assert files.read_json(f"{to}.run.json")["ends"] == [1, 2]


def test_a_stop_that_is_no_token_is_not_the_unknown_one(
  inputs, tmp_path, prompts
):
  folder, to = tmp_path / "model", tmp_path / "to.jsonl"
  shutil.copytree(inputs / "base", folder)
  path = folder / "tokenizer_config.json"
  files.write_json(path, files.read_json(path) | {"unk_token": "<unk>"})
  say(Source(model=str(folder)), prompts, to, stops=("Question:",))
  assert files.read_json(f"{to}.run.json")["ends"] == [1]


@pytest.mark.parametrize("name", ["base", "second"])
def test_a_text_keeps_the_space_before_it(inputs, name):
  """So that prompt and response are one text, whatever the tokenizer."""
  tokenizer = load_tokenizer(inputs / name)
  whole = "The sky is blue, and so am I."
  for at in (7, 10, 16):
    ids = tokenizer(whole[at:], add_special_tokens=False).input_ids
    assert model.text_of(tokenizer)([*ids, 1]) == whole[at:]


def test_a_space_stays_where_a_tokenizer_strips_the_first():
  """As Llama's do."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  backend = Tokenizer(models.WordLevel({"\u2581a": 0, "\u2581b": 1}, "\u2581a"))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("\u2581", " "),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
  assert tokenizer.decode([1, 0]) == "b a"
  assert model.text_of(tokenizer)([1, 0]) == " b a"
  assert model.text_of(tokenizer)([]) == ""


def test_plain_dialogues_are_turns_where_the_run_has_them_so(tmp_path):
  row = {"prompt": "\n\nHuman: Sky?\n\nAssistant:"}
  files.write_lines(tmp_path / "p.jsonl", [row])
  for form, prompt in (("", row["prompt"]), ("hh", [user("Sky?")])):
    (one,) = asked.read_prompts(
      tmp_path / "p.jsonl", keys=(), conversations=form
    )
    assert one.row == row and one.pair.prompt == prompt


def test_every_end_that_is_known_counts(inputs, tmp_path, caplog):
  folder = tmp_path / "model"
  shutil.copytree(inputs / "base", folder)
  for name, ids in (("config", [1, 5]), ("generation_config", [7, 1, 9999])):
    file = folder / f"{name}.json"
    values = files.read_json(file) if file.exists() else {}
    files.write_json(file, values | {"eos_token_id": ids})
  found = model.find_model(Source(model=str(folder)))
  tokens, texts = model.ends(found, chats=True)
  assert tokens == {
    1: ["tokenizer", "config.json", "generation_config.json", "chat template"],
    5: ["config.json"],
    7: ["generation_config.json"],
  }
  assert texts == []
  assert (
    "generation_config.json ends samples with the token 9999" in caplog.text
  )
  # A template whose end is no token of the tokenizer.
  found = model.find_model(Source(model=str(folder), template="chatml"))
  assert model.ends(found, chats=True)[1] == ["<|im_end|>"]
  assert model.ends(found, chats=False)[1] == []


@pytest.mark.parametrize("value", ["2", 2.0, [1, True], {}])
def test_an_end_that_is_no_token_is_refused(inputs, tmp_path, value):
  """It would be left out, and samples would not end there."""
  folder = tmp_path / "model"
  shutil.copytree(inputs / "base", folder)
  files.write_json(folder / "generation_config.json", {"eos_token_id": value})
  found = model.find_model(Source(model=str(folder)))
  with pytest.raises(InputError, match="generation_config.json: eos_token_id="):
    model.ends(found, chats=False)


# generation_config.json.


def of(folder):
  """Arguments of a model with that folder, whose file counts."""
  return types.SimpleNamespace(folder=folder, name="M"), True


@pytest.mark.parametrize(
  "values,given,taken",
  [
    ({}, {}, {}),
    ({"temperature": 0.6, "top_p": 0.9}, {}, dict(temperature=0.6, top_p=0.9)),
    ({"temperature": 0.6, "top_k": 20.0}, {"temperature": 2.0}, dict(top_k=20)),
    ({"do_sample": False, "temperature": 0.6}, {}, dict(temperature=0.0)),
    ({"do_sample": True, "min_p": None}, {}, {}),
    ({"max_length": 20}, {"max_new_tokens": 9}, {}),
    (
      {"num_beams": 1, "repetition_penalty": 1.1},
      {},
      {"repetition_penalty": 1.1},
    ),
    ({"max_new_tokens": 8}, {"max_new_tokens": 9}, {}),
  ],
)
def test_a_generation_config_counts_where_flags_do_not(
  tmp_path, values, given, taken, caplog
):
  files.write_json(tmp_path / "generation_config.json", values)
  with caplog.at_level("INFO", "mrpo_jax"):
    found = sampled.sampling_of(given, *of(tmp_path))
  assert found == sampled.Sampling(**taken | given)
  for name in taken:
    assert f"{name}={taken[name]}" in caplog.text
  assert sampled.sampling_of(given) == sampled.Sampling(**given)


@pytest.mark.parametrize(
  "values,match",
  [
    ({"num_beams": 4}, "num_beams=4 is not done here"),
    ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3 is not done here"),
    ({"stop_strings": ["a"]}, "stop_strings=.* is not done here"),
    ({"max_length": 20}, "max_length=20 counts the prompt, too"),
    ({"num_return_sequences": 4}, "num_return_sequences=4 is not done here"),
    ({"do_sample": 0}, "do_sample=0 is neither true nor false"),
    ({"do_sample": "false"}, "do_sample='false' is neither true nor false"),
    ({"top_k": 50.5}, "top_k=50.5 is no whole number"),
    ({"max_new_tokens": float("inf")}, "max_new_tokens=inf is no whole num"),
    ({"top_k": float("nan")}, "top_k=nan is no whole number"),
    ({"top_p": "0.9"}, "top_p='0.9' is no number"),
    ({"top_p": 1.9}, "generation_config.json: top_p=1.9 is out of range"),
  ],
)
def test_a_generation_config_that_cannot_be_done_is_refused(
  tmp_path, values, match
):
  text = json.dumps(values)  # also NaN and Infinity
  (tmp_path / "generation_config.json").write_text(text)
  with pytest.raises(InputError, match=match):
    sampled.sampling_of({}, *of(tmp_path))


def test_a_model_without_a_folder_has_no_generation_config():
  with pytest.raises(InputError, match="M was made without such a file"):
    sampled.sampling_of({}, *of(None))


# A run.


def test_a_run_says_what_its_policy_says(inputs, prompts, tmp_path):
  """Of an adapter that is away from its start, on its base."""
  adapter = dict(rank=2, alpha=4.0)
  workdir = run_of(tmp_path, inputs / "base", moved=0.3, adapter=adapter)
  found = say(
    Source(workdir=str(workdir), step="1"), prompts, tmp_path / "to.jsonl", 1
  )
  checkpoint = read_checkpoint(workdir, "1")
  base = hub.load(inputs / "base")[1]
  tokenizer = load_tokenizer(inputs / "base")
  ids = tokenizer(PROMPTS[0]["prompt"]).input_ids
  for params, same in ((adapted_params(checkpoint), True), (base, False)):
    expected = logp_of(checkpoint.model, params, ids, found[0]["ids"])
    assert (abs(found[0]["logp"] - expected) < 2e-3) == same
  record = json.loads((tmp_path / "to.jsonl.run.json").read_text())
  assert record["workdir"] == str(workdir) and record["step"] == 1


def test_a_run_that_is_made_anew_is_another_model(inputs, prompts, tmp_path):
  workdir, to = tmp_path / "run", tmp_path / "to.jsonl"
  workdir.mkdir()
  run_of(workdir, inputs / "base", moved=0.3)
  command = Source(workdir=str(workdir)), prompts, to, 1
  found = say(*command)
  shutil.rmtree(workdir)
  workdir.mkdir()
  run_of(workdir, inputs / "base", moved=0.2)
  with pytest.raises(InputError, match="is of another command: weights: "):
    say(*command)
  # Files of earlier code, which did not ask, are still gone on with.
  record = files.read_json(tmp_path / "to.jsonl.run.json")
  del record["weights"]
  files.write_json(tmp_path / "to.jsonl.run.json", record)
  assert say(*command) == found


@pytest.mark.parametrize("adapter", [None, dict(rank=2, alpha=4.0)])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_weights_of_a_run_are_held_as_asked(
  inputs, tmp_path, adapter, quantize
):
  workdir = run_of(tmp_path, inputs / "base", adapter=adapter)
  asked_for = Source(workdir=str(workdir), dtype="bfloat16", quantize=quantize)
  params = model.find_model(asked_for).load()
  kinds = {leaf.dtype.name for leaf in jax.tree.leaves(params)}
  assert "bfloat16" in kinds and (quantize in kinds) == bool(quantize)
  if not quantize:
    assert kinds == {"bfloat16"}


def test_devices_that_would_share_a_scale_of_experts_are_refused(
  inputs, tmp_path
):
  values = dict(MIXTRAL, intermediate_size=96)  # 3 groups of 32
  add_model(tmp_path, "experts", values, load_tokenizer(inputs / "base"))
  rules = dict(experts="", expert_mlp="model")
  (tmp_path / "run").mkdir()
  run_of(tmp_path / "run", tmp_path / "experts", rules=rules)
  asked_for = Source(
    workdir=str(tmp_path / "run"), quantize="int8", mesh=dict(data=1, model=2)
  )
  assert model.find_model(asked_for).config.experts == 4
  with pytest.raises(InputError, match="--quantize: .* 3 groups of 32 do not"):
    model.find_model(asked_for._replace(quantize="int4"))


def test_what_the_devices_cannot_hold_is_refused_before(
  inputs, prompts, tmp_path, monkeypatch
):
  monkeypatch.setattr(model.memory, "free_bytes", lambda _: 10_000)
  to = tmp_path / "said.jsonl"
  with pytest.raises(InputError, match="slots of .* tokens take .*--slots"):
    say(Source(f"{inputs}/base"), prompts, to)
  assert not list(tmp_path.iterdir())


def test_a_record_that_was_changed_is_refused(said, inputs, prompts, tmp_path):
  to = copy_of(said, tmp_path)
  files.write_json(tmp_path / "to.jsonl.run.json", {"date": 5})
  with pytest.raises(InputError, match="run.json is not as it was written"):
    say(Source(f"{inputs}/base"), prompts, to)


def test_a_prompt_too_long_names_the_key_of_the_caller(inputs, prompts):
  one = model.find_model(Source(model=str(inputs / "base")))
  config = dataclasses.replace(one.config, learned_positions=True)
  one = dataclasses.replace(one, config=config)
  read, new = asked.read_prompts(prompts, keys=()), config.max_positions
  for name in ("--max_new_tokens", "config.samples.max_new_tokens"):
    with pytest.raises(InputError, match=f"or give a smaller {name}$"):
      asked.prompt_ids(one, read, new, name=name)
