# SPDX-License-Identifier: Apache-2.0
"""What a config.json of Hugging Face asks for, family by family.

A family is a row of FAMILIES.  What a config asks for and the model does not
compute is refused by name: a wrong number is worse than none.
"""

import dataclasses
import json
import math
from collections.abc import Callable

from mrpo_jax.errors import InputError
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.families.rope import by_layer, parameters, read_rope
from mrpo_jax.models.families.values import UnsupportedModel, Values


@dataclasses.dataclass(frozen=True)
class Family:
  """How one model_type spells ModelConfig in its config.json."""

  architectures: tuple[str, ...]  # the causal LM, then its bare decoder
  defaults: dict  # of transformers' config class; a key without one is required
  only: dict  # key -> values that ask for what we compute, the default first
  traits: Callable  # (Values, fields so far) -> further fields
  keys: dict = dataclasses.field(default_factory=dict)  # changes to KEYS
  ropes: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn")


KEYS = dict(  # field of ModelConfig -> key of config.json
  vocab_size="vocab_size",
  width="hidden_size",
  layers="num_hidden_layers",
  heads="num_attention_heads",
  kv_heads="num_key_value_heads",
  head_dim="head_dim",
  mlp_width="intermediate_size",
  norm_epsilon="rms_norm_eps",
  tied="tie_word_embeddings",
  max_positions="max_position_embeddings",
  bos_id="bos_token_id",
  eos_id="eos_token_id",
)
KINDS = {  # of the fields in KEYS that are no sizes
  "norm_epsilon": "number",
  "tied": "flag",
  "bos_id": "token",
  "eos_id": "token",
}


ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "relu": "relu",
}
SLIDING, FULL = "sliding_attention", "full_attention"
EVERYWHERE = dict(  # like Family.only, for every family
  quantization_config=(None,),
  is_causal=(True,),  # null, too, makes transformers look both ways
  is_encoder_decoder=(False,),
  add_cross_attention=(False,),
  use_bidirectional_attention=(None, False),
)
# transformers wants whole heads of these even where head_dim is given.
WHOLE_HEADS = ("llama", "gemma2")


# What a family has beyond sizes: fields of ModelConfig.


