# SPDX-License-Identifier: Apache-2.0
"""RoPE as a config.json describes it, in the words of transformers 4 and 5."""

import math

from mrpo_jax.errors import InputError
from mrpo_jax.models.families.family import UnsupportedModel, Values
from mrpo_jax.models.rope import Rope

ORIGINAL = "original_max_position_embeddings"


def parameters(given):
  """The object of rope parameters; rope_scaling, of transformers 4, wins."""
  scaling, whole = _objects(given.values, "rope_scaling", "rope_parameters")
  return scaling or whole


def by_layer(given, full, sliding):
  """The objects for two kinds of layer; rope_scaling is of the full ones."""
  scaling, whole = _objects(given.values, "rope_scaling", "rope_parameters")
  full, sliding = _objects(whole, full, sliding)
  return {**full, **scaling}, sliding


def _objects(values, *keys):
  """The values of keys that hold objects; empty ones where they are null."""
  found = [values.get(key) or {} for key in keys]
  for key, value in zip(keys, found, strict=True):
    if not isinstance(value, dict):
      raise InputError(f"{key}={value!r}; want an object or null")
  return found


def read_rope(given, fields, parameters, kinds):
  """The Rope that one object of rope parameters asks for.

  Args:
    given: Values of the config.json around it.
    fields: sizes read so far: `head_dim`, `max_positions`.
    parameters: see `parameters` and `by_layer`.
    kinds: those that the family computes.

  Returns:
    Rope, its settings resolved.

  Raises:
    UnsupportedModel: a kind that is not computed.
    InputError: a setting that is missing or makes no sense.
  """
  if any(isinstance(value, dict) for value in parameters.values()):
    raise UnsupportedModel("rope_parameters: one for each type of layer")
  parameters = dict(parameters)
  if ORIGINAL in {**given.defaults, **given.values}:
    parameters.pop(ORIGINAL, None)  # as in transformers, it counts less
  rope = Values({**given.values, **parameters}, given.defaults)
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if "longrope" in kinds and kind in ("su", "yarn"):
    kind = "longrope"  # as Phi-3 named it first
  if kind not in kinds:
    known = ", ".join(kinds)
    raise UnsupportedModel(
      f"rope_type={kind!r} is not computed here; want one of {known}"
    )
  theta, dims = _theta(rope), _dims(rope, fields)
  settings = SETTINGS[kind](rope, fields) if kind in SETTINGS else {}
  return Rope(theta, dims, kind, tuple(sorted(settings.items())))


def _theta(rope):
  key = "rope_theta"
  if key not in rope.values and "rotary_emb_base" in rope.values:
    key = "rotary_emb_base"  # GPT-NeoX of transformers 4
  return rope.number(key)


def _dims(rope, fields):
  """Number of dims of a head that turn; None for all."""
  share = rope.values.get("partial_rotary_factor")
  if share is None:
    share = rope.values.get("rotary_pct")
  if share is None:
    share = rope.defaults.get("partial_rotary_factor", 1)
  if type(share) not in (int, float) or not 0 < share <= 1:
    raise InputError(f"partial_rotary_factor={share!r}; want a share up to 1")
  if share == 1:
    return None
  if "partial_rotary_factor" not in rope.defaults:
    raise UnsupportedModel(
      f"partial_rotary_factor={share} is not computed here"
    )
  return int(fields["head_dim"] * share)


def _original(rope, fields):
  return rope.read("size", ORIGINAL, fields["max_positions"])


def _factor(rope, fields):
  if rope.values.get("factor") is not None:
    return rope.number("factor")
  return fields["max_positions"] / _original(rope, fields)


def _dynamic(rope, fields):
  return dict(
    factor=rope.number("factor"),
    max_position_embeddings=fields["max_positions"],
  )


def _llama3(rope, fields):
  names = ("factor", "low_freq_factor", "high_freq_factor")
  return {name: rope.number(name) for name in names} | dict(
    original_max_position_embeddings=_original(rope, fields)
  )


def _yarn(rope, fields):
  factor = _factor(rope, fields)

  def hotter(scale):
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

  # A zero counts as absent.
  one, all_dims = (
    rope.values.get(k) or 0 for k in ("mscale", "mscale_all_dim")
  )
  attention = rope.values.get("attention_factor")
  if attention is None:
    both = one and all_dims
    attention = hotter(one) / hotter(all_dims) if both else hotter(1.0)
  truncate = rope.values.get("truncate")
  return dict(
    factor=factor,
    attention_factor=float(attention),
    beta_fast=float(rope.values.get("beta_fast") or 32),
    beta_slow=float(rope.values.get("beta_slow") or 1),
    original_max_position_embeddings=_original(rope, fields),
    truncate=True if truncate is None else bool(truncate),
  )


def _longrope(rope, fields):
  original = _original(rope, fields)
  factor = _factor(rope, fields)
  attention = rope.values.get("attention_factor")
  if attention is None:
    hot = math.log(factor) / math.log(original) if factor > 1 else 0.0
    attention = math.sqrt(1 + hot)
  dims = _dims(rope, fields) or fields["head_dim"]
  lists = {}
  for name in ("short_factor", "long_factor"):
    numbers = rope.values.get(name)
    if not isinstance(numbers, list) or len(numbers) != dims // 2:
      raise InputError(f"{name}: want a list of {dims // 2} numbers")
    if not all(type(n) in (int, float) and n > 0 for n in numbers):
      raise InputError(f"{name}: want positive numbers")
    lists[name] = tuple(map(float, numbers))
  return lists | dict(
    attention_factor=float(attention),
    original_max_position_embeddings=original,
  )


SETTINGS = {
  "linear": lambda rope, fields: dict(factor=rope.number("factor")),
  "dynamic": _dynamic,
  "llama3": _llama3,
  "yarn": _yarn,
  "longrope": _longrope,
}
