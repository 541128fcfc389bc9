# SPDX-License-Identifier: Apache-2.0
"""Architectures of GGUF files: the config.json that each one's keys make.

As llama.cpp's converters write them (conversion/*.py there), and as it computes
what no key says.
"""

import dataclasses
import math
from collections.abc import Callable

from mrpo_jax.errors import InputError
from mrpo_jax.hub.gguf.keys import is_idle
from mrpo_jax.hub.gguf.rope import ORIGINAL, rope_parameters
from mrpo_jax.models.families.family import FULL, SLIDING, UnsupportedModel

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
RMS, LAYER = "layer_norm_rms_epsilon", "layer_norm_epsilon"
EVERY = 6  # layers of Gemma 3: five with a window, one without


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One `general.architecture`: its family, and how its tensors are stored."""

  family: str  # a key of families.FAMILIES
  values: Callable  # Parts -> further values of the config.json
  norm: str = RMS  # key of its epsilon
  partial: bool = False  # may RoPE turn a part of the head?
  shift: float = 0.0  # added to the weights of norms
  paired: bool = False  # rows of q and k: RoPE's pairs side by side
  unlike: str | None = None  # another layout: "transposed" or "by_kind"


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the values of a config.json come from."""

  keys: object  # Keys
  tensors: dict  # name -> StoredTensor
  sizes: dict  # values so far
  rope: dict  # rope_parameters

  def has(self, name):
    """Does the first layer have such a tensor?"""
    return f"blk.0.{name}" in self.tensors


def config_values(keys, tensors, *, tied):
  """The config.json of a file's model, as transformers writes it.

  Args:
    keys: Keys of the file.
    tensors: {name: StoredTensor}.
    tied: is the head the embedding?

  Raises:
    UnsupportedModel: the architecture, or a key of it, is not computed here.
    InputError: a key is missing or makes no sense.
  """
  architecture = architecture_of(keys)
  sizes = _sizes(keys, tensors, architecture)
  dims = keys.own("size", "rope.dimension_count", sizes["head_dim"])
  if dims != sizes["head_dim"] and not architecture.partial:
    raise UnsupportedModel(
      f"{keys.architecture}.rope.dimension_count={dims} of heads of "
      f"{sizes['head_dim']} is not computed here"
    )
  rope = rope_parameters(keys, tensors, dims)
  if architecture.partial:
    rope["partial_rotary_factor"] = _share(dims, sizes["head_dim"])
  values = architecture.values(Parts(keys, tensors, sizes, rope))
  keys.refuse_unread(f"{keys.architecture}.", is_idle)
  values = _with_rope(sizes | {"tie_word_embeddings": tied}, rope) | values
  return {
    "model_type": architecture.family,
    **{key: value for key, value in values.items() if value is not LEFT_OUT},
  }


def architecture_of(keys):
  """The Architecture that a file names."""
  name = keys.architecture
  kind = keys.general("text", "general.type", "model")
  if kind != "model":
    raise UnsupportedModel(
      f"general.type={kind!r}: no whole model; import the file of the model"
    )
  if name not in ARCHITECTURES:
    known = ", ".join(sorted(ARCHITECTURES))
    raise UnsupportedModel(
      f"general.architecture={name!r} is not computed here; known: {known}"
    )
  return ARCHITECTURES[name]


LEFT_OUT = object()  # a value that the family's config.json does not have


