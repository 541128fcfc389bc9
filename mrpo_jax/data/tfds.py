# SPDX-License-Identifier: Apache-2.0
"""The TFDS data set `preference_pairs`; importing this imports TFDS.

Each of prompt, chosen and rejected, or of prompt and completion in rows of one
response, is a sequence of {role, content}.  A plain text is one message whose
role is empty, so that one schema holds both kinds.  A label is a boolean.
"""

import numpy as np
import tensorflow_datasets as tfds

from mrpo_jax.errors import InputError

PAIRED = {side: side for side in ("prompt", "chosen", "rejected")}
SUPERVISED = {"prompt": "prompt", "completion": "chosen"}
LABELLED = SUPERVISED | {"label": "desirable"}


class PreferencePairs(tfds.core.GeneratorBasedBuilder):
  """Pairs in the order given; without `pairs` it only reads what is there."""

  name = "preference_pairs"
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Sequences of role and content."}
  # TFDS would look for a list of downloads beside the code, and needs the
  # undeclared package importlib_resources to find that place.
  code_path = None

  def __init__(
    self, *, pairs=(), split="train", name=None, metadata=None, **to
  ):
    self.name = name or type(self).name  # TFDS names the directory by it.
    self._pairs, self._split, self._metadata = pairs, split, metadata
    self._columns = _columns(pairs)
    super().__init__(file_format="array_record", **to)

  def _info(self):
    features = tfds.features
    turns = features.Sequence(
      {"role": features.Text(), "content": features.Text()}
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description="Preference pairs: a prompt, a chosen, a rejected response.",
      features=features.FeaturesDict(
        {
          column: features.Scalar(np.bool_) if column == "label" else turns
          for column in self._columns
        }
      ),
      metadata=tfds.core.MetadataDict(self._metadata or {}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    if not self._pairs:
      raise InputError(f"{self.name}: nothing to prepare; give pairs=")
    return {self._split: self._generate_examples()}

  def _generate_examples(self):
    for i, pair in enumerate(self._pairs):
      yield (
        i,
        {
          column: _turns(getattr(pair, side))
          for column, side in self._columns.items()
        },
      )


def _columns(pairs):
  """{column: field of PreferencePair}; all pairs are of one kind."""
  if any(pair.desirable is not None for pair in pairs):
    return LABELLED
  return SUPERVISED if any(pair.rejected is None for pair in pairs) else PAIRED


def _turns(value):
  return [{"role": "", "content": value}] if isinstance(value, str) else value
