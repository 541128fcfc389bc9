# SPDX-License-Identifier: Apache-2.0
"""One online reference: mrpo_jax and Tunix on the same pairs, in turns.

  python -m benchmarks.vs_tunix --workdir=/tmp/vs_tunix --shape=A [--losses]

Tunix lives in an environment of its own, made in the workdir on first use, or
in that of --tunix_python.  --losses as in benchmarks/vs_trl.py.
"""

import pathlib

from benchmarks import turns, vs_trl

TUNIX = ("google-tunix==0.1.7", "jax==0.10.2")


def main():
  flags = vs_trl.parser(__doc__)
  flags.add_argument("--tunix_python", default="")
  flags.add_argument("--losses", action="store_true")
  given = flags.parse_args()
  folder = pathlib.Path(given.workdir) / "tunix"
  python = given.tunix_python or turns.environment(folder, TUNIX)

  def tunix(job):
    module = "benchmarks.peers.tunix"
    online = "mrpo_jax online"
    return turns.Process("Tunix", python, module, job, work_of=online)

  if given.losses:
    vs_trl.losses(given, tunix)
    return
  job = vs_trl.prepared(given)
  players = [
    tunix(job),
    vs_trl.ours("mrpo_jax online", job),
    vs_trl.ours("mrpo_jax scored", job, "--mode=scored"),
  ]
  vs_trl.tell(given, players)


if __name__ == "__main__":
  main()
