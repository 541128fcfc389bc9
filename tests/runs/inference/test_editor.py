# SPDX-License-Identifier: Apache-2.0
"""A model that rewrites answers: what it is told, and the same at any time."""

import re

import pytest

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.online.bridge import bridge
from mrpo_jax.runs.inference.editor import (
  INSTRUCTIONS,
  ModelEditor,
  read_instructions,
)
from mrpo_jax.runs.inference.model import Source
from tests.material.runs import mrpo

STOPS = ("e", "a", "t", " ")  # a random model soon says one of them
ROWS = [
  dict(prompt=f"Is {n} odd?", chosen=f" {n} is.", rejected=" No {idea}.")
  for n in range(5)
]
REQUESTS = [
  {"prompt": row["prompt"], "chosen": row["chosen"], "index": 2 * n}
  | {"rejected": row["rejected"]}
  for n, row in enumerate(ROWS)
]


@pytest.fixture(scope="module")
def editor_of(inputs):
  def make(**given):
    given = {"given": {"max_new_tokens": 24}, "stops": STOPS, **given}
    return ModelEditor(Source(model=str(inputs / "base")), **given)

  return make


@pytest.fixture(scope="module")
def said(editor_of):
  """What it makes of all five."""
  return [*editor_of().answers(REQUESTS, REQUESTS)]


def test_it_is_told_both_answers_and_their_question(editor_of):
  editor = editor_of()
  # What an answer says is no field to fill.
  request = {**REQUESTS[3], "rejected": "{chosen} {x}"}
  told = editor.text_of(request)
  assert "Question: Is 3 odd?" in told and "Good answer:  3 is." in told
  assert "Answer: {chosen} {x}\n" in told
  chat = [
    {"role": "user", "content": "A"},
    {"role": "assistant", "content": "B"},
  ]
  assert "user: A\nassistant: B" in editor.text_of({**request, "prompt": chat})


def test_a_part_says_what_the_whole_said(editor_of, said):
  assert len(said) == 5 and len({*said}) > 1
  assert all(one is None or isinstance(one, str) for one in said)
  todo = REQUESTS[3:]
  assert [*editor_of().answers(REQUESTS, todo)] == said[3:]


def test_the_seed_and_the_instructions_are_part_of_who_it_is(editor_of, said):
  one, other = editor_of(), editor_of(seed=1)
  assert one.script == editor_of().script != other.script
  assert one.script != editor_of(instructions="{chosen}{rejected}").script
  assert one.script != editor_of(given={"max_new_tokens": 25}).script
  assert [*other.answers(REQUESTS, REQUESTS)] != said


def test_a_bridge_goes_on_where_it_was_killed(editor_of, tmp_path, said):
  pairs, to = tmp_path / "pairs.jsonl", tmp_path / "new.jsonl"
  files.write_lines(pairs, ROWS)
  about = bridge(pairs, editor_of(), to)
  assert about["kept"] + sum(about["dropped"].values()) == 5
  done, lines = to.read_bytes(), (tmp_path / "new.jsonl.rewrites.jsonl")
  whole = lines.read_text().splitlines(keepends=True)
  to.unlink()
  lines.write_text("".join(whole[:2]) + whole[2][:5])
  bridge(pairs, editor_of(), to)
  assert to.read_bytes() == done
  assert lines.read_text() == "".join(whole)
  with pytest.raises(InputError, match="is of another script"):
    bridge(pairs, editor_of(seed=1), to)


def test_a_model_that_is_asked_for_nothing_is_not_read(editor_of, tmp_path):
  turns = [{"role": "assistant", "content": "A"}, {"role": "user"}] * 2
  turns = [{"content": "B", **one} for one in turns[:3]]
  rows = [{"prompt": "Q", "chosen": turns, "rejected": turns[:1]}]
  files.write_lines(tmp_path / "p.jsonl", rows)
  match = "no rewrite is left: {'more than one turn of text': 1}"
  with pytest.raises(InputError, match=match):
    bridge(tmp_path / "p.jsonl", editor_of(), tmp_path / "o.jsonl")


def test_a_rewrite_that_is_cut_off_makes_no_pair(editor_of, tmp_path):
  files.write_lines(tmp_path / "pairs.jsonl", ROWS)
  cut = editor_of(given={"max_new_tokens": 1}, stops=())
  with pytest.raises(InputError, match="no rewrite is left: {'cut off': 5}"):
    bridge(tmp_path / "pairs.jsonl", cut, tmp_path / "new.jsonl")


@pytest.mark.parametrize("missing", ["chosen", "rejected"])
def test_instructions_name_both_answers(tmp_path, missing):
  path = tmp_path / "told.txt"
  path.write_text(INSTRUCTIONS)
  assert read_instructions(path) == INSTRUCTIONS == read_instructions("")
  path.write_text(INSTRUCTIONS.replace(f"{{{missing}}}", ""))
  with pytest.raises(InputError, match=re.escape(f"has no {{{missing}}}")):
    read_instructions(path)
  with pytest.raises(InputError, match="no.txt"):
    read_instructions(tmp_path / "no.txt")


def test_a_command_or_a_model_is_given(inputs, tmp_path, capsys):
  files.write_lines(tmp_path / "p.jsonl", ROWS)
  argv = ["bridge", f"--pairs={tmp_path}/p.jsonl", f"--to={tmp_path}/n.jsonl"]
  model = f"--model={inputs}/base"
  for more in ([], ["--command=cat", model]):
    assert mrpo(*argv, *more) == 2
    assert "give one of --command, --model and" in capsys.readouterr().err
  stops = [f"--stop={one}" for one in STOPS]
  assert mrpo(*argv, model, "--max_new_tokens=24", *stops) == 0
  assert "of 5 pairs are bridged" in capsys.readouterr().out
