# SPDX-License-Identifier: Apache-2.0
"""The training log: metrics.jsonl and TensorBoard events."""

import json
import os
import pathlib
import time

from mrpo_jax import files


class Metrics:
  """One JSON object a line, written at once, and TensorBoard beside it."""

  def __init__(self, workdir, *, step, say=print):
    """Keeps the lines up to `step`: later ones will be computed again."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [line for line in files.read_lines(path) if line["step"] <= step]
    if kept:
      files.write_lines(path, kept)
    elif path.exists():
      path.unlink()
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    self._events = _events(workdir, say)

  def write(self, step, values):
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()
    if self._events is not None:
      _add(self._events, step, values)

  def sync(self):
    """Waits until what is written survives the machine too."""
    os.fsync(self._file.fileno())

  def close(self):
    self._file.close()
    if self._events is not None:
      self._events.close()


def _events(workdir, say):
  try:
    from tensorboard.summary.writer import event_file_writer
  except ImportError:
    say("no TensorBoard events: pip install mrpo-jax[tensorboard]")
    return None
  return event_file_writer.EventFileWriter(str(workdir))


def _add(events, step, values):
  from tensorboard.compat.proto import event_pb2, summary_pb2

  values = [
    summary_pb2.Summary.Value(tag=tag, simple_value=value)
    for tag, value in values.items()
  ]
  summary = summary_pb2.Summary(value=values)
  events.add_event(
    event_pb2.Event(step=step, wall_time=time.time(), summary=summary)
  )
