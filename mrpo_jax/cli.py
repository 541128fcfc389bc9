# SPDX-License-Identifier: Apache-2.0
"""The command `mrpo`.

  mrpo train   --config=FILE[:args] --workdir=DIR [--config.a.b=value ...]
               [--store=DIR] [--no-autoscore] [--allow-changed] [processes]
  mrpo score   --config=FILE[:args] --workdir=DIR [--config.a.b=value ...]
               [--store=DIR] [--part=0/1] [--allow-changed] [processes]
  mrpo store   ls|verify|prune [KEY ...] --store=DIR
  mrpo store   export KEY --store=DIR --to=FILE
  mrpo export  --workdir=DIR --to=DIR [--step=newest|best|N]
               [--merge-adapters]
  mrpo report  --workdir=DIR
  mrpo bench   --config=FILE[:args] [--config.a.b=value ...] [--steps=20]
               [--warmup=3] [--store=DIR] [--json=FILE] [--trace=DIR]
  mrpo plan    --config=FILE[:args] --topology=v5p:4x4x4|cpu:8|local
               [--config.a.b=value ...] [--hbm=GIB] [--lengths=256,256]
               [--fit] [--json=FILE] [--program=FILE]
  mrpo inspect FOLDER [--mesh=data=1,fsdp=4,model=2]
  mrpo prepare --data=FILE --to=DIR [--split=NAME]

On several hosts every one runs the same command.  A TPU pod, Slurm (a task per
process) and Open MPI are found out; elsewhere [processes] is

  --coordinator=HOST:PORT --processes=N --process=I

where process 0 of N listens at HOST:PORT; --processes=1 is one by itself
wherever it runs.  All see one workdir; process 0 writes.  When one ends, all
end: with its message, or where it was killed within a minute.

Exit codes: 0 done; 2 the input is wrong, said in one line; 1 a fault.
"""

import errno
import os
import sys
import tempfile

from absl import flags, logging

