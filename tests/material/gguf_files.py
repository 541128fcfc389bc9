# SPDX-License-Identifier: Apache-2.0
"""Small GGUF files as llama.cpp's converters write them, of random models."""

import json
import tempfile

import gguf
import jax
import numpy as np
import safetensors.numpy
from tokenizers import pre_tokenizers

from mrpo_jax import hub
from mrpo_jax.models import parameters
from mrpo_jax.models.families.read import config_from_hf

VOCABULARY = 300
TINY = dict(
  vocab_size=VOCABULARY,
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
  rope_theta=500000.0,
  tie_word_embeddings=False,
  bos_token_id=1,
  eos_token_id=2,
)
GEMMA = TINY | dict(head_dim=16, tie_word_embeddings=True)
LONG = dict(
  type="longrope",
  short_factor=[1.0, 1.25],
  long_factor=[2.0, 4.5],
  attention_factor=1.25,
)
OTHERS = dict(  # in place of those of TINY
  hidden_size="n_embd",
  intermediate_size="n_inner",
  num_hidden_layers="n_layer",
  num_attention_heads="n_head",
  max_position_embeddings="n_positions",
  rms_norm_eps="layer_norm_epsilon",
)
GPT2 = {OTHERS.get(k, k): v for k, v in TINY.items()}
del GPT2["num_key_value_heads"], GPT2["rope_theta"]
LAYER = {k: v for k, v in TINY.items() if k != "rms_norm_eps"}
LAYER["layer_norm_eps"] = 1e-5
MODELS = {  # name -> (architecture of the file, config.json)
  "llama": ("llama", TINY),
  "llama_biases": ("llama", TINY | dict(attention_bias=True, mlp_bias=True)),
  "llama_tied": ("llama", TINY | dict(tie_word_embeddings=True, head_dim=16)),
  "llama_linear": (
    "llama",
    TINY | dict(rope_scaling=dict(type="linear", factor=2.5)),
  ),
  "llama_yarn": (
    "llama",
    TINY
    | dict(
      rope_scaling=dict(
        type="yarn", factor=4.0, original_max_position_embeddings=16
      )
    ),
  ),
  "llama3": (
    "llama",
    TINY
    | dict(
      head_dim=32,
      rope_scaling=dict(
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
      ),
    ),
  ),
  "granite": (
    "granite",
    TINY
    | dict(
      embedding_multiplier=6.0,
      attention_multiplier=0.25,
      residual_multiplier=0.5,
      logits_scaling=4.0,
    ),
  ),
  "smollm3": ("smollm3", TINY | dict(num_hidden_layers=4)),
  "qwen2": ("qwen2", TINY),
  "qwen3": ("qwen3", TINY | dict(head_dim=16)),
  "olmo2": ("olmo2", TINY),
  "gemma": ("gemma", GEMMA),
  "gemma2": (
    "gemma2",
    GEMMA
    | dict(
      query_pre_attn_scalar=16,
      sliding_window=5,
      attn_logit_softcapping=50.0,
      final_logit_softcapping=30.0,
    ),
  ),
  "gemma3_text": (
    "gemma3",
    GEMMA
    | dict(num_hidden_layers=7, query_pre_attn_scalar=16, sliding_window=5),
  ),
  "gemma3_linear": (
    "gemma3",
    GEMMA
    | dict(
      num_hidden_layers=6,
      query_pre_attn_scalar=16,
      sliding_window=5,
      rope_theta=1e6,
      rope_scaling=dict(type="linear", factor=8.0),
    ),
  ),
  "phi3": ("phi3", TINY | dict(sliding_window=None)),
  "phi3_long": (
    "phi3",
    TINY
    | dict(
      sliding_window=7,
      partial_rotary_factor=0.5,
      original_max_position_embeddings=48,
      rope_scaling=LONG,
    ),
  ),
  "stablelm": ("stablelm", LAYER | dict(use_qkv_bias=True)),
  "stablelm_parallel": (
    "stablelm",
    LAYER
    | dict(
      qk_layernorm=True, use_parallel_residual=True, partial_rotary_factor=0.5
    ),
  ),
  "gpt_neox": (
    "gptneox",
    {k: v for k, v in LAYER.items() if k != "num_key_value_heads"},
  ),
  "gpt2": ("gpt2", GPT2),
  "gpt2_tied": ("gpt2", GPT2 | dict(tie_word_embeddings=True)),
}
FAMILIES = {"gemma3": "gemma3_text", "gptneox": "gpt_neox"}


def values_of(name):
  """(architecture, config.json) of one of MODELS."""
  architecture, values = MODELS[name]
  family = FAMILIES.get(architecture, architecture)
  return architecture, {"model_type": family, **values}


