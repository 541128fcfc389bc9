# SPDX-License-Identifier: Apache-2.0
"""Family: a model_type's config.json and tensor names, and what reads them."""

import dataclasses
from collections.abc import Callable

from mrpo_jax.errors import InputError

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
  "layers": "listed",
  "experts": "listed",
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
ROPES = ("default", "linear", "dynamic", "llama3", "yarn")
SLIDING, FULL = "sliding_attention", "full_attention"
CLASSIFIER = "ForSequenceClassification"


class UnsupportedModel(InputError):
  """Names the architecture or the feature that is not computed here."""


@dataclasses.dataclass(frozen=True)
class TensorNames:
  """Names of a family's stored tensors; leaves of one name share a tensor.

  A leaf is the weight of a module, `<leaf>_bias` that module's bias.
  """

  layer: str  # what the modules of a layer begin with, "{}" for its number
  in_layer: dict[str, str]  # leaf of `parameters.table`'s blocks -> its module
  around: dict[str, str]  # leaf outside the blocks -> its module
  inputs_first: bool = False  # matrices are [in, out], not torch's [out, in]
  interleaved: bool = False  # leaves that share a tensor alternate by head

  @property
  def prefix(self):
    """The start of names within the decoder; bare decoders leave it out."""
    return self.layer.partition(".")[0] + "."

  def of(self, leaf):
    """The name of the tensor that holds a leaf."""
    kind = "bias" if leaf.endswith("_bias") else "weight"
    leaf = leaf.removesuffix("_bias")
    # "score" is of transformers' sequence classifiers; "value_head" stands in
    # no folder, and has a name for messages.
    if leaf in ("score", "value_head"):
      return f"{leaf}.weight"
    if leaf in self.around:
      return f"{self.around[leaf]}.{kind}"
    return f"{self.layer}.{self.in_layer[leaf]}.{kind}"

  def but(self, **modules):
    """The same names with other modules in a layer."""
    return dataclasses.replace(self, in_layer={**self.in_layer, **modules})


@dataclasses.dataclass(frozen=True)
class Family:
  """One model_type: its spelling of ModelConfig, the names of its tensors."""

  architectures: tuple[str, ...]  # the causal LM, then its bare decoder
  tensors: TensorNames
  traits: Callable  # (Values, fields so far) -> further fields
  defaults: dict  # of transformers' config class; a key without one is required
  # Key -> values that ask for what we compute, the default first.
  only: dict = dataclasses.field(default_factory=dict)
  keys: dict = dataclasses.field(default_factory=dict)  # changes to KEYS
  # Key -> its name in transformers 4, where that is another one.
  before: dict = dataclasses.field(default_factory=dict)
  ropes: tuple[str, ...] = ROPES  # kinds of its one RoPE; (): traits has them
  mlp_factor: int | None = None  # MLP width / width, where no width is given
  whole_heads: bool = False  # heads divide the width even with a head_dim

  @property
  def classifier(self):
    """The architecture with a scalar head: `Llama...` of `LlamaModel`."""
    return f"{self.architectures[1].removesuffix('Model')}{CLASSIFIER}"


def named(name):
  """Architectures as transformers derives them from a name."""
  return f"{name}ForCausalLM", f"{name}Model"


MOST = 100_000  # layers, or experts; each is listed, before a weight is read
READERS = {  # kind -> what a value must be
  "listed": (
    f"a positive integer, at most {MOST}",
    lambda v: type(v) is int and 0 < v <= MOST,
  ),
  "size": ("a positive integer", lambda v: type(v) is int and v > 0),
  "count": ("an integer from 0 up", lambda v: type(v) is int and v >= 0),
  "number": (
    "a positive number",
    lambda v: type(v) in (int, float) and 0 < v < 1e38,  # float32 later
  ),
  "flag": ("true or false", lambda v: type(v) is bool),
  "token": (
    "a token id or null",
    lambda v: v is None or (type(v) is int and v >= 0),
  ),
}


class Values:
  """The values of a config.json, checked as they are asked for."""

  def __init__(self, values, defaults):
    self.values, self.defaults = values, defaults

  def get(self, key):
    """Null counts as given: some defaults apply to an absent key alone."""
    return self.values.get(key, self.defaults.get(key))

  def read(self, kind, key, fallback=None):
    value = self.get(key)
    value = fallback if value is None else value
    if kind == "token" and isinstance(value, list):
      value = value[0] if value else None
    want, fits = READERS[kind]
    if not fits(value):
      problem = (
        f"{key}={value!r}" if key in self.values else f"{key} is missing"
      )
      raise InputError(f"{problem}; want {want}")
    return float(value) if kind == "number" else value

  def flag(self, key):
    return self.read("flag", key)

  def number(self, key):
    return self.read("number", key)

  def optional(self, kind, key):
    """None where the key is null, or absent without a default."""
    return None if self.get(key) is None else self.read(kind, key)

  def choice(self, key, choices):
    """The value that `choices` gives for what the key names."""
    value = self.get(key)
    if not isinstance(value, str) or value not in choices:
      known = ", ".join(sorted(choices))
      raise UnsupportedModel(
        f"{key}={value!r} is not computed here; want one of {known}"
      )
    return choices[value]


def layer_kinds(values, fields, is_sliding):
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


def windows(values, fields, window, is_sliding):
  """Tokens that each layer sees, 0 for all; empty where none is limited."""
  kinds = layer_kinds(
    values, fields, lambda i: window is not None and is_sliding(i)
  )
  if SLIDING not in kinds:
    return ()
  if window is None:
    raise InputError("layer_types asks for windows, but there is no window")
  return tuple(window if kind == SLIDING else 0 for kind in kinds)
