# SPDX-License-Identifier: Apache-2.0
"""What is written is what was given, to `datasets` and to Pillow, too."""

import io
import json
import logging

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from mrpo_jax.data.images import digits, pairs, pixels
from mrpo_jax.data.images.pairs import ImagePairs
from mrpo_jax.data.images.write import quantised, write_pairs
from mrpo_jax.errors import InputError

CLASSES = ("cat", "dog")


def some(channels=3, count=3):
  """Pairs of pixels that 8 bits cannot hold."""
  rng = np.random.default_rng(0)
  sides = rng.uniform(-1, 1, (2, count, 4, 5, channels)).astype(np.float32)
  return ImagePairs.of(*sides, np.arange(count) % 3 - 1)


def rounded(given):
  sides = given.chosen_NHWX, given.rejected_NHWX
  return ImagePairs.of(*map(quantised, sides), given.class_N)


def same(found, wanted):
  assert found.ids == wanted.ids
  np.testing.assert_array_equal(found.chosen_NHWX, wanted.chosen_NHWX)
  np.testing.assert_array_equal(found.rejected_NHWX, wanted.rejected_NHWX)
  np.testing.assert_array_equal(found.class_N, wanted.class_N)


# Quantising.


def test_quantised_pixels_are_the_nearest_of_256():
  # -0.5 lies at 63.75 of 255, 0 at 127.5, a half, which goes to the even 128.
  wanted = np.float32([-1, -127 / 255, 1 / 255, 1])
  np.testing.assert_array_equal(quantised([-1, -0.5, 0, 1]), wanted)
  image = some().chosen_NHWX
  once = quantised(image)
  assert 0 < np.abs(once - image).max() <= np.float32(1 / 255)
  np.testing.assert_array_equal(quantised(once), once)
  every = pixels.from_levels(np.arange(256, dtype=np.uint8))
  np.testing.assert_array_equal(quantised(every), every)


@pytest.mark.parametrize("value", [np.nan, 1.01, -np.inf])
def test_what_has_no_level_is_refused(value):
  with pytest.raises(InputError, match="image: "):
    quantised([value])


# Round trips.


