# SPDX-License-Identifier: Apache-2.0
"""One GPU, bfloat16, random weights: mrpo_jax and TRL with Liger's kernels.

  python -m benchmarks.gpu --workdir=/tmp/gpu --shape=0.5B --batch=16

Everyone trains parameters in bfloat16.  The players do not fit together: each
plays all rounds alone, so ratios hold for a GPU that nothing else uses.
"""

import pathlib
import shutil
import subprocess

from benchmarks import turns, vs_trl

LIGER = ("liger-kernel==0.8.5",)


def name_of_gpu():
  """The first GPU, "" where there is none."""
  if not shutil.which("nvidia-smi"):
    return ""
  query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
  done = subprocess.run(query, capture_output=True, text=True)
  return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def main():
  flags = vs_trl.parser(__doc__, shape="0.5B", batch=16)
  flags.add_argument("--trl_python", default="")
  given = flags.parse_args()
  gpu = name_of_gpu()
  if not gpu:
    flags.exit(2, "error: there is no NVIDIA GPU here\n")
  folder = pathlib.Path(given.workdir) / "trl"
  python = given.trl_python or turns.environment(folder, vs_trl.TRL + LIGER)
  job = vs_trl.prepared(given, dtype="bfloat16")
  online, scored = "mrpo_jax online", "mrpo_jax scored"
  players = [
    vs_trl.trl("TRL + Liger", python, job, "--kind=liger", work_of=online),
    vs_trl.trl("TRL best", python, job, "--kind=best", work_of=online),
    vs_trl.trl("TRL cached", python, job, "--kind=cached", work_of=scored),
    vs_trl.ours(online, job),
    vs_trl.ours(scored, job, "--mode=scored"),
  ]
  print(gpu)
  vs_trl.tell(given, players, together=False)


if __name__ == "__main__":
  main()
