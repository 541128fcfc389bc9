# SPDX-License-Identifier: Apache-2.0
"""config.json -> ModelConfig and back, for every family.

What a config asks for and the model does not compute is refused by name: a
wrong number is worse than none.
"""

import dataclasses
import json

from mrpo_jax.errors import InputError
from mrpo_jax.models.config import VALUED, ModelConfig
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.family import (
  KEYS,
  KINDS,
  UnsupportedModel,
  Values,
)
from mrpo_jax.models.families.rope import read_rope, rope_parameters

EVERYWHERE = dict(  # like Family.only, for every family
  quantization_config=(None,),
  is_causal=(True,),  # null, too, makes transformers look both ways
  is_encoder_decoder=(False,),
  add_cross_attention=(False,),
  use_bidirectional_attention=(None, False),
)


def config_from_hf(values):
  """The ModelConfig that a config.json asks for.

  Args:
    values: the object in config.json, as transformers 4 or 5 writes it.

  Returns:
    ModelConfig.  Of several end tokens, eos_id is the first.

  Raises:
    UnsupportedModel: it asks for something that is not computed here.
    InputError: a key is missing or makes no sense.
  """
  if not isinstance(values, dict):
    raise InputError(f"want a JSON object, got {type(values).__name__}")
  name, family = _family(values)
  keys = {**KEYS, **family.keys}
  for key, allowed in {**EVERYWHERE, **family.only}.items():
    if values.get(key, allowed[0]) not in allowed:
      raise UnsupportedModel(
        f"{key}={values[key]!r} is not computed here; want {allowed[0]!r}"
      )
  given = Values(_renamed(family, values), family.defaults)
  fields = _sizes(family, keys, given)
  if family.ropes:
    rope = read_rope(given, fields, rope_parameters(given), family.ropes)
    fields["ropes"] = (rope,)
  fields |= family.traits(given, fields)
  head = _head(family, values)
  try:
    return ModelConfig(
      **fields, family=name, head=head, source=json.dumps(values)
    )
  except ValueError as error:
    raise InputError(str(error)) from None


def with_scalar_head(config):
  """The ModelConfig of the same decoder with a scalar head: a reward model.

  As transformers has it: a sequence classifier of one label.
  """
  if config.head == "scalar":
    return config
  values = json.loads(config.source or "null")
  if values:
    labels = ("num_labels", "id2label", "label2id")
    values = {k: one for k, one in values.items() if k not in labels}
    values |= _as_classifier(FAMILIES[config.family])
  source = json.dumps(values) if values else ""
  return dataclasses.replace(config, head="scalar", source=source)


def with_value_head(config):
  """The ModelConfig of the same language model with a value head beside it.

  Raises:
    InputError: it is a reward model, which says nothing.
  """
  if config.head == "scalar":
    raise InputError("a reward model says nothing whose value could be learnt")
  return dataclasses.replace(config, head=VALUED)


def _as_classifier(family):
  """Keys of a config.json that say it has a scalar head."""
  return {
    "architectures": [family.classifier],
    "num_labels": 1,
    "id2label": {"0": "reward"},
    "label2id": {"reward": 0},
  }


def _head(family, values):
  """The kind of head that a config.json asks for."""
  if family.classifier not in (values.get("architectures") or []):
    return "tokens"
  # Without either transformers makes two labels.
  labels = values.get("id2label")
  count = len(labels) if isinstance(labels, dict) else 2
  count = values.get("num_labels", count)
  if count != 1:
    raise UnsupportedModel(
      f"{family.classifier} of {count!r} labels is not computed here; a reward "
      "model has one"
    )
  return "scalar"


def config_to_hf(config, dtype_name):
  """The config.json of a model; transformers 4 and 5 both read it.

  Args:
    config: ModelConfig: one that `config_from_hf` made keeps what it was made
      from; another is written as a Llama, or with experts as a Mixtral.
    dtype_name: of the weights, e.g. "bfloat16".

  Returns:
    A dict for json.dump.

  Raises:
    UnsupportedModel: the config is made by hand and neither, or has a value
      head, which no config.json knows.
  """
  if config.head == VALUED:
    raise UnsupportedModel(
      "a value head has no place in a model folder; save what "
      "`parameters.language_model` gives, without it"
    )
  dtype = {"torch_dtype": dtype_name, "dtype": dtype_name}  # transformers 4, 5
  values = json.loads(config.source or "null")
  if values and config_from_hf(values) == config:
    values.pop("auto_map", None)  # names code, which we neither run nor pass on
    family = FAMILIES[config.family]
    if config.head == "tokens":
      values["architectures"] = [family.architectures[0]]
    named = _renamed(family, values)
    old = {old: named[key] for key, old in family.before.items()}
    return {**values, **old, **dtype}
  (rope,) = config.ropes if len(config.ropes) == 1 else (None,)
  name = "mixtral" if config.experts else "llama"
  family = FAMILIES[name]
  keys = {**KEYS, **family.keys}
  values = {
    "architectures": [family.architectures[0]],
    **(_as_classifier(family) if config.head == "scalar" else {}),
    "model_type": name,
    **{key: getattr(config, field) for field, key in keys.items()},
    "hidden_act": config.activation,
    "attention_bias": config.out_bias,
    "mlp_bias": config.mlp_bias,
    "rope_theta": rope and rope.theta,  # read by transformers 4
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": rope and rope.theta,
    },
    **dtype,
  }
  if rope is None or config_from_hf(values) != config:
    raise UnsupportedModel(
      "a config made by hand can be saved as a Llama or a Mixtral only"
    )
  return values


def _family(values):
  name = values.get("model_type")
  if not isinstance(name, str):
    raise InputError(f"model_type={name!r}; want a string")
  if name not in FAMILIES:
    known = ", ".join(sorted(FAMILIES))
    raise UnsupportedModel(
      f"model_type {name!r} is not supported; supported: {known}"
    )
  family = FAMILIES[name]
  asked = values.get("architectures") or []
  for architecture in asked if isinstance(asked, list) else [asked]:
    if architecture not in (*family.architectures, family.classifier):
      raise UnsupportedModel(
        f"architecture {architecture!r} is not supported; of {name} only "
        f"{family.architectures[0]} and {family.classifier} are"
      )
  return name, family


def _renamed(family, values):
  """The values with those of names of transformers 4 under their new ones."""
  for key, old in family.before.items():
    if old in values:
      if values.get(key, values[old]) != values[old]:
        raise InputError(
          f"{key}={values[key]!r}, but {old}={values[old]!r}; want one of them"
        )
      values = {**values, key: values[old]}
  return values


def _sizes(family, keys, given):
  """The fields of ModelConfig that `keys` names, fitting each other."""
  heads, width = (given.read("size", keys[f]) for f in ("heads", "width"))
  fallbacks = dict(kv_heads=heads, head_dim=width // heads)
  if family.mlp_factor:
    fallbacks["mlp_width"] = family.mlp_factor * width
  fields = {
    field: given.read(KINDS.get(field, "size"), key, fallbacks.get(field))
    for field, key in keys.items()
  }
  multiples = [("heads", "kv_heads")]
  if given.get("head_dim") is None or family.whole_heads:
    multiples.append(("width", "heads"))
  for field, divisor in multiples:
    if fields[field] % fields[divisor]:
      raise InputError(
        f"{keys[field]}={fields[field]} is not a multiple of "
        f"{keys[divisor]}={fields[divisor]}"
      )
  return fields
