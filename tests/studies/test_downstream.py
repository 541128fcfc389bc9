# SPDX-License-Identifier: Apache-2.0
"""The study of benchmarks after training, on tiny models and two documents."""

import re

import numpy as np
import pytest

from docs.studies.downstream import measure, page, study
from mrpo_jax import files, hub
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from tests.material import config as material
from tests.material.runs import files_of, mrpo, on_one_device

ASKED = study.Asked(
  tasks=("truthfulqa_mc1", "gsm8k", measure.SOLUTION),
  limit=2,
  prompts=3,
  max_new_tokens=8,
)


@pytest.mark.parametrize(
  "text,share",
  [
    ("", 0),
    ("two words", 0),
    ("a b c d", 0),  # abc, bcd
    ("A b c a B c", 1 / 4),  # abc, bca, cab, abc
    ("no no no no no", 2 / 3),
  ],
)
def test_repetition_by_hand(text, share):
  assert measure.repetition(text) == pytest.approx(share)


@pytest.mark.parametrize(
  "mrpo,dpo,said",
  [
    ([1, 1, 1, 1], [0, 0, 0, 0], "**holds**"),
    ([0, 0, 0, 0], [1, 1, 1, 1], "**does not hold**"),
    ([0, 1, 0, 1], [0, 1, 0, 1], "**cannot be told at this size**"),
    ([1, 0, 1, 0], [0, 1, 0, 1], "**cannot be told at this size**"),
    ([0, 0, 0, 0], [0, 0, 0, 0], page.FLOOR),
  ],
)
def test_the_verdict_follows_the_rule(mrpo, dpo, said):
  values = {"mrpo": np.array(mrpo, float), "dpo": np.array(dpo, float)}
  assert page.verdict(values, page.SMALL) == said


def test_models_of_other_documents_are_not_compared():
  with pytest.raises(InputError, match="mrpo has other documents"):
    measure._aligned("gsm8k", {"start": {0: 1}, "mrpo": {1: 1}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs):
  """(folder like that of launch/real.sh, workdir, folder of the page)."""
  real = tmp_path_factory.mktemp("real")
  workdir = tmp_path_factory.mktemp("downstream")
  to = workdir / "page"
  to.mkdir()
  hub.save(  # in what launch/real.sh leaves it
    real / "models" / "smollm2",
    *hub.load(inputs / "base"),
    tokenizer=load_tokenizer(inputs / "base"),
    dtype="bfloat16",
  )
  with on_one_device():
    for name in ("dpo", "mrpo"):
      config = f"--config={material.CONFIG}:{name},inputs={inputs}"
      run = f"--workdir={real / name}"
      assert mrpo("train", config, run, "--config.steps=2") == 0
    study.study(workdir, real, ASKED, to=to)
    (workdir / "mrpo" / "gsm8k.done.json").unlink()  # as a kill leaves it
    (workdir / "mrpo" / "samples.done.json").unlink()
    before = files_of(workdir / "start")
    study.study(workdir, real, ASKED, to=to)
    assert files_of(workdir / "start") == before  # nothing is asked twice
    yield real, workdir, to


@pytest.mark.slow
def test_the_page_has_what_the_models_said(finished):
  _, workdir, to = finished
  text = (to / "downstream.md").read_text()
  found = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
  rows = {row[0]: row for one in found if len(row := one.split(" | ")) == 6}
  logp = {
    name: np.array(
      [
        one["resps"][0][0][0]
        for one in files.read_lines(
          workdir / name / "gsm8k_solution" / "samples_gsm8k_solution.jsonl"
        )
      ]
    )
    for name in ("start", "dpo", "mrpo")
  }
  row = rows["gsm8k_solution"]
  assert row[1:3] == ["2", f"{logp['start'].mean():.3f}"]
  assert (logp["start"] < -10).all()
  for cell, name in zip(row[3:5], ("dpo", "mrpo"), strict=True):
    assert cell.startswith(f"{(logp[name] - logp['start']).mean():+.3f} [")
  tokens = [
    one["tokens"]
    for one in files.read_lines(workdir / "start" / "samples/samples.jsonl")
  ]
  assert rows["tokens"][1:3] == ["3", f"{np.mean(tokens):.3f}"]
  assert rows["gsm8k strict-match"][2] == "0.000"
  assert f"| gsm8k strict-match | +0.000 [all agree] | {page.FLOOR}" in text


@pytest.mark.slow
def test_all_models_compute_in_one_dtype(finished):
  _, workdir, _ = finished
  for name in measure.MODELS:
    said = files.read_json(workdir / name / "gsm8k" / "results.json")
    assert said["config"]["model_dtype"] == "float32", name


@pytest.mark.slow
def test_the_solution_is_what_the_data_set_gives(finished):
  _, workdir, _ = finished
  (one, *_) = files.read_lines(
    workdir / "start" / "gsm8k_solution" / "samples_gsm8k_solution.jsonl"
  )
  context, solution = one["arguments"][0]
  assert solution == f" {one['doc']['answer']}"
  assert context.endswith(f"Question: {one['doc']['question']}\nAnswer:")
  assert context.count("Question:") == 6 and "Answer: " in context
  assert "Answer:  " not in context


@pytest.mark.slow
def test_what_was_asked_otherwise_is_refused(finished):
  real, workdir, to = finished
  with pytest.raises(InputError, match="asked otherwise: limit"):
    study.study(workdir, real, ASKED._replace(limit=1), to=to)
  with pytest.raises(InputError, match=r"start is missing .*launch/real\.sh"):
    study.study(workdir, workdir, ASKED, to=to)
