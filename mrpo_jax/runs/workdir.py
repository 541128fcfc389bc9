# SPDX-License-Identifier: Apache-2.0
"""Workdir of a run: config.json, whose run it is, what may change in it."""

import contextlib
import fnmatch
import logging
import typing

from mrpo_jax import files, processes
from mrpo_jax.errors import InputError, blames
from mrpo_jax.losses.methods.catalogue import OF_TOKENS
from mrpo_jax.runs.config import read, renamed, yaml_text
from mrpo_jax.training import checkpoints

logger = logging.getLogger(__name__)

PAIRS = "eval_pairs.jsonl"  # per evaluated pair, written by the trainer
PICTURES = "pictures"  # of what a denoiser drew, step-<n>.png
CONFIG = "config.json"
AGAIN = "config.yaml"  # the same without what the run was made from
# A key stands for all below it, * for any name.  What may differ when a run
# goes on, and what that means for its numbers; everything else needs the user's
# word.
HARMLESS = {
  **dict.fromkeys(
    (
      *("log_every", "checkpoint_every", "checkpoints"),
      *("evaluation", "samples", "tracking"),
      *("data.reward_timeout", "online.reward_timeout"),
      # Places; what stands there is in `identity`.
      *("policy.tokenizer", "references.*.tokenizer"),
    ),
    "no number of the steps",
  ),
  **dict.fromkeys(
    (
      *("mesh", "references.*.rules", "data.rows"),
      *("identity.mesh", "identity.code.jax"),
      *("policy.kernel", "policy.remat", "policy.chunk"),
    ),
    "numbers by rounding, and what dropout draws",
  ),
}
# What may not: the state and the place in the data were made from these.
FIXED = (
  *("seed", "batch", "rounds", "references.names", "policy.new"),
  *("policy.adapter", "identity.policy"),
  *("data.streaming", "data.shuffle_buffer"),
)


def fixed_of(config):
  """FIXED, and from what the rounds of a Config have their length and place.

  A round of an online run begins after all prompts of those before.
  """
  if config.online.prompts:
    found = (*FIXED, "steps", "online.rounds", "online.passes")
    is_of_tokens = config.loss.name in OF_TOKENS
    return (*found, "online.samples") if is_of_tokens else found
  return (*FIXED, "steps") if config.rounds.count > 1 else FIXED


class Difference(typing.NamedTuple):
  """A key in which two configs differ, shown as "a.b: 1 -> 2"."""

  key: str
  there: object
  here: object

  def __str__(self):
    return f"{self.key}: {self.there!r} -> {self.here!r}"


def differences(here, there, where=""):
  """A Difference for each key in which two nested dicts differ."""
  if isinstance(here, dict) and isinstance(there, dict):
    for key in sorted({*here, *there}):
      inner = f"{where}.{key}" if where else key
      yield from differences(here.get(key), there.get(key), inner)
  elif here != there:
    yield Difference(where, there, here)


def essential(values, where=""):
  """{dotted key: value} of all that the numbers of a run follow from."""
  found = {}
  for key, value in values.items():
    key = f"{where}.{key}" if where else key
    if isinstance(value, dict):
      found |= essential(value, key)
    elif not _below(key, HARMLESS):
      found[key] = value
  return found


def known_run(workdir, values, *, allow_changed=False, fixed=FIXED):
  """Content of config.json of a workdir; None if it is new.  Changes nothing.

  Args:
    workdir: folder of the run.
    values: content of config.json but `identity`.
    allow_changed: may keys differ that are neither harmless nor fixed?
    fixed: keys that never may.

  Raises:
    InputError: it is another run; every key that differs is named.
  """
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f"--workdir {workdir} is a file; name a folder")
  path = workdir / CONFIG
  if not path.exists():
    if checkpoints.steps(workdir):
      raise InputError(f"{workdir} holds checkpoints but no {CONFIG}")
    return None
  try:
    known = recorded(path)
  except InputError as error:
    raise InputError(f"{error}; use another --workdir") from None
  refuse_other(workdir, values, known, allow_changed, fixed)
  return known


def recorded(path):
  """The content of config.json, old keys under the names that they have now."""
  return renamed(files.read_json(path))[0]


