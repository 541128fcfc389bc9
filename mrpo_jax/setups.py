# SPDX-License-Identifier: Apache-2.0
"""From checked settings to all that the first step needs."""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp

from mrpo_jax import (
  checkpoints,
  inputs,
  loading,
  losses,
  parallel,
  processes,
  scoring,
  settings,
  train,
  train_state,
  workdirs,
)
from mrpo_jax.data import loader, pack, source
from mrpo_jax.errors import InputError
from mrpo_jax.models import leaves
from mrpo_jax.models import spec as specs
from mrpo_jax.objective import Objective, Stacked


@dataclasses.dataclass
class SetUp:
  """All of a run that is checked before weights are read."""

  config: dict
  workdir: pathlib.Path
  splits: list  # that the steps and evaluations read
  method: losses.Method
  mesh: jax.sharding.Mesh
  packing: loader.Packing
  tokenizers: inputs.Tokenizers
  tables: dict
  described: dict
  objective: Objective
  identity: dict


def set_up(config, workdir, say, *, allow_changed=False):
  """The SetUp of a run, or InputError; writes nothing."""
  known = workdirs.known_run(workdir, config, allow_changed=allow_changed)
  workdirs.check_length(workdir, config["steps"])
  method = chosen_method(config)
  _check_best(config, method)
  mesh = mesh_of(config)
  processes.connect(mesh)
  for key in inputs.sections(config):
    loading.rules_of(config, key)  # refuses names, before any data is read
  packing = _packing(config, mesh, method)
  read = [s for s in ("train", "eval") if config["data"][s]]
  measured = ["validation"] if "validation" in method.measures else []
  pairs = inputs.load_pairs(config, read + measured)
  tokenizers = inputs.load_tokenizers(config, workdir, pairs["train"], say)
  tables = {
    split: inputs.encode_table(
      config, split, rows, tokenizers, say, chosen_only=method.supervised
    )
    for split, rows in pairs.items()
  }
  described = loading.describe_models(config, tokenizers, mesh)
  objective = _objective(config, method, described)
  identity = {
    **{f"data.{k}": source.fingerprint(rows) for k, rows in pairs.items()},
    **tokenizers.identity,
    **{key: one.identity for key, one in described.items()},
    "mesh": dict(mesh.shape),
    "code": _code(),
  }
  _agree(
    {"config": config, "identity": identity}
    | {"checkpoints": checkpoints.steps(workdir)}
  )
  if known is not None:
    # Hashes of everything read, so that a resumed run reads the same.
    workdirs.refuse_other(workdir, {"identity": identity}, known, allow_changed)
  return SetUp(
    config,
    workdir,
    read,
    method,
    mesh,
    packing,
    tokenizers,
    tables,
    described,
    objective,
    identity,
  )


def mesh_of(config, devices=None):
  """The mesh of a run: all devices, by the sizes that the config gives."""
  sizes = {axis: config["mesh"][axis] for axis in parallel.AXES}
  return parallel.make_mesh(**sizes, devices=devices)


def planned(config, mesh, read):
  """The SetUp of a run whose data and models are not there.

  Models that name one tokenizer are taken to have one, others to differ.

  Args:
    config: nested dict that `settings.read` returned.
    mesh: of the devices that the run would have.
    read: path -> ModelConfig.
  """
  method = chosen_method(config)
  tokenizers = inputs.plan_tokenizers(config)
  described = loading.describe_models(
    config, tokenizers, mesh, read=read, mark=str
  )
  return SetUp(
    config,
    workdir=None,
    splits=[],
    method=method,
    mesh=mesh,
    # Of all processes that there would be.
    packing=dataclasses.replace(
      _packing(config, mesh, method), process=0, processes=1
    ),
    tokenizers=tokenizers,
    tables={},
    described=described,
    objective=_objective(config, method, described),
    identity={},
  )