def _sizes(keys, tensors, architecture):
  """The values that every family has."""
  if EMBEDDING not in tensors:
    raise InputError(f"the tensor {EMBEDDING} is missing: no whole model")
  rows = tensors[EMBEDDING].shape[0]
  if (said := keys.own("size", "vocab_size", rows)) != rows:
    raise InputError(
      f"{keys.architecture}.vocab_size={said}, but {EMBEDDING} has {rows} rows"
    )
  width = keys.own("size", "embedding_length")
  heads = keys.own("size", "attention.head_count")
  head_dim = width // heads
  if keys.architecture == "llama":  # of Mistral Nemo, in old files
    head_dim = keys.own("size", "rope.dimension_count", head_dim)
  head_dim = keys.own("size", "attention.key_length", head_dim)
  if not head_dim:
    raise InputError(
      f"{keys.architecture}.attention.head_count={heads} of a width of {width}"
    )
  if keys.own("size", "attention.value_length", head_dim) != head_dim:
    raise UnsupportedModel("heads of other lengths for keys and values")
  return {
    "vocab_size": rows,
    "hidden_size": width,
    "intermediate_size": keys.own("size", "feed_forward_length"),
    "num_hidden_layers": keys.own("size", "block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": keys.own("size", "attention.head_count_kv", heads),
    "head_dim": head_dim,
    "max_position_embeddings": keys.own("size", "context_length"),
    "rms_norm_eps": keys.own("number", f"attention.{architecture.norm}"),
    **tokens(keys),
  }


def tokens(keys):
  """{key of a config.json: id} of the first, last and padding tokens."""
  names = dict(bos="bos", eos="eos", pad="padding")
  found = {
    f"{name}_token_id": keys.general(
      "token", f"tokenizer.ggml.{key}_token_id", None
    )
    for name, key in names.items()
  }
  return found


def _share(dims, head_dim):
  """dims / head_dim, so that int(head_dim * share) is dims again."""
  share = dims / head_dim
  return share if int(head_dim * share) == dims else math.nextafter(share, 1)


def _with_rope(values, rope):
  """The values with RoPE in the words of transformers 4 and of 5."""
  scaling = {k: v for k, v in rope.items() if k not in AROUND}
  values |= {key: rope[key] for key in AROUND if key in rope}
  if rope["rope_type"] != "default":
    values["rope_scaling"] = scaling
  return values | {"rope_parameters": rope}


AROUND = ("rope_theta", "partial_rotary_factor")


def _llama(parts):
  return {
    "hidden_act": "silu",
    "attention_bias": parts.has("attn_q.bias"),
    "mlp_bias": parts.has("ffn_up.bias"),
  }


def _granite(parts):
  names = {
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
  }
  numbers = {key: parts.keys.own("number", of) for key, of in names.items()}
  return _llama(parts) | numbers


def _smollm3(parts):
  return _llama(parts) | {
    "no_rope_layer_interval": 4,  # which llama.cpp takes for granted
    "use_sliding_window": False,
  }


def _qwen2(parts):
  return {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(parts):
  return _qwen2(parts) | {"attention_bias": parts.has("attn_q.bias")}


def _olmo2(parts):
  return {"hidden_act": "silu", "attention_bias": parts.has("attn_q.bias")}


def _gemma(parts):
  act = "gelu_pytorch_tanh"
  return {
    "hidden_act": act,
    "hidden_activation": act,
    "attention_bias": parts.has("attn_q.bias"),
  }


def _scalar(parts, layers_of_27b):
  """query_pre_attn_scalar, which llama.cpp tells by the number of layers."""
  sizes = parts.sizes
  if sizes["num_hidden_layers"] == layers_of_27b:
    return sizes["hidden_size"] // sizes["num_attention_heads"]
  return sizes["head_dim"]


def _gemma2(parts):
  keys = parts.keys
  return _gemma(parts) | {
    "query_pre_attn_scalar": _scalar(parts, 46),
    "sliding_window": keys.own("size", "attention.sliding_window", 4096),
    "attn_logit_softcapping": keys.own(
      "number", "attn_logit_softcapping", 50.0
    ),
    "final_logit_softcapping": keys.own(
      "number", "final_logit_softcapping", 30.0
    ),
  }


def _gemma3(parts):
  keys, layers = parts.keys, parts.sizes["num_hidden_layers"]
  every = keys.own("size", "attention.sliding_window_pattern", EVERY)
  local = keys.own("number", "rope.freq_base_swa", 1e4)
  kinds = [FULL if (i + 1) % every == 0 else SLIDING for i in range(layers)]
  return _gemma(parts) | {
    "hidden_act": LEFT_OUT,
    "query_pre_attn_scalar": _scalar(parts, 62),
    "sliding_window": keys.own("size", "attention.sliding_window"),
    "layer_types": kinds,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": keys.own(
      "number", "final_logit_softcapping", None
    ),
    "rope_local_base_freq": local,
    "rope_parameters": {
      FULL: parts.rope,
      SLIDING: {"rope_type": "default", "rope_theta": local},
    },
  }


def _phi3(parts):
  keys, longest = parts.keys, parts.sizes["max_position_embeddings"]
  original = keys.own("size", "rope.scaling.original_context_length", longest)
  # Files before June 2024 do not say it, of models with a window, too.
  window = keys.own("count", "attention.sliding_window")
  return {
    "hidden_act": "silu",
    ORIGINAL: original,
    "sliding_window": window or None,
    "head_dim": LEFT_OUT,
  }


def _layer_norm(parts):
  """Of the families whose config.json calls the epsilon otherwise."""
  return {
    "layer_norm_eps": parts.sizes["rms_norm_eps"],
    "rms_norm_eps": LEFT_OUT,
    "head_dim": LEFT_OUT,
  }


def _stablelm(parts):
  # Converters write it as true of models without it; the norm tells.
  parts.keys.own("flag", "use_parallel_residual", True)
  return _layer_norm(parts) | {
    "hidden_act": "silu",
    "use_parallel_residual": not parts.has("ffn_norm.weight"),
    "use_qkv_bias": parts.has("attn_q.bias"),
    "qk_layernorm": parts.has("attn_q_norm.weight"),
  }


def _gpt_neox(parts):
  parallel = parts.keys.own("flag", "use_parallel_residual", True)
  return _layer_norm(parts) | {
    "hidden_act": "gelu",
    "use_parallel_residual": parallel,
    "attention_bias": parts.has("attn_qkv.bias"),
    "num_key_value_heads": LEFT_OUT,
  }


def _gpt2(parts):
  if parts.rope["rope_type"] != "default":
    raise UnsupportedModel("a RoPE of gpt2, which learns its positions")
  names = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
  }
  left_out = [*names.values(), "num_key_value_heads", "head_dim"]
  left_out += ["rope_theta", "rope_parameters"]
  return {
    **dict.fromkeys(left_out, LEFT_OUT),
    **{key: parts.sizes[of] for key, of in names.items()},
    "activation_function": "gelu_new",
  }


ARCHITECTURES = {  # general.architecture -> Architecture
  "llama": Architecture("llama", _llama, paired=True),
  "granite": Architecture("granite", _granite, paired=True),
  "smollm3": Architecture("smollm3", _smollm3, paired=True),
  "qwen2": Architecture("qwen2", _qwen2),
  "qwen3": Architecture("qwen3", _qwen3),
  "olmo2": Architecture("olmo2", _olmo2),
  "gemma": Architecture("gemma", _gemma, shift=1.0),
  "gemma2": Architecture("gemma2", _gemma2, shift=1.0),
  "gemma3": Architecture("gemma3_text", _gemma3, shift=1.0),
  "phi3": Architecture("phi3", _phi3, partial=True),
  "stablelm": Architecture("stablelm", _stablelm, LAYER, partial=True),
  "gptneox": Architecture(
    "gpt_neox", _gpt_neox, LAYER, partial=True, unlike="by_kind"
  ),
  "gpt2": Architecture("gpt2", _gpt2, LAYER, unlike="transposed"),
}
