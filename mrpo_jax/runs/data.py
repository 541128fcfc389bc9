# SPDX-License-Identifier: Apache-2.0
"""Pairs and tokenizers of a run."""

import dataclasses
import datetime
import hashlib
import itertools
import logging

import numpy as np

from mrpo_jax import files, processes
from mrpo_jax.data import formats, source
from mrpo_jax.data.reading.weights import WeightColumn
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  tokenizer_fingerprint,
  train_tokenizer,
  with_date,
  with_template,
)
from mrpo_jax.errors import InputError, blames
from mrpo_jax.runs.config import key_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "eval", "validation")  # keys of config.data


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """The tokenizers of a run; equal ones are one view of the data."""

  # Distinct ones: 0 is the policy's, last come those of scored references
  # alone.
  views: list
  view_of: dict  # name of a model -> index of its view
  made: dict  # folder in the workdir -> tokenizer trained here
  identity: dict

  def users(self, index):
    """Keys in the config of the models that have the view of that index."""
    return [key_of(name) for name, one in self.view_of.items() if one == index]


def load_pairs(config, splits=SPLITS):
  """{split: list of PreferencePair} of the files that the config names."""
  return all_pairs(load_by_file(config, splits))


def all_pairs(by_file):
  """{split: list of PreferencePair} of what `load_by_file` gives."""
  return {
    split: [*itertools.chain.from_iterable(lists)]
    for split, lists in by_file.items()
  }


def load_by_file(config, splits=SPLITS):
  """The same, of each split a list for each file that has its own weight."""
  data, column = config.data, weight_column(config)
  found = {}
  for split in splits:
    name = getattr(data, split)
    is_weighed = split == "train" and data.weights
    names = source.names_of(name) if is_weighed else [name]
    if is_weighed and len(names) != len(data.weights):
      raise InputError(
        f"config.data.weights={data.weights} are of {len(data.weights)} files, "
        f"but config.data.train names {len(names)}: {name}"
      )
    if name:
      found[split] = [
        source.load(
          one,
          conversations=data.conversations,
          weights=column,
          unpair=data.unpair,
        )
        for one in names
      ]
  return found


def file_weights_of(config, lists, places):
  """(weight of each file, which file each pair is of); None without weights.

  Args:
    config: Config of the run.
    lists: of PreferencePair, one of each file, as `load_by_file` gives them.
    places: of the pairs that are trained on, among those of all files.

  Raises:
    InputError: a file has none of them.
  """
  weights = config.data.weights
  if not weights:
    return None
  ends = np.cumsum([len(pairs) for pairs in lists])
  file_N = np.searchsorted(ends, np.asarray(places), side="right")
  counts = np.bincount(file_N, minlength=len(lists))
  names = source.names_of(config.data.train)
  for name, weight, count in zip(names, weights, counts, strict=True):
    if not count:
      raise InputError(
        f"{name}: none of its pairs is left to train on, but "
        f"config.data.weights gives it {weight:g}"
      )
    share = weight / sum(weights)
    logger.info(f"{name}: {count:,} pairs, {share:.1%} of what is trained on")
  return weights, file_N


def weight_column(config):
  """The WeightColumn that the config names; None where it names none."""
  column = config.data.reference_weights
  if column in formats.KNOWN:
    raise InputError(
      f"config.data.reference_weights={column!r} is a column that pairs are "
      "read from; give the weights another"
    )
  return WeightColumn(column, config.references.names) if column else None


def subset(config, pairs):
  """Places of the training pairs that data.fraction and data.limit leave.

  The pairs stand in one sequence, by a hash of the seed and of what each says,
  so that it depends neither on their order nor on what else is there; a run
  has the first of it.  The places are in the order of the file.

  Args:
    config: Config of the run.
    pairs: list of PreferencePair of data.train.

  Raises:
    InputError: none is left.
  """
  data, total = config.data, len(pairs)
  count = round(data.fraction * total)
  count = min(count, data.limit) if data.limit else count
  if not count:
    raise InputError(
      f"config.data.fraction={data.fraction:g} of the {total:,} pairs of "
      f"{data.train} leaves none; one pair is {1 / total:.2g}"
    )
  if count == total:
    return list(range(total))

  def rank(place):
    text = f"{config.seed} {source.pair_id(pairs[place])}"
    return hashlib.sha256(text.encode()).digest()

  logger.info(f"training on {count:,} of {total:,} pairs")
  return sorted(sorted(range(total), key=rank)[:count])


