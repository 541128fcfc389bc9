# SPDX-License-Identifier: Apache-2.0
"""Setup: all that the first step of a run needs but weights."""

import dataclasses
import hashlib
import json
import pathlib

import jax

from mrpo_jax import losses, parallel, processes
from mrpo_jax.data import pack, source
from mrpo_jax.data.batches import Packing
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.table import encode_table
from mrpo_jax.errors import InputError, blames
from mrpo_jax.losses.methods.build import taken
from mrpo_jax.runs import memory
from mrpo_jax.runs.config import BEST, Config
from mrpo_jax.runs.config.online import Rollouts
from mrpo_jax.runs.data import (
  Tokenizers,
  abstract_tokenizers,
  load_pairs,
  load_tokenizers,
  subset,
)
from mrpo_jax.runs.inference.reward import rewards_of
from mrpo_jax.runs.models import check_folders, check_ids, describe_models
from mrpo_jax.runs.rounds.labels import Labels
from mrpo_jax.runs.workdir import (
  FIXED,
  check_length,
  differences,
  known_run,
  refuse_other,
)
from mrpo_jax.training import checkpoints
from mrpo_jax.training.objective import Objective
from mrpo_jax.training.step import VERSION

BY_PAIR = "by_pair"  # weights of references that the data hold


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

  def views(self, split):
    """The split's pairs under each tokenizer whose rows the step reads."""
    return self.tables[split].views[: self.objective.views]


def set_up(config, workdir, *, allow_changed=False):
  """The Setup of a run, or InputError; writes nothing."""
  content, fixed = config.to_dict(), FIXED
  if config.rounds.count > 1 or config.online.prompts:
    fixed = (*FIXED, "steps", "online.rounds")  # a round is a share of them
  known = known_run(workdir, content, allow_changed=allow_changed, fixed=fixed)
  check_length(workdir, config.steps)
  method = chosen_method(config)
  check_best(config, method)
  rewards = rewards_of(config)
  mesh = mesh_of(config)
  processes.connect(mesh)
  check_folders(config)  # and names in rules, before any data is read
  packing = _packing(config, mesh, method)
  memory.check_rows(config, packing)
  given = [] if config.online.prompts else ["train"]
  read = [*given, *(["eval"] if config.data.eval else [])]
  measured = ["validation"] if "validation" in method.measures else []
  pairs, places = load_pairs(config, read + measured), {}
  tokenizers = load_tokenizers(config, workdir, pairs.get("train"), known)
  if given:
    places = {"train": subset(config, pairs["train"])}
    pairs["train"] = [pairs["train"][place] for place in places["train"]]
  tables = _tables(config, method, tokenizers, pairs, places)
  described = describe_models(config, tokenizers, mesh)
  check_ids(described, tokenizers, tables)
  labels = _labels(config, mesh, method, tokenizers, described)
  objective = _objective(config, method, described)
  identity = {
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
    rewards=rewards,
  )


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
      max_prompt=config.data.max_prompt,
      max_response=config.data.max_response,
    )
    for split, rows in pairs.items()
  }
  sandbox.close()
  return tables


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
  mesh = mesh_of(config)
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


def reward_beta(loss):
  """The beta of the rewards in metrics, from the `loss` of a config.json."""
  with blames("config.loss", (TypeError, ValueError)):
    return losses.build(**loss).beta


def chosen_method(config):
  """The Method of a config, its loss with all its choices."""
  name, keywords = config.loss.name, _loss_keywords(config)
  references = config.references.names
  betas = [one.beta for _, one in config.references.items()]
  with blames("config.loss", (TypeError, ValueError)):
    method = losses.build(name, **keywords)
    if any(betas):
      betas = tuple(beta or method.beta for beta in betas)
      method = losses.build(name, **keywords, betas=betas)
  if method.tokens is not None:
    _check_rollouts(config)
  elif config.online.prompts:
    _check_online(config, method)
  evaluates = config.data.eval and config.eval_every
  if method.mixing.by_pair and not config.data.reference_weights:
    raise InputError(
      "config.loss.weights='by_pair' are of a column of the data: name it in "
      "config.data.reference_weights"
    )
  _check_rewards(config, method)
  if method.learns and not evaluates:
    raise InputError(
      "config.loss.weights learns from held-out accuracy: set config.data.eval "
      "and config.eval_every"
    )
  if "validation" in method.measures and not config.data.validation:
    raise InputError(
      "config.loss.weights measures the references on held-out pairs: name "
      "them in config.data.validation"
    )
  if method.takes_reference and not references:
    problem = "needs a reference"
  elif (method.supervised or method.of_rewards) and references:
    problem = "takes no reference"
  else:
    return method
  raise InputError(
    f"config.loss.name={name!r} {problem}, but config.references.names is "
    f"{references}"
  )