def random_model(values, seed=0):
  """(config, params) in float32, every weight a multiple of 1/256.

  So that adding 1 to the weights of norms, and taking it off, rounds nothing.
  """
  config = config_from_hf(values)
  rng = np.random.default_rng(seed)

  def weight(spec):
    scale = 0.5 if spec.scale is None else 6 * spec.scale
    numbers = spec.start * (spec.scale is None) + scale * rng.uniform(
      -1, 1, spec.shape
    )
    return (np.round(numbers * 256) / 256 + 0.0).astype(np.float32)  # no -0

  return config, parameters.map_specs(weight, parameters.table(config))


def stored_tensors(config, params):
  """{name: array} of a model, as a Hugging Face folder has them."""
  with tempfile.TemporaryDirectory() as folder:
    hub.save(folder, config, jax.tree.map(np.asarray, params))
    return safetensors.numpy.load_file(f"{folder}/model.safetensors")


def as_llama_cpp(architecture, values, tensors):
  """{name: array} as llama.cpp's converters write them."""
  heads = values.get("num_attention_heads") or values["n_head"]
  groups = values.get("num_key_value_heads") or heads
  layers = values.get("num_hidden_layers") or values["n_layer"]
  kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
  names = gguf.get_tensor_name_map(kinds[architecture], layers)
  found, stacks = {}, {}
  for name, array in tensors.items():
    module, _, kind = name.rpartition(".")
    if ".norms." in module:  # one for each head: stacked
      module, _, head = module.partition(".norms.")
      stacks.setdefault(f"{names.get_name(module)}.{kind}", {})[int(head)] = (
        array
      )
      continue
    if architecture in ("llama", "granite", "smollm3"):
      if module.endswith(".q_proj"):
        array = permute(array, heads)
      if module.endswith(".k_proj"):
        array = permute(array, groups)
    if architecture.startswith("gemma") and module.endswith("norm"):
      array = array + 1
    if module.endswith("query_key_value"):
      split = array.reshape(heads, 3, -1, *array.shape[1:])
      array = np.concatenate([split[:, i] for i in range(3)])
      array = array.reshape(-1, *array.shape[2:])
    if architecture == "gpt2" and module.split(".")[-1].startswith("c_"):
      array = array.T
    found[f"{names.get_name(module)}.{kind}"] = array
  for name, rows in stacks.items():
    found[name] = np.stack([rows[i] for i in range(len(rows))])
  return found | rope_tensors(values)


def permute(weights, heads):
  """As convert_hf_to_gguf.py permutes q and k of a Llama."""
  halves = weights.reshape(heads, 2, -1, *weights.shape[1:])
  return halves.swapaxes(1, 2).reshape(weights.shape)


def rope_tensors(values):
  """Tensors that stand for a RoPE's settings."""
  scaling = values.get("rope_scaling") or {}
  if "short_factor" in scaling:
    return {
      f"rope_factors_{kind}.weight": np.float32(scaling[f"{kind}_factor"])
      for kind in ("short", "long")
    }
  if scaling.get("rope_type") != "llama3":
    return {}
  quotients, dims = [], values["head_dim"]
  for i in range(0, dims, 2):  # as convert_hf_to_gguf.py does
    wave = 2 * np.pi * values["rope_theta"] ** (i / dims)
    low, high = 8192 / 1.0, 8192 / 4.0
    smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    far = scaling["factor"] if wave > low else between
    quotients.append(1.0 if wave < high else far)
  return {"rope_freqs.weight": np.float32(quotients)}


