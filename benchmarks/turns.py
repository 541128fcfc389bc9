# SPDX-License-Identifier: Apache-2.0
"""Programs take turns on the same pairs, so that noise falls on all alike.

A player does one round of the work when it is told to, and then waits: either
an object of this process, or a process of its own that may live in another
virtual environment.  Such a process is started with --job=FILE, the work of
all rounds as JSON, and is spoken to in lines of JSON, over its stdin and a
pipe of its own (--answers=N), since libraries print to stdout as they like:

  worker -> us   {"ready": {"torch": "2.13.0", ...}}    loaded, may begin
  us -> worker   {"round": 3}
  worker -> us   {"seconds": 1.5, "pairs": 64, ...}     that round is done

Imports the standard library alone: workers import it in their environments.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOG_LINES = 20  # of a worker that failed


# A worker's side.


class Channel:
  """A worker's end of the line."""

  def __init__(self, descriptor):
    self._out = os.fdopen(descriptor, "w")

  def send(self, **reply):
    self._out.write(json.dumps(reply) + "\n")
    self._out.flush()

  def wait(self):
    """The number of the next round; ends the process when there is none."""
    line = sys.stdin.readline()
    if not line:
      raise SystemExit(0)
    return json.loads(line)["round"]


def serve(channel, about, turn):
  """A worker's life: `turn(round)` gives each reply."""
  channel.send(ready=about)
  while True:
    channel.send(**turn(channel.wait()))


