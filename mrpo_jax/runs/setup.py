# SPDX-License-Identifier: Apache-2.0
"""Setup: all that the first step of a run needs but weights."""

import dataclasses
import hashlib
import json
import logging
import pathlib

import jax

from mrpo_jax import losses, parallel, processes
from mrpo_jax.data import pack, source
from mrpo_jax.data.batches import Packing
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.table import encode_table
from mrpo_jax.errors import InputError, blames
from mrpo_jax.losses.arguments import keywords_of
from mrpo_jax.runs import memory
from mrpo_jax.runs.config import BEST, Config
from mrpo_jax.runs.config.method import (
  check_best,
  chosen_method,
  say_left_out,
  say_unread,
)
from mrpo_jax.runs.data import (
  Tokenizers,
  abstract_tokenizers,
  all_pairs,
  file_weights_of,
  load_by_file,
  load_tokenizers,
  subset,
)
from mrpo_jax.runs.inference.reward import rewards_of
from mrpo_jax.runs.models import check_folders, check_ids, describe_models
from mrpo_jax.runs.rounds.labels import Labels
from mrpo_jax.runs.streaming import Streaming, check_streaming
from mrpo_jax.runs.workdir import (
  check_length,
  differences,
  fixed_of,
  known_run,
  refuse_other,
)
from mrpo_jax.training import checkpoints
from mrpo_jax.training.objective import Objective
from mrpo_jax.training.step import VERSION

logger = logging.getLogger(__name__)

STEPS = 1_000  # of epochs over data that is not there: any number would do


@dataclasses.dataclass
class Setup:
  """All of a run that is checked before weights are read."""

  config: Config
  workdir: pathlib.Path
  method: losses.Method
  mesh: jax.sharding.Mesh
  packing: Packing
  tokenizers: Tokenizers
  tables: dict
  described: dict
  objective: Objective
  identity: dict
  rewards: dict  # name in data.rewards -> reward
  labels: Labels | None = None  # of an online run
  file_weights: tuple | None = None  # see data.batches.mixed
  stream: Streaming | None = None  # of a run that reads pairs as it goes

  def views(self, split):
    """The split's pairs under each tokenizer whose rows the step reads."""
    return self.tables[split].views[: self.objective.views]


def set_up(config, workdir, *, allow_changed=False):
  """The Setup of a run, or InputError; writes nothing."""
  content, fixed = config.to_dict(), fixed_of(config)
  known = known_run(workdir, content, allow_changed=allow_changed, fixed=fixed)
  check_length(workdir, config)
  method = chosen_method(config)
  check_best(config, method)
  say_left_out(config)
  say_unread(config, method)
  check_streaming(config, method)
  rewards = rewards_of(config)
  mesh = mesh_of(config)
  processes.connect(mesh)
  check_folders(config)  # and names in rules, before any data is read
  packing = _packing(config, mesh, method)
  memory.check_rows(config, packing)
  is_streamed = config.data.streaming
  given = [] if config.online.prompts or is_streamed else ["train"]
  read = [*given, *(["eval"] if config.data.eval else [])]
  measured = ["validation"] if "validation" in method.measures else []
  by_file, places = load_by_file(config, read + measured), {}
  pairs = all_pairs(by_file)
  tokenizers = load_tokenizers(config, workdir, pairs.get("train"), known)
  if given:
    places = {"train": subset(config, pairs["train"])}
    pairs["train"] = [pairs["train"][place] for place in places["train"]]
  stream = Streaming.of(config, method, tokenizers) if is_streamed else None
  tables = _tables(config, method, tokenizers, pairs, places)
  file_weights = None
  if given:
    kept = tables["train"].places
    file_weights = file_weights_of(config, by_file["train"], kept)
    config = _of_length(config, len(kept), workdir, known, allow_changed)
    content = config.to_dict()
  described = describe_models(config, tokenizers, mesh)
  check_ids(described, tokenizers, tables)
  if stream is not None:
    stream.check_ids(described)
  labels = _labels(config, mesh, method, tokenizers, described)
  objective = _objective(config, method, described)
  identity = _identity(pairs, tokenizers, described, labels, rewards, mesh)
  if stream is not None:
    identity["data.train"] = stream.mark
  _agree(
    {"config": content, "identity": identity}
    | {"checkpoints": checkpoints.steps(workdir)}
  )
  if known is not None:
    # Hashes of everything read, so that a resumed run reads the same.
    refuse_other(workdir, {"identity": identity}, known, allow_changed)
  return Setup(
    config=config,
    workdir=workdir,
    method=method,
    mesh=mesh,
    packing=packing,
    tokenizers=tokenizers,
    tables=tables,
    described=described,
    objective=objective,
    identity=identity,
    labels=labels,
    file_weights=file_weights,
    rewards=rewards,
    stream=stream,
  )


