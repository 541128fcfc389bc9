# SPDX-License-Identifier: Apache-2.0
"""What a run reads, from checked settings: pairs, tokenizers, models."""

import dataclasses
import functools
import pathlib
import time

import jax
import jax.numpy as jnp

from mrpo_jax import adapters, hub, parallel
from mrpo_jax.data import encode, formats, pack, source, vocabulary
from mrpo_jax.errors import InputError
from mrpo_jax.models import leaves, spec
from mrpo_jax.objective import Model

ADAPTED = " with adapter "  # in the identity of what was imported


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """The tokenizers of a run; equal ones are one view of the data."""

  views: list  # distinct tokenizers; 0 is the policy's
  view_of: dict  # "policy" or "references.<name>" -> index of its view
  made: dict  # folder in the workdir -> tokenizer trained here
  identity: dict


@dataclasses.dataclass(frozen=True)
class Table:
  """One split as token ids."""

  views: list  # per tokenizer a list of Encoded, aligned over pairs
  places: list  # of each pair among those of the file
  dropped: int  # rows left out
  truncated: int  # rows kept of which something was cut


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model of the run, its parameters on the mesh."""

  model: Model
  params: dict  # see `leaves`; equal bases are the same arrays
  identity: str
  adapter: leaves.Adapter | None  # what its parameters hold


def sections(config):
  """Every model of the config by its key, the policy first."""
  references = config["references"]
  return {"policy": config["policy"]} | {
    f"references.{name}": references[name] for name in references["names"]
  }


def load_pairs(config):
  """{split: list of PreferencePair} of the train and eval files."""
  splits = {"train": config["data"]["train"], "eval": config["data"]["eval"]}
  return {split: source.load(name) for split, name in splits.items() if name}


def load_tokenizers(config, workdir, pairs, say):
  """Loads each model's tokenizer, or trains it on the training text."""
  views, view_of, made, identity = {}, {}, {}, {}
  for key, section in sections(config).items():
    folder = section["tokenizer"] or section["path"]
    if folder == "policy":
      view_of[key] = view_of["policy"]
      continue
    trained = pathlib.Path(workdir) / f"tokenizer-{key}"
    if folder:
      tokenizer = vocabulary.load_tokenizer(folder)
    elif trained.is_dir():
      tokenizer = vocabulary.load_tokenizer(trained)
    else:
      new = section["new"]
      say(f"training the {new['tokenizer']} tokenizer of {key}")
      texts = (text for pair in pairs for text in formats.texts(pair))
      tokenizer = made[trained.name] = vocabulary.train_tokenizer(
        texts, kind=new["tokenizer"], vocab_size=new["vocab_size"]
      )
    mark = identity[f"{key}.tokenizer"] = vocabulary.fingerprint(tokenizer)
    views.setdefault(mark, tokenizer)
    view_of[key] = list(views).index(mark)
  return Tokenizers(list(views.values()), view_of, made, identity)


def encode_table(config, split, pairs, tokenizers, say, *, chosen_only=False):
  """Encodes a split under every tokenizer and keeps what all can use.

  `chosen_only` leaves the rejected responses out: supervised training does
  not read them.
  """
  data, started = config["data"], time.perf_counter()
  limits = {name: data[name] for name in ("max_prompt", "max_response")}
  views = [
    encode.encode_all(tokenizer, pairs, **limits)
    for tokenizer in tokenizers.views
  ]
  if chosen_only:
    views = [
      [dataclasses.replace(one, rejected_ids=[]) for one in view]
      for view in views
    ]
  reasons = [
    _unusable(encoded, data["row_length"])
    for encoded in zip(*views, strict=True)
  ]
  kept = [i for i, reason in enumerate(reasons) if reason is None]
  truncated = sum(any(view[i].truncated for view in views) for i in kept)
  why = _counted(reason for reason in reasons if reason)
  if not kept:
    raise InputError(
      f"{data[split]}: none of its {len(pairs)} pairs is left: {why}"
    )
  say(
    f"{split}: {len(kept)} of {len(pairs)} pairs, {truncated} truncated"
    + (f"; dropped: {why}" if why else "")
    + f" ({time.perf_counter() - started:.1f} s)"
  )
  views = [[view[i] for i in kept] for view in views]
  return Table(views, kept, len(pairs) - len(kept), truncated)


def _unusable(encoded, row_length):
  """Why a pair cannot be trained on, from its encoding in every view."""
  for one in encoded:
    if one.dropped:
      return one.dropped.partition(":")[0]
  if len(encoded) > 1 and any(one.response_cut for one in encoded):
    return "response cut by one of several tokenizers, so texts would differ"
  if any(pack.size(one) > row_length for one in encoded):
    return "too long for a row"
  return None


def _counted(reasons):
  counts = {}
  for reason in reasons:
    counts[reason] = counts.get(reason, 0) + 1
  return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def load_models(config, tokenizers, mesh, say):
  """[Loaded]: the policy, then the references in their order."""
  bases = {key: base_of(config, key) for key in sections(config)}
  read, loaded = {}, []
  for key, section in sections(config).items():
    base, view = bases[key], tokenizers.view_of[key]
    if base not in read:
      model = _model_config(config, base, tokenizers)
      _check_length(config, key, model)
      started = time.perf_counter()
      params = jax.block_until_ready(base_params(config, base, model, mesh))
      say(_described(key, base, model, params, time.perf_counter() - started))
      read[base] = model, params, _identity(config, base)
    model, params, identity = read[base]
    _check_vocabulary(key, tokenizers.views[view], model)
    adapter = None
    if section["adapter"]:
      adapter, params, mark = _adapted(config, key, model, params, mesh)
      identity += mark
    elif key == "policy" and list(bases.values()).count(base) > 1:
      # The step is given the policy's own arrays to overwrite.
      copied = functools.partial(jnp.array, copy=True)
      read[base] = model, jax.tree.map(copied, params), identity
    forward = {"remat": "none", **_forward(config, key)}
    found = Loaded(
      Model(model, view, tuple(forward.items())),
      params,
      identity,
      adapter,
    )
    loaded.append(found)
  return loaded