from mrpo_jax import arguments
from mrpo_jax.errors import InputError, StoppedRun


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
  argv, switches = arguments.meet(argv), ("no-autoscore", "allow-changed")
  values = arguments.parse(
    argv, "workdir", config=True, switches=switches, store=""
  )
  from mrpo_jax import bandit, processes, runs, settings

  config = settings.read(values["config"].to_dict())
  if "bandit" in config:
    if processes.several():
      raise InputError("a bandit runs in one process")
    return bandit.train_run(config, values["workdir"])
  runs.train_run(
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
  argv, switches = arguments.meet(argv), ("allow-changed",)
  values = arguments.parse(
    argv, "workdir", config=True, switches=switches, store="", part="0/1"
  )
  from mrpo_jax import runs, settings

  config = settings.read(values["config"].to_dict())
  if "bandit" in config:
    raise InputError("a bandit has no references to score")
  part, _, parts = values["part"].partition("/")
  if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
    raise InputError(f"--part: {values['part']!r}; want like 0/4, from 0 on")
  part = int(part), int(parts)
  runs.score_run(
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
  values = arguments.parse(
    given, "store", *(["to"] if action == "export" else [])
  )
  root, to = values["store"], values.get("to")
  from mrpo_jax import report
  from mrpo_jax.references import store

  if action == "ls":
    print(report.stored(store.entries(root)))
  elif action == "verify":
    report.verified(root, store.verify(root, keys))
  elif action == "prune":
    for path in store.prune(root, keys):
      print(f"removed {path}")
  elif len(keys) != 1:
    raise InputError("give one key: mrpo store export KEY --store=DIR --to=F")
  else:
    store.export(root, keys[0], to)
    print(f"{keys[0]} of {root} is now {to}")


def export(argv):
  """Writes a checkpoint of a run as a Hugging Face folder.

  --step takes the newest one (the default), the best one by the run's
  config.checkpoints.best, or the one of a step that is kept.

  A run that trained an adapter gives a folder of PEFT; --merge-adapters adds
  it to its base and gives a whole model.
  """
  switches = ("merge-adapters",)
  values = arguments.parse(
    argv, "workdir", "to", switches=switches, step="newest"
  )
  from mrpo_jax import runs

  runs.export(
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
  given = arguments.parse(rest, mesh="")["mesh"]
  from mrpo_jax import inspection, parallel

  sizes = dict.fromkeys(parallel.AXES, 1)
  for part in filter(None, given.split(",")):
    axis, _, size = part.partition("=")
    if axis not in sizes or not size.isdecimal() or int(size) < 1:
      raise InputError(
        f"--mesh: {part!r}; want like {'=1,'.join(parallel.AXES)}=1"
      )
    sizes[axis] = int(size)
  for line in inspection.lines(folders[0], sizes):
    print(line)


def report(argv):
  """Compares the evaluated runs of a folder: a table and results.json."""
  values = arguments.parse(argv, "workdir")
  from mrpo_jax import report

  print(report.compare(values["workdir"]))


def bench(argv):
  """Times the train step of a config on its data: pairs/s, useful FLOP/s.

  After --warmup steps it times --steps of them; nothing is trained, evaluated
  or saved.  References in mode "scored" are scored first, into --store=DIR
  where it is given.  --json=FILE has all figures, --trace=DIR a profile of
  the timed steps.
  """
  values = arguments.parse(
    argv, config=True, steps="20", warmup="3", store="", json="", trace=""
  )
  counts = {}
  for name, least in (("steps", 1), ("warmup", 0)):
    if not values[name].isdecimal() or int(values[name]) < least:
      raise InputError(
        f"--{name}: {values[name]!r}; want a number from {least}"
      )
    counts[name] = int(values[name])
  to = arguments.new_file("json", values["json"])
  from mrpo_jax import bench, settings

  config = settings.read(values["config"].to_dict())
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
  values = arguments.parse(
    argv,
    "topology",
    config=True,
    switches=("fit",),
    hbm="",
    lengths="",
    json="",
    program="",
  )
  hbm = (
    arguments.positive("hbm", values["hbm"], float) if values["hbm"] else None
  )
  lengths = None
  if values["lengths"]:
    lengths = [
      arguments.positive("lengths", one, int)
      for one in values["lengths"].split(",")
    ]
    if len(lengths) != 2:
      raise InputError(f"--lengths: {values['lengths']!r}; want like 256,256")
  to = arguments.new_file("json", values["json"])
  keep = arguments.new_file("program", values["program"])
  from mrpo_jax import plan, settings

  config = settings.read(values["config"].to_dict())
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
  values = arguments.parse(argv, "data", "to", split="train")
  from mrpo_jax.data import source

  print(source.prepare(values["data"], values["to"], split=values["split"]))


STORE_ACTIONS = ("ls", "verify", "prune", "export")
COMMANDS = {
  f.__name__: f
  for f in (
    *(train, score, store, export, report, bench, plan, inspect, prepare),
  )
}


def main(argv=None):
  """Runs one command; returns the exit code."""
  # transformers serves as a tokenizer here and need not ask for torch.
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
  # What a library logs on its way up is said once, by `_fail` or a traceback.
  logging.set_verbosity(logging.FATAL)
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(__doc__.strip())
    return 0 if argv else 2
  if argv[0] not in COMMANDS:
    known = ", ".join(COMMANDS)
    return _fail(2, f"unknown command {argv[0]!r}; known: {known}")
  if "--help" in argv or "-h" in argv:
    print(COMMANDS[argv[0]].__doc__)
    print(__doc__.strip())
    return 0
  return _run(COMMANDS[argv[0]], argv)


def _run(command, argv):
  from mrpo_jax import processes

  try:
    command(argv)
    processes.leave()
  except Exception as error:
    said = _said(error)
    if processes.several():
      processes.end(*(said or processes.fault(error)))
    if said is None:
      raise
    return _fail(*said)
  except KeyboardInterrupt:
    if processes.several():
      processes.end(130, "interrupted")
    raise
  return 0


def _said(error):
  """(exit code, line) of what the user can mend; None for a fault."""
  if isinstance(error, InputError):
    return 2, _one_line(error)
  if isinstance(error, flags.Error):
    return 2, str(error).strip().split("\n")[-1]
  if isinstance(error, StoppedRun):
    return 1, _one_line(f"{error}; the last checkpoint is kept")
  if isinstance(
    error, (PermissionError, FileNotFoundError, NotADirectoryError)
  ):
    return 2, f"{error.filename}: {error.strerror}"
  if _disk_is_full(error):
    return 1, "the disk is full; make room, the same command resumes"
  return None


def _disk_is_full(error):
  """Checkpoint libraries wrap what the system said, or only quote it."""
  while error is not None:
    if getattr(error, "errno", None) == errno.ENOSPC:
      return True
    if os.strerror(errno.ENOSPC) in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _one_line(message):
  return " ".join(str(message).split("\n"))


def _fail(code, line):
  print(f"error: {line}", file=sys.stderr)
  return code