def _of_length(config, pairs, workdir, known, allow_changed):
  """The Config with the steps that its epochs over so many pairs are."""
  if not config.epochs:
    return config
  config = config.over(pairs)
  logger.info(f"{config.steps:,} steps of {config.batch} pairs")
  if known is not None:
    refuse_other(workdir, {"steps": config.steps}, known, allow_changed)
  check_length(workdir, config)
  return config


def _identity(pairs, tokenizers, described, labels, rewards, mesh):
  """Hashes and versions of all that a run is made of, by where it is named."""
  return {
    **{f"data.{k}": source.fingerprint(rows) for k, rows in pairs.items()},
    **tokenizers.identity,
    **{one.section.key: one.identity for one in described.values()},
    **({} if labels is None else labels.identity),
    **{
      f"data.rewards.{name}": {"script": one.script}
      for name, one in rewards.items()
    },
    "mesh": dict(mesh.shape),
    "code": _code(),
  }


def _labels(config, mesh, method, tokenizers, described):
  """The labels.Labels of an online run, else None."""
  if not config.online.prompts:
    return None
  policy = described["policy"]
  tokenizer = tokenizers.views[policy.model.view]
  scales = method.tokens is not None
  return Labels(config, mesh, policy, tokenizer, scales=scales)


def _tables(config, method, tokenizers, pairs, places):
  """{split: data.table.Table}; `places` are those of pairs in their files."""
  tables = {
    split: encode_table(
      split,
      rows,
      tokenizers,
      places=places.get(split),
      origin=getattr(config.data, split),
      row_length=config.data.row_length,
      chosen_only=method.supervised,
      labelled=method.unpaired,
      mismatched=method.mismatched,
      max_prompt=config.data.max_prompt,
      max_response=config.data.max_response,
    )
    for split, rows in pairs.items()
  }
  sandbox.close()
  if method.unpaired and "train" in tables:
    _say_labels(method, tables["train"])
  return tables


BALANCE = 1.0, 4 / 3  # weighted good responses to bad ones: KTO, section 4.2


def _say_labels(method, table):
  """Says how many responses are good; warns where weights do not balance it."""
  good, total = sum(table.labels), len(table.labels)
  logger.info(f"train: {good:,} of {total:,} responses are desirable")
  bad = total - good
  if not good or not bad:
    logger.warning(
      f"warning: all {total:,} responses of train have the label "
      f"{'true' if good else 'false'}: there is nothing to tell them from"
    )
    return
  names = ("desirable_weight", "undesirable_weight")
  taken = keywords_of(method.loss)
  if not {*names} <= taken.keys():
    return
  up, down = ({**taken, **method.hyper}[name] for name in names)
  least, most = BALANCE
  if not least * bad * down <= good * up <= most * bad * down:
    low, high = (bad * down / good * edge for edge in BALANCE)
    other_low, other_high = (good * up / bad / edge for edge in BALANCE[::-1])
    logger.warning(
      "warning: weighted desirable to undesirable responses are "
      f"{good * up:g} to {bad * down:g}; between 1 and 4/3 is usual: set "
      f"config.loss.desirable_weight from {low:.3g} to {high:.3g}, or "
      f"undesirable_weight from {other_low:.3g} to {other_high:.3g}"
    )


