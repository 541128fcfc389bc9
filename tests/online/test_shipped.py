# SPDX-License-Identifier: Apache-2.0
"""Shipped rewards, by numbers that can be redone."""

import sys

import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.online import profanity, reading, sentiment, words
from mrpo_jax.online.rewards import reward_of


def of(function, *texts, **given):
  return [*function(["p"] * len(texts), texts, **given)]


def test_there_are_thirty_words_to_collect_all_different():
  assert len({*words.COLLECTED}) == len(words.COLLECTED) == 30
  assert of(words.collected, " ".join(words.COLLECTED)) == [30]


def test_words_are_collected_once_whole_and_in_any_case():
  texts = ["Water, WATER! food.", "waters foods", "a book's story_time", ""]
  assert of(words.collected, *texts) == [2, 0, 3, 0]
  assert of(words.collected, *texts, repeats=True) == [3, 0, 3, 0]


def test_another_list_of_words_is_collected():
  assert of(words.collected, "\u00c9t\u00e9 tea", words=["\u00e9t\u00e9"]) == [
    1
  ]
  with pytest.raises(InputError, match="words='two words' is no run of letter"):
    of(words.collected, "a", words=["two words"])
  with pytest.raises(InputError, match="words=1 is no run of letters"):
    of(words.collected, "a", words=[1])


def test_length_is_in_words_or_characters_up_to_a_cap():
  texts = ["one  two\nthree", "\u00e9"]
  assert of(words.length, *texts) == [3, 1]
  assert of(words.length, *texts, unit="characters") == [14, 1]
  assert of(words.length, *texts, cap=2) == [2, 1]


# From a dictionary.
SYLLABLES = {
  1: ("the make baked makes friend through queen cream strengths".split()),
  2: ("table wanted boxes diet lion safely being create science".split()),
  3: ("radio banana beautiful library however idea".split()),
  4: ("information community experience".split()),
  5: ("university refrigerator".split()),
}


@pytest.mark.parametrize("count", SYLLABLES)
def test_syllables_are_those_of_a_dictionary(count):
  for word in SYLLABLES[count]:
    assert reading.syllables(word) == count, word


def test_the_grade_by_hand():
  # 6 words, 1 sentence, 6 syllables; 4 words, 2 sentences, 12 syllables.
  texts = ["The cat sat on the mat.", "Refrigerators hum. Universities hum?"]
  want = [0.39 * 6 + 11.8 - 15.59, 0.39 * 2 + 11.8 * 12 / 4 - 15.59]
  assert of(reading.grade, *texts) == pytest.approx(want)
  assert of(reading.grade, "", "1, 2!") == [0.0, 0.0]


def test_a_stop_within_a_number_ends_no_sentence_and_an_empty_line_does():
  one, two = of(reading.grade, "He paid 3.5 now.", "He paid\n\nthen now.")
  assert one == pytest.approx(0.39 * 3 + 11.8 - 15.59)
  assert two == pytest.approx(0.39 * 2 + 11.8 - 15.59)


def test_readable_is_the_grade_between_two_ends():
  grade = of(reading.grade, "Refrigerators hum.")[0]
  assert grade > 9
  assert of(reading.readable, "Refrigerators hum.", "The cat sat.") == [0, 1]
  middle = of(reading.readable, "Refrigerators hum.", easiest=0, hardest=40)
  assert middle == pytest.approx([(40 - grade) / 40])
  with pytest.raises(InputError, match="easiest=4.0 is not below hardest=4"):
    of(reading.readable, "a", hardest=4)


def test_sentiment_is_the_compound_score_of_vaders_own_examples():
  # From the package's README.
  texts = ["VADER is smart, handsome, and funny.", "Today SUX!", "the"]
  assert of(sentiment.compound, *texts) == [0.8316, -0.5461, 0.0]


def test_profanity_is_a_probability_that_tells_abuse_from_its_like():
  found = of(profanity.profane, "go to hell, you scum", "go to school, you two")
  # The first text is of the package's README, which finds it profane.
  assert found[0] > 0.95 and found[1] < 0.2
  clean = of(profanity.clean, "go to hell, you scum", "go to school, you two")
  assert clean == pytest.approx([1 - one for one in found])


@pytest.mark.parametrize(
  ("module", "package", "name"),
  [
    ("sentiment:compound", "vaderSentiment.vaderSentiment", "vaderSentiment"),
    ("profanity:profane", "profanity_check", "alt-profanity-check"),
  ],
)
def test_a_missing_package_is_named_with_its_extra(
  monkeypatch, module, package, name
):
  text = f"mrpo_jax.online.{module}"
  top = package.partition(".")[0]
  for one in [key for key in sys.modules if key.partition(".")[0] == top]:
    monkeypatch.delitem(sys.modules, one)
  monkeypatch.delitem(sys.modules, text.partition(":")[0])
  monkeypatch.setattr(sys, "meta_path", [Missing(top), *sys.meta_path])
  with pytest.raises(InputError, match=rf"reward={text}.*{name}.*\[rewards\]"):
    reward_of(text)


class Missing:
  def __init__(self, name):
    self._name = name

  def find_spec(self, name, path, target=None):
    if name.partition(".")[0] == self._name:
      raise ModuleNotFoundError(f"No module named {name}", name=self._name)
