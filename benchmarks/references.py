# SPDX-License-Identifier: Apache-2.0
"""Cost of 1, 2 and 4 references, online and scored, in turns.

  python -m benchmarks.references --workdir=/tmp/references --shape=quickstart

Ratios are to one scored reference.  All references have the policy's shape.
"""

import functools
import json

from benchmarks import turns, vs_trl
from benchmarks.peers import ours

COUNTS = (1, 2, 4)


def main():
  given = vs_trl.parser(__doc__, shape="quickstart").parse_args()
  path = vs_trl.prepared(given, references=max(COUNTS))
  job = json.loads(path.read_text())
  players = [
    turns.Local(
      f"{count} {mode}", functools.partial(ours.player, job, count, mode)
    )
    for mode in ("scored", "online")
    for count in COUNTS
  ]
  vs_trl.tell(given, players)


if __name__ == "__main__":
  main()
