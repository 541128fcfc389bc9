# SPDX-License-Identifier: Apache-2.0
"""Help on the keys of a config, from the declaration of its sections."""

import difflib
import inspect
import textwrap
import typing

from mrpo_jax.errors import InputError, did_you_mean
from mrpo_jax.runs.config.bandit import BanditConfig
from mrpo_jax.runs.config.config import RENAMED, Config
from mrpo_jax.runs.config.diffusion import DiffusionConfig
from mrpo_jax.runs.config.keywords import keywords
from mrpo_jax.runs.config.section import Named, Shown, allowed, is_section
from mrpo_jax.runs.config.sections import Loss

INDENT = "    "


def explain(key=""):
  """Type, default, allowed values and meaning of a key and of all below it.

  Args:
    key: like "optimizer.peak_lr" or "references.second.mode"; "" is all.

  Raises:
    InputError: there is no such key; the nearest one is named.
  """
  known, wanted = keys(), _general(RENAMED.get(key, key))
  found = {
    name: said
    for name, said in known.items()
    if not key or name == wanted or name.startswith(f"{wanted}.")
  }
  if not found:
    near = did_you_mean(wanted, known)
    raise InputError(
      f"config.{key} is not known;{near} mrpo help config lists all keys"
    )
  lines = []
  for name, (kind, about) in found.items():
    if "." not in name and kind == "section":
      lines.append("")
    for text, indent in ((f"{name}: {kind}", ""), (about, INDENT)):
      lines += textwrap.wrap(
        text, 80, initial_indent=indent, subsequent_indent=INDENT
      )
  return "\n".join(lines).lstrip("\n")


def keys():
  """{key: (what it may be, its meaning)} of all configs."""
  bandit = {
    name: said
    for name, said in _keys_of(BanditConfig)
    if name.startswith("bandit")
  }
  found = dict(_keys_of(Config))
  # What a denoiser's config has under the same name has the same meaning.
  images = {
    name: said
    for name, said in _keys_of(DiffusionConfig)
    if name not in found and not name.startswith("references")
  }
  return _by_section(found | bandit | images)


def _by_section(found):
  """Keys of no section first, then section by section, whoever has them."""
  tops = [*dict.fromkeys(key.partition(".")[0] for key in found)]

  def place(item):
    key, (kind, _) = item
    in_one = "." in key or kind.startswith("section")
    return in_one, in_one and tops.index(key.partition(".")[0])

  return dict(sorted(found.items(), key=place))


def nearest(asked, sections=None):
  """The key of that name, whole or its last part, or one most like it; else "".

  One at the top goes before one in a section, and of two in sections the first.

  Args:
    asked: what was meant to be a key.
    sections: of them alone; None: of all.
  """
  known = sorted(keys(), key=lambda key: key.count("."))[::-1]
  if sections is not None:
    known = [key for key in known if key.partition(".")[0] in sections]
  known = {key.rpartition(".")[2]: key for key in known} | {k: k for k in known}
  for found in difflib.get_close_matches(asked, known, 1, 0.8):
    return known[found]
  return ""


def _general(key):
  """The key with <name> for names that a config chooses."""
  parts = key.split(".")
  if parts[:1] == ["references"] and parts[1:2] != ["names"]:
    parts[1:2] = ["<name>"] * len(parts[1:2])
  if parts[:2] == ["data", "rewards"] and parts[2:3] != ["names"]:
    parts[2:3] = ["<name>"] * len(parts[2:3])
  if parts[:2] == ["bandit", "links"] and parts[2:3] not in ([], ["names"]):
    parts = ["loss", *parts[3:]] if parts[3:] else [*parts[:2], "<name>"]
  if "rules" in parts:
    parts = parts[: parts.index("rules") + 1]
  return ".".join(parts)


def _keys_of(section, where=""):
  """(key, (what it may be, its meaning)) of a section, and of those below.

  Of two sections of which one counts, by its `path`, what one lacks is said.
  """
  for name, field in section.model_fields.items():
    sections = _sections_in(field.annotation)
    if not sections:
      yield f"{where}{name}", (_kind(field), field.description)
      continue
    is_required = field.annotation in sections
    first = "section" if is_required else "section, default None"
    about = field.description or inspect.getdoc(sections[0]).split("\n")[0]
    yield f"{where}{name}", (first, about)
    for one in sections:
      lacking = [other for other in sections if other is not one]
      for below, (kind, about) in _keys_of(one):
        if not all(below in other.model_fields for other in lacking):
          kind += "; only without path"
        yield f"{where}{name}.{below}", (kind, about)
  if issubclass(section, Named):
    about = inspect.getdoc(section.each).split("\n")[0]
    yield f"{where}<name>", ("section", about)
    if section.each is not Loss:  # whose keys stand at `loss`
      yield from _keys_of(section.each, f"{where}<name>.")
  if issubclass(section, Loss):
    for name, said in keywords().items():
      yield f"{where}{name}", said


def _sections_in(annotation):
  """The sections that a type is, or is one of."""
  if is_section(annotation):
    return [annotation]
  inner = map(_sections_in, typing.get_args(annotation))
  return [section for sections in inner for section in sections]


def _kind(field):
  """Type, allowed values and default of a key, like "int, positive"."""
  shown = [one.text for one in field.metadata if isinstance(one, Shown)]
  words = [
    *(shown or [_type(field.annotation)]),
    allowed(field.annotation, field.metadata),
  ]
  required = field.is_required()
  words.append("required" if required else f"default {field.default!r}")
  return ", ".join(filter(None, words))


def _type(annotation):
  origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Annotated:
    return _type(inner[0])
  if origin is typing.Literal:
    return type(inner[0]).__name__
  if origin is tuple:
    return f"tuple of {_type(inner[0])}"
  return "section" if origin is dict else annotation.__name__
