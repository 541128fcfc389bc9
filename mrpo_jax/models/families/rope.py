# SPDX-License-Identifier: Apache-2.0
"""RoPE as a config.json describes it, in the words of transformers 4 and 5."""

import math

from mrpo_jax.errors import InputError
from mrpo_jax.models.families.family import UnsupportedModel, Values
from mrpo_jax.models.rope import Rope

ORIGINAL = "original_max_position_embeddings"


def rope_parameters(given):
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
  dims = int(fields["head_dim"] * share)
  if not dims:
    raise InputError(
      f"partial_rotary_factor={share!r} turns none of the {fields['head_dim']} "
      "dims of a head"
    )
  return dims


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
  found = {name: rope.number(name) for name in names}
  low, high = found["low_freq_factor"], found["high_freq_factor"]
  if low >= high:
    raise InputError(
      f"low_freq_factor={low} is not below high_freq_factor={high}"
    )
  return found | dict(original_max_position_embeddings=_original(rope, fields))


def _yarn(rope, fields):
  factor = _factor(rope, fields)

  def hotter(scale):
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

  def given(name, default):
    """A zero counts as absent, as in transformers."""
    return rope.number(name) if rope.values.get(name) else default

  one, all_dims = given("mscale", 0), given("mscale_all_dim", 0)
  both = one and all_dims
  attention = hotter(one) / hotter(all_dims) if both else hotter(1.0)
  fast, slow = given("beta_fast", 32.0), given("beta_slow", 1.0)
  if fast < slow:
    raise InputError(f"beta_fast={fast} is below beta_slow={slow}")
  return dict(
    factor=factor,
    attention_factor=rope.read("number", "attention_factor", attention),
    beta_fast=fast,
    beta_slow=slow,
    original_max_position_embeddings=_original(rope, fields),
    truncate=rope.read("flag", "truncate", True),
  )


def _longrope(rope, fields):
  original = _original(rope, fields)
  factor, hot = _factor(rope, fields), 0.0
  if factor > 1:
    if original == 1:  # whose logarithm divides
      raise InputError(f"{ORIGINAL}=1; want more")
    hot = math.log(factor) / math.log(original)
  dims = _dims(rope, fields) or fields["head_dim"]
  lists = {}
  for name in ("short_factor", "long_factor"):
    numbers = rope.values.get(name)
    if not isinstance(numbers, list) or len(numbers) != dims // 2:
      raise InputError(f"{name}: want a list of {dims // 2} numbers")
    if not all(type(n) in (int, float) and 0 < n < 1e38 for n in numbers):
      raise InputError(f"{name}: want positive numbers")
    lists[name] = tuple(map(float, numbers))
  return lists | dict(
    attention_factor=rope.read(
      "number", "attention_factor", math.sqrt(1 + hot)
    ),
    original_max_position_embeddings=original,
  )


SETTINGS = {
  "linear": lambda rope, fields: dict(factor=rope.number("factor")),
  "dynamic": _dynamic,
  "llama3": _llama3,
  "yarn": _yarn,
  "longrope": _longrope,
}
