# SPDX-License-Identifier: Apache-2.0
"""Bytes that each of several processes reads of a 1 GB model, off the disk.

  python -m benchmarks.read_shares [--processes=4] [--mesh=fsdp=4]

Writes a random bfloat16 Llama in five files, drops it from the page cache, and
loads it by several processes over loopback, a CPU device each.  The table says
what each process asked of the files, and what the kernel fetched for it from
the disk (read_bytes of /proc/self/io, Linux), beside an equal share of the
weights; here all have one page cache, so what one fetched serves the next.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks.load_memory import MODEL
from mrpo_jax import hub, parallel, processes
from mrpo_jax.hub import write
from mrpo_jax.hub.shares import Shares
from mrpo_jax.models import parameters

MB = 10**6


def fetched():
  """Bytes that the kernel read from a disk for this process so far."""
  lines = pathlib.Path("/proc/self/io").read_text().split("\n")
  (line,) = (x for x in lines if x.startswith("read_bytes"))
  return int(line.split()[1])


def forget(folder):
  """Drops the files of a folder from the page cache."""
  for path in folder.iterdir():
    with open(path, "rb") as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(given):
  """One process: joins the others, loads, prints what it read."""
  processes.start(given.coordinator, given.processes, given.process)
  mesh = parallel.make_mesh(**sizes(given.mesh))
  processes.connect(mesh)
  read, asked = Shares._read, []

  def counted(self, name, start, stop):
    part = read(self, name, start, stop)
    asked.append(part.nbytes)
    return part

  Shares._read = counted
  before, begun = fetched(), time.perf_counter()
  _, params = hub.load(given.folder, mesh=mesh)
  jax.block_until_ready(params)
  found = {
    "asked": sum(asked),
    "fetched": fetched() - before,
    "seconds": time.perf_counter() - begun,
    "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
  }
  print(json.dumps(found))


def sizes(text):
  return {k: int(n) for k, n in (one.split("=") for one in text.split(","))}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--processes", type=int, default=4)
  parser.add_argument("--mesh", default="data=1,fsdp=4")
  parser.add_argument("--folder", help="of a process that loads")
  parser.add_argument("--coordinator")
  parser.add_argument("--process", type=int)
  given = parser.parse_args()
  if given.folder:
    load(given)
    return
  write.SHARD_BYTES = 220 * 10**6
  with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
    folder = pathlib.Path(scratch) / "model"
    hub.save(
      folder, MODEL, parameters.init(MODEL, jax.random.key(0), jnp.bfloat16)
    )
    forget(folder)
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = (f"--folder={folder}", f"--coordinator={address}")
    flags += (f"--processes={given.processes}", f"--mesh={given.mesh}")
    started = [
      subprocess.Popen(
        [sys.executable, "-m", "benchmarks.read_shares", *flags]
        + [f"--process={number}"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        text=True,
      )
      for number in range(given.processes)
    ]
    ends = [one.communicate()[0].strip().split("\n")[-1] for one in started]
  print(f"jax {jax.__version__}, mesh {given.mesh}")
  print("| process | share, MB | asked, MB | fetched, MB | seconds |")
  print("|---|---|---|---|---|")
  for number, found in enumerate(map(json.loads, ends)):
    share = found["weights"] / given.processes
    cells = [
      f"{size / MB:.1f} ({size / share:.2f}x)"
      for size in (found["asked"], found["fetched"])
    ]
    seconds = f"{found['seconds']:.1f}"
    print(f"| {number} | {share / MB:.1f} | {' | '.join(cells)} | {seconds} |")


if __name__ == "__main__":
  main()
