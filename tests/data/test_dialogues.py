# SPDX-License-Identifier: Apache-2.0
"""Whole dialogues as responses: the start they share is the prompt, once."""

import itertools

import pytest

from mrpo_jax.data import formats
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.errors import InputError
from tests.material.rows import bot, only, system, user


def refused(**row):
  with pytest.raises(InputError, match="^row 1: ") as found:
    formats.pairs_of(row, "row 1")
  return str(found.value)


Q, OWL, CAT = user("Name a bird."), bot("Owl."), bot("Cat.")
PAIR = PreferencePair([Q], [OWL], [CAT])
EMPTY = [bot("")]


# The prompt stands in the responses again.


@pytest.mark.parametrize(
  "prompt", [[Q], Q, "Name a bird.", "Name  a bird.\n", "a bird", "", []]
)
def test_a_prompt_that_both_responses_repeat_stands_once(prompt):
  assert only(prompt=prompt, chosen=[Q, OWL], rejected=[Q, CAT]) == PAIR


@pytest.mark.parametrize(
  "repeats", [*itertools.product([True, False], repeat=2)]
)
def test_each_response_may_repeat_the_prompt_or_not(repeats):
  sides = [
    [Q, answer] if again else [answer]
    for answer, again in zip((OWL, CAT), repeats, strict=True)
  ]
  assert only(prompt=[Q], chosen=sides[0], rejected=sides[1]) == PAIR


@pytest.mark.parametrize(
  "prompt, start",
  [
    ([system("S"), Q], [Q]),
    ([Q], [system("S"), Q]),
    ("Name a bird.", [system("S"), Q]),
    ([system("S"), Q], [system("S"), Q]),
  ],
)
def test_a_system_turn_of_prompt_or_responses_stays(prompt, start):
  pair = only(prompt=prompt, chosen=[*start, OWL], rejected=[*start, CAT])
  assert pair == PreferencePair([system("S"), Q], [OWL], [CAT])


def test_what_both_responses_share_after_the_prompt_belongs_to_it():
  start = [Q, OWL, user("Another.")]
  row = {"chosen": [*start, bot("Emu.")], "rejected": [*start, CAT]}
  pair = PreferencePair(start, [bot("Emu.")], [CAT])
  assert only(**row) == only(prompt=[Q], **row) == pair
  assert only(prompt=Q["content"], **row) == pair


def test_responses_may_repeat_the_last_turn_of_the_prompt_alone():
  prompt = [user("Hi"), bot("Yo"), Q]
  pair = only(prompt=prompt, chosen=[Q, OWL], rejected=[Q, CAT])
  assert pair == PreferencePair(prompt, [OWL], [CAT])


@pytest.mark.parametrize("key", ["question", "instruction", "query", "input"])
def test_a_column_of_the_question_may_stand_beside_whole_conversations(key):
  row = {key: "Name a bird."}
  assert only(**row, chosen=[Q, OWL], rejected=[Q, CAT]) == PAIR


def test_a_text_prompt_that_both_texts_repeat_stands_once():
  row = {"chosen": "Name a bird: owl", "rejected": "Name a bird: cat"}
  pair = PreferencePair("Name a bird:", " owl", " cat")
  assert only(prompt="Name a bird:", **row) == pair
  dialogue = "\n\nHuman: Bird?\n\nAssistant:"
  whole = {"chosen": dialogue + " Owl", "rejected": dialogue + " Cat"}
  pair = PreferencePair(dialogue, " Owl", " Cat")
  assert only(prompt=dialogue, **whole) == only(**whole) == pair


def test_answers_that_begin_with_the_one_word_of_a_prompt_stay():
  row = {"prompt": "Owls", "chosen": "Owls fly.", "rejected": "Owls bark."}
  assert only(**row) == PreferencePair(*row.values())


@pytest.mark.parametrize("prompt", [[user("Name a fish.")], "Name a fish."])
@pytest.mark.parametrize("sides", [([Q, OWL], [Q, CAT]), ([Q, OWL], [CAT])])
def test_responses_that_begin_with_another_prompt_are_refused(prompt, sides):
  text = refused(prompt=prompt, chosen=sides[0], rejected=sides[1])
  assert "begin with turns that are not the prompt's" in text


def test_two_system_turns_are_refused():
  prompt, start = [system("S"), Q], [system("T"), Q]
  row = {"chosen": [*start, OWL], "rejected": [*start, CAT]}
  assert "not the prompt's" in refused(prompt=prompt, **row)


# One response is the beginning of the other.


def test_a_conversation_that_ends_where_the_other_answers_is_empty():
  pair = PreferencePair([Q], [OWL], EMPTY)
  row = {"chosen": [Q, OWL], "rejected": [Q]}
  assert only(**row) == only(prompt=[Q], **row) == pair
  row = {"chosen": [Q], "rejected": [Q, OWL]}
  assert only(**row) == PreferencePair([Q], EMPTY, [OWL])


def test_a_conversation_that_is_the_beginning_of_the_other_is_empty():
  more = [user("Thanks"), bot("Bye")]
  pair = only(chosen=[Q, OWL, *more], rejected=[Q, OWL])
  assert pair == PreferencePair([Q, OWL], more, EMPTY)


