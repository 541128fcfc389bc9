# SPDX-License-Identifier: Apache-2.0
"""A row's class is certain, or refused, or said to be missing."""

import logging

import pytest

from mrpo_jax.data.images.classes import NONE, ClassReader
from mrpo_jax.errors import InputError

NAMES = ("cat", "dog", "horse")


def read(*rows, names=NAMES):
  reader = ClassReader(names)
  numbers = [reader.read(row, f"row {i}") for i, row in enumerate(rows, 1)]
  reader.say("here")
  return numbers


def refused(row, names=NAMES):
  with pytest.raises(InputError) as found:
    read(row, names=names)
  assert "\n" not in str(found.value)
  return str(found.value)


@pytest.fixture
def said(caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  return caplog


def test_names_and_numbers_in_every_column(said):
  columns = ("class", "label", "prompt", "caption", "text")
  assert read(*({name: "dog"} for name in columns)) == [1] * 5
  assert read(*({name: 2} for name in columns)) == [2] * 5
  assert read({"label": 1.0}, {"class": "dog", "label": 1}) == [1, 1]
  assert not said.text


def test_rows_without_a_class_are_counted(said):
  assert read({}, {"label": None}, {"label": 0}) == [NONE, NONE, 0]
  assert said.messages == [
    "here: 2 of 3 rows have no class; the first is row 1"
  ]


def test_without_classes_those_of_the_rows_are_counted(said):
  assert read({"label": 7}, {"prompt": "a cat"}, {}, names=()) == [NONE] * 3
  assert said.messages == [
    "here: 2 of 3 rows have a class or a prompt, which is not used; the first "
    "is row 1"
  ]


def test_a_prompt_beside_a_class_is_counted(said):
  assert read({"class": "cat", "prompt": "a cat on a mat"}) == [0]
  assert read({"class": "cat", "prompt": [{"role": "user"}]}) == [0]
  assert said.text.count("1 of 1 rows have a prompt beside the class") == 2


def test_two_classes_of_one_row_are_refused():
  wanted = "row 1: class 'cat' and label 1 are two classes; keep one column"
  assert refused({"class": "cat", "label": 1}) == wanted
  assert "two classes" in refused({"class": "cat", "prompt": "dog"})


def test_an_unknown_class_is_refused_with_the_one_that_is_like_it():
  assert refused({"prompt": "hrose"}) == (
    "row 1: prompt 'hrose' is no class; did you mean horse? the classes are "
    "cat, dog, horse"
  )
  assert "is no class; the classes are cat" in refused({"text": "x"})
  many = [f"name {i}" for i in range(14)]
  assert refused({"text": "x"}, many).endswith("name 11 and 2 more")


@pytest.mark.parametrize("label", [3, -1, 10**400])
def test_a_number_without_a_class_is_refused(label):
  assert "the classes are numbered from 0 to 2" in refused({"label": label})


@pytest.mark.parametrize("label", [True, 0.5, float("nan"), ["cat"], b"cat"])
def test_what_is_no_class_is_refused(label):
  assert "want the name of a class, or its number" in refused({"label": label})


def test_numerals_as_names_are_only_read_where_they_are_certain():
  assert read({"label": 1}, {"label": "1"}, names=("0", "1")) == [1, 1]
  assert read({"label": "7"}, names=("3", "7")) == [1]
  assert refused({"label": 1}, ("3", "7")) == (
    "row 1: label is 1, but the class '3' is not number 3; give names, as texts"
  )


@pytest.mark.parametrize("names", ["cat", ("cat", "cat"), ("",), (1, 2)])
def test_classes_that_are_none_are_refused(names):
  assert refused({}, names).startswith(
    "classes: want a tuple of distinct names"
  )
