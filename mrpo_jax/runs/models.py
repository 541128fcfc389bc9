# SPDX-License-Identifier: Apache-2.0
"""The models of a run: described, loaded, or made of shapes alone."""

import copy
import dataclasses
import functools
import json
import logging
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import hub, parallel
from mrpo_jax.data.tokenizer import id_count
from mrpo_jax.errors import InputError, blames
from mrpo_jax.hub import peft
from mrpo_jax.hub.folder import weight_files
from mrpo_jax.models import experts, lora, parameters, weights
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.config import VALUED, ModelConfig
from mrpo_jax.models.families.read import with_scalar_head, with_value_head
from mrpo_jax.models.packed import Computation
from mrpo_jax.runs.config import Folder, ModelSection, NewAdapter
from mrpo_jax.runs.config.models import POLICY_BASE, adapter_of_start
from mrpo_jax.training import optimizer
from mrpo_jax.training.objective import Model

logger = logging.getLogger(__name__)

COARSE = 0.1  # share of the weights that steps may miss without a word
ADAPTED = " with adapter "  # in the identity of what was imported


@dataclasses.dataclass(frozen=True)
class Described:
  """A model of the run before it is loaded."""

  section: ModelSection
  model: Model
  identity: str  # of what it says of a text


@dataclasses.dataclass(frozen=True)
class Loaded:
  """Parameters of a model of the run, on the mesh."""

  params: dict | None  # equal bases are the same arrays
  adapter: lora.Adapter | None  # what they hold


def check_folders(config):
  """Raises InputError where a folder that a model is read from holds none.

  It is asked first: data takes minutes to encode.
  """
  for section in config.models().values():
    if isinstance(section.base.weights, Folder):
      folder = section.base.weights.path
      hub.read_config(folder)
      weight_files(folder)
    _adapter_identity(section)


def describe_models(
  config, tokenizers, mesh, *, read=hub.read_config, mark=None
):
  """{name: Described} of every model, the policy first; loads no weights.

  Args:
    config: Config of the run.
    tokenizers: runs.data.Tokenizers.
    mesh: of the devices to compute on; they need not be here.
    read: path -> ModelConfig.
    mark: Base -> what its weights are known by; None hashes them.
  """
  described, identity_of = {}, mark or functools.cache(_identity)
  for name, section in config.models().items():
    _say_start(config, section)
    view = tokenizers.view_of[name]
    model = _model_config(section, tokenizers, read)
    if section.is_policy and model.experts:
      _say_experts(model, section)
    _check_length(config.data, section, model)
    with blames(f"config.{section.key}", InputError):
      parallel.param_shardings(model, mesh, dict(section.base.rules))
    computation = _computation(config.policy, section, model, mesh)
    described[name] = Described(
      section,
      Model(model, view, computation, scored=section.scored),
      identity_of(section.base) + _adapter_identity(section),
    )
  return described


def _say_start(config, section):
  """Says which adapter a reference has whose path means the policy's start."""
  if section.is_policy:
    return
  start = adapter_of_start(config.policy, config.references[section.name])
  if start and section.adapter.path == start:
    logger.info(
      f"{section.key}: the policy's start, with its adapter {start}; "
      f"path={POLICY_BASE!r} is the model without it"
    )
  elif start:
    logger.info(
      f"{section.key}: the policy's model with the adapter "
      f"{section.adapter.path} in place of {start}"
    )


def _say_experts(model, section):
  """Says that no loss of pretraining pulls a router from what is preferred."""
  what = "no router loss (load balancing) is added"
  if section.adapter is not None:
    what = "an adapter leaves them and their router as they are"
  each = f"{model.experts} experts, {model.experts_per_token} for each token"
  logger.info(f"policy: {each}; {what}")


def load_models(described, mesh):
  """{name: Loaded} of the policy and of every reference that is online."""

  def read(one):
    return _base_params(one, mesh)

  def adapted(one, params):
    return _adapted(one, params, mesh)

  copied = functools.partial(jnp.array, copy=True)
  return _models(described, read, adapted, copied)


def abstract_models(described, mesh):
  """The same as ShapeDtypeStruct with shardings; reads no weights."""

  def read(one):
    return abstract_params(one.section.base, one.model.config, mesh)

  def adapted(one, params):
    return _adapted(one, params, mesh, abstract=True)

  return _models(described, read, adapted, copy.copy)


def _models(described, read_base, adapted, copied):
  online = {k: one for k, one in described.items() if not one.model.scored}
  bases = [_without_value(one.section.base) for one in online.values()]
  read, loaded = {}, {}
  for (name, one), base in zip(online.items(), bases, strict=True):
    if base not in read:
      read[base] = read_base(one)
    params = read[base]
    if one.model.config.head != VALUED:  # that of the policy is no reference's
      params = {k: leaf for k, leaf in params.items() if k != "value_head"}
    adapter, params = adapted(one, params)
    if one.section.is_policy and adapter is None and bases.count(base) > 1:
      # The step is given the policy's own arrays to overwrite.
      read[base] = jax.tree.map(copied, params)
    loaded[name] = Loaded(params, adapter)
  return loaded


