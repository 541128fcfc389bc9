# SPDX-License-Identifier: Apache-2.0
"""Every kind of source gives the same images, and labels keep their names."""

import json

import numpy as np
import pytest
from PIL import Image

from mrpo_jax.data.images import labelled, pairs, sources
from mrpo_jax.errors import InputError
from tests.material.pictures import levels, parquet, saved, struct_of

ROWS = [
  {"chosen": levels(i), "rejected": levels(10 + i), "prompt": "dog"}
  for i in range(3)
]
CLASSES = ("cat", "dog")
NOTED = {"_type": "ClassLabel", "names": ["dog", "cat"]}


def encoded(row, form=saved):
  return {
    key: form(value) if isinstance(value, np.ndarray) else value
    for key, value in row.items()
  }


def paletted(image):
  """A PNG of 20 colours and 20 pixels that are their numbers."""
  found = Image.new("P", (5, 4))
  found.putpalette(image.reshape(-1).tolist())
  found.putdata(range(20))
  return saved(found)


def assert_same(found, wanted):
  assert found.ids == wanted.ids
  np.testing.assert_array_equal(found.chosen_NHWX, wanted.chosen_NHWX)
  np.testing.assert_array_equal(found.class_N, wanted.class_N)


@pytest.fixture
def wanted(tmp_path):
  path = parquet(tmp_path / "wanted.parquet", [encoded(row) for row in ROWS])
  found = pairs.load(path, classes=CLASSES)
  assert found.chosen_NHWX.shape == (3, 4, 5, 3)
  assert found.class_N.tolist() == [1, 1, 1]
  return found


def prepared(to, features, rows):
  """A directory that TFDS has made, of one split `test`."""
  import tensorflow_datasets as tfds

  class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {"test": enumerate(rows)}

    def _generate_examples(self):
      yield from ()

  builder = Made(data_dir=to, file_format="array_record")
  builder.download_and_prepare(download_dir=to)
  return builder.data_dir


def noted(features):
  return {"huggingface": json.dumps({"info": {"features": features}})}


def test_structs_and_lists_are_read_as_bytes_are(tmp_path, wanted):
  forms = lambda one: struct_of(saved(one)), np.ndarray.tolist
  for form in forms:
    path = parquet(tmp_path / "a.parquet", [encoded(row, form) for row in ROWS])
    assert_same(pairs.load(path, classes=CLASSES), wanted)


def test_json_lines_of_lists_are_read(tmp_path, wanted):
  path = tmp_path / "rows.jsonl"
  rows = [json.dumps(encoded(row, np.ndarray.tolist)) for row in ROWS]
  path.write_text("\n".join(rows))
  assert_same(pairs.load(path, classes=CLASSES), wanted)


def test_a_glob_and_a_split_of_a_folder_are_read_in_order(tmp_path, wanted):
  for i, row in enumerate(ROWS):
    parquet(tmp_path / f"train-0000{i}-of-00003.parquet", [encoded(row)])
  for name in (f"{tmp_path}/train*.parquet", f"{tmp_path}:train"):
    assert_same(pairs.load(name, classes=CLASSES), wanted)


def test_what_tfds_prepared_is_read_by_our_own_decoder(tmp_path, wanted):
  from tensorflow_datasets import features

  kinds = {"chosen": features.Image(), "rejected": features.Image()}
  # TFDS itself would give the numbers of the palette for its colours.
  rows = [encoded(ROWS[0], paletted), *map(encoded, ROWS[1:])]
  place = prepared(tmp_path, kinds | {"prompt": features.Text()}, rows)
  assert_same(pairs.load(f"{place}:test", classes=CLASSES), wanted)
  with pytest.raises(InputError, match="split train"):
    pairs.load(place, classes=CLASSES)


def test_arrays_and_float_images_of_tfds_are_read(tmp_path):
  from tensorflow_datasets import features

  image = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5, 1)
  kinds = {
    "image": features.Tensor(shape=(4, 5, 1), dtype=np.float32),
    "label": features.ClassLabel(names=["dog", "cat"]),
    "more": features.Image(),
  }
  row = {"image": image, "label": "cat", "more": saved(levels(0))}
  place = prepared(tmp_path, kinds, [row])
  found = labelled.load_images(f"{place}:test", classes=CLASSES)
  np.testing.assert_array_equal(found.image_NHWX, image[None])
  # The file's own number of cats is 1, ours is 0.
  assert found.class_N.tolist() == [0]


def test_float_images_of_tfds_are_read_as_it_stores_them(tmp_path, monkeypatch):
  """Their 4 bytes stand in a PNG of 4 channels; TFDS encodes by TensorFlow."""
  from tensorflow_datasets.core.features import image_feature

  monkeypatch.setattr(
    image_feature._ImageEncoder,
    "_encode_image",
    lambda self, levels_HWX: saved(levels_HWX),
  )
  image = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5, 1)
  feature = image_feature.Image(shape=(4, 5, 1), dtype=np.float32)
  place = prepared(tmp_path, {"image": feature}, [{"image": image}])
  found = labelled.load_images(f"{place}:test", classes=())
  np.testing.assert_array_equal(found.image_NHWX, image[None])


def test_labels_of_datasets_are_read_by_their_names(tmp_path):
  rows = [{"image": saved(levels(i)), "label": i - 1} for i in range(3)]
  path = parquet(tmp_path / "a.parquet", rows, noted({"label": NOTED}))
  found = labelled.load_images(path, classes=CLASSES)
  assert found.class_N.tolist() == [-1, 1, 0]
  with pytest.raises(InputError, match="row 2: label 'dog' is no class"):
    labelled.load_images(path, classes=("x", "y"))


def test_labels_that_are_called_by_their_numbers_stay_numbers(tmp_path):
  rows = [{"image": saved(levels(i)), "label": i} for i in range(2)]
  features = {"label": NOTED | {"names": ["0", "1"]}}
  path = parquet(tmp_path / "a.parquet", rows, noted(features))
  found = labelled.load_images(path, classes=CLASSES)
  assert found.class_N.tolist() == [0, 1]


def test_a_label_that_the_file_has_no_name_for_is_refused(tmp_path):
  rows = [{"image": saved(levels(0)), "label": 2}]
  path = parquet(tmp_path / "a.parquet", rows, noted({"label": NOTED}))
  with pytest.raises(InputError, match="row 1: label is 2, but the file names"):
    labelled.load_images(path, classes=CLASSES)


@pytest.mark.parametrize("note", [b"{", b"[]", b'{"info": {"features": 3}}'])
def test_another_note_is_passed_over(tmp_path, note):
  rows = [{"image": saved(levels(0)), "label": 1}]
  path = parquet(tmp_path / "a.parquet", rows, {"huggingface": note})
  assert labelled.load_images(path, classes=CLASSES).class_N.tolist() == [1]


@pytest.mark.parametrize("name", ["gone.parquet", "gone", "org/name", ""])
def test_a_name_of_nothing_is_refused(tmp_path, name, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="no such file"):
    list(sources.rows_of(name, ["image"])[1])


def test_a_damaged_file_is_refused(tmp_path):
  path = parquet(tmp_path / "a.parquet", [encoded(ROWS[0])])
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(InputError, match="damaged Parquet file"):
    pairs.load(path, classes=())


def test_a_row_that_is_none_is_refused(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("[1]")
  with pytest.raises(InputError, match="line 1: is a list, want one object"):
    pairs.load(path, classes=())
