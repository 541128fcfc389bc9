# SPDX-License-Identifier: Apache-2.0
"""Sources of pairs: a file, a prepared TFDS directory, the Hugging Face hub."""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import re
import sys
import tempfile

import numpy as np

from mrpo_jax.buckets import is_bucket
from mrpo_jax.data import formats
from mrpo_jax.data.chat.messages import is_plain
from mrpo_jax.data.reading import labels, prepared, shards, values
from mrpo_jax.errors import InputError, in_one_line
from mrpo_jax.files import path_of
from mrpo_jax.snapshots import in_one_line_of_hub

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load(name, *, conversations="", weights=None, unpair=False):
  """All pairs of what a name stands for.

  Args:
    name: a file, a glob, a folder of files of one kind ("DIR[:split]"), one
      prepared by TFDS ("DIR[:split]"), "org/name[:split]" on the hub, or
      several of them with commas between.  The split is "train" where none is
      given, in a folder of files all of it.
    conversations: "hh" makes turns of plain dialogues of Human: and Assistant:.
    weights: a WeightColumn to read, too.
    unpair: make two single responses of each pair, the good one first.

  Raises:
    InputError: it stands for nothing, a row in it is no pair, or a plain text
      no such dialogue; or a row lacks its weights.
  """
  name = str(name)
  pairs = [pair for part in names_of(name) for pair in _load(part, weights)]
  if conversations == "hh":
    pairs = [
      formats.in_turns(pair, f"{name} pair {i}") for i, pair in enumerate(pairs)
    ]
  texts = sum(isinstance(pair.prompt, str) for pair in pairs)
  if 0 < texts < len(pairs):
    logger.info(
      f"{name}: {texts} of {len(pairs)} pairs are plain text, the others "
      "conversations; a chat template is for these alone"
    )
  return _unpaired(pairs, name) if unpair else pairs


def _unpaired(pairs, name):
  """Single responses with labels, two of each pair."""
  found = []
  for place, pair in enumerate(pairs):
    if pair.rejected is None:
      raise InputError(
        f"{name}: pair {place} is a single response, and data.unpair is of "
        "pairs; leave it out"
      )
    good = dataclasses.replace(pair, rejected=None, desirable=True)
    found += [
      good,
      dataclasses.replace(good, chosen=pair.rejected, desirable=False),
    ]
  return found


def names_of(name):
  """The names in a text with commas; all of it where that is a file."""
  if "," in name and not path_of(name).exists():
    return [part.strip() for part in name.split(",")]
  return [name]


def _load(name, weights):
  files, place, split = shards.resolved(name)
  if files is not None:
    also = (weights.name,) if weights else ()
    rows = (row for file in files for row in formats.rows(file, also))
    where = files[0] if len(files) == 1 else name
    return list(formats.pairs_of_rows(rows, where, weights))
  split = split or "train"
  if place and path_of(place).is_dir():
    if is_bucket(place):
      raise InputError(
        f"{place}: a folder of a bucket must hold files of rows; copy a data "
        "set that TFDS has prepared to a disk"
      )
    prepared.refuse_outer(place)
    rows, where = prepared.rows_of(place, split), f"{place} split {split}"
    ours = is_prepared(place, weights)
    return _prepared(rows) if ours else _pairs(rows, where, weights)
  if HUB_NAME.fullmatch(place):
    return _pairs(_hub_rows(place, split), f"{place} split {split}", weights)
  raise InputError(
    f"{name!r}: found no such file, no such directory prepared by TFDS, and it "
    "is no Hugging Face hub name (org/name or org/name:split); check the name"
  )


def is_prepared(place, weights=None):
  """Has `prepare` written that TFDS directory?

  Raises:
    InputError: it has, but a WeightColumn is to be read, which it leaves out.
  """
  ours = "fingerprint" in (_metadata(path_of(place)) or {})
  if ours and weights:
    raise InputError(
      f"{place}: `mrpo prepare` keeps no column {weights.name!r}; name the "
      "file that it was made of"
    )
  return ours


def prepare(path, to, *, name="preference_pairs", split="train"):
  """Writes what `load` reads as a TFDS data set; returns its directory.

  The directory `to`/`name`/1.0.0 appears complete or not at all.  Where it
  stands already, it must hold the same pairs and split; then nothing is done.
  """
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise InputError(f"{name!r}: TFDS names are lower case, digits and _")
  if not re.fullmatch(r"\w+", split):
    raise InputError(f"{split!r}: a split is named by letters, digits and _")
  with contextlib.redirect_stdout(sys.stderr):  # a command prints its result
    pairs = load(path)
  _refuse_unencodable(pairs, path)
  for what, count in (
    ("no rejected response", sum(pair.rejected is None for pair in pairs)),
    ("a label", sum(pair.desirable is not None for pair in pairs)),
  ):
    if 0 < count < len(pairs):
      raise InputError(
        f"{path}: {count} of {len(pairs)} pairs have {what}; prepare them apart"
      )
  metadata = {"fingerprint": fingerprint(pairs), "split": split}

  from mrpo_jax.data.tfds import PreferencePairs

  builder_type = PreferencePairs
  directory = path_of(to) / name / str(builder_type.VERSION)
  if not directory.exists():
    content = dict(pairs=pairs, split=split, name=name, metadata=metadata)
    _write(builder_type(**content, data_dir=str(to)), directory)
  if _metadata(directory) != metadata:
    raise InputError(
      f"{directory}: holds other data than {path} (split {split}); "
      "give another name or another directory"
    )
  return directory


