# SPDX-License-Identifier: Apache-2.0
"""One run on one device, on meshes of eight, as 2 and as 4 processes.

  python benchmarks/processes.py --workdir=/tmp/processes [--only=TEXT]

Twenty steps against two references, over loopback on forced CPU devices: the
table says by how much loss and gradient norm differ from those on one device,
at most.  Then one of four processes is killed (SIGKILL): how long the others
take to end, and what they say.  A run that is there already is not repeated;
`--only` takes the runs whose name contains it.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
STEPS, DEVICES = 20, 8
TOLERANCE = 1e-5
MESHES = {
  "data 8": {"data": 8},
  "fsdp 8": {"fsdp": 8},
  "model 8": {"model": 8},
  "fsdp 4 x model 2": {"fsdp": 4, "model": 2},
  "data 2 x fsdp 2 x model 2": {"data": 2, "fsdp": 2, "model": 2},
}
MODEL = {"layers": 2, "width": 64, "heads": 8, "kv_heads": 8, "mlp_width": 64}
LORA = ("--config.policy.adapter.rank=2", "--config.policy.adapter.alpha=4")
FLAGS = (
  f"--config={ROOT}/configs/quickstart.py:mrpo,debug",
  "--config.eval_every=0",
  "--config.data.eval=",
  "--config.data.row_length=64",
  "--config.data.max_prompt=16",
  "--config.data.max_response=16",
  "--config.policy.new.vocab_size=264",
  "--config.references.second.tokenizer=policy",
  *(f"--config.policy.new.{k}={v}" for k, v in MODEL.items()),
  *(f"--config.references.second.new.{k}={v}" for k, v in MODEL.items()),
  "--config.references.second.new.layers=1",
)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--only", default="")
  given = parser.parse_args()
  workdir = pathlib.Path(given.workdir).resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  common = (*FLAGS, f"--config.data.train={write_rows(workdir)}")
  worst = 0.0
  print("| run | processes | loss | gradient norm |\n|---|---|---|---|")
  for name, mesh in MESHES.items():
    for more in ((), LORA):
      kind = f"{name}{', LoRA' if more else ''}"
      if given.only not in kind or more and name not in list(MESHES)[-1:]:
        continue
      flags = (*common, *more, f"--config.steps={STEPS}")
      one = curve(workdir / f"one{len(more)}", flags, {}, 1, 1)
      for processes in (1, 2, 4):
        folder = workdir / f"{kind} {processes}".replace(" ", "-")
        found = curve(folder, flags, mesh, processes, DEVICES)
        differ = {
          key: max(
            abs(a[key] - b[key]) / max(1.0, abs(a[key]))
            for a, b in zip(one, found, strict=True)
          )
          for key in ("loss", "grad_norm")
        }
        worst = max(worst, *differ.values())
        figures = " | ".join(f"{value:.1e}" for value in differ.values())
        print(f"| {kind} | {processes} | {figures} |", flush=True)
  if given.only in "kill":
    kill(workdir / "killed", common)
  assert worst < TOLERANCE, f"{worst} is more than {TOLERANCE}"


def write_rows(workdir):
  rows = [
    {
      "prompt": f"question {i} of the day ",
      "chosen": f"a good answer {i * 7 % 11} " + "yes " * (i % 4),
      "rejected": f"bad {i * 5 % 13}" + " no" * (i % 3),
    }
    for i in range(64)
  ]
  path = workdir / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def curve(folder, flags, mesh, processes, devices):
  """The metrics of every step."""
  started = start(folder, flags, mesh, processes, devices)
  for n, process in enumerate(started):
    assert process.wait() == 0, f"see {folder}.{n}"
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == STEPS
  return [json.loads(line) for line in lines]


def start(folder, flags, mesh, processes, devices):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  forced = f"--xla_force_host_platform_device_count={devices // processes}"
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  env["XLA_FLAGS"] = f"{forced} --xla_backend_optimization_level=0"
  sizes = {"data": 1, "fsdp": 1, "model": 1} | mesh
  flags = [*flags, *(f"--config.mesh.{k}={v}" for k, v in sizes.items())]
  started = []
  for n in range(processes):
    meeting = (
      f"--coordinator=127.0.0.1:{port}",
      f"--processes={processes}",
      f"--process={n}",
    )
    command = [sys.executable, "-m", "mrpo_jax", "train", *flags, *meeting]
    with open(f"{folder}.{n}", "w") as log:
      process = subprocess.Popen(
        [*command, f"--workdir={folder}"], env=env, stdout=log, stderr=log
      )
    started.append(process)
  return started


def kill(folder, flags):
  """Kills the last of four processes; the others must end, with a message."""
  flags = (*flags, "--config.steps=100000", "--config.checkpoint_every=10")
  shutil.rmtree(folder, ignore_errors=True)
  *others, last = start(folder, flags, {"data": 8}, 4, DEVICES)
  try:
    while not list(folder.glob("checkpoints/[0-9]*")):
      assert last.poll() is None, f"see {folder}.3"
      time.sleep(0.1)
    last.kill()
    killed = time.monotonic()
    print("\nof four processes the last is killed:")
    for n, process in enumerate(others):
      code = process.wait(timeout=60)
      assert code, "it ended as if nothing had happened"
      text = pathlib.Path(f"{folder}.{n}").read_text()
      said = re.findall(r"(?:error:|warning: no sign|Terminating) .*", text)
      seconds = time.monotonic() - killed
      print(f"{n}: {code} after {seconds:.1f} s: {said[0][:80]}", flush=True)
  finally:
    for process in others:
      process.kill()


if __name__ == "__main__":
  main()
