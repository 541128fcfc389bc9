# SPDX-License-Identifier: Apache-2.0
"""The values of a config.json, each checked when it is asked for."""

from mrpo_jax.errors import InputError


class UnsupportedModel(InputError):
  """Names the architecture or the feature that is not computed here."""


READERS = {  # kind -> what a value must be
  "size": ("a positive integer", lambda v: type(v) is int and v > 0),
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
