# SPDX-License-Identifier: Apache-2.0
"""Trackers: what each service keeps of a run, and of one that goes on."""

import json
import sqlite3
import struct
import sys

import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.training import trackers
from mrpo_jax.training.log import Metrics
from tests.material.logged import logged

HEADER, BLOCK, FULL, FIRST, LAST = 7, 2**15, 1, 2, 4
CONFIG = {"seed": 3, "loss": {"name": "dpo", "betas": [0.1, 0.2]}}
CONFIG |= {"references": {"names": ["a+b"], "a+b": {"path": "policy"}}}
NONE = {"tensorboard": False, "wandb": "", "trackio": "", "mlflow": ""}
SAMPLE = {"index": 0, "prompt": "Hi", "response": "Yes", "tokens": 2}
SAMPLE |= {"finish": "stop"}
TWICE = {  # of a run that was killed after step 3 and goes on from step 2
  ("loss", 1): [0.5],
  ("loss", 2): [0.25],
  ("eval/rewards/accuracies", 2): [0.75],
  ("loss/spread", 2): [2.0],
  ("eval/arc_easy/acc,none", 2): [0.375],
  ("loss", 3): [0.125, 0.125],
}

NAMES = {name for name, _ in TWICE}


def run(workdir, first, last, config=CONFIG, fails=False, **tracking):
  """Lines of the steps first..last, told to the trackers of a workdir."""
  opened = trackers.opened(workdir, NONE | tracking, config)
  with Metrics(workdir, step=first - 1, trackers=opened) as metrics:
    for step in range(first, last + 1):
      figures = {"loss": 0.5**step}
      if step == 2:
        figures |= {"eval/rewards/accuracies": 0.75, "loss/spread": 2.0}
        figures |= {"eval/arc_easy/acc,none": 0.375}
        figures["samples"] = [SAMPLE]
      metrics.write(step, figures)
    if fails:
      raise ZeroDivisionError


def killed_and_resumed(workdir, **tracking):
  workdir.mkdir()
  with pytest.raises(ZeroDivisionError):
    run(workdir, 1, 3, fails=True, **tracking)
  run(workdir, 3, 3, {**CONFIG, "log_every": 2}, **tracking)


def wandb_records(folder):
  """(records of wandb's own files, in the order of the runs)."""
  from wandb.proto import wandb_internal_pb2

  for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    whole = b""
    for kind, part in leveldb_parts(path.read_bytes()):
      whole = part if kind in (FULL, FIRST) else whole + part
      if kind in (FULL, LAST):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        yield record


def leveldb_parts(content):
  """(kind, bytes) of the parts in wandb's file, which is a log of LevelDB.

  A block of 32 KiB holds parts of a checksum, a length, a kind and content; the
  first one begins with wandb's own seven bytes.
  """
  assert content[:4] == b":W&B"
  at = HEADER
  while at < len(content):
    if BLOCK - at % BLOCK < HEADER:  # no part fits
      at += BLOCK - at % BLOCK
    _, size, kind = struct.unpack("<IHB", content[at : at + HEADER])
    yield kind, content[at + HEADER : at + HEADER + size]
    at += HEADER + size


def test_wandb_has_the_lines_of_one_run(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  workdir = tmp_path / "tiny"
  killed_and_resumed(workdir, wandb="team/preferences")
  begun, found, tables, codes = [], {}, [], []
  for record in wandb_records(workdir):
    kind = record.WhichOneof("record_type")
    if kind == "run":
      begun.append(record.run)
    elif kind == "exit":
      codes.append(record.exit.exit_code)
    elif kind == "history":
      items = record.history.item
      line = {
        one.key or "/".join(one.nested_key): json.loads(one.value_json)
        for one in items
      }
      step = line["step"]
      for name in NAMES:
        if name in line:
          found.setdefault((name, step), []).append(line[name])
      tables += [line[key] for key in ("samples/_type",) if key in line]
  assert found == TWICE
  assert tables == ["table-file"] and codes == [1, 0]
  known = json.loads((workdir / "tracking.json").read_text())["id"]
  assert {one.run_id for one in begun} == {known}
  assert {one.display_name for one in begun} == {"tiny"}
  assert {one.entity for one in begun} == {"team"}
  assert {one.project for one in begun} == {"preferences"}
  given = {
    one.key: json.loads(one.value_json) for one in begun[0].config.update
  }
  assert given.items() >= CONFIG.items()


def test_trackio_has_the_lines_of_one_run(tmp_path, monkeypatch):
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
  pytest.importorskip("trackio")
  from trackio import utils

  monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "kept")
  workdir = tmp_path / "tiny"
  killed_and_resumed(workdir, trackio="preferences")
  (path,) = (tmp_path / "kept").glob("*.db")
  asked = "select run_name, step, metrics from metrics"
  rows = sqlite3.connect(path).execute(asked)
  found, names, samples = {}, set(), []
  for name, step, metrics in rows:
    metrics = json.loads(metrics)
    samples += [metrics.pop("samples")] if "samples" in metrics else []
    names.add(name)
    for key, value in metrics.items():
      found.setdefault((key, step), []).append(value)
  assert found == TWICE
  known = json.loads((workdir / "tracking.json").read_text())["id"]
  assert names == {f"tiny-{known}"}
  assert "Yes" in str(samples)