def _without_value(base):
  """The Base whose arrays stand under a value head, so that they are shared."""
  is_valued = base.head == VALUED
  return dataclasses.replace(base, head="tokens") if is_valued else base


def load_reference(one, mesh):
  """Parameters of one Described reference by itself, to score with."""
  return _adapted(one, _base_params(one, mesh), mesh)[1]


def _base_params(one, mesh):
  started, base = time.perf_counter(), one.section.base
  params = jax.block_until_ready(base_params(base, one.model.config, mesh))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
  logger.info(
    f"{one.section.key}: {one.model.config.family}, "
    f"{parameters.count_parameters(one.model.config):,} parameters, "
    f"{base.quantize or base.dtype}, {size:,.1f} MB "
    f"({time.perf_counter() - started:.1f} s)"
  )
  return params


def _check_length(data, section, model):
  longest = data.max_prompt + data.max_response
  if model.longest and longest > model.longest:
    raise InputError(
      f"config.{section.key}: beyond {model.longest} tokens this "
      f"{model.family} looks at the longest sequence of a batch, or ends; "
      f"data.max_prompt + data.max_response is {longest}"
    )


def check_ids(described, tokenizers, tables):
  """InputError where a pair has an id for which a model has no embedding.

  A tokenizer may have more of them: those that no pair uses do no harm.

  Args:
    described: {name: Described}.
    tokenizers: runs.data.Tokenizers.
    tables: {split: data.table.Table}.
  """
  models = larger_tokenizers(described, tokenizers)
  for split, table in tables.items() if models else ():
    views = zip(*table.views, strict=True)
    for place, encoded in zip(table.places, views, strict=True):
      where = f"pair {place} of config.data.{split}"
      refuse_ids(models, tokenizers, where, encoded)


def larger_tokenizers(described, tokenizers):
  """The Described models with fewer embeddings than their tokenizers' ids."""
  return [
    one
    for one in described.values()
    if id_count(tokenizers.views[one.model.view]) > one.model.config.vocab_size
  ]