def worker_arguments(description, **choices):
  """Parsed flags of a worker: `job` as read, `channel`, and the choices."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--job", required=True)
  parser.add_argument("--answers", type=int, required=True)
  for name, default in choices.items():
    parser.add_argument(f"--{name}", default=default, type=type(default))
  given = parser.parse_args()
  given.job = json.loads(pathlib.Path(given.job).read_text())
  given.channel = Channel(given.answers)
  return given


def lines(path):
  """The values of a file of JSON lines."""
  return [
    json.loads(line) for line in pathlib.Path(path).read_text().splitlines()
  ]


def resident():
  """Bytes that this process held at most so far; None but on Linux."""
  status = pathlib.Path("/proc/self/status")
  if not status.exists():
    return None
  lines = status.read_text().split("\n")
  (line,) = (one for one in lines if one.startswith("VmHWM"))
  return int(line.split()[1]) * 1024


# Players.


@dataclasses.dataclass
class Local:
  """A player of this process: `make()` gives (about, turn)."""

  name: str
  make: Callable
  work_of: str = ""  # see `markdown`

  def start(self):
    self.about, self.turn = self.make()

  def stop(self):
    self.turn = None


@dataclasses.dataclass
class Process:
  """A player with a process of its own: `python -m module --job=FILE ...`."""

  name: str
  python: str
  module: str
  job: pathlib.Path
  arguments: tuple[str, ...] = ()
  work_of: str = ""
  variables: dict = dataclasses.field(default_factory=dict)

  def start(self):
    label = "".join(c if c.isalnum() else "-" for c in self.name)
    self._log = self.job.with_name(f"{label}.log")
    ours, theirs = os.pipe()
    flags = [f"--job={self.job}", f"--answers={theirs}", *self.arguments]
    with open(self._log, "w") as log:
      self._process = subprocess.Popen(
        [self.python, "-m", self.module, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **self.variables},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=(theirs,),
        text=True,
      )
    os.close(theirs)
    self._answers = os.fdopen(ours)
    self.about = self._reply()["ready"]

  def turn(self, number):
    with contextlib.suppress(BrokenPipeError):  # `_reply` says why
      self._process.stdin.write(json.dumps({"round": number}) + "\n")
      self._process.stdin.flush()
    return self._reply()

  def stop(self):
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    self._answers.close()

  def _reply(self):
    line = self._answers.readline()
    if line:
      return json.loads(line)
    self._process.wait()
    last = self._log.read_text().strip().split("\n")[-LOG_LINES:]
    raise SystemExit(
      f"error: {self.name} ended without an answer; {self._log} ends with:\n"
      + "\n".join(last)
    )


def busy_cores(seconds=0.5):
  """Cores that this machine keeps busy meanwhile; None but on Linux."""
  stat = pathlib.Path("/proc/stat")
  if not stat.exists():
    return None

  def ticks():
    user, nice, system = stat.read_text().split(maxsplit=4)[1:4]
    return int(user) + int(nice) + int(system)

  before, started = ticks(), time.perf_counter()
  time.sleep(seconds)
  passed = time.perf_counter() - started
  return (ticks() - before) / os.sysconf("SC_CLK_TCK") / passed


def play(players, rounds, *, warmup=1, together=True, say=print):
  """{name: replies of the rounds after the warm-up}.

  Everyone is there from the start, and each round begins with another player.
  Unless `together`: then each plays all rounds alone, for memory that does not
  hold all of them, and ratios say less.  After each round, when all wait,
  `others` is how many cores somebody else keeps busy.
  """
  groups = [players] if together else [[player] for player in players]
  replies = {player.name: [] for player in players}
  for group in groups:
    started = []
    try:
      for player in group:
        player.start()
        started.append(player)
        say(f"{player.name}: ready")
      for number in range(rounds):
        first = number % len(group)
        order = group[first:] + group[:first]
        found = {player.name: player.turn(number) for player in order}
        others = busy_cores()
        if number >= warmup:
          for name, reply in found.items():
            replies[name].append({**reply, "others": others})
    finally:
      for player in started:
        player.stop()
  return replies


# What they did.


def quartiles(values):
  """(25 %, median, 75 %)."""
  if len(values) < 2:
    return (values[0],) * 3
  return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def markdown(players, replies):
  """A table, a row per player; ratios are to the first, within rounds.

  The useful share is the work that the pairs need, by `performance.flops`, over
  what the fastest matrix product would do in that time.  Who counts no work
  has that of the player `work_of`: the same pairs need the same work.
  """
  first = players[0].name
  peaks = [r["peak"] for some in replies.values() for r in some if "peak" in r]
  lines = [
    f"| | pairs/s | quartiles | to {first} | quartiles | useful share "
    "| peak memory |",
    "|---|---|---|---|---|---|---|",
  ]
  for player in players:
    mine = replies[player.name]
    work = replies[player.work_of or player.name]
    low, middle, high = quartiles([speed(one) for one in mine])
    ratio = quartiles(
      [
        speed(one) / speed(other)
        for one, other in zip(mine, replies[first], strict=True)
      ]
    )
    share = "-"
    if peaks and "flops" in work[0]:
      done = [
        one["flops"] / other["seconds"]
        for one, other in zip(work, mine, strict=True)
      ]
      share = f"{statistics.median(done) / max(peaks):.0%}"
    memory = mine[-1].get("memory")
    lines.append(
      f"| {player.name} | {middle:.2f} | {low:.2f} to {high:.2f} "
      f"| {ratio[1]:.2f} | {ratio[0]:.2f} to {ratio[2]:.2f} | {share} "
      f"| {f'{memory / 1e6:,.0f} MB' if memory else '-'} |"
    )
  return "\n".join(lines)


def speed(reply):
  """Pairs per second of a round."""
  return reply["pairs"] / reply["seconds"]


def circumstances(players, replies, **more):
  """Lines under a table: when, where, with what."""
  rounds = len(replies[players[0].name])
  where = {
    "date": datetime.date.today().isoformat(),
    "machine": platform.machine(),
    "cores": os.cpu_count(),
    "rounds": rounds,
    **more,
  }
  peaks = [r["peak"] for some in replies.values() for r in some if "peak" in r]
  if peaks:
    where["matmul GFLOP/s"] = f"{max(peaks) / 1e9:.0f}"
  others = [r["others"] for some in replies.values() for r in some]
  if None not in others:
    where["others' cores"] = f"{max(others):.1f}"
  lines = [", ".join(f"{key} {value}" for key, value in where.items())]
  names = {}
  for player in players:
    about = ", ".join(f"{key} {value}" for key, value in player.about.items())
    names.setdefault(about, []).append(player.name)
  for about, who in names.items():
    lines.append(f"- {', '.join(who)}: {about}")
  return "\n".join(lines)


def deliver(text, out):
  """Prints the result, and writes it to the file `out` if there is one."""
  print(text)
  if out:
    pathlib.Path(out).write_text(text + "\n")


# Environments.


def environment(folder, requirements):
  """The python of a virtual environment, made on its first use.

  Args:
    folder: where it is, or will be.
    requirements: for pip; PIP_EXTRA_INDEX_URL and the like are pip's own.
  """
  folder = pathlib.Path(folder)
  python, mark = folder / "bin" / "python", folder / "installed"
  wanted = "\n".join(requirements)
  if not mark.exists() or mark.read_text() != wanted:
    print(f"installing into {folder}: {' '.join(requirements)}", flush=True)
    venv.create(folder, with_pip=True)
    subprocess.run(
      [python, "-m", "pip", "install", "--quiet", *requirements], check=True
    )
    mark.write_text(wanted)
  return str(python)