def _llama(values, fields):
  bias = values.flag("attention_bias")
  return dict(
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=values.flag("mlp_bias"),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def _mistral(values, fields):
  window = values.optional("size", "sliding_window")
  return dict(
    layer_windows=(window or 0,) * fields["layers"] if window else (),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def _qwen2(values, fields):
  window = None
  if values.flag("use_sliding_window"):
    window = values.optional("size", "sliding_window")
  first = values.read("size", "max_window_layers", 28) if window else 0
  return dict(
    qkv_bias=True,
    layer_windows=_windows(values, fields, window, lambda i: i >= first),
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def _qwen3(values, fields):
  bias = values.flag("attention_bias")
  return _qwen2(values, fields) | dict(
    qkv_bias=bias, out_bias=bias, qk_norm="head"
  )


def _gemma(values, fields):
  bias = values.flag("attention_bias")
  act = values.choice("hidden_act", {**ACTIVATIONS, "gelu": "gelu_tanh"})
  return dict(
    qkv_bias=bias,
    out_bias=bias,
    activation=act,
    norm_shift=1.0,
    embedding_scale=math.sqrt(fields["width"]),
  )


def _gemma2(values, fields):
  bias = values.flag("attention_bias")
  return dict(
    qkv_bias=bias,
    out_bias=bias,
    activation=values.choice("hidden_activation", ACTIVATIONS),
    norm_shift=1.0,
    norms="both",
    embedding_scale=math.sqrt(fields["width"]),
    attention_scale=values.number("query_pre_attn_scalar") ** -0.5,
    attention_softcap=values.optional("number", "attn_logit_softcapping"),
    logits_softcap=values.optional("number", "final_logit_softcapping"),
    layer_windows=_windows(
      values,
      fields,
      values.optional("size", "sliding_window"),
      lambda i: i % 2 == 0,
    ),
  )


def _gemma3(values, fields):
  pattern = values.read("size", "sliding_window_pattern", 6)
  window = values.optional("size", "sliding_window")
  kinds = _layer_kinds(
    values, fields, lambda i: (i + 1) % pattern != 0 and window is not None
  )
  fields = _gemma2(values, fields) | dict(
    qk_norm="head",
    layer_windows=tuple(window if k == SLIDING else 0 for k in kinds),
    layer_ropes=tuple(int(k == SLIDING) for k in kinds),
  )
  return fields


def _phi3(values, fields):
  return _mistral(values, fields)


def _olmo2(values, fields):
  bias = values.flag("attention_bias")
  return dict(
    qkv_bias=bias,
    out_bias=bias,
    norms="after",
    qk_norm="all",
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def _smollm3(values, fields):
  layers = fields["layers"]
  interval = values.read("size", "no_rope_layer_interval", 4)
  turns = values.get("no_rope_layers")  # 1 where there is a rope
  if turns is None:
    turns = [int((i + 1) % interval != 0) for i in range(layers)]
  if not isinstance(turns, list) or len(turns) != layers:
    raise InputError(f"no_rope_layers={turns!r}; want {layers} of 0 and 1")
  window = None
  if values.flag("use_sliding_window"):
    window = values.optional("size", "sliding_window")
  return _llama(values, fields) | dict(
    layer_ropes=tuple(int(not turn) for turn in turns),
    layer_windows=_windows(values, fields, window, lambda i: not turns[i]),
  )


def _granite(values, fields):
  return _llama(values, fields) | dict(
    embedding_scale=values.number("embedding_multiplier"),
    attention_scale=values.number("attention_multiplier"),
    residual_scale=values.number("residual_multiplier"),
    logits_scale=1.0 / values.number("logits_scaling"),
  )


def _stablelm(values, fields):
  return dict(
    norm="layer",
    qkv_bias=values.flag("use_qkv_bias"),
    parallel="one" if values.flag("use_parallel_residual") else None,
    qk_norm="heads" if values.flag("qk_layernorm") else None,
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def _gpt_neox(values, fields):
  bias = values.flag("attention_bias")
  return dict(
    norm="layer",
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=True,
    gated=False,
    parallel="two" if values.flag("use_parallel_residual") else None,
    activation=values.choice("hidden_act", ACTIVATIONS),
  )


def _gpt2(values, fields):
  return dict(
    norm="layer",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    gated=False,
    learned_positions=True,
    ropes=(None,),
    activation=values.choice("activation_function", ACTIVATIONS),
  )


def _layer_kinds(values, fields, is_sliding):
  """SLIDING or FULL for each layer, as given or by the family's rule."""
  kinds, layers = values.get("layer_types"), fields["layers"]
  if kinds is None:
    return [SLIDING if is_sliding(i) else FULL for i in range(layers)]
  if not isinstance(kinds, list) or len(kinds) != layers:
    raise InputError(f"layer_types={kinds!r}; want one for each of {layers}")
  for kind in kinds:
    if kind not in (SLIDING, FULL):
      raise UnsupportedModel(f"layer_types: {kind!r} is not computed here")
  return kinds


def _windows(values, fields, window, is_sliding):
  """Tokens that each layer sees, 0 for all; empty where none is limited."""
  kinds = _layer_kinds(
    values, fields, lambda i: window is not None and is_sliding(i)
  )
  if SLIDING not in kinds:
    return ()
  if window is None:
    raise InputError("layer_types asks for windows, but there is no window")
  return tuple(window if kind == SLIDING else 0 for kind in kinds)


# The families.

LLAMA = dict(
  hidden_act="silu",
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
  max_position_embeddings=2048,
  bos_token_id=1,
  eos_token_id=2,
  rope_theta=10000.0,
  attention_bias=False,
  mlp_bias=False,
)
NO_IDS = dict(bos_token_id=None, eos_token_id=None)
GEMMA = LLAMA | dict(
  hidden_act="gelu_pytorch_tanh",
  hidden_activation="gelu_pytorch_tanh",
  tie_word_embeddings=True,
  head_dim=256,
  num_key_value_heads=16,
  max_position_embeddings=8192,
  bos_token_id=2,
  eos_token_id=1,
)
GEMMA2 = GEMMA | dict(
  num_key_value_heads=4,
  query_pre_attn_scalar=256,
  sliding_window=4096,
  attn_logit_softcapping=50.0,
  final_logit_softcapping=30.0,
)
QWEN2 = (
  LLAMA
  | NO_IDS
  | dict(
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
  )
)
LAYER_NORM = LLAMA | dict(layer_norm_eps=1e-5, partial_rotary_factor=0.25)


def _named(name, *others):
  return (f"{name}ForCausalLM", f"{name}Model", *others)


FAMILIES = {
  "llama": Family(_named("Llama"), LLAMA, dict(sliding_window=(None,)), _llama),
  "mistral": Family(
    _named("Mistral"),
    LLAMA
    | dict(
      num_key_value_heads=8,
      sliding_window=4096,
      max_position_embeddings=131072,
    ),
    {},
    _mistral,
  ),
  "qwen2": Family(_named("Qwen2"), QWEN2, {}, _qwen2),
  "qwen3": Family(_named("Qwen3"), QWEN2 | dict(head_dim=128), {}, _qwen3),
  "gemma": Family(_named("Gemma"), GEMMA, {}, _gemma),
  "gemma2": Family(_named("Gemma2"), GEMMA2, {}, _gemma2),
  "gemma3_text": Family(
    ("Gemma3ForCausalLM", "Gemma3TextModel"),
    GEMMA2
    | dict(
      max_position_embeddings=131072,
      attn_logit_softcapping=None,
      final_logit_softcapping=None,
      rope_theta=1e6,
      rope_local_base_freq=1e4,
    ),
    dict(attn_logit_softcapping=(None,)),  # stored and never computed with
    _gemma3,
  ),
  "phi3": Family(
    _named("Phi3"),
    LLAMA
    | dict(
      max_position_embeddings=4096,
      original_max_position_embeddings=4096,
      rms_norm_eps=1e-5,
      eos_token_id=32000,
      partial_rotary_factor=1.0,
    ),
    {},
    _phi3,
    ropes=("default", "longrope"),
  ),
  "olmo2": Family(
    _named("Olmo2"),
    LLAMA | dict(rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=50279),
    {},
    _olmo2,
  ),
  "smollm3": Family(
    _named("SmolLM3"),
    LLAMA
    | dict(
      num_key_value_heads=4,
      max_position_embeddings=32768,
      bos_token_id=128000,
      eos_token_id=128001,
      tie_word_embeddings=True,
      use_sliding_window=False,
      rope_theta=2e6,
    ),
    {},
    _smollm3,
  ),
  "granite": Family(
    _named("Granite"),
    LLAMA
    | dict(
      embedding_multiplier=1.0,
      attention_multiplier=1.0,
      residual_multiplier=1.0,
      logits_scaling=1.0,
    ),
    {},
    _granite,
  ),
  "stablelm": Family(
    _named("StableLm"),
    LAYER_NORM
    | dict(
      num_key_value_heads=32,
      max_position_embeddings=4096,
      bos_token_id=0,
      eos_token_id=0,
      use_qkv_bias=False,
      qk_layernorm=False,
      use_parallel_residual=False,
    ),
    dict(head_dim=(None,)),
    _stablelm,
    keys=dict(norm_epsilon="layer_norm_eps"),
  ),
  "gpt_neox": Family(
    _named("GPTNeoX"),
    LAYER_NORM
    | dict(
      hidden_act="gelu",
      bos_token_id=0,
      attention_bias=True,
      use_parallel_residual=True,
    ),
    dict(head_dim=(None,), num_key_value_heads=(None,)),
    _gpt_neox,
    keys=dict(norm_epsilon="layer_norm_eps"),
  ),
  "gpt2": Family(
    ("GPT2LMHeadModel", "GPT2Model"),
    dict(
      n_positions=1024,
      activation_function="gelu_new",
      layer_norm_epsilon=1e-5,
      bos_token_id=50256,
      eos_token_id=50256,
      tie_word_embeddings=True,
    ),
    dict(
      scale_attn_weights=(True,),
      scale_attn_by_inverse_layer_idx=(False,),
      head_dim=(None,),
      num_key_value_heads=(None,),
    ),
    _gpt2,
    keys=dict(
      width="n_embd",
      layers="n_layer",
      heads="n_head",
      mlp_width="n_inner",
      max_positions="n_positions",
      norm_epsilon="layer_norm_epsilon",
    ),
    ropes=(),
  ),
}


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
  heads, width = (given.read("size", keys[f]) for f in ("heads", "width"))
  fallbacks = dict(kv_heads=heads, head_dim=width // heads)
  if name == "gpt2":
    fallbacks["mlp_width"] = 4 * width
  fields = {
    field: given.read(KINDS.get(field, "size"), key, fallbacks.get(field))
    for field, key in keys.items()
  }
  split = [("heads", "kv_heads")]
  if given.get("head_dim") is None or name in WHOLE_HEADS:
    split.append(("width", "heads"))
  for field, divisor in split:
    if fields[field] % fields[divisor]:
      raise InputError(
        f"{keys[field]}={fields[field]} is not a multiple of "
        f"{keys[divisor]}={fields[divisor]}"
      )
  if family.ropes:
    fields["ropes"] = _ropes(name, family, given, fields)
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


def _ropes(name, family, given, fields):
  """One for each kind of layer: full ones first, then Gemma 3's sliding."""

  def read(parameters):
    return read_rope(given, fields, parameters, family.ropes)

  if name == "gemma3_text":
    full, local = by_layer(given, FULL, SLIDING)
    theta = given.number("rope_local_base_freq")
    return read(full), read({"rope_theta": theta, **local})
  rope = read(parameters(given))
  return (rope, None) if name == "smollm3" else (rope,)
