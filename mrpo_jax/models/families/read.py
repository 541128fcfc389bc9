# SPDX-License-Identifier: Apache-2.0
"""config.json -> ModelConfig and back, for every family.

What a config asks for and the model does not compute is refused by name: a
wrong number is worse than none.
"""

import json

from mrpo_jax.errors import InputError
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.family import (
  KEYS,
  KINDS,
  UnsupportedModel,
  Values,
)
from mrpo_jax.models.families.rope import parameters, read_rope

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
  given = Values(values, family.defaults)
  fields = _sizes(family, keys, given)
  if family.ropes:
    rope = read_rope(given, fields, parameters(given), family.ropes)
    fields["ropes"] = (rope,)
  fields |= family.traits(given, fields)
  try:
    return ModelConfig(**fields, family=name, source=json.dumps(values))
  except ValueError as error:
    raise InputError(str(error)) from None


def config_to_hf(config, dtype_name):
  """The config.json of a model; transformers 4 and 5 both read it.

  Args:
    config: ModelConfig: one that `config_from_hf` made keeps what it was made
      from; another is written as a Llama.
    dtype_name: of the weights, e.g. "bfloat16".

  Returns:
    A dict for json.dump.

  Raises:
    UnsupportedModel: the config is made by hand and no Llama.
  """
  dtype = {"torch_dtype": dtype_name, "dtype": dtype_name}  # transformers 4, 5
  values = json.loads(config.source or "null")
  if values and config_from_hf(values) == config:
    values.pop("auto_map", None)  # names code, which we neither run nor pass on
    architectures = [FAMILIES[config.family].architectures[0]]
    return {**values, "architectures": architectures, **dtype}
  (rope,) = config.ropes if len(config.ropes) == 1 else (None,)
  values = {
    "architectures": [FAMILIES["llama"].architectures[0]],
    "model_type": "llama",
    **{key: getattr(config, field) for field, key in KEYS.items()},
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
    raise UnsupportedModel("a config made by hand can be saved as a Llama only")
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
    if architecture not in family.architectures:
      raise UnsupportedModel(
        f"architecture {architecture!r} is not supported; of {name} only "
        f"{family.architectures[0]} is"
      )
  return name, family


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
