# SPDX-License-Identifier: Apache-2.0
"""SmolLM 3: Llama with layers that have no RoPE."""

from mrpo_jax.errors import InputError
from mrpo_jax.models.families import llama
from mrpo_jax.models.families.family import Family, named, windows


def smollm3(values, fields):
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
  return llama.llama(values, fields) | dict(
    ropes=(*fields["ropes"], None),
    layer_ropes=tuple(int(not turn) for turn in turns),
    layer_windows=windows(values, fields, window, lambda i: not turns[i]),
  )


SMOLLM3 = Family(
  architectures=named("SmolLM3"),
  tensors=llama.TENSORS,
  traits=smollm3,
  defaults=llama.DEFAULTS
  | dict(
    num_key_value_heads=4,
    max_position_embeddings=32768,
    bos_token_id=128000,
    eos_token_id=128001,
    tie_word_embeddings=True,
    use_sliding_window=False,
    rope_theta=2e6,
  ),
)
