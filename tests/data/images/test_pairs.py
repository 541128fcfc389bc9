# SPDX-License-Identifier: Apache-2.0
"""Pairs of images: which is the better one, what is left out, and refusals."""

import dataclasses
import logging

import numpy as np
import pytest

from mrpo_jax.data.images import pairs, pixels
from mrpo_jax.data.images.pairs import ImagePairs
from mrpo_jax.errors import InputError
from tests.material.pictures import levels, parquet, saved

GOOD, BAD = levels(0), levels(1)


def row(chosen=GOOD, rejected=BAD, **more):
  return {"chosen": saved(chosen), "rejected": saved(rejected), **more}


def judged(*labels, **more):
  """A row as Pick-a-Pic has it."""
  return {
    "jpg_0": saved(GOOD),
    "jpg_1": saved(BAD),
    "label_0": labels[0],
    "label_1": labels[1],
    **more,
  }


@pytest.fixture
def load(tmp_path):
  def load(*rows, classes=(), **how):
    path = parquet(tmp_path / "a.parquet", [*rows])
    return pairs.load(path, classes=classes, **how)

  return load


@pytest.fixture
def refused(load):
  def refused(*rows, **how):
    with pytest.raises(InputError) as found:
      load(*rows, **how)
    message = str(found.value)
    assert "\n" not in message and "a.parquet" in message
    return message.partition("a.parquet")[2]

  return refused


def is_good_and_bad(found):
  np.testing.assert_array_equal(found.chosen_NHWX[0], pixels.from_levels(GOOD))
  np.testing.assert_array_equal(found.rejected_NHWX[0], pixels.from_levels(BAD))
  return len(found.ids) == 1


@pytest.mark.parametrize(
  "chosen, rejected",
  [
    ("chosen", "rejected"),
    ("image_chosen", "image_rejected"),
    ("chosen_image", "rejected_image"),
  ],
)
def test_a_chosen_and_a_rejected_image(load, chosen, rejected):
  found = load({chosen: saved(GOOD), rejected: saved(BAD)})
  assert is_good_and_bad(found)
  assert found.class_N.tolist() == [-1] and found.class_N.dtype == np.int32


def test_the_label_1_wins(load):
  assert is_good_and_bad(load(judged(1.0, 0.0)))
  other = load(judged(0.0, 1.0))
  assert is_good_and_bad(
    dataclasses.replace(
      other,
      chosen_NHWX=other.rejected_NHWX,
      rejected_NHWX=other.chosen_NHWX,
    )
  )