HUMAN = "\n\nHuman: Bird?"


@pytest.mark.parametrize(
  "rest", ["\n\nAssistant: Owl", " Or fish?\n\nAssistant: Cod"]
)
def test_a_dialogue_that_ends_before_an_answer_is_empty(rest):
  pair = only(chosen=HUMAN + rest, rejected=HUMAN)
  assert (pair.prompt, pair.rejected) == (HUMAN, "")
  pair = only(chosen=HUMAN, rejected=HUMAN + rest)
  assert (pair.prompt, pair.chosen) == (HUMAN, "")


def test_a_dialogue_that_is_the_beginning_of_the_other_is_empty():
  start, more = HUMAN + "\n\nAssistant: Owl", "\n\nHuman: Ta\n\nAssistant: Bye"
  pair = only(chosen=start + more, rejected=start)
  assert pair == PreferencePair(start, more, "")


def test_an_answer_that_is_the_beginning_of_the_other_is_an_answer():
  start = HUMAN + "\n\nAssistant:"
  pair = only(chosen=start + " Owl, I think", rejected=start + " Owl")
  assert pair == PreferencePair(start, " Owl, I think", " Owl")


# They differ in what is asked.


@pytest.mark.parametrize("start", [[], [user("Hi"), bot("Yo")], [system("S")]])
def test_conversations_that_ask_different_things_are_refused(start):
  row = {"chosen": [*start, Q, OWL], "rejected": [*start, user("Fish?"), CAT]}
  text = refused(**row)
  assert f"differ first in message {len(start) + 1}, which is no ans" in text


def test_dialogues_that_ask_different_things_are_refused():
  answer = "\n\nAssistant: Owl"
  row = {"chosen": HUMAN + answer, "rejected": "\n\nHuman: Fish?" + answer}
  assert "differ before an answer begins" in refused(**row)


# Plain dialogues as turns.


def in_turns(prompt, chosen, rejected=None):
  return formats.in_turns(PreferencePair(prompt, chosen, rejected), "pair 3")


@pytest.mark.parametrize(
  "prompt",
  [
    "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Bird? \n\nAssistant:",
    "Human: Hi\n\nAssistant: Yo\n\nHuman: Bird?\n\nAssistant: ",
    "## Human: Hi\n\n## Assistant: Yo\n## Human:\nBird?\n\n## Assistant:",
  ],
)
def test_a_plain_dialogue_is_turns_of_human_and_assistant(prompt):
  pair = in_turns(prompt, " Owl.", " Cat.\n\nHuman: Sure?\n\nAssistant: Yes")
  start = [user("Hi"), bot("Yo"), user("Bird?")]
  rejected = [CAT, user("Sure?"), bot("Yes")]
  assert pair == PreferencePair(start, [OWL], rejected)


def test_a_response_may_begin_with_the_mark():
  pair = in_turns(HUMAN, "\n\nAssistant: Owl.", "\n\nAssistant: Cat.")
  assert pair == PreferencePair([user("Bird?")], [OWL], [CAT])


def test_a_dialogue_of_one_response_and_an_empty_one():
  start = HUMAN + "\n\nAssistant:"
  assert in_turns(start, " Owl.") == PreferencePair(
    [user("Bird?")], [OWL], None
  )
  assert in_turns(start, " Owl.", " ").rejected == EMPTY


def test_turns_stay_turns():
  assert formats.in_turns(PAIR, "pair 3") is PAIR


@pytest.mark.parametrize(
  "pair, message",
  [
    (("Bird?", " Owl", " Cat"), "pair 3: the prompt has no turns that begin"),
    (("Be kind." + HUMAN, " a", " b"), "or text before the first"),
    ((HUMAN, " Or fish?", " b"), "does not begin after Assistant:"),
    ((HUMAN, "\n\nHuman: a", " b"), "does not begin after Assistant:"),
    ((HUMAN + "\n\nAssistant: a", " b", " c"), "does not begin after Assis"),
  ],
)
def test_what_is_no_plain_dialogue_is_refused(pair, message):
  with pytest.raises(InputError) as found:
    in_turns(*pair)
  assert message in str(found.value)


# Messages of other roles, and that hold more than a text.


def test_a_model_answers_by_whichever_name():
  owl, cat = ({"role": "model", "content": text} for text in ("Owl.", "Cat."))
  pair = PreferencePair([Q], [OWL], [CAT])
  assert only(chosen=[Q, owl], rejected=[Q, cat]) == pair
  assert only(prompt=[Q], chosen=[Q, owl], rejected=[Q, cat]) == pair
  assert "no answer" in refused(chosen=[Q, owl], rejected=[user("?"), cat])


def test_a_prompt_of_parts_and_a_call_are_compared_as_texts():
  texts = ("Name ", "a bird.")
  parts = user([{"type": "text", "text": text} for text in texts])
  call = {"function": {"name": "birds", "arguments": {}}}
  called = {"role": "assistant", "content": None, "tool_calls": [call]}
  row = {"chosen": [parts, called], "rejected": [parts, CAT]}
  pair = PreferencePair([parts], [called], [CAT])
  assert only(**row) == only(prompt="Name a bird.", **row) == pair
  assert only(prompt=[parts], **row) == pair