def _described(key, base, model, params, seconds):
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
  return (
    f"{key}: {model.family}, {spec.count_parameters(model):,} parameters, "
    f"{base.quantize or base.dtype}, {size:,.1f} MB ({seconds:.1f} s)"
  )


def _check_length(config, key, model):
  longest = config["data"]["max_prompt"] + config["data"]["max_response"]
  if model.longest and longest > model.longest:
    raise InputError(
      f"config.{key}: beyond {model.longest} tokens this {model.family} looks "
      "at the longest sequence of a batch, or ends; data.max_prompt + "
      f"data.max_response is {longest}"
    )


def starts_alike(policy, reference):
  """Do both say the same of every pair before the first step?"""
  imported = policy.adapter is not None and ADAPTED in policy.identity
  return (
    reference.identity == policy.identity
    and reference.model.view == policy.model.view
    # Of a new adapter the dropout drops zeros.
    and not (imported and policy.adapter.dropout)
  )


@dataclasses.dataclass(frozen=True)
class Base:
  """Weights without adapters: equal ones are the same arrays in a run."""

  path: str
  new: str  # where there is no path: the key whose `new` describes the model
  dtype: str
  quantize: str
  group: int | None


def base_of(config, key):
  """The Base of the model of that key."""
  section = sections(config)[key]
  described = "policy" if section["path"] == "policy" else key
  path = sections(config)[described]["path"]
  kind = section["quantize"]
  group = section["quantize_group"] if kind == "int4" else None
  new = "" if path else described
  return Base(path, new, section["dtype"], kind, group)


def base_params(config, base, model, mesh=None):
  """The parameters of a Base of that ModelConfig, on the mesh or one device."""
  if base.path:
    _, params = hub.load(base.path, dtype=base.dtype, mesh=mesh)
  else:
    make = functools.partial(spec.init, model, dtype=base.dtype)
    to = None if mesh is None else parallel.param_shardings(model, mesh)
    key = _random_key(config["seed"], base.new)
    params = jax.jit(make, out_shardings=to)(key)
  if not base.quantize:
    return params
  try:
    return leaves.quantize(
      params, spec.table(model), base.quantize, group=base.group
    )
  except ValueError as error:
    raise InputError(
      f"config: quantize={base.quantize!r} of {base.path or base.new}: {error}"
    ) from None


def _identity(config, base):
  mark = f"{base.new} from seed {config['seed']}"
  mark = hub.fingerprint(base.path) if base.path else mark
  kind = f" {base.quantize}" if base.quantize else ""
  return mark + kind + (f" in groups of {base.group}" if base.group else "")


def _model_config(config, base, tokenizers):
  if base.path:
    return hub.read_config(base.path)
  tokenizer = tokenizers.views[tokenizers.view_of[base.new]]
  return _new_config(base.new, sections(config)[base.new]["new"], tokenizer)


def _check_vocabulary(key, tokenizer, model):
  if len(tokenizer) > model.vocab_size:
    raise InputError(
      f"config.{key}: its tokenizer has {len(tokenizer)} tokens, the model "
      f"only {model.vocab_size}"
    )


def _adapted(config, key, model, params, mesh):
  """(Adapter, params with its leaves, what it adds to the identity)."""
  given = sections(config)[key]["adapter"]
  table = spec.table(model)
  if key == "policy" and "rank" in given:
    adapter, mark = leaves.Adapter(**_adapter_fields(given)), ""
    make = functools.partial(
      leaves.init_adapters, _adapter_table(key, table, adapter)
    )
    arrays = make(_random_key(config["seed"], f"{key}.adapter"))
  else:
    folder = given["path"] if key == "policy" else given
    adapter, arrays = adapters.load(folder, table)
    mark = ADAPTED + adapters.fingerprint(folder)
    if key == "policy":
      adapter = dataclasses.replace(adapter, dropout=given["dropout"])
  to = parallel.table_shardings(_adapter_table(key, table, adapter), mesh)
  arrays = jax.device_put(arrays, to)
  return adapter, leaves.attach(params, arrays, adapter), mark


def _adapter_fields(given):
  return {**given, "targets": tuple(given["targets"])}


def _adapter_table(key, table, adapter):
  try:
    return leaves.adapter_table(table, adapter)
  except ValueError as error:
    raise InputError(f"config.{key}.adapter: {error}") from None


def _forward(config, key):
  """Keywords of the forward pass: only the policy has a backward one."""
  policy = config["policy"]
  names = ("kernel", "remat") if key == "policy" else ("kernel",)
  return {name: policy[name] for name in names}


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
  try:
    return spec.ModelConfig(
      **{name: new[name] for name in shape},
      head_dim=new["width"] // new["heads"],
      vocab_size=len(tokenizer),
      tied=True,
      bos_id=tokenizer.bos_token_id,
      eos_id=tokenizer.eos_token_id,
    )
  except ValueError as error:
    raise InputError(f"config.{key}.new: {error}") from None