def _code():
  """What else the numbers of a run depend on."""
  jax_settings = ("default_matmul_precision", "default_prng_impl", "enable_x64")
  return {
    "steps": train.VERSION,
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
  one = next(settings.differences(found[other], found[0]))
  raise InputError(
    f"{one.key} is {one.here!r} in process {other}, {one.there!r} in process "
    "0; give both the same command, files and workdir"
  )


def plan(setup, store, *, fresh):
  """scoring.Scoring of the run; `store` as given to the command."""
  return scoring.plan(
    setup.config,
    setup.method,
    setup.tables,
    setup.tokenizers,
    setup.described,
    scoring.folder(setup.workdir, store),
    fresh=fresh,
  )


def moves(config):
  """train.Moves of reference 0; None where it stays."""
  update, rounds = config["reference_update"], config["rounds"]
  if rounds["count"] == 1 and not update["every"]:
    return None
  length = config["steps"] // rounds["count"] if rounds["count"] > 1 else 0
  return train.Moves(**update, round=length, alpha=rounds["alpha"])


def frozen(setup, loaded, moves):
  """Per reference its parameters, None where the step finds it elsewhere.

  Those that differ in their numbers alone are `Stacked`; see `stack`.
  """
  names = setup.config["references"]["names"]
  found = [loaded.get(f"references.{name}") for name in names]
  params = [None if one is None else one.params for one in found]
  if moves is not None:
    params[0] = None
  taken = [loaded["policy"].params]
  if setup.objective.needs("kl_BC"):
    taken.append(params[0])  # which runs beside the policy
  return stack(setup.objective.references, params, taken)


def stack(models, trees, taken=()):
  """The trees of references, those alike as one `Stacked`.

  Their arrays are deleted one by one as they are copied, so that no second set
  stands in memory.

  Args:
    models: `Model` of each.
    trees: parameters of each, or None.
    taken: trees whose arrays are also used elsewhere: what shares one of them,
      or one with another reference, stays as it is.
  """
  uses = collections.Counter(
    id(array) for tree in (*trees, *taken) for array in jax.tree.leaves(tree)
  )
  alike = {}
  for k, (model, tree) in enumerate(zip(models, trees, strict=True)):
    arrays, treedef = jax.tree.flatten(tree)
    if arrays and max(uses[id(array)] for array in arrays) == 1:
      kinds = tuple((a.shape, a.dtype, a.sharding) for a in arrays)
      alike.setdefault((model, treedef, kinds), []).append(k)
  trees = list(trees)
  for members in alike.values():
    if len(members) > 1:
      params = jax.tree.map(_stacked, *(trees[k] for k in members))
      for k in members:
        trees[k] = None
      trees[members[0]] = Stacked(params, tuple(members))
  return tuple(trees)


def _stacked(*arrays):
  """One array with an axis in front, sharded as each was."""
  sharding = arrays[0].sharding
  if isinstance(sharding, jax.sharding.NamedSharding):
    spec = jax.sharding.PartitionSpec(None, *sharding.spec)
    sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
  if isinstance(arrays[0], jax.ShapeDtypeStruct):  # of a plan
    shape = (len(arrays), *arrays[0].shape)
    return jax.ShapeDtypeStruct(shape, arrays[0].dtype, sharding=sharding)
  make = jax.jit(lambda *arrays: jnp.stack(arrays), out_shardings=sharding)
  stacked = jax.block_until_ready(make(*arrays))
  for array in arrays:
    array.delete()
  return stacked


def expected(setup, adapter):
  """The first loss, where policy and references agree; else None."""
  policy, *references = setup.described.values()
  alike = functools.partial(loading.starts_alike, policy, adapter)
  if references and all(map(alike, references)):
    return setup.method.start_loss
  return None


def chosen_method(config):
  """The Method of a config, its loss with all its choices."""
  keywords = {k: v for k, v in config["loss"].items() if k != "name"}
  name, references = config["loss"]["name"], config["references"]["names"]
  betas = [config["references"][one]["beta"] for one in references]
  try:
    method = losses.build(name, **keywords)
    if any(betas):
      betas = tuple(beta or method.beta for beta in betas)
      method = losses.build(name, **keywords, betas=betas)
  except (TypeError, ValueError) as error:
    raise InputError(f"config.loss: {error}") from None
  evaluates = config["data"]["eval"] and config["eval_every"]
  if method.learns and not evaluates:
    raise InputError(
      "config.loss.weights learns from held-out accuracy: set config.data.eval "
      "and config.eval_every"
    )
  if "validation" in method.measures and not config["data"]["validation"]:
    raise InputError(
      "config.loss.weights measures the references on held-out pairs: name "
      "them in config.data.validation"
    )
  if method.takes_reference and not references:
    problem = "needs a reference"
  elif method.supervised and references:
    problem = "takes no reference"
  else:
    return method
  raise InputError(
    f"config.loss.name={name!r} {problem}, but config.references.names is "
    f"{tuple(references)}"
  )


def best(config):
  """checkpoints.Best of a config; None where it names none."""
  figure = config["checkpoints"]["best"]
  return checkpoints.Best(figure, settings.BEST[figure]) if figure else None


def _check_best(config, method):
  figure = config["checkpoints"]["best"]
  if not figure:
    return
  key = f"config.checkpoints.best={figure!r}"
  if not (config["data"]["eval"] and config["eval_every"]):
    raise InputError(f"{key}: set config.data.eval and config.eval_every")
  if method.supervised and figure != "eval/loss":
    raise InputError(f"{key}: {method.name!r} is judged by 'eval/loss' alone")
  if "virtual/" in figure and not method.takes_reference:
    raise InputError(f"{key}: {method.name!r} takes no reference")


def _packing(config, mesh, method):
  shards = parallel.row_shards(mesh)
  share, shares = parallel.row_share(mesh)
  rows = config["data"]["rows"] or shards
  if rows % shards:
    raise InputError(
      f"config.data.rows={rows} does not divide over the {shards} shards of "
      "mesh.data * mesh.fsdp"
    )
  context, length = mesh.shape["context"], config["data"]["row_length"]
  if context > 1 and length % (pack.SHORTER * context):
    raise InputError(
      f"config.data.row_length={length} and the quarter of it that short rows "
      f"have do not divide over mesh.context={context}"
    )
  try:
    return loader.Packing(
      batch=config["batch"],
      length=config["data"]["row_length"],
      rows=rows,
      process=share,
      processes=shares,
      mark_differences=method.reads_differences,
    )
  except ValueError as error:
    raise InputError(f"config: {error}") from None


def _objective(config, method, described):
  policy, *references = (one.model for one in described.values())
  objective = Objective(
    pairs=config["batch"],
    policy=policy,
    references=tuple(references),
    names=tuple(config["references"]["names"]),
    method=method,
  )
  try:
    objective.check()
  except (TypeError, ValueError) as error:
    raise InputError(f"config.loss: {error}") from None
  return objective


def abstract_state(setup, policy, transformation, moves):
  """(TrainState of ShapeDtypeStruct, the function that makes a real one).

  `policy` is loading.Loaded; of its arrays only the shapes are looked at.
  """
  table = specs.table(setup.described["policy"].model.config)
  if policy.adapter is not None:
    table = leaves.adapter_table(table, policy.adapter)
  method_state = setup.method.init(len(setup.objective.references))
  moving = () if moves is None else moves.names
  shardings = train_state.shardings(
    table,
    transformation,
    setup.mesh,
    method_state,
    rules=loading.rules_of(setup.config, "policy"),
    moving=moving,
  )
  create = functools.partial(
    train_state.create, transformation=transformation, moving=moving
  )
  _, trained = leaves.split(policy.params)
  shapes = jax.eval_shape(create, trained, method_state=method_state)
  return checkpoints.abstract(shapes, shardings), create


def state(setup, policy, transformation, moves, plan, say):
  """(TrainState, steps done): restored, or else made and measured."""
  method = setup.method
  abstract, create = abstract_state(setup, policy, transformation, moves)
  restored = checkpoints.restore(setup.workdir, abstract, say=say)
  if restored is not None:
    step, state = restored
    return state, step
  method_state = method.init(len(setup.objective.references))
  if method.measures:
    measured = {split: plan.measured(split) for split in method.measures}
    method_state = method.measure(method_state, **measured)
  shardings = jax.tree.map(lambda array: array.sharding, abstract)
  make = jax.jit(create, out_shardings=shardings)
  _, trained = leaves.split(policy.params)
  seed = setup.config["seed"]
  return make(trained, method_state=method_state, seed=seed), 0
