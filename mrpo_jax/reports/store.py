# SPDX-License-Identifier: Apache-2.0
"""The contents of a store of scores and rewards, as text."""

from mrpo_jax.errors import InputError
from mrpo_jax.text import aligned


def stored(entries):
  """Aligned text of a store, a line per key, from `maintenance.entries`."""
  rows = [("key", "pairs", "files", "MB", "dtype", "weights or reward")]
  for one in entries:
    about = one["material"]
    rows.append(
      (
        one["key"][:16],
        f"{one['pairs']:,}",
        str(one["shards"]),
        f"{one['bytes'] / 1e6:.1f}",
        about.get("quantize") or about.get("dtype", "-"),
        str(about.get("weights") or about.get("reward", "-"))[:40],
      )
    )
  return aligned(rows)


def verified(root, problems):
  """Prints that nothing is wrong with a store; else raises InputError."""
  for problem in problems:
    print(problem)
  if problems:
    raise InputError(
      f"{len(problems)} broken in {root}; mrpo store prune removes broken "
      "rows, and mrpo score fills the gap"
    )
  print(f"{root}: every file is as it was written")
