# SPDX-License-Identifier: Apache-2.0
"""Models on preference pairs: scores by another path, and what is refused."""

import json
import re

import numpy as np
import pytest

from mrpo_jax import cli, files, hub
from mrpo_jax.data import formats
from mrpo_jax.data.encode import encode
from mrpo_jax.data.source import prompt_id
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config.method import log_odds_beta
from mrpo_jax.runs.evaluation.pair_records import read_records
from mrpo_jax.runs.evaluation.pairs import evaluate_pairs
from mrpo_jax.runs.inference.model import Source
from mrpo_jax.runs.inference.policy import read_checkpoint
from tests.material.rescored import logp_of
from tests.material.standing import run_of

pytestmark = pytest.mark.usefixtures("one_device")
PAIRS = [
  dict(prompt="What?", chosen=" yes", rejected=" no, no"),
  dict(prompt="What?", chosen=" maybe", rejected=" yes"),
  dict(prompt="Where?", chosen=" there and there and there", rejected=" no"),
  dict(prompt="Who?", chosen=" I", rejected=" nobody, as they all say"),
  dict(prompt="When?", chosen=" now and not later", rejected=" never"),
  dict(prompt="How?", chosen=" so", rejected=" as it always was"),
  dict(prompt="Why?", chosen=" for the good of all of them", rejected=" so"),
  dict(prompt="Again?", chosen=" no", rejected=" no, no, no"),
]


@pytest.fixture(scope="module")
def evaluated(inputs, shared):
  """Folders: base alone, base against second, second against second."""

  def run(folder):
    pairs = folder / "pairs.jsonl"
    files.write_lines(pairs, PAIRS)
    base, second = (Source(model=str(inputs / n)) for n in ("base", "second"))
    reference = str(inputs / "second")
    evaluate_pairs(base, pairs, folder / "alone")
    evaluate_pairs(base, pairs, folder / "ratio", reference=reference)
    evaluate_pairs(
      second, pairs, folder / "same", reference=reference, beta=0.1
    )

  return shared("evaluated", run)


@pytest.mark.parametrize("dtype,times", [(None, 1), ("bfloat16", 0)])
def test_models_that_compute_in_other_dtypes_are_said(
  inputs, tmp_path, caplog, dtype, times
):
  files.write_lines(tmp_path / "pairs.jsonl", PAIRS[:2])
  hub.save(
    *(tmp_path / "half", *hub.load(inputs / "base")),
    tokenizer=load_tokenizer(inputs / "base"),
    dtype="bfloat16",
  )
  evaluate_pairs(
    Source(model=str(inputs / "base"), dtype=dtype),
    *(tmp_path / "pairs.jsonl", tmp_path / "to"),
    reference=str(tmp_path / "half"),
  )
  said = "the model computes in float32, the reference in bfloat16"
  assert caplog.text.count(said) == times


def results(folder):
  return json.loads((folder / "results.json").read_text())


def logps_of(folder, path):
  """[N, 2] log-probabilities by the path of generation, a sequence a row."""
  config, params = hub.load(folder)
  tokenizer, found = load_tokenizer(folder), []
  for pair in formats.read(path):
    limits = dict(max_prompt=1000, max_response=1000)
    one = encode(tokenizer, pair, **limits)
    found.append(
      [
        logp_of(config, params, one.prompt_ids, ids)
        for ids in (one.chosen_ids, one.rejected_ids)
      ]
    )
  return np.array(found)


def test_log_probabilities_are_those_of_another_path(evaluated, inputs):
  lines = files.read_lines(evaluated / "ratio/pairs.jsonl")
  path = evaluated / "pairs.jsonl"
  base_NC = logps_of(inputs / "base", path)
  second_NC = logps_of(inputs / "second", path)
  got_NC = np.array([line["policy"] for line in lines])
  np.testing.assert_allclose(got_NC, base_NC, atol=2e-3)
  got_NC = np.array([line["references"][0] for line in lines])
  np.testing.assert_allclose(got_NC, second_NC, atol=2e-3)
  margin_N = (base_NC - second_NC) @ [1, -1]
  found = results(evaluated / "ratio")
  assert found["accuracy"] == np.mean(margin_N > 0)
  assert found["margin"] == pytest.approx(margin_N.mean(), abs=5e-3)
  assert found["pairs"] == len(lines) == 8
  assert found["calibration"] is None  # of a folder no beta is known
  assert found["prompts"] == 7
  low, high = found["interval"]
  assert low <= found["accuracy"] <= high