@pytest.fixture
def mlflow_folder(tmp_path, monkeypatch):
  pytest.importorskip("mlflow")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "kept").as_uri())
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def test_mlflow_has_the_lines_of_one_run(tmp_path, mlflow_folder):
  import mlflow

  workdir = tmp_path / "tiny"
  killed_and_resumed(workdir, mlflow="preferences")
  client = mlflow.MlflowClient()
  number = client.get_experiment_by_name("preferences").experiment_id
  (kept,) = client.search_runs([number])
  found = {}
  for name in NAMES:
    kind = name.replace("/", ".").replace(",", ".")
    for one in client.get_metric_history(kept.info.run_id, kind):
      found.setdefault((name, one.step), []).append(one.value)
  assert found == TWICE
  assert kept.info.run_name == "tiny" and kept.info.status == "FINISHED"
  assert kept.data.params == {
    "seed": "3",
    "loss.name": "dpo",
    "loss.betas": "[0.1, 0.2]",
    "references.names": "['a+b']",
    "references.a.b.path": "policy",
  }
  files = {one.path for one in client.list_artifacts(kept.info.run_id)}
  assert files == {"config.json", "samples"}
  text = client.download_artifacts(kept.info.run_id, "config.json", tmp_path)
  assert json.loads(open(text).read()) == {**CONFIG, "log_every": 2}
  text = client.download_artifacts(
    kept.info.run_id, "samples/step-2.md", tmp_path
  )
  assert "Yes" in open(text).read()


def test_a_run_that_fails_has_failed_in_mlflow(tmp_path, mlflow_folder):
  import mlflow

  with pytest.raises(ZeroDivisionError):
    run(tmp_path, 1, 1, fails=True, mlflow="preferences")
  client = mlflow.MlflowClient()
  number = client.get_experiment_by_name("preferences").experiment_id
  (kept,) = client.search_runs([number])
  assert kept.info.status == "FAILED"


def test_a_failure_is_said_and_ends_the_service_alone(tmp_path, monkeypatch):
  told = []

  class Fails:
    def __init__(self, project, run):
      pass

    def write(self, step, values):
      told.append(step)
      if step == 2:
        raise OSError("no route to host")

    def close(self, failed):
      told.append("closed")

  monkeypatch.setitem(trackers.SERVICES, "wandb", Fails)
  with logged() as said:
    run(tmp_path, 1, 4, wandb="preferences")
  (line,) = said
  assert "wandb failed at step 2" in line and "no route to host" in line
  assert told == [1, 2]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(one)["step"] for one in lines] == [1, 2, 3, 4]


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "mlflow").mkdir()  # as a service leaves it, and no package
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  trackers.check(NONE | {"tensorboard": True})
  for name in trackers.SERVICES:
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(InputError, match=rf"pip install 'mrpo-jax\[{name}\]'"):
      trackers.check(NONE | {name: "a"})


def test_a_service_that_does_not_take_the_run_ends_it(tmp_path, monkeypatch):
  closed = []

  class Opens:
    def __init__(self, project, run):
      pass

    def close(self, failed):
      closed.append(failed)

  def refused(project, run):
    raise RuntimeError("api_key not\nconfigured")

  monkeypatch.setitem(trackers.SERVICES, "wandb", Opens)
  monkeypatch.setitem(trackers.SERVICES, "mlflow", refused)
  with pytest.raises(InputError, match="mlflow='b'.*api_key not configured"):
    run(tmp_path, 1, 1, wandb="a", mlflow="b")
  assert closed == [True]


def test_no_tracker_leaves_no_file(tmp_path):
  run(tmp_path, 1, 2)
  assert [one.name for one in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_id_that_is_none_is_refused(tmp_path):
  (tmp_path / "tracking.json").write_text('{"id": "../a"}')
  with pytest.raises(InputError, match="holds no id"):
    run(tmp_path, 1, 1, wandb="a")