def test_ties_and_unlabelled_rows_are_left_out_and_said(load, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  rows = [
    judged(0.5, 0.5, has_label=True),
    judged(1.0, 0.0, has_label=True),
    judged(None, None, has_label=True),
    judged(1.0, 0.0, has_label=False),
  ]
  assert is_good_and_bad(load(*rows))
  ties, unlabelled = caplog.messages
  assert ": 1 of 4 rows are ties, and are left out; the first is" in ties
  assert ": 2 of 4 rows have no label, and are left out" in unlabelled
  assert unlabelled.endswith("a.parquet row 3")


@pytest.mark.parametrize(
  "labels", [(1.0, 1.0), (0.0, 0.0), (1.0, None), (0.7, 0.3), (2.0, 0.0)]
)
def test_labels_that_say_no_winner_are_refused(refused, labels):
  assert refused(judged(*labels)).startswith(" row 1: the labels are")


@pytest.mark.parametrize("said", [2, 0.5, "False"])
def test_a_label_that_may_be_none_is_refused(refused, said):
  found = refused(judged(1.0, 0.0, has_label=said))
  assert found == f" row 1: has_label is {said!r}; want true or false"


def test_no_label_as_a_number_is_none(load):
  rows = [judged(1.0, 0.0, has_label=number) for number in (0, 1, 1)]
  assert len(load(*rows).ids) == 2


def test_a_row_with_one_image_is_refused(refused):
  lone = judged(1.0, 0.0)
  del lone["jpg_1"]
  assert " row 1: jpg_1: is null; want PNG or JPEG" in refused(lone)


def test_identical_images_are_left_out_and_said(load, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  assert is_good_and_bad(load(row(GOOD, GOOD), row()))
  assert "1 of 2 rows have two identical images, and are left out; the" in (
    caplog.text
  )


def test_a_set_without_pairs_is_refused(refused):
  assert refused(row(GOOD, GOOD)).startswith(": has no pair of images")
  assert refused(judged(0.5, 0.5)).startswith(": has no pair of images")


def test_an_empty_file_is_refused(tmp_path):
  (tmp_path / "a.jsonl").write_text("\n")
  with pytest.raises(InputError, match="has no pair of images"):
    pairs.load(tmp_path / "a.jsonl", classes=())


def test_a_row_without_images_is_refused(refused, load):
  assert refused({"prompt": "x", "image": saved(GOOD)}) == (
    " row 1: there are no images; the row's keys are 'prompt', 'image'; want "
    "'chosen' and 'rejected'"
  )
  assert refused(row(), row() | {"rejected": None}).startswith(
    " row 2: rejected: is null"
  )
  assert "are several pairs; keep one" in refused(row() | judged(1.0, 0.0))
  texts = {"chosen": "a cat", "rejected": "a dog"}
  assert refused(texts).startswith(" row 1: chosen: is a string")


def test_unequal_sizes_are_refused_in_a_pair_and_in_a_set(refused):
  other = levels(3, 5, 4)
  message = refused(row(GOOD, other))
  assert message.startswith(" row 1: rejected: is 5 x 4 pixels")
  assert "a.parquet row 1: chosen is 4 x 5; crop or resize" in message
  message = refused(row(), row(other, levels(4, 5, 4)))
  assert message.startswith(" row 2: chosen: is 5 x 4 pixels")
  assert "row 3" not in message and "row 1: chosen is 4 x 5" in message
  assert "want 8 x 8" in refused(row(), size=8)


def test_channels_and_classes_are_passed_on(load, refused, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  found = load(row(prompt="horse"), classes=("cat", "horse"), channels=1)
  assert found.chosen_NHWX.shape == (1, 4, 5, 1)
  assert found.class_N.tolist() == [1]
  assert "2 of 2 images are colour, converted" in caplog.messages[-1]
  load(row(), row(prompt="horse"), classes=("horse",))
  assert "1 of 2 rows have no class" in caplog.messages[-1]
  message = refused(row(prompt="hrose"), classes=("cat", "horse"))
  assert message.startswith(
    " row 1: prompt 'hrose' is no class; did you mean horse"
  )


def test_ids_follow_from_pixels_and_class_alone(load):
  classes = ("cat", "dog")
  one = load(row(prompt="dog"), row(BAD, GOOD), classes=classes)
  other = load(
    {**row(levels(7)), "class": 0}, {**row(), "class": 1}, classes=classes
  )
  assert other.ids[1] == one.ids[0]
  assert len({*one.ids, *other.ids}) == 3
  assert all(len(one) == 64 for one in one.ids)


# Pairs that were made.


def test_made_pairs_are_as_read_ones(load):
  read = load(row(label=1), classes=("cat", "dog"))
  made = ImagePairs.of(read.chosen_NHWX, read.rejected_NHWX, np.array([1]))
  assert made.ids == read.ids
  assert ImagePairs.of(
    read.chosen_NHWX.astype(np.float64), read.rejected_NHWX
  ).class_N.tolist() == [-1]


ZEROS = np.zeros((2, 4, 4, 1), np.float32)


@pytest.mark.parametrize(
  "chosen, rejected, classes, reason",
  [
    (ZEROS, ZEROS[:1], None, "chosen is [2, 4, 4, 1], but rejected is [1,"),
    (ZEROS[..., 0], ZEROS, None, "chosen: want fractions of [images, height"),
    (ZEROS.astype(np.uint8), ZEROS, None, "chosen: want fractions"),
    (ZEROS, ZEROS.repeat(2, -1), None, "rejected: want fractions"),
    (ZEROS, ZEROS + np.nan, None, "rejected: a pixel is NaN"),
    (ZEROS, ZEROS - 1.5, None, "rejected: has pixels from -1.5"),
    (ZEROS, ZEROS, [0], "class: want 2 whole numbers of classes"),
    (ZEROS, ZEROS, [0.0, 1.0], "class: want 2 whole numbers of classes"),
    (ZEROS, ZEROS, [0, -2], "class: a class is -2; want -1 for none"),
  ],
)
def test_made_pairs_are_checked(chosen, rejected, classes, reason):
  with pytest.raises(InputError) as found:
    ImagePairs.of(chosen, rejected, classes)
  assert str(found.value).startswith(reason)
