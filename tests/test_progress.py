# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: what is said of it, and how often."""

import io
import itertools
import sys

import pytest

from mrpo_jax import cli, processes
from mrpo_jax.progress import SECONDS, Progress, stage
from tests.material.logged import logged


class Clock:
  """Seconds that a test decides."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_without_a_terminal_lines_are_seconds_apart(clock):
  with logged() as lines, Progress("scoring:", 100, clock=clock) as progress:
    for _ in range(100):
      clock.now += 0.25
      progress.update()
  # 25 seconds of work, and nothing at its very end that was not due.
  assert [line.split()[1] for line in lines] == ["40/100", "80/100"]
  assert SECONDS == 10.0


def test_work_of_a_moment_says_nothing(clock):
  with logged() as lines, Progress("encoding train", 9, clock=clock) as one:
    one.update(9)
  assert lines == []


def test_a_line_has_count_figures_and_time_left(clock):
  with logged() as lines:
    with Progress("scoring:", 100, "pairs", clock=clock) as progress:
      clock.now += 12.0
      speed = f"{progress.per_second(6000):,.0f} tokens/s"
      progress.update(25, [speed])
  assert lines == ["scoring: 25/100 pairs  500 tokens/s  00:36 left"]


def test_no_speed_follows_from_what_was_done_before(clock):
  with logged() as lines:
    with Progress("step", 100, done=90, clock=clock) as progress:
      clock.now += 6.0
      progress.update(now=True)
      clock.now += 6.0
      progress.update(9, ["loss 0.5"], now=True)
  assert lines == ["step 91/100  00:54 left", "step 100/100  loss 0.5"]


def test_no_speed_follows_from_a_batch_that_was_compiled_for(clock):
  with logged() as lines:
    with Progress("evaluating", 10, "pairs", clock=clock) as progress:
      clock.now += 90.0  # a compilation
      progress.restart(2)
      clock.now += 10.0
      progress.update(4)
  assert lines[-1] == "evaluating 6/10 pairs  00:10 left"


def test_on_a_terminal_it_is_a_bar_and_no_line(clock, monkeypatch):
  monkeypatch.setattr(sys, "stderr", Terminal())
  with logged() as lines, Progress("step", 4, clock=clock) as progress:
    for _ in range(4):
      clock.now += 20.0
      progress.update(figures=["loss 0.5"], now=True)
  shown = sys.stderr.getvalue()
  assert lines == []
  assert "\rstep 4/4  loss 0.5 |" in shown


def test_what_is_logged_beside_a_bar_has_a_line_of_its_own(monkeypatch):
  """On a terminal both stand on one screen."""
  screen = Terminal()
  for name in ("stdout", "stderr"):
    monkeypatch.setattr(sys, name, screen)

  def report(given):
    """Logs."""
    with Progress("step", 4) as progress:
      progress.update(figures=["loss 0.5"])
      progress._bar.refresh()
      with stage("compiling the step"):
        pass

  monkeypatch.setitem(cli.COMMANDS, "report", report)
  assert cli.main(["report", "--workdir=W"]) == 0
  shown = screen.getvalue()
  before = shown[: shown.index("compiling the step\n")]
  # The bar was wiped out, and the cursor stands at the start of its line.
  assert before.endswith("\r") and "loss 0.5" in before


def test_of_several_processes_the_first_one_has_a_bar(clock, monkeypatch):
  monkeypatch.setattr(processes, "is_first", lambda: False)
  monkeypatch.setattr(sys, "stderr", Terminal())
  with Progress("step", 4, clock=clock) as progress:
    progress.update(now=True)
  assert sys.stderr.getvalue() == ""


def test_a_stage_says_what_begins_and_what_it_took(monkeypatch):
  seconds = itertools.count(0.0, 32.5)
  monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
  with logged() as lines, stage("compiling the step"):
    assert lines == ["compiling the step"]
  assert lines[1:] == ["compiling the step took 32.5 s"]
