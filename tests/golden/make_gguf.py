# SPDX-License-Identifier: Apache-2.0
"""Makes small GGUF files, and what transformers and torch make of them.

    pip install torch transformers gguf numpy
    python tests/golden/make_gguf.py     # writes gguf_* and gguf.json

Random weights in several kinds of blocks, with tokenizers of both kinds.
gguf.json holds the SHA-256 of every tensor that transformers converts, as
float32, its token ids, its config and the versions; gguf_*.npz tokens and the
float32 logits of torch.
"""

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import platform

import gguf
import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

HERE = pathlib.Path(__file__).parent
KINDS = gguf.GGMLQuantizationType
LAYERS, WIDTH, INNER, HEADS, GROUPS, DIMS = 2, 32, 256, 4, 2, 16
SIZES = {
  "block_count": LAYERS,
  "context_length": 64,
  "embedding_length": WIDTH,
  "feed_forward_length": INNER,
  "attention.head_count": HEADS,
  "attention.head_count_kv": GROUPS,
  "attention.key_length": DIMS,
  "attention.value_length": DIMS,
}
FLOATS = {"rope.freq_base": 1e5, "attention.layer_norm_rms_epsilon": 1e-5}
TEXTS = [
  "the low",
  " the lot",
  "don't",
  "a  b\n\nc",
  "<s>low</s>",
  "é 日😀",
  "",
]


def byte_level(writer):
  """256 bytes and what merges make of them; returns how many tokens."""
  merges = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "l o", "Ġ lo"]
  tokens = ["<unk>", "<s>", "</s>", "<think>"]
  tokens += sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens += [merge.replace(" ", "") for merge in merges]
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-2")
  writer.add_token_merges(merges)
  writer.add_token_types([3] * 3 + [4] + [1] * (len(tokens) - 4))
  return tokens


def sentencepiece(writer):
  pieces = ["▁", *"thelow", "▁t", "he", "▁the", "lo", "▁lo", "low", "  "]
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
  tokens += pieces
  writer.add_tokenizer_model("llama")
  writer.add_tokenizer_pre("default")
  writer.add_token_scores([-float(i) for i in range(len(tokens))])
  types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 1) + [4]
  writer.add_token_types(types)
  writer.add_add_bos_token(True)
  writer.add_add_space_prefix(False)
  return tokens


def blocks(rng, kind, rows, columns):
  """Random blocks of a kind that the package only reads."""
  values, size = gguf.GGML_QUANT_SIZES[kind]
  raw = rng.integers(0, 256, (rows * columns // values, size), np.uint8)
  scale = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
  places = {KINDS.Q4_K: (0, 2), KINDS.Q6_K: (size - 2,)}[kind]
  for place in places:
    raw[:, place : place + 2] = scale
  return raw.reshape(rows, -1)


def permute(weights, heads):
  """Rows as llama.cpp has q and k of a Llama."""
  halves = weights.reshape(heads, 2, -1, weights.shape[1])
  return halves.swapaxes(1, 2).reshape(weights.shape)


def tensors(rng, architecture, vocabulary):
  """(name, array, kind of its blocks) of every tensor."""
  gemma = architecture == "gemma3"

  def matrix(rows, columns):
    return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

  def norm(size):
    return (rng.uniform(-0.5, 0.5, size) + 1).astype(np.float32)

  yield "token_embd.weight", matrix(vocabulary, WIDTH), KINDS.Q8_0
  yield "output_norm.weight", norm(WIDTH), None
  if not gemma:
    yield "output.weight", matrix(vocabulary, WIDTH), KINDS.F16
  for i in range(LAYERS):
    norms = dict(attn_norm=WIDTH, ffn_norm=WIDTH)
    if gemma:
      norms |= dict(post_attention_norm=WIDTH, post_ffw_norm=WIDTH)
      norms |= dict(attn_q_norm=DIMS, attn_k_norm=DIMS)
    for name, size in norms.items():
      yield f"blk.{i}.{name}.weight", norm(size), None
    query, key = matrix(HEADS * DIMS, WIDTH), matrix(GROUPS * DIMS, WIDTH)
    if not gemma:
      query, key = permute(query, HEADS), permute(key, GROUPS)
    yield f"blk.{i}.attn_q.weight", query, KINDS.Q4_1
    yield f"blk.{i}.attn_k.weight", key, KINDS.Q5_0
    yield f"blk.{i}.attn_v.weight", matrix(GROUPS * DIMS, WIDTH), KINDS.Q5_1
    yield f"blk.{i}.attn_output.weight", matrix(WIDTH, HEADS * DIMS), KINDS.Q4_0
    yield f"blk.{i}.ffn_gate.weight", matrix(INNER, WIDTH), KINDS.BF16
    yield f"blk.{i}.ffn_up.weight", matrix(INNER, WIDTH), KINDS.Q8_0
    kind = (KINDS.Q4_K, KINDS.Q6_K)[i % 2]
    yield f"blk.{i}.ffn_down.weight", blocks(rng, kind, WIDTH, INNER), kind


def write(path, architecture, fill):
  rng = np.random.default_rng(len(architecture))
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_name(path.stem)
  for key, value in SIZES.items():
    writer.add_uint32(f"{architecture}.{key}", value)
  for key, value in FLOATS.items():
    writer.add_float32(f"{architecture}.{key}", value)
  if architecture == "gemma3":
    writer.add_sliding_window(5)
  else:
    writer.add_rope_dimension_count(DIMS)
  tokens = fill(writer)
  writer.add_token_list(tokens)
  writer.add_unk_token_id(0)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  for name, array, kind in tensors(rng, architecture, len(tokens)):
    if kind is not None and array.dtype != np.uint8:
      array = gguf.quants.quantize(array, kind)
    writer.add_tensor(name, array, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def converted(path):
  """What transformers makes of a file; writes torch's logits beside it."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    HERE, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    HERE, gguf_file=path.name
  )
  tied = model.config.tie_word_embeddings
  found = {
    name: array.numpy()
    for name, array in model.state_dict().items()
    if not (tied and name == "lm_head.weight")
  }
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, model.config.vocab_size, (2, 20))
  with torch.no_grad():
    logits = model(torch.tensor(tokens)).logits.numpy()
  np.savez_compressed(path.with_suffix(".npz"), tokens=tokens, logits=logits)
  config = model.config.to_dict()
  return dict(
    tensors={
      name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
      for name, array in found.items()
    },
    ids={text: tokenizer(text).input_ids for text in TEXTS},
    config={k: v for k, v in config.items() if k != "quantization_config"},
  )


if __name__ == "__main__":
  made = {}
  for name, fill in (("llama", byte_level), ("gemma3", sentencepiece)):
    file = HERE / f"gguf_{name}.gguf"
    write(file, name, fill)
    made[name] = converted(file)
  made["made"] = dict(
    script="tests/golden/make_gguf.py",
    date=datetime.date.today().isoformat(),
    python=platform.python_version(),
    torch=torch.__version__,
    transformers=transformers.__version__,
    gguf=importlib.metadata.version("gguf"),
  )
  text = json.dumps(made, indent=1, ensure_ascii=False)
  (HERE / "gguf.json").write_text(text + "\n", encoding="utf-8")