def refuse_ids(models, tokenizers, where, encoded):
  """InputError where one of these models cannot read a pair.

  Args:
    models: as of `larger_tokenizers`.
    tokenizers: runs.data.Tokenizers.
    where: the pair in words.
    encoded: of the pair an Encoded per tokenizer.
  """
  for one in models:
    pair, size = encoded[one.model.view], one.model.config.vocab_size
    ids = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
    largest = max(max(some, default=0) for some in ids)
    if largest >= size:
      tokenizer = tokenizers.views[one.model.view]
      token = tokenizer.convert_ids_to_tokens(largest)
      raise InputError(
        f"config.{one.section.key}: {where} has the token {token!r}, id "
        f"{largest}; the model has only {size} ids: give it its own "
        "tokenizer, or leave the pair out"
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


def warn_of_lost_steps(config, params):
  """Says where the policy's weights are too coarse for the learning rate."""
  _, trained = lora.split(params)
  if all(leaf.dtype.itemsize >= 4 for leaf in jax.tree.leaves(trained)):
    return
  rate = config.optimizer.peak_lr
  share = float(optimizer.lost_share(trained, rate))
  if share > COARSE:
    logger.warning(
      f"warning: in policy.dtype={config.policy.dtype!r} a step of "
      f"optimizer.peak_lr={rate:g} is rounded away in {share:.0%} of the "
      "weights, which stay as they are; policy.dtype='float32' with "
      "policy.compute='bfloat16' trains them and computes as fast"
    )


def base_params(base, model, mesh=None):
  """The parameters of a Base of that ModelConfig, on the mesh or one device."""
  made = base.weights
  if isinstance(made, Folder):
    rules, head = dict(base.rules), base.head
    _, params = hub.load(
      made.path, dtype=base.dtype, mesh=mesh, rules=rules, head=head
    )
  else:
    make, to = functools.partial(parameters.init, model, dtype=base.dtype), None
    if mesh is not None:
      to = parallel.param_shardings(model, mesh, dict(base.rules))
    key = _random_key(made.seed, made.key)
    params = jax.jit(make, out_shardings=to)(key)
  return _quantized(base, model, params)


def _quantized(base, model, params):
  if not base.quantize:
    return params
  made = base.weights
  of = made.path if isinstance(made, Folder) else made.key
  with blames(f"config: quantize={base.quantize!r} of {of}"):
    return weights.quantize(
      params, parameters.table(model), base.quantize, group=base.group
    )


def abstract_params(base, model, mesh):
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


def _identity(base):
  made = base.weights
  if isinstance(made, Folder):
    mark = hub.fingerprint_together(made.path)
  else:
    new = json.dumps(made.new.model_dump(), sort_keys=True)
    mark = f"{made.key} from seed {made.seed}: {new}"
  kind = f" {base.quantize}" if base.quantize else ""
  kind += " with a scalar head" if base.head == "scalar" else ""
  return mark + kind + (f" in groups of {base.group}" if base.group else "")


def _adapter_identity(section):
  if section.adapter is None or isinstance(section.adapter, NewAdapter):
    return ""
  return ADAPTED + peft.fingerprint(section.adapter.path)


def _adapted(one, params, mesh, *, abstract=False):
  """(Adapter, params with its leaves); without one (None, params)."""
  section, given, model = one.section, one.section.adapter, one.model.config
  if given is None:
    return None, params

  def split(adapter):
    with blames(f"config.{section.key}.adapter"):
      own = lora.adapter_table(parameters.table(model), adapter)
    return own, parallel.table_shardings(own, mesh, dict(section.base.rules))

  if isinstance(given, NewAdapter):
    adapter = lora.Adapter(**given.model_dump())
    own, to = split(adapter)
    make = jax.jit(functools.partial(_new_adapter, own), out_shardings=to)
    make = functools.partial(jax.eval_shape, make) if abstract else make
    key = _random_key(section.seed, f"{section.key}.adapter")
    arrays = make(key, parameters.numbers(params))
  else:
    adapter, arrays = peft.load(given.path, model)
    adapter = dataclasses.replace(adapter, dropout=given.dropout)
    own, to = split(adapter)
    if model.head == VALUED:  # from zero: no folder of an adapter holds one
      arrays["value_head"] = np.zeros(own["value_head"].shape, np.float32)
    arrays = arrays if abstract else jax.device_put(arrays, to)
  arrays = parallel.abstract(arrays, to) if abstract else arrays
  put, everywhere = jax.device_put, parallel.replicated(mesh)
  put = parallel.abstract if abstract else put
  return adapter, lora.attach(
    params, arrays, adapter, lambda scales: put(scales, everywhere)
  )


def _new_adapter(table, key, heads):
  """Arrays of an adapter that changes nothing; the base's heads of a number."""
  arrays = lora.init_adapters(table, key)
  kept = {k: head.astype(arrays[k].dtype) for k, head in heads.items()}
  return arrays | kept


def _computation(policy, section, model, mesh):
  """The Computation of a model; no reference has a backward pass."""
  partition = parallel.partition_of(mesh, dict(section.base.rules))
  dtype = policy.compute or section.base.dtype
  platform = mesh.devices.flat[0].platform
  with blames(f"config.policy.kernel: {section.key}"):
    kernels.check(policy.kernel, model, dtype, platform, partition)
  with blames(f"config.{section.key}.quantize"):
    experts.check_groups(model, section.base.group, partition)
  return Computation(
    kernel=policy.kernel,
    remat=policy.remat if section.is_policy else "none",
    dtype=policy.compute or None,
    partition=partition,
    chunk=policy.chunk or None,
  )


def _random_key(seed, name):
  key = jax.random.key(seed)
  for letter in name.encode():  # policy and references start apart
    key = jax.random.fold_in(key, letter)
  return key


def _model_config(section, tokenizers, read):
  """The ModelConfig of a model; a new one has its tokenizer's vocabulary."""
  made, head = section.base.weights, section.base.head
  if isinstance(made, Folder):
    found = read(made.path)
    if head == "scalar":
      return with_scalar_head(found)
    if head == VALUED:
      with blames(f"config.{section.key}: {made.path}", InputError):
        return with_value_head(found)
    if found.head == "scalar":
      raise InputError(
        f"config.{section.key}: {made.path} is a reward model, which has no "
        "probabilities of tokens"
        + "; policy.head='scalar' trains it on"
        * section.is_policy
      )
    return found
  new, tokenizer = made.new, tokenizers.views[tokenizers.view_of[made.name]]
  if new.width % new.heads:
    raise InputError(
      f"config.{made.key}.new: width={new.width} is not a multiple of "
      f"heads={new.heads}"
    )
  shape = ("layers", "width", "heads", "kv_heads", "mlp_width")
  if new.experts:
    shape += ("experts", "experts_per_token")
  with blames(f"config.{made.key}.new"):
    return ModelConfig(
      **{name: getattr(new, name) for name in shape},
      family="mixtral" if new.experts else "llama",
      head_dim=new.width // new.heads,
      vocab_size=id_count(tokenizer),
      tied=True,
      bos_id=tokenizer.bos_token_id,
      eos_id=tokenizer.eos_token_id,
      head=head,
    )
