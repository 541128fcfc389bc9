# SPDX-License-Identifier: Apache-2.0
"""Where the time of a train step goes: a trace of it on a CPU, by part.

  python -m benchmarks.step_profile --workdir=/tmp/profile --model=FOLDER

Our step of `benchmarks.vs_trl`, one online reference, on the same pairs.  Each
instruction that ran counts for its own time, less what ran inside it, under the
part of the model that it was compiled from.
"""

import collections
import json
import pathlib
import re
import tempfile

import jax
from jax.profiler import ProfileData

from benchmarks import material, vs_trl
from mrpo_jax.performance import bench
from mrpo_jax.runs.config import read
from mrpo_jax.text import aligned

THREADS = "tf_XLAEigen"  # those that run a program's instructions, on a CPU
PARTS = {  # what the name of an operation has, the first that fits
  "attention of tokens to tokens": r"/blockwise",
  "vocabulary": r"\bhead(_gradient)?\)*/",
  "products of MLPs": r"/mlp/dot_general",
  "other work of MLPs": r"/mlp/",
  "products around attention": r"/attention/dot_general",
  "other work around attention": r"/attention/",
}
REST = "residuals, copies, gradients' sums, optimizer"


def operations(text):
  """{instruction: name of the operation that it was compiled from}.

  One without a name has that of the instruction that calls its computation.

  Args:
    text: of a compiled program.
  """
  name_of, inside, caller_of, computation = {}, {}, {}, None
  for line in text.splitlines():
    if line and not line[0].isspace():
      computation = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
      continue
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not found:
      continue
    instruction = found[1]
    inside[instruction] = computation
    name = re.search(r'op_name="([^"]*)"', line)
    name_of[instruction] = name[1] if name else ""
    for callee in re.findall(r"(?:body|condition|calls)=%?([\w.\-]+)", line):
      caller_of[callee] = instruction

  def named(instruction):
    while instruction and not name_of[instruction]:
      instruction = caller_of.get(inside[instruction])
    return name_of[instruction] if instruction else ""

  return {instruction: named(instruction) for instruction in name_of}


def own_seconds(events):
  """{name: seconds}: how long events of a thread ran, less those inside them.

  Args:
    events: list of (start, end, name), nanoseconds, that nest.
  """
  found, running = collections.Counter(), []
  for start, end, name in sorted(events, key=lambda one: (one[0], -one[1])):
    while running and running[-1][0] <= start:
      running.pop()
    if running:
      found[running[-1][1]] -= (end - start) / 1e9
    found[name] += (end - start) / 1e9
    running.append((end, name))
  return found


def part_of(operation):
  fitting = (p for p, pattern in PARTS.items() if re.search(pattern, operation))
  return next(fitting, REST)


def profiled(one, steps):
  """{part: seconds} over `steps` steps of a Bench, after a first one."""
  one.step()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        one.step()
    [path] = pathlib.Path(folder).rglob("*.xplane.pb")
    data = ProfileData.from_file(str(path))
  operation_of = operations(one.compiled.as_text())
  found = collections.Counter()
  for plane in data.planes:
    for line in plane.lines:
      if not line.name.startswith(THREADS):
        continue
      events = [
        (event.start_ns, event.start_ns + event.duration_ns, event.name)
        for event in line.events
        if event.name in operation_of
      ]
      for name, seconds in own_seconds(events).items():
        found[part_of(operation_of[name])] += seconds
  if not found:
    raise SystemExit(f"error: the trace has no thread {THREADS}*; use a CPU")
  return found


def main():
  flags = vs_trl.parser(__doc__, steps=4, rounds=1)
  flags.add_argument("--model", default="", help="folder, not --shape")
  given = flags.parse_args()
  given.shape = given.model or given.shape
  job = json.loads(
    pathlib.Path(vs_trl.prepared(given, model=given.model)).read_text()
  )
  config = read(material.settings_of(job, 1))
  one = bench.Bench(bench.bench_setup(config, given.workdir))
  found = profiled(one, given.steps)
  total = sum(found.values())
  rows = [("part", "of the time", "seconds a step")]
  for part, seconds in found.most_common():
    share, each = f"{seconds / total:.1%}", f"{seconds / given.steps:.2f}"
    rows.append((part, share, each))
  print(aligned(rows))
  about = {**bench.machine(), "batch": given.batch, "shape": given.shape}
  print(", ".join(f"{key} {value}" for key, value in about.items()))


if __name__ == "__main__":
  main()
