# SPDX-License-Identifier: Apache-2.0
"""Runs that read their pairs as they reach them, through the command."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mrpo_jax import files
from mrpo_jax.data import source
from mrpo_jax.data.streaming.order import Order
from mrpo_jax.data.streaming.pair_stream import START
from mrpo_jax.errors import InputError
from mrpo_jax.runs.streaming import position_of
from mrpo_jax.training import checkpoints
from tests.material.config import CONFIG
from tests.material.runs import (
  ROOT,
  assert_equal_runs,
  lines_of,
  mrpo,
  on_one_device,
)

pytestmark = pytest.mark.usefixtures("one_device")
STREAMS = ("data.streaming=True", "data.shuffle_buffer=16")


def train(inputs, workdir, *overrides, name="dpo"):
  config = f"--config={CONFIG}:{name},inputs={inputs}"
  return mrpo("train", config, f"--workdir={workdir}", *STREAMS, *overrides)


@pytest.fixture(scope="module")
def data(inputs, shared):
  """The pairs with some to be left out, in every form that is read."""

  def make(folder):
    rows = files.read_lines(inputs / "pairs.jsonl")
    for n in range(0, 40, 9):
      rows[n]["rejected"] = rows[n]["chosen"]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(
      table, folder / "pairs.parquet", row_group_size=256
    )
    source.prepare(path, folder)

  return shared("streamed", make)


@pytest.fixture(scope="module")
def whole(inputs, data, shared):
  """A run of eight steps over more than an epoch, saved every second step."""

  def run(folder):
    given = f"data.train={data}/pairs.jsonl"
    with on_one_device():
      assert train(inputs, folder / "run", given, *LONG) == 0

  return shared("streamed_run", run) / "run"


LONG = ("steps=8", "checkpoint_every=2", "checkpoints.keep=9")


def test_a_run_logs_what_it_left_out_and_keeps_its_place(whole):
  lines = lines_of(whole)
  assert [line["step"] for line in lines] == [*range(1, 9)]
  assert all(line["pairs"] == 8 for line in lines)
  dropped = [line["dropped"] for line in lines]
  assert dropped == sorted(dropped) and 5 <= dropped[-1] <= 10
  meta = checkpoints.read_meta(whole / "checkpoints" / "8")
  place = meta["stream"]
  assert place["rows"] == 64 + dropped[-1]
  assert sum(place["dropped"].values()) == dropped[-1]
  assert place["truncated"] == lines[-1]["truncated"] > 0
  config = files.read_json(whole / "config.json")
  assert config["data"]["streaming"] is True
  assert config["identity"]["data.train"]


@pytest.mark.parametrize("step", [2, 6])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
  inputs, data, whole, tmp_path, step
):
  resumed = shutil.copytree(whole, tmp_path / "run")
  for later in range(step + 2, 9, 2):
    shutil.rmtree(resumed / "checkpoints" / str(later))
  given = f"data.train={data}/pairs.jsonl"
  assert train(inputs, resumed, given, *LONG) == 0
  assert_equal_runs(whole, resumed, 8)
  metas = [
    checkpoints.read_meta(run / "checkpoints" / "8")["stream"]
    for run in (whole, resumed)
  ]
  assert metas[0] == metas[1]


@pytest.mark.parametrize("name", ["pairs.parquet", "preference_pairs/1.0.0"])
def test_other_files_of_the_same_rows_are_the_same_run(
  inputs, data, whole, tmp_path, name
):
  given = f"data.train={data}/{name}"
  assert train(inputs, tmp_path / "run", given, *LONG[:1]) == 0
  for one, other in zip(
    lines_of(whole), lines_of(tmp_path / "run"), strict=True
  ):
    for figure in ("loss", "grad_norm", "dropped", "truncated"):
      assert one[figure] == other[figure]


def test_other_data_is_refused(inputs, data, whole, tmp_path, capsys):
  rows = files.read_lines(data / "pairs.jsonl")
  path = tmp_path / "pairs.jsonl"
  run = shutil.copytree(whole, tmp_path / "run")
  config = run / "config.json"
  config.write_text(config.read_text().replace(str(data), str(tmp_path)))
  rows[3]["chosen"] = rows[3]["chosen"][:-2] + "!?"  # of the same length
  path.write_text("\n".join(map(json.dumps, rows)))
  assert train(inputs, run, f"data.train={path}", *LONG) == 2
  assert "identity.data.train" in capsys.readouterr().err


def test_another_order_is_another_run(inputs, data, whole, capsys):
  more = (f"data.train={data}/pairs.jsonl", "data.shuffle_buffer=8")
  assert train(inputs, whole, *more, *LONG) == 2
  error = capsys.readouterr().err
  assert "data.shuffle_buffer: 16 -> 8; data.shuffle_buffer cannot" in error


def test_a_run_in_memory_does_not_become_one_that_streams(
  inputs, whole, tmp_path, capsys
):
  workdir = shutil.copytree(whole, tmp_path / "run")
  config = files.read_json(workdir / "config.json")
  del config["data"]["streaming"], config["data"]["shuffle_buffer"]
  files.write_json(workdir / "config.json", config)
  given = (f"data.train={config['data']['train']}", *LONG, "--allow-changed")
  assert train(inputs, workdir, *given) == 2
  error = capsys.readouterr().err
  assert "data.streaming: None -> True" in error
  assert "data.shuffle_buffer, data.streaming cannot change within" in error


def test_a_checkpoint_without_a_place_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints, "read_meta", lambda path: {"step": 2})
  with pytest.raises(InputError, match="2 says nothing of a place in config."):
    position_of(tmp_path, 2)
  assert position_of(tmp_path, 0) == START


def test_a_malformed_row_ends_the_run_and_keeps_its_checkpoints(
  inputs, tmp_path, capsys
):
  rows = files.read_lines(inputs / "pairs.jsonl") * 8
  path = tmp_path / "pairs.jsonl"
  lines = [*map(json.dumps, rows)]
  order = Order(np.array([256, 64]), seed=0, buffer=256)
  window = next(order.windows())
  # One that is neither reached soon nor among those that are looked at first.
  block, row = next(
    (window.blocks[place], row)
    for place, row in window.rows_N2[100:]
    if place or row % 2
  )
  number = int(256 * block + row)
  lines[number] = '{"prompt": "a"}'
  path.write_text("\n".join(lines))
  workdir = tmp_path / "run"
  more = (f"data.train={path}", "steps=40", "checkpoint_every=1")
  assert train(inputs, workdir, *more, "data.shuffle_buffer=256") == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith(f"error: {path} line {number + 1}: a key is missing")
  assert 10 <= checkpoints.steps(workdir)[0] < 40


@pytest.mark.parametrize(
  "name, overrides, match",
  [
    ("dpo", ("epochs=1", "steps=0"), "config.epochs needs their number"),
    ("dpo", ("data.limit=3",), "config.data.limit choose among all of them"),
    ("dpo", ("data.fraction=0.5",), "config.data.fraction and"),
    ("apo_zero_unpaired", ("data.unpair=True",), "config.data.unpair takes"),
    ("kto_unpaired", (), "takes responses of other prompts from all of them"),
    ("dpo", ("references.base.mode=scored",), "mode='scored' scores all"),
    ("hpo", (), "config.data.rewards are computed for all first"),
    ("mrpo", ("loss.scale=zscore",), "measures the references on pairs before"),
    ("dpo", ("data.train={0}/pairs.jsonl.gz",), "whose rows can be reached by"),
    ("dpo", ("data.train=org/name",), "found no such file"),
    ("dpo", ("data.streaming=False",), "config.data.shuffle_buffer=16 is of"),
    ("dpo", ("data.train={0}/labelled.jsonl",), "has one response with a"),
    ("apo_zero_unpaired", ("data.train={0}/pairs.jsonl",), "has no label"),
    (
      "dpo",
      ("data.train={0}/pairs.jsonl,{0}/few.jsonl", "data.weights=1,2"),
      "config.data.weights needs what each file has left",
    ),
  ],
)
def test_what_needs_all_pairs_is_refused_in_one_line(
  inputs, tmp_path, capsys, name, overrides, match
):
  overrides = [one.format(inputs) for one in overrides]
  assert train(inputs, tmp_path / "run", *overrides, name=name) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and match in error
  assert not (tmp_path / "run").exists()


def test_a_tokenizer_is_not_trained_on_a_stream(tmp_path, inputs, capsys):
  config = f"--config={ROOT}/configs/quickstart.py:dpo,debug"
  given = (f"data.train={inputs}/pairs.jsonl", *STREAMS)
  assert mrpo("train", config, f"--workdir={tmp_path}/run", *given) == 2
  error = capsys.readouterr().err
  assert "config.policy has a tokenizer trained on all of them; name" in error


@pytest.mark.parametrize("name", ["nll", "apo_zero_unpaired", "bco_unpaired"])
def test_supervised_rows_and_labels_are_streamed(
  inputs, tmp_path, capsys, name
):
  assert train(inputs, tmp_path / "run", name=name) == 0
  assert len(lines_of(tmp_path / "run")) == 5
  said = "".join(capsys.readouterr())
  found = re.search("a few of all: ([0-9]+) of ([0-9]+) responses are", said)
  assert (found is not None) == (name != "nll")
  assert found is None or 0 < int(found[1]) < int(found[2])
  assert "all have the label" not in said


def test_labels_that_are_all_the_same_are_said(inputs, tmp_path, capsys):
  rows = files.read_lines(inputs / "labelled.jsonl")
  path = tmp_path / "labelled.jsonl"
  files.write_lines(path, [{**row, "label": False} for row in rows])
  more = (f"data.train={path}", "steps=1")
  assert train(inputs, tmp_path / "run", *more, name="bco_unpaired") == 0
  said = "".join(capsys.readouterr())
  assert re.search("a few of all: 0 of [0-9]+ responses are desirable;", said)
  assert re.search("warning: these .* all have the label false: if", said)


@pytest.mark.slow
def test_several_references_with_tokenizers_and_held_out_pairs(
  inputs, tmp_path
):
  more = (f"data.eval={inputs}/few.jsonl", "eval_every=2")
  assert train(inputs, tmp_path / "run", *more, name="mrpo") == 0
  lines = lines_of(tmp_path / "run")
  assert "eval/loss" in lines[-1]
  assert "references/second/margin" in lines[-1]


@pytest.mark.slow
def test_all_rows_at_once_give_the_step_of_a_run_in_memory(inputs, tmp_path):
  config = f"--config={CONFIG}:dpo,inputs={inputs}"
  few = f"data.train={inputs}/few.jsonl"
  once = ("steps=1", "batch=8", few)
  assert mrpo("train", config, f"--workdir={tmp_path}/memory", *once) == 0
  assert train(inputs, tmp_path / "stream", *once) == 0
  (one,), (two,) = (lines_of(tmp_path / run) for run in ("memory", "stream"))
  for figure in ("loss", "logps/chosen", "logps/rejected", "grad_norm"):
    assert one[figure] == pytest.approx(two[figure], rel=1e-5), figure


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(inputs, data, whole, tmp_path):
  workdir = tmp_path / "run"
  command = [
    *(sys.executable, "-m", "mrpo_jax", "train", f"--workdir={workdir}"),
    *(f"--config={CONFIG}:dpo,inputs={inputs}", *STREAMS, *LONG),
    f"data.train={data}/pairs.jsonl",
  ]
  devices = "--xla_force_host_platform_device_count="
  flags = os.environ["XLA_FLAGS"].replace(f"{devices}8", f"{devices}1")
  environment = {**os.environ, "XLA_FLAGS": flags}
  process = subprocess.Popen(command, env=environment, cwd=ROOT)
  while not checkpoints.steps(workdir):
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  stood = checkpoints.steps(workdir)[0]
  assert train(inputs, workdir, f"data.train={data}/pairs.jsonl", *LONG) == 0
  assert stood < 8
  assert_equal_runs(whole, workdir, 8)
