# SPDX-License-Identifier: Apache-2.0
"""What a run reads, from checked settings: pairs, tokenizers, models."""

import dataclasses
import functools
import pathlib
import time

import jax
import jax.numpy as jnp

from mrpo_jax import hub, parallel
from mrpo_jax.data import encode, formats, pack, source, vocabulary
from mrpo_jax.errors import InputError
from mrpo_jax.models import spec
from mrpo_jax.objective import Model


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
  params: dict
  is_start: bool  # the weights that the policy starts from
  identity: str


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


def load_models(config, tokenizers, mesh):
  """[Loaded]: the policy, then the references in their order."""
  loaded = {}
  for key, section in sections(config).items():
    twin = _twin(config, section) if loaded else None
    if twin:
      loaded[key] = _frozen_copy(loaded["policy"], key, section, tokenizers)
      continue
    tokenizer = tokenizers.views[tokenizers.view_of[key]]
    if section["path"]:
      model, params = hub.load(
        section["path"], dtype=section["dtype"], mesh=mesh
      )
      identity = hub.fingerprint(section["path"])
    else:
      model = _new_config(key, section["new"], tokenizer)
      params = _init(config["seed"], key, model, section["dtype"], mesh)
      identity = f"new from seed {config['seed']}"
    if len(tokenizer) > model.vocab_size:
      raise InputError(
        f"config.{key}: its tokenizer has {len(tokenizer)} tokens, the model "
        f"only {model.vocab_size}"
      )
    forward = {"remat": "none", **_forward(config, key)}
    loaded[key] = Loaded(
      Model(model, tokenizers.view_of[key], tuple(forward.items())),
      params,
      key == "policy",
      identity,
    )
  return list(loaded.values())


def _forward(config, key):
  """Keywords of the forward pass: only the policy has a backward one."""
  policy = config["policy"]
  names = ("kernel", "remat") if key == "policy" else ("kernel",)
  return {name: policy[name] for name in names}


def _twin(config, section):
  """Is this reference the policy's start?"""
  path = section["path"]
  return path == "policy" or (path and path == config["policy"]["path"])


def _frozen_copy(policy, key, section, tokenizers):
  # A copy, because the policy's own arrays are donated to the train step.
  params = jax.tree.map(
    lambda array: jnp.array(array, section["dtype"], copy=True), policy.params
  )
  forward = tuple({**dict(policy.model.forward), "remat": "none"}.items())
  model = dataclasses.replace(
    policy.model, view=tokenizers.view_of[key], forward=forward
  )
  return dataclasses.replace(policy, model=model, params=params)


def _init(seed, key, model, dtype, mesh):
  random = jax.random.key(seed)
  for letter in key.encode():  # policy and references start apart
    random = jax.random.fold_in(random, letter)
  make = functools.partial(spec.init, model, dtype=dtype)
  shardings = parallel.param_shardings(model, mesh)
  return jax.jit(make, out_shardings=shardings)(random)


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
