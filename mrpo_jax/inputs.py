# SPDX-License-Identifier: Apache-2.0
"""What a run reads of its data, from checked settings: text as token ids."""

import dataclasses
import pathlib
import time

from mrpo_jax import processes
from mrpo_jax.data import cut, encode, formats, pack, source, vocabulary
from mrpo_jax.errors import InputError

SPLITS = ("train", "eval", "validation")  # keys of config.data


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """The tokenizers of a run; equal ones are one view of the data."""

  # Distinct ones: 0 is the policy's, last come those of scored references
  # alone.
  views: list
  view_of: dict  # "policy" or "references.<name>" -> index of its view
  made: dict  # folder in the workdir -> tokenizer trained here
  identity: dict


@dataclasses.dataclass(frozen=True)
class Table:
  """One split as token ids."""

  views: list  # per tokenizer a list of Encoded, aligned over pairs
  places: list  # of each pair among those of the file
  fingerprints: list  # of each pair and of where it is cut
  dropped: int  # rows left out
  truncated: int  # rows kept of which something was cut


def sections(config):
  """Every model of the config by its key, the policy first."""
  references = config["references"]
  return {"policy": config["policy"]} | {
    f"references.{name}": references[name] for name in references["names"]
  }


def is_scored(section):
  """Is this reference read from the store?  Never so of a policy."""
  return section.get("mode") == "scored"


def load_pairs(config, splits=SPLITS):
  """{split: list of PreferencePair} of the files that the config names."""
  names = {split: config["data"][split] for split in splits}
  return {split: source.load(name) for split, name in names.items() if name}


def load_tokenizers(config, workdir, pairs, say):
  """Loads each model's tokenizer, or trains it on the training text."""
  views, view_of, made, identity, bare = {}, {}, {}, {}, {}
  # The step reads the rows of the first ones only.
  in_order = sorted(sections(config).items(), key=lambda one: is_scored(one[1]))
  for key, section in in_order:
    folder = section["tokenizer"] or section["path"]
    if folder == "policy":
      tokenizer, policy = bare["policy"], config["policy"]
      template = section["template"] or policy["template"]
    else:
      template = section["template"]
      tokenizer = _tokenizer(key, folder, section, workdir, pairs, made, say)
    bare[key] = tokenizer
    tokenizer = vocabulary.with_template(tokenizer, template)
    mark = identity[f"{key}.tokenizer"] = vocabulary.fingerprint(tokenizer)
    views.setdefault(mark, tokenizer)
    view_of[key] = list(views).index(mark)
  return Tokenizers(list(views.values()), view_of, made, identity)


@dataclasses.dataclass(frozen=True)
class Unread:
  """In the place of a tokenizer that is not there: its size, if known."""

  size: int = 0
  bos_token_id: int | None = None
  eos_token_id: int | None = None

  def __len__(self):
    return self.size


def plan_tokenizers(config):
  """The Tokenizers of a run that reads none: one for each name and template."""
  views, view_of = {}, {}
  in_order = sorted(sections(config).items(), key=lambda one: is_scored(one[1]))
  for key, section in in_order:
    folder = section["tokenizer"] or section["path"]
    of_policy = folder == "policy"
    owner = "policy" if of_policy else key
    named = config["policy"] if of_policy else section
    folder = named["tokenizer"] or named["path"] or owner
    mark = folder, section["template"] or named["template"]
    size = 0 if named["path"] else named["new"]["vocab_size"]
    views.setdefault(mark, Unread(size))
    view_of[key] = list(views).index(mark)
  return Tokenizers(list(views.values()), view_of, {}, {})


def _tokenizer(key, folder, section, workdir, pairs, made, say):
  """As it stands in its folder, or trained here: then it is in `made` too."""
  trained = pathlib.Path(workdir) / f"tokenizer-{key}"
  if folder:
    return vocabulary.load_tokenizer(folder)
  if trained.is_dir():
    return vocabulary.load_tokenizer(trained)
  new = section["new"]
  say(f"training the {new['tokenizer']} tokenizer of {key}")
  texts = (text for pair in pairs for text in formats.texts(pair))
  made[trained.name] = vocabulary.train_tokenizer(
    texts, kind=new["tokenizer"], vocab_size=new["vocab_size"]
  )
  return made[trained.name]


def encode_table(config, split, pairs, tokenizers, say, *, chosen_only=False):
  """Encodes a split under every tokenizer and keeps what all can use.

  `chosen_only` leaves the rejected responses out: supervised training does
  not read them.
  """
  data, started = config["data"], time.perf_counter()
  limits = {name: data[name] for name in ("max_prompt", "max_response")}
  times = 1 + len(tokenizers.views)
  with processes.bar(total=times * len(pairs), desc=split) as bar:
    limits["progress"] = bar.update
    cuts = cut.cut_to_fit(tokenizers.views, pairs, **limits)
    views = [
      encode.encode_all(tokenizer, pairs, cuts=cuts, **limits)
      for tokenizer in tokenizers.views
    ]
  for line in _template_notes(split, views, tokenizers):
    say(line)
  if chosen_only:
    views = [
      [dataclasses.replace(one, rejected_ids=[]) for one in view]
      for view in views
    ]
  reasons = [
    _unusable(encoded, data["row_length"])
    for encoded in zip(*views, strict=True)
  ]
  kept = [i for i, reason in enumerate(reasons) if reason is None]
  truncated = sum(any(view[i].truncated for view in views) for i in kept)
  why = _counted(reason for reason in reasons if reason)
  if not kept:
    raise InputError(
      f"{data[split]}: none of its {len(pairs)} pairs is left: {why}"
    )
  say(
    f"{split}: {len(kept)} of {len(pairs)} pairs, {truncated} truncated "
    f"({truncated / len(kept):.0%})"
    + (f"; dropped: {why}" if why else "")
    + f" ({time.perf_counter() - started:.1f} s)"
  )
  return Table(
    views=[[view[i] for i in kept] for view in views],
    places=kept,
    fingerprints=[cut.fingerprint(pairs[i], cuts[i]) for i in kept],
    dropped=len(pairs) - len(kept),
    truncated=truncated,
  )


def _template_notes(split, views, tokenizers):
  """Which template cannot say what the pairs hold, and what it says to that."""
  for index, view in enumerate(views):
    keys = [key for key, one in tokenizers.view_of.items() if one == index]
    who = f"{split}: the chat template of {' and '.join(keys)}"
    refused, silent = {}, {}
    for place, one in enumerate(view):
      if one.dropped and one.dropped.startswith("refused"):
        refused.setdefault(one.dropped.partition(": ")[2], []).append(place)
      if one.left_out:
        silent.setdefault(one.left_out, []).append(place)
    for why, places in refused.items():
      yield (
        f"{who} refuses {len(places)} of {len(view)} pairs, from pair "
        f"{places[0]} on: {why}"
      )
    for what, places in silent.items():
      yield (
        f"{who} leaves out {what} in {len(places)} of {len(view)} pairs, from "
        f"pair {places[0]} on; name another in its `template`"
      )


def _unusable(encoded, row_length):
  """Why a pair cannot be trained on, from its encoding in every view."""
  for one in encoded:
    if one.dropped:
      return one.dropped.partition(":")[0]
  if any(pack.size(one) > row_length for one in encoded):
    return "too long for a row"
  return None


def _counted(reasons):
  counts = {}
  for reason in reasons:
    counts[reason] = counts.get(reason, 0) + 1
  return ", ".join(f"{count} {reason}" for reason, count in counts.items())
