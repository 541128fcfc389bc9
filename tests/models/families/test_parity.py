# SPDX-License-Identifier: Apache-2.0
"""Every family against torch's numbers, and through a file and back.

tests/golden/make_families.py made the folders and the numbers; with --check it
shows that torch loads what `hub.save` writes.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax import hub
from mrpo_jax.errors import InputError
from mrpo_jax.hub.read import BUFFERS
from mrpo_jax.models import transformer
from mrpo_jax.models.families import FAMILIES
from tests.material.folders import GOLDEN

NAMES = sorted(
  path.stem
  for path in GOLDEN.glob("*.npz")
  if (path.with_suffix("") / "config.json").exists()
)
CLOSE = 1e-5  # of the largest logit


@functools.cache
def golden(name):
  config, params = hub.load(GOLDEN / name, dtype="float32")
  apply = jax.jit(functools.partial(transformer.apply, config))
  return (
    config,
    functools.partial(apply, params),
    np.load(GOLDEN / f"{name}.npz"),
  )


def assert_close(ours, torchs):
  assert np.abs(ours - torchs).max() <= CLOSE * np.abs(torchs).max()


def tensors(folder):
  (file,) = folder.glob("*.safetensors")
  return safetensors.numpy.load_file(file)


def test_every_family_has_numbers():
  assert {golden(name)[0].family for name in NAMES} == set(FAMILIES)


def is_beside(numbers):
  """Do the lengths of other sequences of the batch matter?"""
  return "right_alone_logits" in numbers


BESIDE = [name for name in NAMES if is_beside(golden(name)[2])]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torch(name):
  _, apply, numbers = golden(name)
  assert_close(apply(numbers["tokens"]), numbers["whole_logits"])
  for kind in ("left", "right"):
    if is_beside(numbers):
      continue  # refused: see below
    real = numbers[f"{kind}_mask"] > 0
    ours = apply(numbers["tokens"], segments_BT=real.astype(np.int32))
    assert np.isfinite(ours).all()
    assert_close(ours[real], numbers[f"{kind}_logits"][real])


@pytest.mark.parametrize("name", NAMES)
def test_what_padding_holds_changes_no_logit(name):
  config, apply, numbers = golden(name)
  real = numbers["left_mask"] > 0
  if is_beside(numbers):  # the last is within the bound
    assert real[-1].sum() <= config.longest
    real, apply = real[-1:], eagerly(name)
  tokens = numbers["tokens"][-len(real) :]
  segments = real.astype(np.int32)
  other = np.where(real, tokens, 0)
  np.testing.assert_array_equal(
    apply(tokens, segments_BT=segments)[real],
    apply(other, segments_BT=segments)[real],
  )


def eagerly(name):
  """Without jit, where lengths are known."""
  config, params = hub.load(GOLDEN / name, dtype="float32")
  return functools.partial(transformer.apply, config, params)


@pytest.mark.parametrize("name", NAMES)
def test_sequences_in_one_row_have_the_logits_of_torch(name):
  config, apply, numbers = golden(name)
  lengths = numbers["right_mask"].sum(axis=1)
  tokens = [row[:n] for row, n in zip(numbers["tokens"], lengths, strict=True)]
  segments = np.repeat([1, 2, 3, 0], [*lengths, 2])[None]
  row = np.concatenate([*tokens, [0, 0]])[None]
  if config.longest:
    apply = eagerly(name)
  if config.longest and config.longest < max(lengths):
    with pytest.raises(InputError, match="rows of 24 that are packed"):
      apply(row, segments_BT=segments)
    return
  ours = apply(row, segments_BT=segments)[0, :-2]
  assert_close(ours, numbers["right_logits"][numbers["right_mask"] > 0])


@pytest.mark.parametrize("name", BESIDE)
def test_where_lengths_matter_each_sequence_alone_is_torchs(name):
  config, apply, numbers = golden(name)
  for kind in ("left", "right"):
    mask = numbers[f"{kind}_mask"] > 0
    rows = zip(numbers["tokens"], mask, strict=True)
    ours = [apply(row[real][None])[0] for row, real in rows]
    assert_close(np.concatenate(ours), numbers[f"{kind}_alone_logits"][mask])


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("kind", ["left", "right"])
def test_padded_rows_beyond_the_bound_are_refused(name, kind):
  _, apply, numbers = golden(name)
  segments = numbers[f"{kind}_mask"].astype(np.int32)
  for of in (apply, eagerly(name)):
    with pytest.raises(InputError, match="beyond 14 tokens this .* alone"):
      of(numbers["tokens"], segments_BT=segments)


@pytest.mark.parametrize("name", BESIDE)
def test_padding_beyond_the_bound_counts_for_nothing(name):
  config, apply, numbers = golden(name)
  short = numbers["tokens"][-1:, : config.longest]
  want = apply(short)[0]
  for left in (0, 10):
    at = slice(left, left + config.longest)
    row = np.zeros((1, 24), short.dtype)
    row[:, at] = short
    segments = np.zeros((1, 24), np.int32)
    segments[:, at] = 1
    assert_close(eagerly(name)(row, segments_BT=segments)[0, at], want)


@pytest.mark.parametrize("name", BESIDE)
def test_whole_rows_may_say_that_they_are_whole(name):
  _, _, numbers = golden(name)
  tokens = numbers["tokens"]
  ones = np.ones(tokens.shape, np.int32)
  assert_close(eagerly(name)(tokens, segments_BT=ones), numbers["whole_logits"])
  with pytest.raises(InputError, match="rows of 34 that are"):
    eagerly(name)(tokens, 10 + np.arange(24)[None] * ones)


def test_a_sequence_beyond_learned_positions_is_refused():
  tokens = np.zeros((1, 33), np.int32)
  for more in ({}, {"segments_BT": np.ones((1, 33), np.int32)}):
    with pytest.raises(InputError, match="beyond 32 tokens this gpt2"):
      eagerly("gpt2_inner")(tokens, **more)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_transformers_4_says_the_same(name, tmp_path):
  old = GOLDEN / name / "config_v4.json"
  if not old.exists():
    pytest.skip("transformers 4 does not know it")
  shutil.copy(old, tmp_path / "config.json")
  assert hub.read_config(tmp_path) == golden(name)[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
  config, params = hub.load(GOLDEN / name)
  hub.save(tmp_path / "saved", config, params)
  want, got = tensors(GOLDEN / name), tensors(tmp_path / "saved")
  prefix = "transformer." if name == "gpt2_bare" else ""
  want = {prefix + k: v for k, v in want.items() if not BUFFERS.search(k)}
  assert got.keys() == want.keys()
  for key, tensor in want.items():
    assert got[key].dtype == tensor.dtype
    np.testing.assert_array_equal(got[key], tensor, err_msg=key)
  written = json.loads((tmp_path / "saved/config.json").read_text())
  given = json.loads((GOLDEN / name / "config.json").read_text())
  changed = {"dtype", "torch_dtype", "architectures"}
  for key in given.keys() - changed:
    assert written[key] == given[key]
