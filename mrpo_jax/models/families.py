# SPDX-License-Identifier: Apache-2.0
"""What a config.json of Hugging Face asks for, family by family.

A family is a row of FAMILIES.  What a config asks for and the model does not
compute is refused by name: a wrong number is worse than none.
"""

import dataclasses

from mrpo_jax.errors import InputError
from mrpo_jax.models.spec import ModelConfig


class UnsupportedModel(InputError):
  """Names the architecture or the feature that is not computed here."""


@dataclasses.dataclass(frozen=True)
class Family:
  """How one model_type spells ModelConfig in its config.json."""

  architectures: tuple[str, ...]  # the causal LM, then its bare decoder
  keys: dict  # field of ModelConfig -> key
  defaults: dict  # of transformers' config class; a key without one is required
  only: dict  # key -> values that ask for what we compute, the default first


FAMILIES = {
  "llama": Family(
    architectures=("LlamaForCausalLM", "LlamaModel"),
    keys=dict(
      vocab_size="vocab_size",
      width="hidden_size",
      layers="num_hidden_layers",
      heads="num_attention_heads",
      kv_heads="num_key_value_heads",
      head_dim="head_dim",
      mlp_width="intermediate_size",
      rope_theta="rope_theta",
      norm_epsilon="rms_norm_eps",
      tied="tie_word_embeddings",
      max_positions="max_position_embeddings",
      bos_id="bos_token_id",
      eos_id="eos_token_id",
    ),
    defaults=dict(
      rms_norm_eps=1e-6,
      tie_word_embeddings=False,
      max_position_embeddings=2048,
      bos_token_id=1,
      eos_token_id=2,
      rope_theta=10000.0,
    ),
    only=dict(
      hidden_act=("silu", "swish"),
      attention_bias=(False,),
      mlp_bias=(False,),
      sliding_window=(None,),
    ),
  ),
}
EVERYWHERE = dict(  # like Family.only, for every family
  quantization_config=(None,),
  rope_type=("default",),
  partial_rotary_factor=(None, 1),
  is_causal=(True,),  # null, too, makes transformers look both ways
  is_encoder_decoder=(False,),
)
READERS = {  # type of a field of ModelConfig -> what its value must be
  int: ("a positive integer", lambda v: type(v) is int and v > 0),
  float: (
    "a positive number",
    lambda v: type(v) in (int, float) and 0 < v < 1e38,  # float32 later
  ),
  bool: ("true or false", lambda v: type(v) is bool),
  int | None: (
    "a token id or null",
    lambda v: v is None or (type(v) is int and v >= 0),
  ),
}
TYPES = {field.name: field.type for field in dataclasses.fields(ModelConfig)}


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
  values = _flat(values)
  for key, allowed in {**EVERYWHERE, **family.only}.items():
    if values.get(key, allowed[0]) not in allowed:
      raise UnsupportedModel(
        f"{key}={values[key]!r} is not computed here; want {allowed[0]!r}"
      )
  heads, width = (_read(family, values, field) for field in ("heads", "width"))
  fallbacks = dict(kv_heads=heads, head_dim=width // heads)
  fields = {
    field: _read(family, values, field, fallbacks.get(field))
    for field in family.keys
  }
  # transformers, too, wants whole heads even where head_dim is given.
  for field, divisor in (("width", "heads"), ("heads", "kv_heads")):
    if fields[field] % fields[divisor]:
      raise InputError(
        f"{family.keys[field]}={fields[field]} is not a multiple of "
        f"{family.keys[divisor]}={fields[divisor]}"
      )
  if fields["head_dim"] % 2:
    raise InputError(f"head_dim={fields['head_dim']} is odd; RoPE turns pairs")
  return ModelConfig(**fields, family=name)


def config_to_hf(config, dtype_name):
  """The config.json of a model; transformers 4 and 5 both read it.

  Args:
    config: ModelConfig.
    dtype_name: of the weights, e.g. "bfloat16".

  Returns:
    A dict for json.dump.
  """
  family = FAMILIES[config.family]
  rope = {"rope_type": "default", "rope_theta": config.rope_theta}
  return {
    "architectures": [family.architectures[0]],
    "model_type": config.family,
    **{key: getattr(config, field) for field, key in family.keys.items()},
    **{key: allowed[0] for key, allowed in family.only.items()},
    "rope_parameters": rope,  # transformers 4 reads rope_theta instead
    "torch_dtype": dtype_name,  # and this instead of dtype
    "dtype": dtype_name,
  }


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


def _flat(values):
  """rope_theta and the like at the top, where transformers 4 has them."""
  rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
  if not isinstance(rope, dict):
    raise InputError(f"rope_parameters={rope!r}; want an object or null")
  kind = rope.get("rope_type", rope.get("type", "default"))
  if any(isinstance(value, dict) for value in rope.values()):
    kind = "one for each type of layer"
  return {**values, **rope, "rope_type": kind}


def _read(family, values, field, fallback=None):
  key = family.keys[field]
  value = values.get(key, family.defaults.get(key))
  value = fallback if value is None else value
  kind = TYPES[field]
  if kind == int | None and isinstance(value, list):
    value = value[0] if value else None
  want, fits = READERS[kind]
  if not fits(value):
    problem = f"{key}={value!r}" if key in values else f"{key} is missing"
    raise InputError(f"{problem}; want {want}")
  return float(value) if kind is float else value