def load_tokenizers(config, workdir, pairs, known=None):
  """Loads each model's tokenizer, or trains it on the training text.

  Args:
    config: Config of the run.
    workdir: its folder; a tokenizer in it counts where config.json vouches for
      it, and is trained again where not.
    pairs: of the training data, all of them: then runs on shares of it have
      one tokenizer.  None of an online run, which has none.
    known: content of config.json, whose date is that of chat templates that
      write one; None of a run that has none yet.
  """
  views, view_of, made, identity, bare = {}, {}, {}, {}, {}
  date = _date(config.data.date, (known or {}).get("identity", {}))
  sections = _in_order(config)
  # Those of folders first: what is not there is said before one is trained.
  for section in sorted(sections, key=lambda one: not one.tokenizer.folder):
    given = section.tokenizer
    origin = given.folder or given.key
    if origin not in bare:
      bare[origin] = _tokenizer(given, workdir, pairs, known, made)
  for section in sections:
    given = section.tokenizer
    origin = given.folder or given.key
    with blames(f"config.{section.key}.template", InputError):
      undated = with_template(bare[origin], given.template)
      tokenizer = with_date(undated, date)
    if tokenizer is not undated:
      identity["date"] = str(date)
    mark = tokenizer_fingerprint(tokenizer)
    identity[f"{section.key}.tokenizer"] = mark
    views.setdefault(mark, tokenizer)
    view_of[section.name] = list(views).index(mark)
  if "date" in identity:
    logger.info(
      f"a chat template writes the day: in this run it is {date}, also when it "
      "resumes; for another run to have the same text set config.data.date"
    )
  return Tokenizers(list(views.values()), view_of, made, identity)


def _date(given, known):
  """The day of a run; that of process 0 where it is today."""
  try:
    if day := given or known.get("date"):
      return datetime.date.fromisoformat(day)
  except ValueError:
    raise InputError(
      f"config.data.date must be a day like 2024-07-26, got {given!r}"
    ) from None
  today = processes.gather(str(datetime.date.today()))[0]
  return datetime.date.fromisoformat(today)


def _in_order(config):
  """Scored references last: the step reads the rows of the others alone."""
  return sorted(config.models().values(), key=lambda section: section.scored)


@dataclasses.dataclass(frozen=True)
class Unread:
  """In the place of a tokenizer that is not there: its size, if known."""

  size: int = 0
  bos_token_id: int | None = None
  eos_token_id: int | None = None

  def get_vocab(self):
    return {str(i): i for i in range(self.size)}


def abstract_tokenizers(config):
  """The Tokenizers of a run that reads none: one for each name and template."""
  views, view_of = {}, {}
  for section in _in_order(config):
    given = section.tokenizer
    mark = given.folder or given.key, given.template
    views.setdefault(mark, Unread(given.new.vocab_size if given.new else 0))
    view_of[section.name] = list(views).index(mark)
  return Tokenizers(list(views.values()), view_of, {}, {})


def trained_folder(workdir, key):
  """Where the tokenizer stands that was trained for the model of that key."""
  return files.path_of(workdir) / f"tokenizer-{key}"


def _tokenizer(given, workdir, pairs, known, made):
  """As it stands in its folder, or trained here: then it is in `made` too."""
  if given.folder:
    return load_tokenizer(given.folder)
  trained = trained_folder(workdir, given.key)
  if trained.is_dir():
    found = _vouched(trained, given, known)
    if found is not None:
      return found
    logger.warning(
      f"{trained} is not used: it is not what the config.json beside it says"
    )
  if given.new.tokenizer != "bpe":
    raise InputError(
      f"config.{given.key}.new.tokenizer: only bpe is trained; name the folder "
      f"of a {given.new.tokenizer} one in config.{given.key}.tokenizer, for "
      "example configs/tokenizers/unigram-512"
    )
  if pairs is None:
    raise InputError(
      f"config.{given.key}.path is empty: a run without config.data.train has "
      "no text to train a tokenizer on; name a folder, or that of a tokenizer "
      f"in config.{given.key}.tokenizer"
    )
  logger.info(f"training the tokenizer of {given.key}")
  texts = (text for pair in pairs for text in formats.texts(pair))
  made[trained.name] = train_tokenizer(texts, given.new.vocab_size)
  return made[trained.name]


def fingerprint_of(tokenizer, template, identity):
  """As a run with that identity has it, on the day that it began."""
  tokenizer = with_template(tokenizer, template)
  if date := identity.get("date"):
    tokenizer = with_date(tokenizer, datetime.date.fromisoformat(date))
  return tokenizer_fingerprint(tokenizer)


def _vouched(folder, given, known):
  """The tokenizer of a folder, where config.json says the same of it; or None.

  A run that was killed before it wrote config.json may have left half of one,
  and a key that was changed since asks for another.
  """
  there = known or {}
  for name in given.key.split("."):
    there = there.get(name) or {}
  made_from = there.get("new") or {}
  if any(
    made_from.get(name) != getattr(given.new, name)
    for name in ("tokenizer", "vocab_size")
  ):
    return None
  try:
    tokenizer = load_tokenizer(folder)
  except InputError:  # which says what is wrong with what nobody made by hand
    return None
  if there.get("template", "") != given.template:
    return tokenizer  # whose mark is another then
  identity = known.get("identity", {})
  with blames(f"config.{given.key}.template", InputError):
    mark = fingerprint_of(tokenizer, given.template, identity)
  is_same = mark == identity.get(f"{given.key}.tokenizer")
  return tokenizer if is_same else None
