# SPDX-License-Identifier: Apache-2.0
"""Commands on data: preference rows, and stores of reference scores."""

from mrpo_jax.cli.table import SAMPLING, SOURCE, first_given
from mrpo_jax.errors import InputError

# Of a bridge: a command has none of them.
OF_MODEL = {one.name for one in (*SOURCE, *SAMPLING)} | {
  "instructions",
  "slots",
}


def prepare(given):
  """Turn files of preference rows into a TFDS data set, once."""
  from mrpo_jax.data import source

  print(source.prepare(given.data, given.to, split=given.split))


def bridge(given):
  """Rewrite rejected answers with the chosen ones as guides (BMC's bridge).

  The command reads lines {"prompt", "chosen", "rejected", "index"} and writes
  {"rewrite": text} for each, in order: the rejected answer, changed only where
  the chosen one is better.  Or a model, --model=DIR or the --workdir of a run,
  is told to; --instructions is a file of what it is told, with {prompt},
  {chosen} and {rejected} in it.  --to is then a file of pairs whose chosen
  answer is the rewrite, for config.loss.name=bmc.  Rewrites that are empty, cut
  off, or one of the two answers again, are left out and counted.

  How many words were changed is said, and stands in FILE.bridge.json; all
  answers are in FILE.rewrites.jsonl.  The same command goes on where it was
  killed.
  """
  if [given.command, given.model, given.workdir].count("") != 2:
    raise InputError("give one of --command, --model and --workdir")
  if given.command and (flag := first_given(given, OF_MODEL)):
    raise InputError(f"{flag} is of a model; --command has none")
  if not given.command and (flag := first_given(given, ["command_timeout"])):
    raise InputError(f"{flag} is of --command; a model has none")
  from mrpo_jax.online import bridge

  editor = given.command or _model_editor(given)
  about = bridge.bridge(
    given.pairs, editor, given.to, timeout=given.command_timeout
  )
  print(bridge.summary(about))


def _model_editor(given):
  """The model of the flags as the editor of a bridge."""
  from mrpo_jax.runs.inference import editor
  from mrpo_jax.runs.inference.model import Source
  from mrpo_jax.runs.inference.sampling import NAMES

  return editor.ModelEditor(
    Source(**{name: getattr(given, name) for name in Source._fields}),
    instructions=editor.read_instructions(given.instructions),
    given={name: getattr(given, name) for name in NAMES},
    seed=given.seed,
    stops=tuple(given.stop),
    slots=given.slots,
    cache_dtype=given.cache_dtype,
    generation_config=given.generation_config,
  )


def store(given):
  """Look after a store of scores: ls, verify, prune, export.

  ls lists what it holds; verify re-reads every file and says which is broken;
  prune removes the keys that it is given, what verify finds broken, and what
  killed writers left; export writes one key as .parquet, .jsonl or .csv.  The
  start of a key will do.
  """
  action, *keys = given.rest
  if action == "ls" and keys:
    raise InputError(
      f"{keys[0]}: mrpo store ls takes no key: it lists them all"
    )
  if action != "export" and given.to:
    raise InputError("--to is of mrpo store export")
  from mrpo_jax.references import maintenance
  from mrpo_jax.reports.store import stored, verified

  if action == "ls":
    print(stored(maintenance.entries(given.store)))
  elif action == "verify":
    verified(given.store, maintenance.verify(given.store, keys))
  elif action == "prune":
    removed = maintenance.prune(given.store, keys)
    print(
      "\n".join(f"removed {path}" for path in removed) or "nothing to prune"
    )
  elif not given.to:
    raise InputError("--to is missing; see mrpo store --help")
  elif len(keys) != 1:
    raise InputError("give one key: mrpo store export KEY --store=DIR --to=F")
  else:
    maintenance.export(given.store, keys[0], given.to)
    print(f"{keys[0]} of {given.store} is now {given.to}")
