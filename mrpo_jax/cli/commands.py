# SPDX-License-Identifier: Apache-2.0
"""The commands of `mrpo`, one function each."""

import tempfile

from mrpo_jax.cli.flags import meet, new_file, parse, positive
from mrpo_jax.errors import InputError


def train(argv):
  """Trains as the config says; the same command resumes.

  Scores first what the store lacks of references in mode "scored"; with
  --no-autoscore it names the command that does.  --store=DIR is shared by
  runs; unless given, it is the workdir's own.

  A workdir of another config, data or reference is refused, key by key, unless
  only what changes no number differs, or numbers by rounding (the mesh, say).
  --allow-changed goes on all the same, where the checkpoint still fits:
  config.json then has the new values, config-<step>.json the old ones.
  """
  argv, switches = meet(argv), ("no-autoscore", "allow-changed")
  values = parse(argv, "workdir", config=True, switches=switches, store="")
  from mrpo_jax import processes
  from mrpo_jax.runs import bandit
  from mrpo_jax.runs.config import read_config
  from mrpo_jax.runs.train import train_run

  config = read_config(values["config"].to_dict())
  if "bandit" in config:
    if processes.several():
      raise InputError("a bandit runs in one process")
    return bandit.train_run(config, values["workdir"])
  train_run(
    config,
    values["workdir"],
    store=values["store"],
    autoscore=not values["no-autoscore"],
    command=" ".join(a for a in argv[1:] if "no-autoscore" not in a),
    allow_changed=values["allow-changed"],
  )


def score(argv):
  """Scores every reference in mode "scored" over the pairs of the config.

  What is in the store is not scored again.  --part=i/n scores the i-th of n
  shares of the data, i from 0: n commands, on any machines that share the
  store, divide the work.
  """
  argv, switches = meet(argv), ("allow-changed",)
  values = parse(
    argv, "workdir", config=True, switches=switches, store="", part="0/1"
  )
  from mrpo_jax.runs.config import read_config
  from mrpo_jax.runs.score import score_run

  config = read_config(values["config"].to_dict())
  if "bandit" in config:
    raise InputError("a bandit has no references to score")
  part, _, parts = values["part"].partition("/")
  if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
    raise InputError(f"--part: {values['part']!r}; want like 0/4, from 0 on")
  part = int(part), int(parts)
  score_run(
    config,
    values["workdir"],
    store=values["store"],
    part=part,
    allow_changed=values["allow-changed"],
  )


def store(argv):
  """Looks after a store: ls, verify, prune, export.

  ls lists what it holds; verify re-reads every file and says which is broken;
  prune removes the keys that it is given, what verify finds broken, and what
  killed writers left; export writes one key as .parquet, .jsonl or .csv.  The
  start of a key will do.
  """
  words = [given for given in argv[1:] if not given.startswith("--")]
  given = ["store", *(one for one in argv if one.startswith("--"))]
  action, *keys = words or [""]
  if action not in STORE_ACTIONS:
    raise InputError(f"store {action!r}; known: {', '.join(STORE_ACTIONS)}")
  values = parse(given, "store", *(["to"] if action == "export" else []))
  root, to = values["store"], values.get("to")
  from mrpo_jax.references import maintenance
  from mrpo_jax.reports.store import stored, verified

  if action == "ls":
    print(stored(maintenance.entries(root)))
  elif action == "verify":
    verified(root, maintenance.verify(root, keys))
  elif action == "prune":
    for path in maintenance.prune(root, keys):
      print(f"removed {path}")
  elif len(keys) != 1:
    raise InputError("give one key: mrpo store export KEY --store=DIR --to=F")
  else:
    maintenance.export(root, keys[0], to)
    print(f"{keys[0]} of {root} is now {to}")


def export(argv):
  """Writes a checkpoint of a run as a Hugging Face folder.

  --step takes the newest one (the default), the best one by the run's
  config.checkpoints.best, or the one of a step that is kept.

  A run that trained an adapter gives a folder of PEFT; --merge-adapters adds
  it to its base and gives a whole model.
  """
  switches = ("merge-adapters",)
  values = parse(argv, "workdir", "to", switches=switches, step="newest")
  from mrpo_jax.runs.export import export

  export(
    values["workdir"],
    values["to"],
    step=values["step"],
    merge=values["merge-adapters"],
  )


