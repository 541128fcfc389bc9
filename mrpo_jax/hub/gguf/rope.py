# SPDX-License-Identifier: Apache-2.0
"""RoPE of a GGUF file, in the words of a config.json."""

import math

import numpy as np

from mrpo_jax.models.families.family import UnsupportedModel

FREQUENCIES = "rope_freqs.weight"
FACTORS = {
  "short_factor": "rope_factors_short.weight",
  "long_factor": "rope_factors_long.weight",
}
ORIGINAL = "original_max_position_embeddings"
OLD_FACTOR = "rope.scale_linear"  # of files of 2023
# All of Llama 3.1 to 3.3; a file keeps the quotients alone.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192}
CLOSE = 1e-4  # of a quotient, which may be stored in float16


def rope_parameters(keys, tensors, dims, *, theta=1e4):
  """The object rope_parameters of a config.json.

  Args:
    keys: Keys of the file.
    tensors: {name: StoredTensor} of the file.
    dims: of a head that turn.
    theta: where the file has none.

  Raises:
    UnsupportedModel: a kind of scaling that cannot be told.
  """
  theta = keys.own("number", "rope.freq_base", theta)
  return {"rope_theta": theta, **_scaling(keys, tensors, dims, theta)}


def _scaling(keys, tensors, dims, theta):
  kind = _kind(keys, tensors)
  if kind == "none":
    return {"rope_type": "default"}
  if kind == "linear":
    return {"rope_type": "linear", "factor": _factor(keys)}
  if kind == "yarn":
    return _yarn(keys)
  if kind == "longrope":
    return _longrope(keys, tensors)
  if FREQUENCIES in tensors:
    return _llama3(tensors[FREQUENCIES].read(np.float32), dims, theta)
  raise UnsupportedModel(f"rope.scaling.type={kind!r} is not computed here")


def _kind(keys, tensors):
  """Of the scaling: the one that a key or tensors ask for."""
  usual = "linear" if keys.has(OLD_FACTOR) else "none"
  asked = {keys.own("text", "rope.scaling.type", usual)} - {"none"}
  for kind, names in {
    "llama3": [FREQUENCIES],
    "longrope": FACTORS.values(),
  }.items():
    asked |= {kind for name in names if name in tensors}
  if len(asked) > 1:
    raise UnsupportedModel(
      f"RoPE is scaled in several ways, {', '.join(sorted(asked))}: that is "
      "not computed here"
    )
  return asked.pop() if asked else "none"


def _factor(keys):
  if keys.has(OLD_FACTOR) and not keys.has("rope.scaling.factor"):
    return keys.own("number", OLD_FACTOR)
  return keys.own("number", "rope.scaling.factor")


def _yarn(keys):
  found = {
    "rope_type": "yarn",
    "factor": keys.own("number", "rope.scaling.factor"),
    ORIGINAL: keys.own("size", "rope.scaling.original_context_length"),
  }
  for name in ("beta_fast", "beta_slow"):
    value = keys.own("number", f"rope.scaling.yarn_{name}", None)
    found |= {} if value is None else {name: value}
  return found


def _longrope(keys, tensors):
  lists = {}
  for name, tensor in FACTORS.items():
    if tensor not in tensors:
      raise UnsupportedModel(f"longrope without the tensor {tensor}")
    numbers = tensors[tensor].read(np.float32).ravel()
    lists[name] = [float(str(number)) for number in numbers]
  attention = keys.own("number", "rope.scaling.attn_factor", 1.0)
  return {"rope_type": "longrope", **lists, "attention_factor": attention}


def _llama3(quotients, dims, theta):
  """Its settings from what each frequency is divided by."""
  factor = float(quotients.max())
  low, high, original = LLAMA3.values()
  waves = 2 * math.pi * theta ** (np.arange(0, dims, 2) / dims)
  smooth = np.clip((original / waves - low) / (high - low), 0, 1)
  want = 1 / ((1 - smooth) / factor + smooth)
  if quotients.shape != want.shape or not np.allclose(
    quotients, want, rtol=CLOSE, atol=0
  ):
    raise UnsupportedModel(
      f"{FREQUENCIES} holds other quotients than a Llama 3 of factor "
      f"{factor:g} has"
    )
  return {"rope_type": "llama3", "factor": factor, **LLAMA3}