def test_without_a_reference_margins_are_of_log_probabilities(evaluated):
  lines = files.read_lines(evaluated / "alone/pairs.jsonl")
  ratio = files.read_lines(evaluated / "ratio/pairs.jsonl")
  assert [one["policy"] for one in lines] == [one["policy"] for one in ratio]
  assert lines[0]["references"] == []
  margin_N = [one["policy"][0] - one["policy"][1] for one in lines]
  found = results(evaluated / "alone")
  assert found["calibration"] is None and found["beta"] is None
  assert found["margin"] == pytest.approx(np.mean(margin_N))
  tokens = np.array([one["tokens"] for one in lines])
  mean_NC = np.array([one["policy"] for one in lines]) / tokens
  assert found["length_normalised"] == np.mean(mean_NC[:, 0] > mean_NC[:, 1])


def test_a_model_against_itself_ranks_nothing(evaluated):
  found = results(evaluated / "same")
  assert (found["accuracy"], found["margin"]) == (0.0, 0.0)
  assert found["ties"] == 8
  assert found["calibration"]["expected_error"] == 0.0 and found["beta"] == 0.1


def test_the_difference_of_two_evaluations(evaluated, inputs, tmp_path):
  source = Source(model=str(inputs / "base"))
  files.write_lines(tmp_path / "seven.jsonl", PAIRS[:7])
  said = evaluate_pairs(
    source,
    tmp_path / "seven.jsonl",  # of the other's eight
    tmp_path / "to",
    reference=str(inputs / "second"),
    against=evaluated / "same",
  )
  found = results(tmp_path / "to")["against"]
  assert (found["pairs"], found["only_here"], found["only_there"]) == (7, 0, 1)
  whole = results(tmp_path / "to")
  assert found["accuracy"] == whole["accuracy"]  # the other ranks nothing
  assert found["margin"] == pytest.approx(whole["margin"])
  assert (found["gained"], found["lost"]) == (7 * whole["accuracy"], 0)
  assert "sign test by prompt p = " in said and "on the 7 pairs of both" in said
  # "per token" is of the policy alone, in the report.
  assert "length-normalised [95 %]" in said and "per token" not in said


def test_prompts_are_known_as_in_a_run(evaluated):
  lines = files.read_lines(evaluated / "alone/pairs.jsonl")
  table = [prompt_id(pair) for pair in formats.read(evaluated / "pairs.jsonl")]
  assert [one["prompt"] for one in lines] == [one[:16] for one in table]


