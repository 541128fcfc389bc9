# SPDX-License-Identifier: Apache-2.0
"""Files of a run: metrics.jsonl, TensorBoard events, atomic JSON."""

import json
import os
import pathlib
import time


def write_atomically(path, content):
  """The whole file or none of it, also when the machine stops midway."""
  path = pathlib.Path(path)
  draft = path.with_name(f".{path.name}.{os.getpid()}")
  if isinstance(content, str):
    content = content.encode("utf-8")
  with open(draft, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  draft.replace(path)


def write_json(path, value):
  write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path):
  return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def write_lines(path, values):
  write_atomically(path, "".join(json.dumps(value) + "\n" for value in values))


def read_lines(path):
  """Complete JSON lines of a file; a last line cut short is left out."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").split("\n")
  return [json.loads(line) for line in lines[:-1] if line]


class Metrics:
  """One JSON object a line, written at once, and TensorBoard beside it."""

  def __init__(self, workdir, *, step, say=print):
    """Keeps the lines up to `step`: later ones will be computed again."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [line for line in read_lines(path) if line["step"] <= step]
    if kept:
      write_lines(path, kept)
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
