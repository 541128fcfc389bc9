# SPDX-License-Identifier: Apache-2.0
"""The loop and its log: in which order steps are read, judged and saved."""

import functools
import itertools
import math
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from mrpo_jax import files
from mrpo_jax.errors import StoppedRun
from mrpo_jax.progress import Progress
from mrpo_jax.training import trackers
from mrpo_jax.training.log import Log
from mrpo_jax.training.loop import Due, train
from tests.material.logged import logged


def counting_step(poison=None):
  def step(state, batch):
    value = math.nan if state + 1 == poison else 1.0 / (state + 1)
    metrics = {"loss": np.float32(value), "grad_norm": np.float32(1)}
    return state + 1, metrics | {"tokens/real": 3, "tokens/slots": 4}

  return step


TENSORBOARD = dict(tensorboard=True, wandb="", trackio="", mlflow="")
SAMPLE = {
  **{"index": 0, "prompt": "Which bird\nis it?", "response": "An *owl*."},
  **{"tokens": 4, "finish": "stop"},
}


class Run:
  """Trains a counter; what happened when, by the number of steps read."""

  def __init__(
    self,
    workdir,
    due,
    *,
    poison=None,
    stop=lambda step: False,
    evaluate=lambda state: (state, {"eval/loss": 0.5}),
  ):
    self.read, self.saved, self.lines_at_save = [], [], []
    self.looked, self.steps = [], itertools.count(1)
    self.workdir = workdir
    with Log(
      workdir,
      start=0,
      due=due,
      constants={"pairs": 8},
      rate=lambda step: step / 10,
      watch=lambda step, metrics: self.read.append(step),
      trackers=trackers.opened(workdir, TENSORBOARD, {}),
    ) as log:
      if due.looks(0):
        log.begin(self.look(0, 0))
      self.end = train(
        counting_step(poison),
        0,
        lambda state: (state, next(self.steps), None),
        log,
        due=due,
        evaluate=evaluate,
        look=self.look,
        save=self.save,
        stop=stop,
      )

  def look(self, step, state):
    self.looked.append((step, state))
    return {"samples": [SAMPLE], "eval/arc/acc": 0.5}

  def save(self, step, state, figures):
    self.saved.append((step, len(self.read), figures))
    self.lines_at_save.append([line["step"] for line in self.lines()])

  def lines(self):
    return files.read_lines(self.workdir / "metrics.jsonl")


def test_every_step_is_read_and_written_before_a_save(tmp_path):
  run = Run(tmp_path, Due(steps=6, checkpoint_every=4))
  assert run.saved == [(4, 4, None), (6, 6, None)]
  assert run.read == [1, 2, 3, 4, 5, 6]
  assert run.lines_at_save == [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]
  assert run.end == (6, 6)


def test_what_comes_before_the_first_step_is_no_time_of_a_step(tmp_path):
  class Slow(Run):
    def look(self, step, state):
      time.sleep(0.5 if step == 0 else 0.0)
      return super().look(step, state)

  with logged() as lines:
    Slow(tmp_path, Due(steps=9, look_every=(0,)))
  first = next(line for line in lines if line.startswith("step 1/9"))
  assert first.endswith("00:00 left")


def test_it_stops_after_the_current_step_when_asked(tmp_path):
  asked = iter([False, False, True])
  run = Run(tmp_path, Due(steps=6, eval_every=4), stop=lambda step: next(asked))
  # Nothing is due then: it is saved, not evaluated.
  assert run.saved == [(3, 3, None)] and run.read == [1, 2, 3]


def test_a_loss_that_is_not_a_number_stops_with_step_and_name(tmp_path):
  with pytest.raises(StoppedRun, match="loss is nan at step 3"):
    Run(tmp_path, Due(steps=6), poison=3)
  assert [
    line["step"] for line in files.read_lines(tmp_path / "metrics.jsonl")
  ] == [1, 2]


@pytest.mark.parametrize("poison", [5, 6])
def test_a_bad_step_is_never_evaluated_or_saved(tmp_path, poison):
  seen = []

  def evaluate(state):
    seen.append(state)
    return state, {}

  due = Due(steps=6, eval_every=1)
  with pytest.raises(StoppedRun):
    Run(tmp_path, due, poison=poison, evaluate=evaluate)
  assert seen == list(range(1, poison))


def test_it_goes_on_from_the_state_that_an_evaluation_returns(tmp_path):
  due = Due(steps=4, eval_every=2)
  run = Run(tmp_path, due, evaluate=lambda state: (state + 10, {}))
  assert run.end == (4, 24)  # four steps, and an evaluation at 2 and at 4