def _refuse_unencodable(pairs, path):
  for i, pair in enumerate(pairs, 1):
    sides = pair.prompt, pair.chosen, pair.rejected
    turns = [turn for side in sides if isinstance(side, list) for turn in side]
    if pair.tools or not all(map(is_plain, turns)):
      raise InputError(
        f"{path} pair {i}: holds tools, tool calls, reasoning or parts, which "
        "a TFDS data set of pairs cannot store; name the file in data.train"
      )
    try:
      "".join(formats.texts(pair)).encode()
    except UnicodeEncodeError:
      raise InputError(
        f"{path} pair {i}: holds half of a surrogate pair, which TFDS cannot "
        "store; write valid Unicode"
      ) from None


def pair_id(pair):
  """SHA-256 of one pair's content."""
  content = [pair.prompt, pair.chosen, pair.rejected]
  if pair.tools:
    content.append(pair.tools)
  if pair.desirable is not None:
    content.append({"desirable": pair.desirable})
  return _sha256(content)


def prompt_id(pair):
  """SHA-256 of one pair's prompt, of which its tools are a part."""
  return _sha256([pair.prompt, pair.tools] if pair.tools else pair.prompt)


def _sha256(content):
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(pairs):
  """SHA-256 of the pairs' content in their order: what resuming compares.

  Weights of references are a part of it where they have some.
  """
  whole = hashlib.sha256("".join(map(pair_id, pairs)).encode()).hexdigest()
  weights = [pair.reference_weights for pair in pairs]
  return _sha256([whole, weights]) if any(weights) else whole


def _write(builder, directory):
  import tensorflow_datasets as tfds

  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  offline = tfds.download.DownloadConfig(try_download_gcs=False)
  # TFDS prints what it has downloaded, and makes a download folder beside the
  # data, though nothing is downloaded.
  with (
    contextlib.redirect_stdout(io.StringIO()),
    tempfile.TemporaryDirectory() as downloads,
  ):
    try:
      builder.download_and_prepare(
        download_dir=downloads, download_config=offline
      )
    except OSError as error:
      if not directory.exists():  # Else another process was first.
        raise InputError(
          f"{directory}: cannot be written ({in_one_line(error)}); "
          "give a directory with room where you may write"
        ) from error


def _metadata(directory):
  try:
    return json.loads((directory / "metadata.json").read_text())
  except (OSError, ValueError, RecursionError):
    return None


def _pairs(rows, where, weights):
  rows = [
    (f"{where} row {i}", row_of(row, f"{where} row {i}"))
    for i, row in enumerate(rows, 1)
  ]
  if not rows:
    raise InputError(f"{where}: holds no pairs; give another split")
  return list(formats.pairs_of_rows(rows, where, weights))


def _prepared(rows):
  """Pairs as `prepare` has read them: nothing is left to be understood."""
  return [prepared_pair(row, f"row {i}") for i, row in enumerate(rows, 1)]


def prepared_pair(row, where):
  """The pair of a row of TFDS that `prepare` has written."""
  row = {
    key: value if key == "label" else values.as_text_or_turns(value, key)
    for key, value in _row(row).items()
  }
  chosen = row["completion"] if "completion" in row else row["chosen"]
  sides = row["prompt"], chosen, row.get("rejected")
  label = labels.label(row, where)
  return formats.PreferencePair(*sides, desirable=label)


def row_of(row, where):
  """A row of TFDS, or of the hub, as JSON would have given it."""
  row = _row(row)
  values.refuse_deep(row, where)
  return row


def _row(row):
  row = _text_values(row)
  if isinstance(row, dict):
    row = {key: _unwrapped(value) for key, value in row.items()}
    row = values.as_in_json(row)
  return row


def _text_values(value):
  """NumPy and bytes, as TFDS gives them, to what JSON would have given."""
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, dict):
    return {key: _text_values(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_text_values(item) for item in value]
  if isinstance(value, bytes):
    with contextlib.suppress(UnicodeDecodeError):  # An image, an extra key.
      return value.decode()
  return value


def _unwrapped(value):
  # So data/tfds.py stores a plain text.
  if isinstance(value, dict) and value.get("role") == [""]:
    return value["content"][0]
  return value


def _hub_rows(name, split):
  try:
    import datasets
  except ImportError:
    raise InputError(
      f"{name}: no such file or directory; to take it from the Hugging Face "
      "hub, install the package datasets (pip install datasets)"
    ) from None
  try:
    rows = datasets.load_dataset(name, split=split)
  except Exception as error:  # It raises many kinds, and wraps the network's.
    raise InputError(
      f"{name}: cannot be had from the Hugging Face hub, split {split} "
      f"({in_one_line_of_hub(error)}); check name, split and network"
    ) from error
  return rows