def test_limits_and_beta_are_those_of_the_step_and_not_of_now(inputs, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  run_of(workdir, inputs / "base")
  config = read_checkpoint(workdir, "newest").config
  now = files.read_json(workdir / "config.json")  # after --allow-changed
  now["data"]["max_prompt"], now["loss"]["beta"] = 7, 7.0
  files.write_json(workdir / "config.json", now)
  evaluate_pairs(
    Source(workdir=str(workdir), step="1"),
    inputs / "few.jsonl",
    tmp_path / "to",
    reference=str(inputs / "base"),
  )
  found = results(tmp_path / "to")
  assert found["max_prompt"] == config.data.max_prompt != 7
  assert found["beta"] == log_odds_beta(config) != 7.0


@pytest.mark.slow
def test_a_run_is_evaluated_within_its_own_limits(inputs, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  run_of(workdir, inputs / "base", moved=0.2)
  config = read_checkpoint(workdir, "newest").config
  pairs, to = inputs / "few.jsonl", tmp_path / "to"
  evaluate_pairs(Source(workdir=str(workdir)), pairs, to)
  found = results(to)
  assert found["max_prompt"] == config.data.max_prompt
  assert found["max_response"] == config.data.max_response
  export = tmp_path / "export"
  assert cli.main(["export", f"--workdir={workdir}", f"--to={export}"]) == 0
  limits = {name: found[name] for name in ("max_prompt", "max_response")}
  evaluate_pairs(Source(model=str(export)), pairs, tmp_path / "too", **limits)
  want = results(tmp_path / "too")
  assert found["truncated"] == want["truncated"]
  assert found["margin"] == pytest.approx(want["margin"], abs=1e-3)


@pytest.mark.parametrize(
  ("given", "match"),
  [
    (dict(source=Source(model="none")), "none: no such folder"),
    (dict(source=Source()), "give one of --model=FOLDER and --workdir=DIR"),
    (dict(reference="none"), "none: no such folder"),
    (dict(pairs="none.jsonl"), "none.jsonl: no such file"),
    (dict(pairs="sft.jsonl"), "1 of 1 pairs have no rejected"),
    (dict(against="none"), "none holds no pairs.jsonl"),
    (dict(against="ratio"), "evaluated with one, this without a reference"),
    (dict(against="alone"), "has none of these pairs"),
    (dict(against="ratio", reference="base"), "another reference, "),
    (
      dict(against="alone", max_response=9),
      "texts cut elsewhere; give --max_prompt=1024 --max_response=1024, or",
    ),
    (dict(against="bare"), "bare/results.json does not say reference_identity"),
    (dict(against="half"), "half/results.json does not say reference_identity"),
    (dict(to="half"), "half exists; remove it or name another folder"),
    (dict(max_response=4000), "are more than the 2048 that the models take"),
  ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
  evaluated, inputs, tmp_path, monkeypatch, given, match
):
  monkeypatch.chdir(tmp_path)
  row = {"prompt": "a", "chosen": "b c", "rejected": "d"}
  files.write_lines("p.jsonl", [row])
  files.write_lines("sft.jsonl", [{"prompt": "a", "completion": "b"}])
  (tmp_path / "bare").mkdir()
  (tmp_path / "bare/pairs.jsonl").symlink_to(evaluated / "alone/pairs.jsonl")
  (tmp_path / "base").symlink_to(inputs / "base")
  (tmp_path / "half").mkdir()
  files.write_lines("half/pairs.jsonl", [{"pair": 0}])
  for name in ("alone", "ratio"):
    (tmp_path / name).symlink_to(evaluated / name)
  source = Source(model=str(inputs / "base"))
  given = dict(source=source, pairs="p.jsonl", to="to") | given
  with pytest.raises(InputError, match=re.escape(match)):
    evaluate_pairs(**given)
  assert not (tmp_path / "to").exists()


def test_devices_that_cannot_share_the_heads_of_a_row_are_refused(
  inputs, tmp_path
):
  files.write_lines(tmp_path / "p.jsonl", PAIRS)
  mesh = dict(data=1, context=4)
  base, third = (str(inputs / name) for name in ("base", "third"))
  with pytest.raises(InputError, match="2 heads of queries.*mesh.context=4"):
    evaluate_pairs(
      *(Source(model=base, mesh=mesh), tmp_path / "p.jsonl", tmp_path / "to"),
      reference=third,
    )
  assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("key", ["pair", "text", "prompt", "policy", "tokens"])
@pytest.mark.parametrize(
  "value", [None, "x", 1.5, True, [], [1], [1, "x"], [1, None], {}, -1]
)
def test_a_record_of_another_type_is_refused_by_its_key(
  evaluated, tmp_path, key, value
):
  if (
    key in ("text", "prompt") and value == "x" or key == "pair" and value == -1
  ):
    pytest.skip("as it could be")
  record = files.read_lines(evaluated / "ratio/pairs.jsonl")[0]
  results = files.read_json(evaluated / "ratio/results.json")
  margin = {
    name: results[name]
    for name in ("reference_identity", "max_prompt", "max_response")
  }
  files.write_json(tmp_path / "results.json", results)
  files.write_lines(tmp_path / "pairs.jsonl", [record, record | {key: value}])
  with pytest.raises(InputError, match=f"jsonl line 2: '{key}' is not as it"):
    read_records(tmp_path, margin)


@pytest.mark.parametrize(
  ("references", "match"),
  [
    ([], "line 1: 'references'"),
    ([[1.0, 2.0]] * 2, "line 1: 'references'"),
    ([[1.0]], "line 1: 'references'"),
    ([["x", 1.0]], "line 1: 'references'"),
    ({"a": 1}, "line 1: 'references'"),
    (None, "line 1: 'references'"),
    ([[1.0, 2.0]], "has a pair twice"),
  ],
)
def test_references_of_a_record_are_those_of_its_folder(
  evaluated, tmp_path, references, match
):
  record = files.read_lines(evaluated / "ratio/pairs.jsonl")[0]
  results = files.read_json(evaluated / "ratio/results.json")
  margin = {
    name: results[name]
    for name in ("reference_identity", "max_prompt", "max_response")
  }
  files.write_json(tmp_path / "results.json", results)
  record["references"] = references
  files.write_lines(tmp_path / "pairs.jsonl", [record, record])
  with pytest.raises(InputError, match=match):
    read_records(tmp_path, margin)
  for name, wrong in (("max_prompt", "9"), ("reference_identity", [1])):
    files.write_json(tmp_path / "results.json", results | {name: wrong})
    with pytest.raises(InputError, match=f"was changed in its {name}"):
      read_records(tmp_path, margin)