def inspect(argv):
  """Prints the arrays of a model folder and their bytes on each device."""
  folders = [given for given in argv[1:] if not given.startswith("--")]
  if len(folders) != 1:
    raise InputError("give one folder: mrpo inspect FOLDER")
  rest = [given for given in argv if given not in folders]
  given = parse(rest, mesh="")["mesh"]
  from mrpo_jax import parallel
  from mrpo_jax.hub import inspect

  sizes = dict.fromkeys(parallel.AXES, 1)
  for part in filter(None, given.split(",")):
    axis, _, size = part.partition("=")
    if axis not in sizes or not size.isdecimal() or int(size) < 1:
      raise InputError(
        f"--mesh: {part!r}; want like {'=1,'.join(parallel.AXES)}=1"
      )
    sizes[axis] = int(size)
  for line in inspect.lines(folders[0], sizes):
    print(line)


def report(argv):
  """Compares the evaluated runs of a folder: a table and results.json."""
  values = parse(argv, "workdir")
  from mrpo_jax.reports import compare

  print(compare.compare(values["workdir"]))


def bench(argv):
  """Times the train step of a config on its data: pairs/s, useful FLOP/s.

  After --warmup steps it times --steps of them; nothing is trained, evaluated
  or saved.  References in mode "scored" are scored first, into --store=DIR
  where it is given.  --json=FILE has all figures, --trace=DIR a profile of
  the timed steps.
  """
  values = parse(
    argv, config=True, steps="20", warmup="3", store="", json="", trace=""
  )
  counts = {}
  for name, least in (("steps", 1), ("warmup", 0)):
    if not values[name].isdecimal() or int(values[name]) < least:
      raise InputError(
        f"--{name}: {values[name]!r}; want a number from {least}"
      )
    counts[name] = int(values[name])
  to = new_file("json", values["json"])
  from mrpo_jax.performance import bench
  from mrpo_jax.runs.config import read_config

  config = read_config(values["config"].to_dict())
  if "bandit" in config:
    raise InputError("a bandit has no step to time")
  with tempfile.TemporaryDirectory() as workdir:
    bench.run(
      config,
      workdir,
      **counts,
      store=values["store"],
      to=to,
      trace=values["trace"],
    )


def plan(argv):
  """Compiles the steps of a config for devices that need not be here.

  Prints memory, operations, exchanges between devices and the least time of a
  step on a topology: a TPU slice (v5p:4x4x4; needs libtpu), cpu:8 or local.
  No weights are loaded and no data is read: models are folders with a
  config.json or names of the hub.  --hbm=GIB is what a device holds, unless
  it is the chip's own; --lengths are the mean tokens of prompt and response
  that times are for; --fit searches for settings that fit; --program=FILE
  keeps the compiled train step as text.
  """
  values = parse(
    argv,
    "topology",
    config=True,
    switches=("fit",),
    hbm="",
    lengths="",
    json="",
    program="",
  )
  hbm = positive("hbm", values["hbm"], float) if values["hbm"] else None
  lengths = None
  if values["lengths"]:
    lengths = [
      positive("lengths", one, int) for one in values["lengths"].split(",")
    ]
    if len(lengths) != 2:
      raise InputError(f"--lengths: {values['lengths']!r}; want like 256,256")
  to = new_file("json", values["json"])
  keep = new_file("program", values["program"])
  from mrpo_jax.performance import plan
  from mrpo_jax.runs.config import read_config

  config = read_config(values["config"].to_dict())
  if "bandit" in config:
    raise InputError("a bandit has no step to plan")
  plan.run(
    config,
    values["topology"],
    hbm=hbm and hbm * 2**30,
    lengths=lengths,
    fits=values["fit"],
    to=to,
    keep=keep,
  )


def prepare(argv):
  """Turns a file of preference rows into a TFDS data set, once."""
  values = parse(argv, "data", "to", split="train")
  from mrpo_jax.data import source

  print(source.prepare(values["data"], values["to"], split=values["split"]))


STORE_ACTIONS = ("ls", "verify", "prune", "export")
COMMANDS = {
  f.__name__: f
  for f in (
    *(train, score, store, export, report, bench, plan, inspect, prepare),
  )
}
