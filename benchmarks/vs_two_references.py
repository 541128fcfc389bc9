# SPDX-License-Identifier: Apache-2.0
"""Two references: mrpo_jax, and TRL's trainer given a second one.

  python -m benchmarks.vs_two_references --workdir=/tmp/vs_two --shape=A

TRL trains against one.  Here its reference is a module that holds two and
averages their log-probabilities (`Averaged` in benchmarks/peers/trl.py), with
the same fused head; mrpo_jax computes the same loss.  TRL scores one reference
beforehand at most, so nothing stands against the scored ones.
"""

from benchmarks import vs_trl

REFERENCES = "--references=2"


def main():
  flags = vs_trl.parser(__doc__)
  flags.add_argument("--trl_python", default="")
  given = flags.parse_args()
  python = vs_trl.trl_python(given)
  job = vs_trl.prepared(given, references=2)
  online = "mrpo_jax online"
  kinds = [
    vs_trl.trl(
      f"TRL {kind}", python, job, f"--kind={kind}", REFERENCES, work_of=online
    )
    for kind in ("best", "default")
  ]
  players = [
    *kinds,
    vs_trl.ours(online, job, REFERENCES),
    vs_trl.ours("mrpo_jax scored", job, REFERENCES, "--mode=scored"),
  ]
  vs_trl.tell(given, players)


if __name__ == "__main__":
  main()
