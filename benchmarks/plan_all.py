# SPDX-License-Identifier: Apache-2.0
"""Plans the configs at paper scale and writes the tables of docs/guide/plan.md.

  pip install -e .[plan] && python -m benchmarks.plan_all [--workdir=DIR]

A plan whose JSON stands in the workdir is not made again.  Each takes minutes
of one core; nothing but a CPU is needed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from mrpo_jax.text import sized, sized_bytes

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guide" / "plan.md"
MARK = "<!-- made by benchmarks/plan_all.py -->"
PLANS = {  # name -> (config, topology)
  "mrpo_llama2": ("mrpo_llama2_mistral.py", "v5p:2x2x1"),
  "llama3_online": ("llama3_ultrafeedback.py:online", "v5p:2x2x4"),
  "llama3_scored": ("llama3_ultrafeedback.py:scored", "v5p:2x2x4"),
  "seven": ("seven_references.py:vaw,multi", "v5p:2x2x1"),
  "mallowspo": ("mallowspo_llama3.py", "v5p:2x2x4"),
  "llama3_70b": ("llama3_70b.py", "v5p:4x4x4"),
}
HEADER = (
  *("config", "devices", "step", "arguments", "peak", "of"),
  *("useful / executed, a device", "at least: compute", "memory", "network"),
  *("MFU at most", "pairs/s at most"),
)


def command(config, topology):
  return f"mrpo plan --config=configs/{config} --topology={topology}"


def make(name, workdir):
  """The figures of one plan, from the workdir or made now; None: it failed."""
  config, topology = PLANS[name]
  to = workdir / f"{name}.json"
  if not to.exists():
    flags = command(config, topology).split()[1:]
    flags += [f"--json={to}", f"--program={workdir}/{name}.hlo"]
    subprocess.run([sys.executable, "-m", "mrpo_jax", *flags], cwd=ROOT)
  return json.loads(to.read_text()) if to.exists() else None


def rows(name, found):
  """Cells of each step of a plan."""
  for key, one in found["steps"].items():
    cells = [f"`{PLANS[name][0]}`", found["topology"], key]
    cells += [sized_bytes(one["bytes"][kind]) for kind in ("argument", "peak")]
    cells.append(sized_bytes(found["device_bytes"]))
    if "flops" in one:
      useful = one["useful_flops"] / found["devices"]
      cells.append(f"{sized(useful, '')} / {sized(one['flops'], '')}")
      cells += [f"{s:.3g} s" for s in one["seconds"].values()]
      cells.append(f"{one['mfu_bound']:.0%}")
      cells.append(f"{one['pairs_per_second_bound']:.3g}")
    yield cells + ["-"] * (len(HEADER) - len(cells))


def exchanges(name, found):
  """Cells of each kind of exchange of the train step of a plan."""
  for row in found["steps"]["train"].get("collectives", []):
    cells = [f"`{PLANS[name][0]}`", row["kind"], " x ".join(row["axes"])]
    yield [*cells, f"{row['count']:.0f}", sized_bytes(row["bytes"])]


def markdown(header, body):
  lines = [header, ["---"] * len(header), *body]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(plans):
  """The part of docs/guide/plan.md that follows from the plans."""
  made = {
    ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
    for found in plans.values()
  }
  dates = sorted({found["date"] for found in plans.values()})
  parts = [MARK, "", f"Made on {' and '.join(dates)} with"]
  parts += [f"{'; '.join(sorted(made))}:", "", "```"]
  parts += [command(*PLANS[name]) for name in plans] + ["```", ""]
  body = [cells for name in plans for cells in rows(name, plans[name])]
  parts += [markdown(HEADER, body), ""]
  parts += [
    "Exchanges of the train steps, sent by each device in one step:",
    "",
  ]
  header = ("config", "exchange", "mesh axes", "times", "sent")
  body = [cells for name in plans for cells in exchanges(name, plans[name])]
  return "\n".join([*parts, markdown(header, body)]) + "\n"


def main(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", default="/tmp/plans", type=pathlib.Path)
  parser.add_argument("--only", default=",".join(PLANS))
  given = parser.parse_args(argv)
  given.workdir.mkdir(parents=True, exist_ok=True)
  plans = {name: make(name, given.workdir) for name in given.only.split(",")}
  plans = {name: found for name, found in plans.items() if found}
  before = PAGE.read_text().partition(MARK)[0]
  PAGE.write_text(before + page(plans))


if __name__ == "__main__":
  main()
