# SPDX-License-Identifier: Apache-2.0
"""The models of a run, from checked settings: described, then loaded."""

import copy
import dataclasses
import functools
import json
import math
import time

import jax
import jax.numpy as jnp

from mrpo_jax import hub, parallel
from mrpo_jax.errors import InputError, blames
from mrpo_jax.hub import peft
from mrpo_jax.models import lora, parameters, weights
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.packed import Computation
from mrpo_jax.runs.data import is_scored, sections_of
from mrpo_jax.training.objective import Model

ADAPTED = " with adapter "  # in the identity of what was imported


@dataclasses.dataclass(frozen=True)
class Base:
  """Weights without adapters: equal ones are the same arrays in a run."""

  path: str
  new: str  # where there is no path: the key whose `new` describes the model
  dtype: str
  quantize: str
  group: int | None
  rules: tuple  # (logical axis, mesh axes): how they are split


@dataclasses.dataclass(frozen=True)
class Described:
  """A model of the run before it is loaded."""

  model: Model
  base: Base
  identity: str  # of what it says of a text


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Parameters of a model of the run, on the mesh."""

  params: dict | None  # see `leaves`; equal bases are the same arrays
  adapter: lora.Adapter | None  # what they hold


def describe_models(
  config, tokenizers, mesh, *, read=hub.read_config, mark=None
):
  """{key: Described} of every model, the policy first; loads no weights.

  Args:
    config: of the run.
    tokenizers: data.Tokenizers.
    mesh: of the devices to compute on; they need not be here.
    read: path -> ModelConfig.
    mark: Base -> what its weights are known by; None hashes them.
  """
  described = {}
  identity_of = mark or functools.cache(functools.partial(_identity, config))
  for key, section in sections_of(config).items():
    base, view = base_of(config, key), tokenizers.view_of[key]
    model = _model_config(config, base, tokenizers, read)
    _check_length(config, key, model)
    _check_vocabulary(key, tokenizers.views[view], model)
    _check_split(key, base, model, mesh)
    computation = _computation(config, key, base, model, mesh)
    described[key] = Described(
      Model(model, view, computation, scored=is_scored(section)),
      base,
      identity_of(base) + _adapter_identity(config, key),
    )
  return described


def load_models(config, described, mesh, say):
  """{key: Loaded} of the policy and of every reference that is online."""

  def read(key, one):
    return _base_params(config, key, one, mesh, say)

  def adapted(key, one, params):
    return _adapted(config, key, one.model.config, params, mesh)

  copied = functools.partial(jnp.array, copy=True)
  return _models(described, read, adapted, copied)


def abstract_models(config, described, mesh):
  """The same as ShapeDtypeStruct with shardings; reads no weights."""

  def read(key, one):
    return abstract_params(config, one.base, one.model.config, mesh)

  def adapted(key, one, params):
    return _adapted(config, key, one.model.config, params, mesh, abstract=True)

  return _models(described, read, adapted, copy.copy)


def _models(described, read_base, adapted, copied):
  online = {k: one for k, one in described.items() if not one.model.scored}
  bases = [one.base for one in online.values()]
  read, loaded = {}, {}
  for key, one in online.items():
    if one.base not in read:
      read[one.base] = read_base(key, one)
    adapter, params = adapted(key, one, read[one.base])
    if key == "policy" and adapter is None and bases.count(one.base) > 1:
      # The step is given the policy's own arrays to overwrite.
      read[one.base] = jax.tree.map(copied, params)
    loaded[key] = Loaded(params, adapter)
  return loaded


def load_reference(config, key, one, mesh, say):
  """Parameters of one reference by itself, to score with."""
  params = _base_params(config, key, one, mesh, say)
  return _adapted(config, key, one.model.config, params, mesh)[1]


def _base_params(config, key, one, mesh, say):
  started = time.perf_counter()
  params = jax.block_until_ready(
    base_params(config, one.base, one.model.config, mesh)
  )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
  say(
    f"{key}: {one.model.config.family}, "
    f"{parameters.count_parameters(one.model.config):,} parameters, "
    f"{one.base.quantize or one.base.dtype}, {size:,.1f} MB "
    f"({time.perf_counter() - started:.1f} s)"
  )
  return params


def _check_split(key, base, model, mesh):
  with blames(f"config.{key}", InputError):
    parallel.param_shardings(model, mesh, dict(base.rules))


def _check_length(config, key, model):
  longest = config["data"]["max_prompt"] + config["data"]["max_response"]
  if model.longest and longest > model.longest:
    raise InputError(
      f"config.{key}: beyond {model.longest} tokens this {model.family} looks "
      "at the longest sequence of a batch, or ends; data.max_prompt + "
      f"data.max_response is {longest}"
    )


def starts_alike(policy, adapter, reference):
  """Do both say the same of every pair before the first step?

  `policy` and `reference` are Described, `adapter` the policy's or None.
  """
  imported = adapter is not None and ADAPTED in policy.identity
  return (
    reference.identity == policy.identity
    and reference.model.view == policy.model.view
    # Of a new adapter the dropout drops zeros.
    and not (imported and adapter.dropout)
  )


def base_of(config, key):
  """The Base of the model of that key."""
  section = sections_of(config)[key]
  described = "policy" if section["path"] == "policy" else key
  path = sections_of(config)[described]["path"]
  kind = section["quantize"]
  group = section["quantize_group"] if kind == "int4" else None
  new = "" if path else described
  rules = tuple(rules_of(config, key).items())
  return Base(path, new, section["dtype"], kind, group, rules)


def rules_of(config, key):
  """What the weights of the model of that key are split over."""
  changes = config["mesh"]["rules"]
  rules = parallel.rules_of(changes, "config.mesh.rules")
  if key == "policy":
    return rules
  own = sections_of(config)[key]["rules"]
  return parallel.rules_of(rules | own, f"config.{key}.rules")


def base_params(config, base, model, mesh=None):
  """The parameters of a Base of that ModelConfig, on the mesh or one device."""
  if base.path:
    _, params = hub.load(
      base.path, dtype=base.dtype, mesh=mesh, rules=dict(base.rules)
    )
  else:
    make, to = functools.partial(parameters.init, model, dtype=base.dtype), None
    if mesh is not None:
      to = parallel.param_shardings(model, mesh, dict(base.rules))
    key = _random_key(config["seed"], base.new)
    params = jax.jit(make, out_shardings=to)(key)
  return _quantized(base, model, params)


def _quantized(base, model, params):
  if not base.quantize:
    return params
  what = f"config: quantize={base.quantize!r} of {base.path or base.new}"
  with blames(what):
    return weights.quantize(
      params, parameters.table(model), base.quantize, group=base.group
    )


def abstract_params(config, base, model, mesh):
  """`base_params` as ShapeDtypeStruct with shardings."""
  to = parallel.param_shardings(model, mesh, dict(base.rules))
  params = parallel.abstract(parameters.abstract(model, base.dtype), to)
  quantize = functools.partial(_quantized, base, model)
  shapes = jax.eval_shape(quantize, params)

  def like(array, parts):
    """Integers and scales split as the array was, where they have its axes."""

    def part(one):
      of_axes = (*array.sharding.spec, *[None] * one.ndim)[: one.ndim]
      kept = [
        axes if n % _parts(mesh, axes) == 0 else None
        for n, axes in zip(one.shape, of_axes, strict=True)
      ]
      to = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*kept))
      return jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=to)

    return jax.tree.map(part, parts)

  return jax.tree.map(like, params, shapes)


def _parts(mesh, axes):
  """Into how many parts these axes of the mesh cut: a name, names or None."""
  names = (axes,) if isinstance(axes, str) else axes or ()
  return math.prod(mesh.shape[name] for name in names)


def _identity(config, base):
  if base.path:
    mark = hub.fingerprint(base.path)
  else:
    new = json.dumps(sections_of(config)[base.new]["new"], sort_keys=True)
    mark = f"{base.new} from seed {config['seed']}: {new}"
  kind = f" {base.quantize}" if base.quantize else ""
  return mark + kind + (f" in groups of {base.group}" if base.group else "")


def _model_config(config, base, tokenizers, read):
  if base.path:
    return read(base.path)
  tokenizer = tokenizers.views[tokenizers.view_of[base.new]]
  return _new_config(base.new, sections_of(config)[base.new]["new"], tokenizer)


def _check_vocabulary(key, tokenizer, model):
  if len(tokenizer) > model.vocab_size:
    raise InputError(
      f"config.{key}: its tokenizer has {len(tokenizer)} tokens, the model "
      f"only {model.vocab_size}"
    )


def _adapted(config, key, model, params, mesh, *, abstract=False):
  """(Adapter, params with its leaves); without one (None, params)."""
  given = sections_of(config)[key]["adapter"]
  if not given:
    return None, params
  table, rules = parameters.table(model), rules_of(config, key)

  def split(adapter):
    own = _adapter_table(key, table, adapter)
    return own, parallel.table_shardings(own, mesh, rules)

  if _is_new(config, key):
    adapter = lora.Adapter(**_adapter_fields(given))
    own, to = split(adapter)
    make = functools.partial(lora.init_adapters, own)
    make = jax.jit(make, out_shardings=to)
    make = functools.partial(jax.eval_shape, make) if abstract else make
    arrays = make(_random_key(config["seed"], f"{key}.adapter"))
  else:
    adapter, arrays = peft.load(_adapter_folder(config, key), model)
    if key == "policy":
      adapter = dataclasses.replace(adapter, dropout=given["dropout"])
    to = split(adapter)[1]
    arrays = arrays if abstract else jax.device_put(arrays, to)
  arrays = parallel.abstract(arrays, to) if abstract else arrays
  return adapter, lora.attach(params, arrays, adapter)


def _is_new(config, key):
  """Is its adapter made here?"""
  return key == "policy" and "rank" in config["policy"]["adapter"]


def _adapter_folder(config, key):
  given = sections_of(config)[key]["adapter"]
  return given["path"] if key == "policy" else given


def _adapter_identity(config, key):
  if not sections_of(config)[key]["adapter"] or _is_new(config, key):
    return ""
  return ADAPTED + peft.fingerprint(_adapter_folder(config, key))


def _adapter_fields(given):
  return {**given, "targets": tuple(given["targets"])}


def _adapter_table(key, table, adapter):
  with blames(f"config.{key}.adapter"):
    return lora.adapter_table(table, adapter)


def _computation(config, key, base, model, mesh):
  """The Computation of a model; no reference has a backward pass."""
  policy = config["policy"]
  partition = parallel.partition_of(mesh, dict(base.rules))
  kernel, dtype = policy["kernel"], policy["compute"] or base.dtype
  platform = mesh.devices.flat[0].platform
  with blames("config.policy.kernel"):
    kernels.check(kernel, model, dtype, platform, partition)
  remat = policy["remat"] if key == "policy" else "none"
  return Computation(
    kernel=kernel,
    remat=remat,
    dtype=policy["compute"] or None,
    partition=partition,
    chunk=policy["chunk"] or None,
  )


def _random_key(seed, name):
  key = jax.random.key(seed)
  for letter in name.encode():  # policy and references start apart
    key = jax.random.fold_in(key, letter)
  return key


def _new_config(key, new, tokenizer):
  if new["width"] % new["heads"]:
    raise InputError(
      f"config.{key}.new: width={new['width']} is not a multiple of "
      f"heads={new['heads']}"
    )
  shape = ("layers", "width", "heads", "kv_heads", "mlp_width")
  with blames(f"config.{key}.new"):
    return ModelConfig(
      **{name: new[name] for name in shape},
      head_dim=new["width"] // new["heads"],
      vocab_size=len(tokenizer),
      tied=True,
      bos_id=tokenizer.bos_token_id,
      eos_id=tokenizer.eos_token_id,
    )
