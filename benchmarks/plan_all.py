# SPDX-License-Identifier: Apache-2.0
"""Plans the configs at paper scale and writes the tables of docs/guide/plan.md.

  pip install -e .[plan] && python -m benchmarks.plan_all --of=tpu
  pip install -e .[plan-gpu] && python -m benchmarks.plan_all --of=gpu

`--of=tpu_long` and `--of=gpu_long`: rows of many tokens, which devices share.

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
MARK = "<!-- {} made by benchmarks/plan_all.py -->"
LLAMA3 = "llama3_ultrafeedback.py"
LONG = "llama31_long.py"
FULL = "--lengths=24576,4096"  # pairs of 28k tokens on average, at most 32k
LONGER = (  # times as many
  "--config.data.row_length=131072",
  "--config.data.max_prompt=98304",
  "--config.data.max_response=16384",
  "--config.batch=8",
  "--lengths=98304,16384",
)


def shared(topology, context, *flags):
  """The plan of long rows, each of which so many devices share."""
  return LONG, topology, f"--config.mesh.context={context}", *(flags or (FULL,))


PLANS = {  # platform -> name -> (config, topology, more flags)
  "tpu": {
    "mrpo_llama2": ("mrpo_llama2_mistral.py", "v5p:2x2x1"),
    "llama3_online": (f"{LLAMA3}:online", "v5p:2x2x4"),
    "llama3_scored": (f"{LLAMA3}:scored", "v5p:2x2x4"),
    "seven": ("seven_references.py:vaw,multi", "v5p:2x2x1"),
    "mallowspo": ("mallowspo_llama3.py", "v5p:2x2x4"),
    "llama3_70b": ("llama3_70b.py", "v5p:4x4x4"),
  },
  "gpu": {
    "mrpo_llama2_h100": ("mrpo_llama2_mistral.py", "h100:4"),
    "llama3_scored_h100": (f"{LLAMA3}:scored", "h100:8"),
    "llama3_blockwise_h100": (
      *(f"{LLAMA3}:scored", "h100:8", "--config.policy.kernel=blockwise"),
    ),
    "llama3_online_a100": (f"{LLAMA3}:online", "a100:8"),
    "llama3_online_h100": (f"{LLAMA3}:online", "h100:8"),
    "llama3_online_h200": (f"{LLAMA3}:online", "h200:8"),
    "llama3_online_b200": (f"{LLAMA3}:online", "b200:8"),
    "llama3_online_2": (f"{LLAMA3}:online", "h100:2x8"),
    "mallowspo_h100": ("mallowspo_llama3.py", "h100:8"),
    "llama3_70b_h100": ("llama3_70b.py", "h100:8x8"),
  },
  "tpu_long": {f"v5p_{n}": shared("v5p:2x2x4", n) for n in (1, 2, 4, 8)},
  "gpu_long": {
    **{f"h100_{n}": shared("h100:8", n) for n in (1, 2, 4, 8)},
    **{f"h100x2_{n}": shared("h100:2x8", n) for n in (2, 8)},
    **{f"h100_128k_{n}": shared("h100:8", n, *LONGER) for n in (1, 8)},
  },
}
HEADER = (
  *("config", "devices", "step", "arguments", "peak", "of"),
  *("useful / executed, a device", "at least: compute", "memory", "network"),
  *("between nodes", "MFU at most", "pairs/s at most"),
)


def command(config, topology, *flags):
  flags = "".join(f" {flag}" for flag in flags)
  return f"mrpo plan --config=configs/{config} --topology={topology}{flags}"


def make(name, given, workdir):
  """The figures of one plan, from the workdir or made now; None: it failed."""
  to = workdir / f"{name}.json"
  if not to.exists():
    flags = command(*given).split()[1:]
    flags += [f"--json={to}", f"--program={workdir}/{name}.hlo"]
    subprocess.run([sys.executable, "-m", "mrpo_jax", *flags], cwd=ROOT)
  return json.loads(to.read_text()) if to.exists() else None


def label(config, topology, *flags):
  """Cells that say which plan it is."""
  flags = [flag.rpartition(".")[2] for flag in flags if "." in flag]
  flags = "".join(f" `{flag}`" for flag in flags)
  return [f"`{config}`{flags}", topology]


def rows(given, found):
  """Cells of each step of a plan."""
  for key, one in found["steps"].items():
    cells = [*label(*given), key]
    cells += [sized_bytes(one["bytes"][kind]) for kind in ("argument", "peak")]
    cells.append(sized_bytes(found["device_bytes"]))
    if "flops" in one:
      useful = one["useful_flops"] / found["devices"]
      cells.append(f"{sized(useful, '')} / {sized(one['flops'], '')}")
      for kind in ("compute", "memory", "network", "between nodes"):
        seconds = one["seconds"].get(kind)
        cells.append("-" if seconds is None else f"{seconds:.3g} s")
      cells.append(f"{one['mfu_bound']:.0%}")
      cells.append(f"{one['pairs_per_second_bound']:.3g}")
    yield cells + ["-"] * (len(HEADER) - len(cells))


def exchanges(given, found):
  """Cells of each kind of exchange of the train step of a plan."""
  for row in found["steps"]["train"].get("collectives", []):
    cells = [*label(*given), row["kind"], " x ".join(row["axes"])]
    cells += [f"{row['count']:.0f}", sized_bytes(row["bytes"])]
    away = row.get("bytes_away", 0)
    yield [*cells, sized_bytes(away) if away else "-"]


def markdown(header, body):
  lines = [header, ["---"] * len(header), *body]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def section(platform, plans):
  """The part of docs/guide/plan.md that follows from a platform's plans."""
  given = PLANS[platform]
  made = {
    ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
    for found in plans.values()
  }
  dates = sorted({found["date"] for found in plans.values()})
  parts = ["", "", f"Made on {' and '.join(dates)} with"]
  parts += [f"{'; '.join(sorted(made))}:", "", "```"]
  parts += [command(*given[name]) for name in plans] + ["```", ""]
  body = [row for name in plans for row in rows(given[name], plans[name])]
  parts += [without_empty(HEADER, body), ""]
  parts += [
    "Exchanges of the train steps, sent by each device in one step, those of a",
    "config that are the same once:",
    "",
  ]
  header = ("config", "devices", "exchange", "mesh axes", "times", "sent")
  header = (*header, "of it to other nodes")
  once = {}  # by all but the name of the devices and more flags
  for name in plans:
    for row in exchanges(given[name], plans[name]):
      once.setdefault((given[name][0], *row[2:]), row)
  body = list(once.values())
  return "\n".join([*parts, without_empty(header, body)]) + "\n"


def without_empty(header, body):
  """A table of the columns that say something."""
  keep = [i for i in range(len(header)) if any(row[i] != "-" for row in body)]
  return markdown(
    [header[i] for i in keep], [[row[i] for i in keep] for row in body]
  )


def main(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", default="/tmp/plans", type=pathlib.Path)
  parser.add_argument("--of", default="tpu", choices=PLANS)
  parser.add_argument("--only", default="", help="names, with commas")
  given = parser.parse_args(argv)
  given.workdir.mkdir(parents=True, exist_ok=True)
  wanted = PLANS[given.of]
  names = given.only.split(",") if given.only else wanted
  plans = {name: make(name, wanted[name], given.workdir) for name in names}
  plans = {name: found for name, found in plans.items() if found}
  start, end = (MARK.format(word) for word in (given.of, f"end of {given.of}"))
  before, _, rest = PAGE.read_text().partition(start)
  _, _, after = rest.partition(end)
  made = f"{start}{section(given.of, plans)}\n{end}"
  PAGE.write_text(before + made + after)


if __name__ == "__main__":
  main()