def mesh_of(config, devices=None):
  """The mesh of a run: all devices, by the sizes that the config gives."""
  sizes = {axis: getattr(config.mesh, axis) for axis in parallel.AXES}
  return parallel.make_mesh(**sizes, devices=devices)


def abstract_setup(config, mesh, read):
  """The Setup of a run whose data and models are not there.

  Models that name one tokenizer are taken to have one, others to differ.

  Args:
    config: Config of the run.
    mesh: of the devices that the run would have.
    read: path -> ModelConfig.
  """
  config = config.over(STEPS * config.batch)
  method = chosen_method(config)
  tokenizers = abstract_tokenizers(config)
  described = describe_models(config, tokenizers, mesh, read=read, mark=str)
  return Setup(
    config,
    workdir=None,
    method=method,
    mesh=mesh,
    packing=_packing(config, mesh, method).whole(),
    tokenizers=tokenizers,
    tables={},
    described=described,
    objective=_objective(config, method, described),
    identity={},
    rewards={},
  )


def resized(setup, config):
  """The Setup of a config that differs in sizes alone, on the same data."""
  config, mesh = config.over(STEPS * config.batch), mesh_of(config)
  described = describe_models(config, setup.tokenizers, mesh, mark=str)
  return dataclasses.replace(
    setup,
    config=config,
    mesh=mesh,
    packing=_packing(config, mesh, setup.method),
    described=described,
    objective=_objective(config, setup.method, described),
  )


def _code():
  """Versions and settings of code that the numbers of a run depend on."""
  jax_settings = ("default_matmul_precision", "default_prng_impl", "enable_x64")
  return {
    "steps": VERSION,
    "jax": jax.__version__,
    **{name: getattr(jax.config, f"jax_{name}") for name in jax_settings},
  }


def _agree(here):
  """Raises InputError where a process was given, or found, other things.

  When it returns, every process has read the workdir.
  """
  text = json.dumps(here, sort_keys=True)
  marks = processes.gather(hashlib.sha256(text.encode()).hexdigest())
  if len(set(marks)) == 1:
    return
  found = processes.gather(here)
  other = next(n for n, mark in enumerate(marks) if mark != marks[0])
  one = next(differences(found[other], found[0]))
  raise InputError(
    f"{one.key} is {one.here!r} in process {other}, {one.there!r} in process "
    "0; give both the same command, files and workdir"
  )


def best(config):
  """checkpoints.Best of a config; None where it names none."""
  figure = config.checkpoints.best
  return checkpoints.Best(figure, BEST[figure]) if figure else None


def _packing(config, mesh, method):
  shards = parallel.row_shards(mesh)
  share, shares = parallel.row_share(mesh)
  rows = config.data.rows or shards
  if rows % shards:
    raise InputError(
      f"config.data.rows={rows} does not divide over the {shards} shards of "
      "mesh.data * mesh.fsdp"
    )
  context, length = mesh.shape["context"], config.data.row_length
  if context > 1 and length % (pack.SHORTER * context):
    raise InputError(
      f"config.data.row_length={length} and the quarter of it that short rows "
      f"have do not divide over mesh.context={context}"
    )
  # Which "auto" may be on these devices.
  kernel, device = config.policy.kernel, mesh.devices.flat[0]
  is_packed = device.platform == "gpu" and kernel in ("auto", "cudnn_packed")
  with blames("config"):
    return Packing(
      batch=config.batch,
      length=config.data.row_length,
      rows=rows,
      process=share,
      processes=shares,
      mark_differences=method.reads_differences,
      few_pairs=is_packed,
    )


def _objective(config, method, described):
  policy, *references = (one.model for one in described.values())
  objective = Objective(
    pairs=config.batch,
    policy=policy,
    references=tuple(references),
    names=config.references.names,
    method=method,
  )
  with blames("config.loss", (TypeError, ValueError)):
    objective.check()
  return objective