def _check_rollouts(config):
  """Raises InputError where a loss of tokens has nothing to learn from."""
  where = f"config.loss.name={config.loss.name!r}"
  if not config.online.prompts:
    raise InputError(
      f"{where} learns from what the policy itself says and is rewarded for; "
      "preference pairs are not that: set config.online"
    )
  if not config.references.names:
    raise InputError(
      f"{where} compares with the initial policy: name it in "
      "config.references.names, with path='policy'"
    )
  if config.online.discriminates:
    raise InputError(
      f"{where}: a discriminator orders pairs; config.online.reward alone "
      "judges rollouts"
    )
  if config.data.eval:
    raise InputError(
      f"{where}: held-out pairs have no rewards of tokens; leave out "
      "config.data.eval"
    )


def _check_online(config, method):
  """Raises InputError where a method cannot train on the policy's own pairs."""
  where = f"config.loss.name={config.loss.name!r} with config.online"
  if method.supervised or method.of_rewards:
    raise InputError(
      f"{where}: it trains on no pairs of a policy's own responses; leave out "
      "config.online, or name another loss"
    )
  if config.online.rollouts != Rollouts():
    raise InputError(
      f"{where}: config.online.rollouts is of losses of tokens, apa, awr and "
      "ppo; leave it out"
    )
  if method.measures:
    raise InputError(
      f"{where}: it measures its references on given pairs before the first "
      "step, of which there are none; choose other config.loss.scale and "
      "weights"
    )


def _check_rewards(config, method):
  """InputError where rewards are missing, or nothing would read them."""
  named = config.data.rewards.names
  if config.online.prompts and (named or "aux_reward_BC" in method.needs):
    raise InputError(
      "config.data.rewards and losses that read it are of given pairs, whose "
      "rewards are in the store; config.online makes its own: leave them out"
    )
  if "aux_reward_BC" in method.needs and not named:
    raise InputError(
      f"config.loss.name={config.loss.name!r} reads rewards of the responses: "
      "name them in config.data.rewards"
    )
  if named and "aux_reward_BC" not in method.needs:
    raise InputError(
      f"config.data.rewards: loss {config.loss.name!r} reads no rewards; set "
      "config.loss.auxiliary='hpo', or leave them out (mrpo score --reward "
      "scores them alone)"
    )


def _loss_keywords(config):
  """Keywords of `losses.build`; a column of weights is one of them."""
  name, keywords = config.loss.name, config.loss.keywords
  column = config.data.reference_weights
  if not column or name not in losses.names():  # which `build` refuses
    return keywords
  where = f"config.data.reference_weights={column!r}"
  choices = taken(name)
  if "weights" not in choices:
    raise InputError(
      f"{where}: loss {name!r} mixes no references that could be weighed"
    )
  if "mixture" in choices and (choices | keywords)["mixture"] is None:
    raise InputError(
      f"{where}: loss {name!r} takes one reference; set config.loss.mixture"
    )
  weights = keywords.get("weights", BY_PAIR)
  if weights != BY_PAIR:
    raise InputError(
      f"{where} and config.loss.weights={weights!r} both weigh the "
      f"references; give one, the column with config.loss.weights={BY_PAIR!r}"
    )
  if keywords.get("official_weights"):
    raise InputError(
      f"{where} and config.loss.official_weights, which gives references each "
      "other's weights; give one"
    )
  return {**keywords, "weights": BY_PAIR}


def best(config):
  """checkpoints.Best of a config; None where it names none."""
  figure = config.checkpoints.best
  return checkpoints.Best(figure, BEST[figure]) if figure else None


def check_best(config, method):
  """Raises InputError where no evaluation gives what the config asks for."""
  figure = config.checkpoints.best
  if not figure:
    return
  key = f"config.checkpoints.best={figure!r}"
  if not (config.data.eval and config.eval_every):
    raise InputError(f"{key}: set config.data.eval and config.eval_every")
  if method.supervised and figure != "eval/loss":
    raise InputError(f"{key}: {method.name!r} is judged by 'eval/loss' alone")
  if method.of_rewards and figure.startswith(("eval/virtual", "eval/policy")):
    raise InputError(f"{key}: a reward model has no such figure")
  if "virtual/" in figure and not method.takes_reference:
    raise InputError(f"{key}: {method.name!r} takes no reference")


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
  with blames("config"):
    return Packing(
      batch=config.batch,
      length=config.data.row_length,
      rows=rows,
      process=share,
      processes=shares,
      mark_differences=method.reads_differences,
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