def test_the_figures_of_an_evaluation_join_the_line_of_their_step(tmp_path):
  run = Run(tmp_path, Due(steps=5, log_every=3, eval_every=2))
  lines = run.lines()
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  evaluated = [line["step"] for line in lines if "eval/loss" in line]
  assert evaluated == [2, 4, 5]
  assert [step for step, _, figures in run.saved if figures] == [2, 4, 5]
  assert list(lines[0]) == [
    *("step", "grad_norm", "loss", "learning_rate", "tokens/real"),
    *("tokens/slots", "pairs", "seconds", "seconds/input"),
  ]
  assert lines[2]["learning_rate"] == 0.3 and lines[2]["tokens/real"] == 3


def test_lines_stand_only_where_they_are_due(tmp_path):
  run = Run(tmp_path, Due(steps=7, log_every=3))
  assert [line["step"] for line in run.lines()] == [1, 3, 6, 7]


def test_a_look_joins_the_line_of_its_step_and_begins_before_the_first(
  tmp_path,
):
  due = Due(steps=5, log_every=5, eval_every=2, look_every=(3, 0))
  run = Run(tmp_path, due)
  # Of the state after that step, before it is saved.
  assert run.looked == [(0, 0), (3, 3), (5, 5)]
  first, *lines = run.lines()
  assert first == {"step": 0, "samples": [SAMPLE], "eval/arc/acc": 0.5}
  assert [line["step"] for line in lines if "samples" in line] == [3, 5]
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  assert run.lines_at_save == [
    [0, 1, 2],
    [0, 1, 2, 3],
    [0, 1, 2, 3, 4],
    [*range(6)],
  ]


def test_each_look_has_a_period_of_its_own():
  due = Due(steps=12, look_every=(4, 0, 6))
  found = {step: due.looks(step) for step in range(13) if due.looks(step)}
  assert found == {0: [0, 1, 2], 4: [0], 6: [2], 8: [0], 12: [0, 1, 2]}


def read_events(folder):
  events = event_accumulator.EventAccumulator(
    str(folder), size_guidance={"tensors": 0}
  )
  events.Reload()
  return events


def test_tensorboard_shows_samples_as_text(tmp_path):
  Run(tmp_path, Due(steps=2, look_every=(0,)))
  events = read_events(tmp_path)
  assert events.PluginTagToContent("text").keys() == {"samples/0"}
  found = events.Tensors("samples/0")
  assert [one.step for one in found] == [0, 2]
  (text,) = found[1].tensor_proto.string_val
  assert text.decode() == (
    "    Which bird\n    is it?\n\n**answer** (4 tokens, stop)\n\n    An *owl*."
  )


def test_tensorboard_reads_the_same_names_and_numbers(tmp_path):
  run = Run(tmp_path, Due(steps=3, eval_every=2))
  events = read_events(tmp_path)
  lines = run.lines()
  names = {name for line in lines for name in line} - {"step"}
  assert set(events.Tags()["tensors"]) == names
  for name in names:
    want = [(row["step"], row[name]) for row in lines if name in row]
    got = [
      (event.step, float(np.float32(event.tensor_proto.float_val[0])))
      for event in events.Tensors(name)
    ]
    assert got == [(step, float(np.float32(x))) for step, x in want], name


class Figures:
  """Steps of a run with the figures of pairs, 2 seconds each."""

  def __init__(self, monkeypatch, workdir, *, steps, start=0, names=()):
    self.now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: self.now)
    progress = functools.partial(Progress, clock=lambda: self.now)
    monkeypatch.setattr("mrpo_jax.training.log.Progress", progress)
    with (
      logged() as self.lines,
      Log(
        workdir,
        start=start,
        due=Due(steps=steps),
        constants={"pairs": 8},
        rate=lambda step: 0.0,
        watch=lambda step, metrics: None,
      ) as log,
    ):
      for step in range(start + 1, steps + 1):
        log.timed(lambda state: state, None)
        self.now += 2.0
        figures = dict.fromkeys(names, np.float32(0.5))
        log.take(step, {**figures, "tokens/real": 3, "tokens/slots": 4})
        log.flush()
    self.lines = [line for line in self.lines if line.startswith("step")]


ALL = ("loss", "grad_norm", "rewards/accuracies", "rewards/margins")


def test_the_console_has_loss_accuracy_margin_speed_and_time_left(
  tmp_path, monkeypatch
):
  run = Figures(monkeypatch, tmp_path, steps=12, names=ALL)
  figures = "loss 0.5000  accuracy 0.500  margin +0.5000  4.0 pairs/s"
  # The first step, one after 10 seconds at least, and the last.
  assert run.lines == [
    f"step 1/12  {figures}  00:22 left",
    f"step 6/12  {figures}  00:12 left",
    f"step 11/12  {figures}  00:02 left",
    f"step 12/12  {figures}",
  ]


def test_the_console_of_a_run_that_resumes_starts_anew(tmp_path, monkeypatch):
  names = ("loss", "grad_norm")  # of supervised training
  run = Figures(monkeypatch, tmp_path, steps=12, start=9, names=names)
  assert run.lines == [
    "step 10/12  loss 0.5000  4.0 pairs/s  00:04 left",
    "step 12/12  loss 0.5000  4.0 pairs/s",
  ]
