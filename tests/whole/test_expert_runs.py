# SPDX-License-Identifier: Apache-2.0
"""Whole runs with experts: as policy, as reference, on a mesh, exported."""

import shutil

import pytest

from mrpo_jax import files
from mrpo_jax.data.tokenizer import load_tokenizer
from tests.material.benchmarks import write_benchmarks
from tests.material.config import CONFIG
from tests.material.families import MIXTRAL, QWEN3_MOE, add_model
from tests.material.runs import assert_equal_runs, mrpo, on_one_device, untimed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(inputs, shared):
  """`inputs`, and two models of experts with tokenizers of their own."""

  def add(folder):
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    add_model(folder, "mixtral", MIXTRAL, load_tokenizer(folder / "base"))
    add_model(folder, "qwen", QWEN3_MOE, load_tokenizer(folder / "second"))

  return shared("experts", add)


def train(folder, workdir, *overrides):
  return mrpo(
    *("train", f"--config={CONFIG}:mrpo,inputs={folder}"),
    *(f"--workdir={workdir}", "steps=4"),
    *(f"policy.path={folder}/mixtral", "policy.kernel=blockwise"),
    *(f"references.base.path={folder}/qwen", "checkpoint_every=2"),
    f"references.second.path={folder}/third",
    *(f"data.eval={folder}/few.jsonl", "eval_every=2"),
    *overrides,
  )


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
  """The run on one device."""
  workdir = tmp_path_factory.mktemp("experts") / "run"
  with on_one_device():
    assert train(folder, workdir) == 0
  return workdir


@pytest.mark.parametrize(
  "overrides",
  [
    ("mesh.model=2", "mesh.fsdp=2"),
    ("mesh.context=2", "mesh.fsdp=2", "references.base.mode=scored"),
  ],
)
def test_eight_devices_train_as_one(folder, alone, tmp_path, overrides):
  assert train(folder, tmp_path / "run", *overrides) == 0
  for got, want in zip(untimed(tmp_path / "run"), untimed(alone), strict=True):
    del got["tokens/slots"], want["tokens/slots"]  # rows for eight
    assert got == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_it_goes_on_where_it_was(folder, alone, tmp_path, one_device, capsys):
  run = tmp_path / "run"
  shutil.copytree(alone, run)
  shutil.rmtree(run / "checkpoints" / "4")
  assert train(folder, run) == 0
  assert "resuming at step 2" in capsys.readouterr().out
  assert_equal_runs(run, alone, 4)


def test_what_is_exported_answers_and_is_judged(
  alone, shared, tmp_path, one_device
):
  model = tmp_path / "model"
  assert mrpo("export", f"--workdir={alone}", f"--to={model}") == 0
  rows = [{"prompt": f"question {n}"} for n in range(3)]
  files.write_lines(tmp_path / "prompts.jsonl", rows)
  assert not mrpo(
    *("generate", f"--model={model}", "--max_new_tokens=6"),
    *(f"--prompts={tmp_path}/prompts.jsonl", f"--to={tmp_path}/said.jsonl"),
  )
  assert len(files.read_lines(tmp_path / "said.jsonl")) == 3
  data = shared("benchmarks", write_benchmarks)
  figures = []
  for n, which in enumerate([f"--model={model}", f"--workdir={alone}"]):
    assert not mrpo(
      *("evaluate", which, f"--data={data}", "--limit=2"),
      *("--tasks=truthfulqa_mc2", f"--to={tmp_path}/{n}"),
    )
    found = files.read_json(tmp_path / str(n) / "results.json")["results"]
    figures.append(found["truthfulqa_mc2"]["acc,none"])
  assert figures[0] == figures[1]