def refuse_other(workdir, here, known, allow_changed, fixed=FIXED):
  """Raises InputError where `known` differs from `here`; see `known_run`."""
  if here.get("epochs"):  # whose steps are known once the pairs are
    here = {k: one for k, one in here.items() if k not in ("steps", "epochs")}
  there = {key: known.get(key) for key in here}
  found = [
    one for one in differences(here, there) if not _below(one.key, HARMLESS)
  ]
  never = [one.key for one in found if _below(one.key, fixed)]
  if not found or allow_changed and not never:
    return
  if never:
    advice = f"{', '.join(never)} cannot change within a run"
  else:
    advice = "--allow-changed goes on from its newest checkpoint all the same"
  raise InputError(
    f"--workdir {workdir} belongs to another run: "
    f"{'; '.join(map(str, found))}; {advice}; or use another --workdir"
  )


def recorded_config(where, content):
  """The Config in the content of config.json; `where` is said if it is none."""
  with blames(where, InputError):
    return read({k: one for k, one in content.items() if k != "identity"})


def check_length(workdir, config):
  """Raises InputError where the run is longer already than its config says."""
  done = checkpoints.stands_at(workdir)
  if 0 < config.steps < done:
    raise InputError(
      f"config.steps={config.steps}, but {workdir} stands at step {done}; "
      "use another --workdir"
    )


def claim(workdir, values, tokenizers=None, *, step=0):
  """The first thing that a new run leaves behind; config.json comes last.

  Where a run goes on with other values, each is said; config.json has the new
  ones, and `config-<step>.json` those of the steps up to there.

  Args:
    workdir: folder of the run; made if it does not exist.
    values: content of config.json.
    tokenizers: {folder: tokenizer} that were made, saved beside it.
    step: from which the run goes on.
  """
  if processes.is_first():
    _write(workdir, values, tokenizers or {}, step)
  processes.gather(None)
  if not (workdir / CONFIG).exists():
    raise InputError(
      f"--workdir {workdir} is not the folder that process 0 writes; name one "
      "that all processes share"
    )


@contextlib.contextmanager
def written(workdir):
  """Raises InputError where the workdir cannot be written to inside."""
  try:
    yield
  except OSError as error:
    raise InputError(
      f"--workdir {workdir} cannot be written: {error.strerror}"
    ) from None


def _write(workdir, values, tokenizers, step):
  with written(workdir):
    files.make_folder(workdir)
    files.refuse_read_only(workdir)
    write_tokenizers(workdir, tokenizers)
    _write_again(workdir, values)
    if (workdir / CONFIG).exists():
      _record_changes(workdir, values, step)
    else:
      files.write_json(workdir / CONFIG, values)


def _write_again(workdir, values):
  """The config as a file that `mrpo train --config` reads."""
  config = {key: one for key, one in values.items() if key != "identity"}
  about = (
    f"# mrpo train --config={AGAIN} --workdir=DIR trains this run again.\n"
  )
  text = about + yaml_text.written(config)
  files.write_atomically(workdir / AGAIN, text.encode())


def write_tokenizers(workdir, tokenizers):
  """Each whole, in the place of what is there and was not trusted."""
  for name, tokenizer in tokenizers.items():
    if (workdir / name).exists():
      files.remove_folder(workdir / name)
    with (
      files.new_folder(workdir / name) as partial,
      files.of_rust(partial),
    ):
      tokenizer.save_pretrained(partial)


def _record_changes(workdir, values, step):
  known = recorded(workdir / CONFIG)
  changes = list(differences(values, known))
  for change in changes:
    effect = HARMLESS.get(_below(change.key, HARMLESS))
    alters = f" (changes {effect})" if effect else ""
    logger.info(f"from step {step} on {change}{alters}")
  if changes:
    before = workdir / f"config-{step}.json"
    if not before.exists():  # else no step was kept since
      files.write_json(before, known)
    files.write_json(workdir / CONFIG, values)


def _below(key, keys):
  """The one of `keys` that the key is or stands below; None if none is."""
  found = (one for one in keys if fnmatch.fnmatch(f"{key}.", f"{one}.*"))
  return next(found, None)