@pytest.mark.parametrize("channels", [1, 3])
def test_quantised_pairs_come_back_as_they_are(tmp_path, channels, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  wanted = rounded(some(channels))
  write_pairs(tmp_path / "a.parquet", wanted, classes=CLASSES)
  assert not caplog.text
  found = pairs.load(tmp_path / "a.parquet", classes=CLASSES)
  same(found, wanted)
  assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_other_pixels_come_back_rounded_and_it_is_said(tmp_path, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  write_pairs(tmp_path / "a.parquet", some(), classes=CLASSES)
  assert "6 of 6 images are rounded to 8 bits a channel" in caplog.text
  found = pairs.load(tmp_path / "a.parquet", classes=CLASSES)
  same(found, rounded(some()))


def test_digits_come_back_rounded(tmp_path):
  image_NHWX, class_N = digits.digits("held_out")
  given = ImagePairs.of(image_NHWX[1:], image_NHWX[:-1], class_N[1:])
  write_pairs(tmp_path / "a.parquet", given, classes=digits.CLASSES)
  found = pairs.load(tmp_path / "a.parquet", classes=digits.CLASSES)
  same(found, rounded(given))
  assert np.abs(found.chosen_NHWX - given.chosen_NHWX).max() <= np.float32(
    1 / 255
  )


def test_pairs_that_rounding_makes_identical_are_said(tmp_path, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  image = quantised(some().chosen_NHWX)
  other = image.copy()
  other[1:] = -image[1:]
  other[0] *= 0.9999
  write_pairs(tmp_path / "a.parquet", ImagePairs.of(image, other))
  assert "1 of 3 pairs have two identical images" in caplog.text
  assert len(pairs.load(tmp_path / "a.parquet", classes=()).ids) == 2


# Other readers.


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_datasets_finds_images_and_columns(tmp_path, channels, mode):
  wanted = rounded(some(channels))
  more = {
    "ink": [0.5, None, 1.5],
    "single": np.ones(3, np.float32),
    "half": np.ones(3, np.float16),
    "round": [1, 2, 3],
    "by": ["a", None, "c"],
  }
  path = tmp_path / "a.parquet"
  write_pairs(path, wanted, classes=CLASSES, columns=more)
  found = datasets.Dataset.from_parquet(
    str(path), cache_dir=str(tmp_path / "cache")
  )
  assert found.features == datasets.Features(
    {
      "chosen": datasets.Image(),
      "rejected": datasets.Image(),
      "class": datasets.Value("string"),
      "ink": datasets.Value("float64"),
      "single": datasets.Value("float32"),
      "half": datasets.Value("float16"),
      "round": datasets.Value("int64"),
      "by": datasets.Value("string"),
    }
  )
  assert found["class"][:] == [None, "cat", "dog"]
  assert found["ink"][:] == [0.5, None, 1.5]
  for i, row in enumerate(found):
    assert row["chosen"].mode == mode
    levels = np.asarray(row["chosen"]).reshape(4, 5, channels)
    np.testing.assert_array_equal(
      pixels.from_levels(levels), wanted.chosen_NHWX[i]
    )
  # And what `datasets` writes is read here, and has the same note.
  found.to_parquet(str(tmp_path / "b.parquet"))
  same(pairs.load(tmp_path / "b.parquet", classes=CLASSES), wanted)
  ours, theirs = (noted(tmp_path / f"{name}.parquet") for name in "ab")
  assert ours == theirs


def noted(path):
  """The features that a file says it has."""
  metadata = pyarrow.parquet.read_schema(path).metadata
  return json.loads(metadata[b"huggingface"])["info"]["features"]


def test_the_file_holds_png_in_plain_structs(tmp_path):
  wanted = rounded(some(1))
  write_pairs(tmp_path / "a.parquet", wanted, classes=CLASSES)
  row = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()[0]
  assert [*row] == ["chosen", "rejected", "class"]
  assert row["rejected"]["path"] is None and row["class"] is None
  with Image.open(io.BytesIO(row["rejected"]["bytes"])) as image:
    assert image.format == "PNG" and image.size == (5, 4)
    np.testing.assert_array_equal(
      pixels.from_levels(np.asarray(image)), wanted.rejected_NHWX[0, ..., 0]
    )


# Refusals.


@pytest.mark.parametrize(
  "name, how, reason",
  [
    ("a.jsonl", {}, "are written as .parquet"),
    ("a.parquet", {"classes": ("cat",)}, "class 1, but classes= has 1 name;"),
    ("a.parquet", {"classes": "cats"}, "classes: want a tuple of distinct"),
    ("a.parquet", {"columns": {"class": [1] * 3}}, "'class' is read as one"),
    ("a.parquet", {"columns": {"label": [1] * 3}}, "'label' is read as one"),
    ("a.parquet", {"columns": {"x": [1.0]}}, "has 1 value for 3 pairs"),
    ("a.parquet", {"columns": {"x": [[1]] * 3}}, "give numbers or texts"),
    ("a.parquet", {"columns": {"x": [True] * 3}}, "give numbers or texts"),
    ("a.parquet", {"columns": {"x": [1, "a", 2]}}, "the column 'x': Could not"),
  ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, how, reason):
  with pytest.raises(InputError) as found:
    write_pairs(tmp_path / name, some(), **{"classes": CLASSES, **how})
  assert reason in str(found.value) and not [*tmp_path.iterdir()]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "a.parquet"
  write_pairs(path, some(1), classes=CLASSES)
  before = path.read_bytes()
  monkeypatch.setattr("os.fsync", lambda file: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    write_pairs(path, some(3), classes=CLASSES)
  assert path.read_bytes() == before and len([*tmp_path.iterdir()]) == 1