def keys_of(architecture, values):
  """{key without the architecture: value} as llama.cpp's converters write."""
  of = {k: values[v] for k, v in OTHERS.items() if v in values} | values
  heads, width = of["num_attention_heads"], of["hidden_size"]
  head_dim = of.get("head_dim", width // heads)
  epsilon = of.get("rms_norm_eps", of.get("layer_norm_eps"))
  layer = architecture in ("stablelm", "gptneox", "gpt2")
  keys = {
    "context_length": of["max_position_embeddings"],
    "embedding_length": width,
    "feed_forward_length": of["intermediate_size"],
    "block_count": of["num_hidden_layers"],
    "attention.head_count": heads,
    f"attention.layer_norm{'' if layer else '_rms'}_epsilon": epsilon,
  }
  if "num_key_value_heads" in of:
    keys["attention.head_count_kv"] = of["num_key_value_heads"]
  if "head_dim" in of:
    keys["attention.key_length"] = keys["attention.value_length"] = head_dim
  if "rope_theta" in of:
    keys["rope.freq_base"] = of["rope_theta"]
  return keys | _own(architecture, of, head_dim) | _scaling(of)


def _own(architecture, of, head_dim):
  share = of.get(
    "partial_rotary_factor",
    0.25 if architecture in ("stablelm", "gptneox") else 1.0,
  )
  names = {
    "granite": dict(
      embedding_scale="embedding_multiplier",
      residual_scale="residual_multiplier",
      logit_scale="logits_scaling",
    ),
    "gemma2": dict(
      attn_logit_softcapping="attn_logit_softcapping",
      final_logit_softcapping="final_logit_softcapping",
    ),
  }.get(architecture, {})
  keys = {key: of[name] for key, name in names.items()}
  if architecture == "granite":
    keys["attention.scale"] = of["attention_multiplier"]
  if architecture in ("llama", "phi3", "stablelm", "gptneox"):
    keys["rope.dimension_count"] = int(share * head_dim)
  if architecture in ("stablelm", "gptneox"):
    keys["use_parallel_residual"] = of.get("use_parallel_residual", True)
  if architecture in ("gemma2", "gemma3", "phi3"):
    keys["attention.sliding_window"] = of["sliding_window"] or 0
  if architecture == "phi3":
    keys["rope.scaling.original_context_length"] = of.get(
      "original_max_position_embeddings", of["max_position_embeddings"]
    )
  return keys


def _scaling(of):
  scaling = of.get("rope_scaling") or {}
  kind = scaling.get("type")
  if kind == "longrope":
    return {"rope.scaling.attn_factor": scaling["attention_factor"]}
  if kind is None:
    return {}
  keys = {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
  if kind == "yarn":
    keys["rope.scaling.original_context_length"] = scaling[
      "original_max_position_embeddings"
    ]
  return keys


# Tokenizers.


def byte_level(pre="gpt-2"):
  """Keys of a tokenizer of kind "gpt2": 256 bytes, merges, added tokens."""
  bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "l o", "1 2", "Ġ 1"]
  words = [merge.replace(" ", "") for merge in merges]
  control = ["<unk>", "<s>", "</s>", "<|im_end|>", "<｜end▁of▁turn｜>"]
  tokens = [*control, "<think>", *bytes_, *words]
  types = [3] * len(control) + [4] + [1] * (len(bytes_) + len(words))
  return {
    "model": "gpt2",
    "pre": pre,
    "tokens": tokens,
    "token_type": types,
    "merges": merges,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "eot_token_id": 3,
    "unknown_token_id": 0,
    "add_bos_token": False,
  }


def sentencepiece(gemma=False):
  """Keys of a tokenizer of kind "llama": pieces with scores, and bytes."""
  pieces = ["▁", "t", "h", "e", "l", "o", "w", "▁t", "he", "▁the", "lo", "low"]
  pieces += ["▁lo", "▁low", "!"] + (["  ", "   "] if gemma else ["▁▁"])
  bytes_ = [f"<0x{i:02X}>" for i in range(256)]
  tokens = ["<unk>", "<s>", "</s>", "<turn>", *bytes_, "<b>", *pieces]
  types = [2, 3, 3, 3] + [6] * 256 + [4]
  types += [4 if not piece.strip(" ") else 1 for piece in pieces]
  # The later a piece, the worse; letters come last.
  scores = [0.0] * 261
  scores += [-float(i) - 100 * (len(p) == 1) for i, p in enumerate(pieces)]
  keys = {
    "model": "llama",
    "pre": "default",
    "tokens": tokens,
    "scores": scores,
    "token_type": types,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "padding_token_id": 0,
    "add_bos_token": True,
  }
  return keys | ({"add_space_prefix": False} if gemma else {})


# Files.


def write(path, architecture, keys, tensors, tokenizer=None, **general):
  """A GGUF file.

  Args:
    path: of the file.
    architecture: its general.architecture.
    keys: {key of that: value}.
    tensors: {name: array, or (uint8 array, kind) of a quantised one}.
    tokenizer: {key of tokenizer.ggml: value}.
    general: whole keys, "__" for a dot.
  """
  writer = gguf.GGUFWriter(path, architecture)
  whole = {f"{architecture}.{key}": value for key, value in keys.items()}
  for key, value in (tokenizer or byte_level()).items():
    whole[f"tokenizer.ggml.{key}"] = value
  whole |= {key.replace("__", "."): value for key, value in general.items()}
  adds = {
    bool: writer.add_bool,
    int: writer.add_uint32,
    float: writer.add_float32,
    str: writer.add_string,
    list: writer.add_array,
  }
  for key, value in whole.items():
    adds[type(value)](key, value)
  for name, tensor in tensors.items():
    array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
    writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def write_model(path, name="llama", *, quantise=None, **others):
  """(config, params) of one of MODELS, written as a GGUF file.

  `quantise` maps a name and an array to what `write` takes in its place.
  """
  architecture, values = values_of(name)
  config, params = random_model(values)
  tensors = as_llama_cpp(architecture, values, stored_tensors(config, params))
  if quantise:
    tensors = {name: quantise(name, array) for name, array in tensors.items()}
  keys = keys_of(architecture, values) | others.pop("keys", {})
  write(path, architecture, keys, tensors | others.pop("tensors", {}), **others)
  return config, params


def read_json(folder, name):
  return json.loads((folder / name).read_text(encoding="utf-8"))
