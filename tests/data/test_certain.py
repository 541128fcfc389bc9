# SPDX-License-Identifier: Apache-2.0
"""What a row means is certain, or the row is refused with what it has."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from mrpo_jax.data import formats
from mrpo_jax.data.encode import encode
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.tokenizer import train_tokenizer
from mrpo_jax.errors import InputError
from tests.material.rows import bot, only, system, user

ASKED = "What is the capital?"
SIDES = {"chosen": "Town", "rejected": "River"}
TURNS = PreferencePair([user(ASKED)], [bot("Town")], [bot("River")])


def refusal(row):
  with pytest.raises(InputError, match="^a.jsonl line 7: ") as found:
    formats.pairs_of(row, "a.jsonl line 7")
  text = str(found.value)
  assert "\n" not in text
  return text


# A prompt that says nothing is none.

EMPTY = ["", " \n", [], [user("")], [user(" ")], {"role": [], "content": []}]
EMPTY += ["\u200b", "\ufeff\u3164", [user("\u200b ")]]
SYSTEM_ALONE = [
  [system("S"), user("")],
  [{"role": "System", "content": "S"}, user("")],
  [{"from": "system", "value": "S"}, {"from": "human", "value": " "}],
  {"role": ["system", "user"], "content": ["S", ""]},
]


@pytest.mark.parametrize("empty", [*EMPTY, *SYSTEM_ALONE])
def test_another_column_is_the_prompt_where_prompt_says_nothing(empty):
  row = {"prompt": empty, "question": ASKED}
  assert only(row, **SIDES) == TURNS
  assert only(row, ranked=["Town", "River"]) == TURNS
  assert only(row, response="Town").prompt == TURNS.prompt
  turns = {"prompt": empty, "messages": [user(ASKED)]}
  assert only(turns, **SIDES) == TURNS


@pytest.mark.parametrize("empty", [*EMPTY, *SYSTEM_ALONE])
@pytest.mark.parametrize(
  "rest",
  [
    SIDES,
    {"chosen": "It is a town", "rejected": "It is a river"},
    {"chosen": [bot("Town")], "rejected": [bot("River")]},
    SIDES | {"system": "S"},
    SIDES | {"topic": ASKED},
    {"ranked": ["Town", "River"]},
    {"completion": "Town"},
  ],
)
def test_an_empty_prompt_is_refused(empty, rest):
  assert "prompt is empty; give it a word" in refusal({"prompt": empty} | rest)


@pytest.mark.parametrize(
  "key", ["question", "query", "instruction", "input", "messages"]
)
def test_a_question_that_says_nothing_is_refused(key):
  empty = [user(" ")] if key == "messages" else "  "
  assert f"{key} is empty" in refusal({key: empty} | SIDES)


BLANK_TURNS = [[user("")], [system("S"), user(" ")], [user("\u200b")]]
BLANK_TURNS += [[user("Hi"), bot("Yo"), user("")]]
HH_BLANK = "\n\nHuman: \n\nAssistant:"


@pytest.mark.parametrize("start", BLANK_TURNS)
def test_a_last_question_that_says_nothing_is_refused(start):
  sides = {"chosen": [*start, bot("a")], "rejected": [*start, bot("b")]}
  rows = [sides, sides | {"topic": "Birds"}, {"messages": sides["chosen"]}]
  rows += [{"text": [*sides.values()], "score": [1, 0]}]
  if start == BLANK_TURNS[-1]:
    rows += [{"prompt": start, "chosen": [bot("a")], "rejected": [bot("b")]}]
  for row in rows:
    assert re.search("no prompt was found|the last question", refusal(row))


@pytest.mark.parametrize(
  "start",
  [
    HH_BLANK,
    HH_BLANK.replace("Human: ", "Human: Hi\n\nAssistant: Yo\n\nHuman: "),
    "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] [/INST]",
    "<|user|>\nHi<|end|>\n<|assistant|>\nYo<|user|>\n<|assistant|>\n",
    "### Response:",
  ],
)
def test_a_last_question_without_a_word_between_marks_is_refused(start):
  message = "the last question of the prompt is empty"
  row = {"chosen": start + " a", "rejected": start + " b"}
  assert message in refusal(row)
  refusal(row | {"post": "Name a bird, please."})
  row = {"prompt": start, "chosen": " a", "rejected": " b"}
  assert message in refusal(row)


@pytest.mark.parametrize(
  "row",
  [
    {"chosen": "Yes", "rejected": "No"},
    {"chosen": "Yes", "rejected": "Yes"},
    {"chosen": "Yes", "rejected": ""},
    {"chosen": [bot("Yes")], "rejected": [bot("No")]},
    {"chosen": [system("S"), bot("Yes")], "rejected": [system("S"), bot("No")]},
    {"text": ["Yes", "No"], "score": [1, 0]},
  ],
)
def test_a_row_without_a_prompt_is_refused(row):
  text = refusal(row)
  assert "no prompt was found in the row" in text
  assert f"keys are {', '.join(map(repr, row))}" in text


def test_a_response_that_shows_nothing_is_empty():
  pair = only(prompt=HOW, chosen="\u200b", rejected="Bad.")
  limits = {"max_prompt": 99, "max_response": 99}
  encoded = encode(train_tokenizer([], 259), pair, **limits)
  assert encoded.dropped == "empty response"


def test_a_part_of_an_instruction_may_be_empty():
  row = {"instruction": " ", "input": ASKED}
  assert only(row, **SIDES) == TURNS
  row = {"instruction": ASKED, "input": " "}
  assert only(row, **SIDES) == TURNS


def test_a_text_column_beside_two_responses_may_be_the_prompt():
  text = refusal({"text": ASKED} | SIDES)
  assert "'text' holds text too; name the column of the prompt" in text


# What a response says is no part of the prompt.

Q, OWL, CAT = user("Name a bird."), bot("It is an owl."), bot("It is a cat.")
BIRD = PreferencePair([Q], [OWL], [CAT])


def of_gpt(turn):
  names = {"user": "human", "assistant": "gpt"}
  return {"from": names[turn["role"]], "value": turn["content"]}


@pytest.mark.parametrize("answer", [OWL, CAT, bot(" It is an owl.\n")])
@pytest.mark.parametrize("key", ["prompt", "messages", "conversations"])
def test_an_answer_that_a_prompt_ends_in_stands_once(key, answer):
  row = {key: [Q, answer]}
  assert only(row, chosen=[OWL], rejected=[CAT]) == BIRD
  assert only(row, chosen=of_gpt(OWL), rejected=of_gpt(CAT)) == BIRD
  if key != "prompt":
    texts = OWL["content"], CAT["content"]
    assert only(row, chosen=texts[0], rejected=texts[1]) == BIRD
  ranked = {"ranked": [[OWL], [CAT], [bot("Cod.")]]}
  for pair in formats.pairs_of(row | ranked, "row 1"):
    assert pair.prompt == [Q]
  if answer == OWL:
    assert only(row, chosen=[Q, OWL], rejected=[Q, CAT]) == BIRD
    one = only(row, response=[OWL])
    assert one == PreferencePair([Q], [OWL], None)


def test_the_start_of_an_answer_that_all_repeat_stands_once():
  row = {"messages": [Q, bot("It is")]}
  assert only(row, chosen=[OWL], rejected=[CAT]) == BIRD
  goes_on = only(row, chosen=[bot(" an owl.")], rejected=[bot(" a cat.")])
  assert goes_on.prompt == row["messages"]


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_third_answer_before_the_responses_is_refused(key):
  row = {key: [Q, bot("It is an emu.")]}
  texts = {"chosen": "It is an owl.", "rejected": "It is a cat."}
  for rest in (
    texts,
    {"chosen": [OWL], "rejected": [CAT]},
    {"ranked": [*texts.values()]},
    {"output": "It is an owl."},
  ):
    assert "end in an answer, 'It is an emu.', that is" in refusal(row | rest)


@pytest.mark.parametrize("space", ["", " "])
def test_an_answer_that_a_dialogue_ends_in_stands_once(space):
  start = "\n\nHuman: Name a bird.\n\nAssistant:"
  row = {"chosen": f"{space}It is an owl.", "rejected": f"{space}It is a cat."}
  pair = only(row, prompt=start + " It is an owl.")
  assert pair == only(row, prompt=start + " "[len(space) :])


# Texts that repeat the prompt.

HOW = "How are you today?"
HUMAN = f"\n\nHuman: {HOW}\n\nAssistant:"
WHOLE = {"chosen": HUMAN + " fine", "rejected": HUMAN + " bad"}


@pytest.mark.parametrize(
  "prompt",
  [
    HOW,
    "How are  you today?\n",
    HUMAN,
    HUMAN.lstrip(),
    HUMAN + " ",
    HUMAN.removesuffix("\n\nAssistant:"),
  ],
)
def test_a_prompt_beside_whole_dialogues_stands_once(prompt):
  pair = PreferencePair(HUMAN, " fine", " bad")
  assert only(WHOLE, prompt=prompt) == pair
  ranked = [*WHOLE.values(), HUMAN + " so"]
  first, *_ = formats.pairs_of({"prompt": prompt, "ranked": ranked}, "row 1")
  assert first == pair


@pytest.mark.parametrize("key", ["question", "instruction", "query"])
def test_a_question_that_texts_repeat_stands_once(key):
  pair = PreferencePair([user(HOW)], [bot("fine")], [bot("bad")])
  assert only({key: HOW}, **WHOLE) == pair
  plain = {"chosen": HOW + " fine", "rejected": f"\n{HOW} bad"}
  assert only({key: HOW}, **plain) == pair
  for row in (WHOLE, plain):
    ranked = [*row.values(), f"{HUMAN if row is WHOLE else HOW} so"]
    first, *_ = formats.pairs_of({key: HOW, "ranked": ranked}, "row 1")
    assert first == pair
  turns = {"messages": [user(HOW)]}
  assert only(turns, **WHOLE) == only(turns, **plain) == pair


ZH = "\u8bf7\u544a\u8bc9\u6211\u4eca\u5929\u5929\u6c14"
GOOD, BAD = "\u5f88\u597d", "\u4e0d\u597d"


@pytest.mark.parametrize("asked", [HOW, ZH, ZH + "\uff1f"])
def test_a_repeated_prompt_stands_once_in_any_script_and_as_turns(asked):
  pair = PreferencePair([user(asked)], [bot(GOOD)], [bot(BAD)])
  texts = {"chosen": f"{asked}\n{GOOD}", "rejected": f"{asked}\n{BAD}"}
  assert only(texts, question=asked) == pair
  assert only(texts, prompt=asked).chosen == f"\n{GOOD}"
  turns = {key: [bot(text)] for key, text in texts.items()}
  assert only(turns, prompt=[user(asked)]) == pair
  assert only(turns, prompt=asked) == pair
  one = {"prompt": [user(asked)], "completion": turns["chosen"]}
  assert only(one).chosen == pair.chosen
  marked = {
    key: MARKED[0].replace("q", asked) + text
    for key, text in (("chosen", GOOD), ("rejected", BAD))
  }
  assert only(marked, prompt=asked).chosen == GOOD
  begun = {"messages": [Q, bot(asked)]} | texts
  assert only(begun).prompt == [Q]


@pytest.mark.parametrize("column", [ZH, "Capital?"])
def test_a_phrase_in_another_column_may_be_the_prompt(column):
  row = {"post": column, "chosen": "Sure it is", "rejected": "Sure it was"}
  assert "'post' holds text too" in refusal(row)


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_indentation_of_code_after_a_repeated_question_is_kept(end):
  asked = "Complete: def f(x):" + end
  sides = [f"{asked.rstrip()}\n    return {i}" for i in (1, 2)]
  answers = [[bot(f"    return {i}")] for i in (1, 2)]
  row = dict(zip(("chosen", "rejected"), sides, strict=True))
  assert only(row, question=asked) == PreferencePair([user(asked)], *answers)


def test_a_prompt_is_read_alone_as_beside_its_completion():
  row = {"prompt": [Q, OWL], "completion": [OWL]}
  assert formats.prompt_of(row, "row 1").prompt == only(row).prompt == [Q]
  row = {"prompt": HUMAN + " fine", "completion": " fine"}
  assert formats.prompt_of(row, "row 1").prompt == only(row).prompt == HUMAN


@pytest.mark.parametrize("space", ["", " ", "\n"])
def test_white_space_around_a_repeated_prompt_does_not_matter(space):
  row = {"chosen": HOW + " fine", "rejected": space + HOW + " bad"}
  assert only(row, prompt=HOW + "\n") == PreferencePair(HOW, " fine", " bad")


def test_one_side_may_repeat_a_prompt_of_marks():
  pair = PreferencePair(HUMAN, " fine", " bad")
  assert only(WHOLE, prompt=HUMAN, rejected=" bad") == pair
  assert only(WHOLE, prompt=HUMAN, chosen=" fine") == pair


def test_an_answer_may_begin_with_the_words_of_a_plain_prompt():
  row = {"prompt": HOW, "chosen": HOW + " I am fine.", "rejected": "Bad."}
  assert only(row) == PreferencePair(*row.values())


@pytest.mark.parametrize("key", ["prompt", "question"])
@pytest.mark.parametrize("asked", ["Who is it?", "\n\nHuman: Who?"])
def test_whole_dialogues_of_another_prompt_are_refused(key, asked):
  assert "not the prompt's" in refusal({key: asked} | WHOLE)


def test_one_whole_dialogue_beside_an_answer_is_refused():
  assert "the other is not" in refusal(
    {"prompt": HOW} | WHOLE | {"chosen": "a"}
  )
  row = {"prompt": "\n\nHuman: Who?\n\nAssistant:"} | WHOLE
  assert "not the prompt's" in refusal(row | {"chosen": "a"})


# Roles.


@pytest.mark.parametrize(
  "asks, answers",
  [
    ("User", "Assistant"),
    ("user ", "assistant "),
    ("prompter", "assistant"),
    ("USER", "gpt"),
    ("human", "model"),
    ("Human", "bot"),
  ],
)
@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_a_role_in_any_case_and_by_another_name_is_the_same(
  asks, answers, names
):
  def said(role, turn):
    return dict(zip(names, (role, turn["content"]), strict=True))

  asked = said(asks, Q)
  sides = [[asked, said(answers, one)] for one in (OWL, CAT)]
  assert only(chosen=sides[0], rejected=sides[1]) == BIRD
  assert only(prompt=Q["content"], chosen=sides[0], rejected=sides[1]) == BIRD
  begun = [asked, said(answers, bot("It is"))]
  sides = [[said(answers, bot(one))] for one in (" an owl.", " a cat.")]
  pair = only(prompt=begun, chosen=sides[0], rejected=sides[1])
  assert pair.prompt == [Q, bot("It is")]


@pytest.mark.parametrize("role", ["critic", "", "user:", "user\u200b"])
def test_an_unknown_role_is_no_answer(role):
  other = [Q, {"role": role, "content": "It is an owl."}]
  text = refusal({"chosen": other, "rejected": [Q, CAT]})
  assert f"chosen[1].role: unknown role {role!r}; the known are" in text


# Turns of the user within a response.


@pytest.mark.parametrize(
  "row",
  [
    {"prompt": [Q], "chosen": [OWL, user("More?"), CAT], "rejected": [CAT]},
    {"prompt": [Q], "chosen": [OWL], "rejected": [CAT, user("More?"), OWL]},
    {
      "chosen": HUMAN + " fine\n\nHuman: More?\n\nAssistant: yes",
      "rejected": HUMAN + " bad",
    },
  ],
)
def test_questions_within_responses_are_counted(row, caplog):
  caplog.set_level("INFO")
  plain = {"prompt": "q", "chosen": "a", "rejected": "b"}
  rows = [
    ("line 1", row),
    ("line 2", plain),
    ("line 3", {"messages": [Q, OWL]}),
  ]
  assert len(list(formats.pairs_of_rows(rows, "a.jsonl"))) == 3
  (line,) = caplog.messages
  assert line.startswith("a.jsonl: 1 of 3 pairs have a turn of the user, the")


def test_turns_of_tools_and_the_system_within_responses_are_counted(caplog):
  caplog.set_level("INFO")
  tool = {"role": "tool", "content": "4"}
  for turn in (tool, system("Be short.")):
    row = {"prompt": [Q], "chosen": [OWL, turn, CAT], "rejected": [CAT]}
    assert len(list(formats.pairs_of_rows([("line 1", row)], "a"))) == 1
  assert len(caplog.messages) == 2


# Texts with other marks than Anthropic's.

MARKED = [
  "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
  "<s>[INST] q [/INST]",
  "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
  "<|start_header_id|>assistant<|end_header_id|>\n\n",
  "<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n",
  "<|user|>\nq\n<|assistant|>\n",
  "<\uff5cUser\uff5c>q<\uff5cAssistant\uff5c>",
  "<|im_start|>user<|im_sep|>q<|im_end|><|im_start|>assistant<|im_sep|>",
  "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>final<|message|>",
  "<|header_start|>user<|header_end|>\n\nq<|eot|>"
  "<|header_start|>assistant<|header_end|>\n\n",
  "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>q<|END_OF_TURN_TOKEN|>"
  "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
  "<|start_of_role|>user<|end_of_role|>q<|end_of_text|>\n"
  "<|start_of_role|>assistant<|end_of_role|>",
  "GPT4 Correct User: q<|end_of_turn|>GPT4 Correct Assistant:",
]
WORDED = [
  "Human: q\nAssistant:",
  "\r\n\r\nHuman: q\r\n\r\nAssistant:",
  "### Instruction:\nq\n\n### Response:",
  "USER: q ASSISTANT:",
  "Question: q\nAnswer:",
  "Q: q\nA:",
  "\u7528\u6237\uff1aq\n\u52a9\u624b\uff1a",
]


@pytest.mark.parametrize("start", [*MARKED, *WORDED])
def test_texts_are_split_where_the_answer_begins(start):
  row = {"chosen": start + " The a", "rejected": start + " The b"}
  assert only(row) == PreferencePair(start, " The a", " The b")
  again = {"chosen": start + "Yo" + start + "I a", "rejected": start + "Yo"}
  again["rejected"] += start + "I b"
  assert only(again).chosen == "I a"


@pytest.mark.parametrize("start", [*MARKED, *WORDED])
def test_a_prompt_within_marks_stands_once(start):
  start = start.replace("q", HOW)
  row = {"chosen": start + " The a", "rejected": start + " The b"}
  assert only(row, prompt=HOW) == PreferencePair(start, " The a", " The b")


@pytest.mark.parametrize("start", [*MARKED, *WORDED])
def test_one_word_within_marks_stands_once(start):
  start = start.replace("q", "Hello")
  row = {"chosen": start + " The a", "rejected": start + " The b"}
  assert only(row, prompt="Hello").prompt == start


@pytest.mark.parametrize("start", [*MARKED, *WORDED])
def test_marked_texts_that_ask_different_things_are_refused(start):
  others = [start.replace("q", one) for one in ("Who?", "When?")]
  row = {"chosen": others[0] + " a", "rejected": others[1] + " b"}
  assert "differ before an answer begins" in refusal(row)


@pytest.mark.parametrize("start", [*MARKED, *WORDED])
@pytest.mark.parametrize("key", ["prompt", "question"])
def test_one_text_within_marks_beside_an_answer_is_refused(key, start):
  row = {key: HOW, "chosen": start.replace("q", HOW) + " a", "rejected": "b"}
  why = "is a dialogue that begins with the prompt, the other is not"
  if start in MARKED:
    why = "holds the marks of a chat template"
    if key == "prompt":
      why = f"the prompt, {HOW!r}, does not lead to them"
  assert why in refusal(row)
  assert why in refusal(row | {"chosen": "b", "rejected": row["chosen"]})


@pytest.mark.parametrize("start", MARKED)
def test_marks_of_a_template_within_a_turn_are_refused(start):
  message = "a turn holds the marks of a chat template"
  answers = {"chosen": start.partition("q")[2] + "a", "rejected": "b"}
  for row in (
    {"question": start} | SIDES,
    {"instruction": start} | SIDES,
    {"system": "Be short.", "prompt": start} | SIDES,
    {"question": HOW} | answers,
    {"prompt": [user(start)], "chosen": [OWL], "rejected": [CAT]},
    {"messages": [Q, bot(start)]},
    {"prompt": [Q], "responses": [[OWL], [CAT], [bot(start)]]}
    | {"scores": [1, 1, 0]},
  ):
    assert message in refusal(row)
  text = refusal({"prompt": HOW} | answers)
  assert "a response holds the marks of a chat template" in text


def test_a_dialogue_in_a_column_of_a_question_is_refused():
  answers = {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}
  for row in (
    {"question": HUMAN} | SIDES,
    {"instruction": "### Instruction:\nDo\n\n### Response:"} | SIDES,
    {"question": HOW} | answers,
  ):
    assert "a turn holds the marks of a chat template" in refusal(row)


def test_texts_go_on_where_the_marks_of_the_prompt_lead():
  row = {"prompt": "<|user|>\nq<|end|>\n", "chosen": "<|assistant|>\na"}
  row["rejected"] = "<|assistant|>\nb"
  assert only(row) == PreferencePair(*row.values())
  text = refusal(row | {"prompt": row["prompt"] + "<|assistant|>\n"})
  assert "does not lead to them" in text
  assert "does not lead to them" in refusal(row | {"rejected": "b"})


@pytest.mark.parametrize("start", MARKED)
def test_an_answer_after_marks_that_a_prompt_ends_in_stands_once(start):
  assert only(SIDES, prompt=start + "Town").prompt == start


def test_an_answer_after_a_word_that_a_prompt_ends_in_is_refused():
  text = refusal({"prompt": "User: Bird?\nAssistant: Town"} | SIDES)
  assert "the prompt ends in 'Town', which is a response" in text


@pytest.mark.parametrize("write", [json.dumps, str])
def test_turns_that_are_written_as_a_string_are_refused(write):
  message = "holds turns that are written as a string"
  row = {"prompt": write([Q]), "chosen": "a", "rejected": "b"}
  assert f"prompt would be read as plain text, but {message}" in refusal(row)
  assert message in refusal(row | {"chosen": [OWL], "rejected": [CAT]})
  row = {"chosen": write([Q, OWL]), "rejected": write([Q, CAT])}
  assert message in refusal(row)
  assert message in refusal(row | {"prompt": "Name a bird."})
  assert message in refusal(row | {"question": "Name a bird."})
  one = {"prompt": HOW, "chosen": "a", "rejected": write([CAT])}
  assert message in refusal(one)
  ranked = {"prompt": HOW, "responses": ["a", write([CAT])], "scores": [2, 1]}
  assert message in refusal(ranked)


@pytest.mark.parametrize(
  "written",
  [
    '[{"index": 0, "role": "user", "content": "q"}]',
    '{"messages": [{"role": "user", "content": "q"}]}',
    "array([{'content': 'q', 'role': 'user'}], dtype=object)",
    "({'role': 'user', 'content': 'q'},)",
    "[['user', 'q']]",
  ],
)
def test_turns_that_are_written_in_another_form_are_refused(written):
  assert "written as a string" in refusal({"prompt": written} | SIDES)


@pytest.mark.parametrize("said", ['{"from": "Oslo", "to": "Rome"}', "[1, 2]"])
def test_json_in_an_answer_is_no_turn(said):
  assert only(prompt=HOW, chosen=said, rejected="b").chosen == said


def test_options_are_no_marks():
  row = {
    "chosen": "Options:\nA: an owl\nB: one",
    "rejected": "Options:\nA: an emu",
  }
  assert only(row).prompt == "Options:\nA: an"
  assert only(row, prompt="Name it.").chosen == row["chosen"]


# Columns and messages that hold a part of the prompt.


@pytest.mark.parametrize(
  "rest",
  [
    {"prompt": HOW, "input": "Bob"},
    {"prompt": [user(HOW)], "question": "Who is it?"},
    {"prompt": HOW, "instruction": "Be short."},
    {"prompt": HOW, "context": "Bob is ill."},
    {"prompt": HOW, "system_message": "Be short."},
    {"prompt": HOW, "history": [["Hi", "Yo"]]},
    {"prompt": HOW, "history": {"Hi": "Yo"}},
    {"prompt": HOW, "history": [{"query": "Hi", "answer": "Yo"}]},
    {"prompt": HOW, "chat_history": [user("Hi"), bot("Yo")]},
    {"prompt": HOW, "initial_reason_steps": "Step 1: I am"},
    {"conversations": [user(HOW)], "question": "Who is it?"},
    {"conversations": [user(HOW)], "history": [["Hi", "Yo"]]},
    {"question": HOW, "context": ["Bob is ill.", "Ann is well."]},
    {"prompt": HOW, "messages": [user("Hi"), bot("Yo"), user(HOW)]},
    {"prompt": HOW, "messages": {"role": ["user"], "content": ["Hi"]}},
  ],
)
def test_a_column_that_the_prompt_lacks_is_refused(rest):
  lost = [*rest][-1]
  turns = "chosen", "rejected"
  for sides in (SIDES, {key: [bot(SIDES[key])] for key in turns}):
    if isinstance(rest.get("prompt"), str) or sides != SIDES:
      assert f"without what '{lost}' holds" in refusal(rest | sides)


def test_a_column_that_the_prompt_holds_may_stand_beside_it():
  whole = [user(f"Bob is ill.\n{HOW}"), bot("Town")]
  row = {"prompt": f"Bob is ill. {HOW}", "question": HOW, "messages": whole}
  row |= {"context": "Bob is ill.", "history": [], "images": [], "input": ""}
  row |= {"audio": None, "video": {"bytes": None, "path": None}} | SIDES
  assert only(row) == PreferencePair(row["prompt"], "Town", "River")


def test_supervised_messages_hold_the_prompt_beside_them():
  row = {"messages": [Q, OWL]}
  assert only(row, prompt=[Q]).prompt == [Q]
  for lost in ([user("Hi")], [system("S"), Q], [user("Hi"), bot("Yo"), Q]):
    refusal(row | {"prompt": lost})
  other = {"prompt": "Name a bird. Be short."}
  assert "not the prompt's" in refusal(row | other)


@pytest.mark.parametrize(
  "column",
  [
    "image",
    "images",
    "image_url",
    "video",
    "audio",
    "attachments",
    "functions",
  ],
)
def test_columns_of_what_is_no_text_are_refused(tmp_path, column):
  row = {"prompt": HOW, column: [{"bytes": "x", "path": None}]} | SIDES
  assert f"'{column}' " in refusal(row)
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
  with pytest.raises(InputError, match=f"parquet row 1: '{column}' "):
    list(formats.read(path))


@pytest.mark.parametrize(
  "rest",
  [
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": '{"enable_thinking": false}'},
    {"documents": [{"title": "Birds", "text": "Owls fly."}]},
  ],
)
def test_columns_that_change_a_prompt_are_refused(rest):
  (key,) = rest
  row = {"prompt": HOW} | SIDES
  assert f"'{key}' would not be read" in refusal(row | rest)
  for empty in (None, {}, [], "", {"enable_thinking": None}):
    assert only(row | {key: empty}) == only(row)


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_beside_a_completion_is_refused(key):
  row = {"prompt": HOW, "completion": "Fine.", key: "Am I ill?"}
  assert f"'{key}' beside 'completion' would not be read" in refusal(row)
  assert only(row | {key: ""}).chosen == "Fine."
  assert only({"prompt": HOW, key: "It is a town."} | SIDES).prompt == HOW


@pytest.mark.parametrize("key", ["image_url", "input_audio", "attachments"])
def test_what_is_no_text_in_a_message_is_refused(key):
  part = {"type": "text", "text": "Sky?"}
  asked = of_gpt(Q)
  for turn in (Q | {key: ["x"]}, asked | {key: "x"}, user([part | {key: "x"}])):
    text = refusal({"prompt": [turn], "chosen": [OWL], "rejected": [CAT]})
    assert f"{key} cannot be trained on" in text


def test_calls_beside_from_and_value_are_read():
  calls = [{"function": {"name": "birds", "arguments": {}}}]
  row = {"prompt": [Q], "chosen": of_gpt(OWL) | {"tool_calls": calls}}
  assert only(row, rejected=[CAT]).chosen == [OWL | {"tool_calls": calls}]


def test_a_message_that_says_two_things_is_refused():
  row = {"chosen": [OWL], "rejected": [CAT]}
  assert only(row, prompt=[Q | of_gpt(Q)]).prompt == [Q]
  for other in (of_gpt(OWL), {"from": "human", "value": "Name a fish."}):
    text = refusal(row | {"prompt": [Q | other]})
    assert "role and content differ from from and value" in text


# A response that is judged is no supervised one.


@pytest.mark.parametrize(
  "judged",
  [
    {"helpfulness": 0, "correctness": 0},
    {"correctness": 4},
    {"is_desirable": False},
    {"accepted": True},
    {"desirable": False},
    {"Label": False},
    {"reward": -3},
    {"overall_score": 0.0},
    {"upvotes": 0},
  ],
)
@pytest.mark.parametrize(
  "row",
  [
    {"prompt": HOW, "response": "a"},
    {"prompt": HOW, "completion": "a"},
    {"instruction": HOW, "output": "a"},
    {"messages": [Q, OWL]},
  ],
)
def test_a_judged_response_is_not_supervised(row, judged):
  assert f"'{[*judged][0]}' stands beside" in refusal(row | judged)
  assert only(row, **dict.fromkeys(judged)) == only(row)
  if "messages" not in row:
    pair = only(prompt=HOW, **SIDES)
    assert only(pair.__dict__ | {"tools": None} | judged) == pair


# What contradicts itself.


@pytest.mark.parametrize(
  "prompt, asked",
  [("hi", "What is history?"), ("is it", "What is item 3?"), ("é", "café")],
)
def test_a_prompt_within_another_word_is_another_prompt(prompt, asked):
  sides = {"chosen": [user(asked), OWL], "rejected": [user(asked), CAT]}
  assert "not the prompt's" in refusal({"prompt": prompt} | sides)


def test_scripts_without_spaces_have_no_words_to_be_within():
  asked = user("请告诉我今天天气如何")
  row = {"chosen": [asked, OWL], "rejected": [asked, CAT]}
  assert only(row, prompt="今天天气").prompt == [asked]


@pytest.mark.parametrize("asked", ["Hello world", "Hello", "Translate"])
def test_a_prompt_that_says_more_than_the_conversations_is_refused(asked):
  row = {"prompt": "Translate into French: Hello world"}
  sides = {"chosen": [user(asked), OWL], "rejected": [user(asked), CAT]}
  assert "not the prompt's" in refusal(row | sides)
  start = f"\n\nHuman: {asked}\n\nAssistant:"
  texts = {"chosen": start + " a", "rejected": start + " b"}
  assert "not the prompt's" in refusal(row | texts)
  turns = {"messages": [user(asked), OWL]}
  assert "not the prompt's" in refusal(row | turns)


def test_a_prompt_may_hold_the_system_turn_of_the_conversations():
  start = [system("Translate into French:"), user("Hello world")]
  row = {"chosen": [*start, OWL], "rejected": [*start, CAT]}
  prompt = "Translate into French:\n\nHello world"
  assert only(row, prompt=prompt) == PreferencePair(start, [OWL], [CAT])


def test_a_dialogue_before_turns_is_turns():
  start = [user("Hi"), bot("Yo"), Q]
  text = "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Name a bird."
  pair = PreferencePair(start, [OWL], [CAT])
  for prompt in (text, text + "\n\nAssistant:"):
    assert only(prompt=prompt, chosen=[OWL], rejected=[CAT]) == pair
    whole = {"chosen": [*start, OWL], "rejected": [*start, CAT]}
    assert only(whole, prompt=prompt) == pair
    supervised = {"prompt": prompt, "completion": [OWL]}
    assert only(supervised).prompt == start
    assert formats.prompt_of(supervised, "row 1").prompt == start
  row = {"prompt": MARKED[0], "chosen": [OWL], "rejected": [CAT]}
  assert "marks of a chat template" in refusal(row)


@pytest.mark.parametrize("start", [MARKED[0], WORDED[0]])
def test_a_question_within_marks_beside_its_column_is_refused(start):
  start = start.replace("q", HOW)
  row = {"chosen": start + " a", "rejected": start + " b"}
  assert "hold the question again" in refusal({"question": HOW} | row)


def test_scores_and_ranks_agree_or_are_refused():
  row = {"prompt": "p", "responses": ["a", "b"], "scores": [2, 1]}
  pair = PreferencePair("p", "a", "b")
  for ranks in ([1, 2], [1, 1], None):
    assert only(row, ranks=ranks) == pair
  text = refusal(row | {"ranks": [2, 1]})
  assert "scores and ranks contradict each other on responses 1 and 2" in text
  assert "responses and outputs are two" in refusal(row | {"outputs": ["c"]})
  assert "responses and ranked are two" in refusal(row | {"ranked": ["c"]})


def test_a_response_that_is_better_and_worse_than_another_is_refused():
  message = "a response stands twice, once better and once worse"
  assert message in refusal({"prompt": HOW, "ranked": ["a", "b", "a"]})
  row = {"prompt": HOW, "responses": ["a", "a", "b"], "scores": [3, 1, 2]}
  assert message in refusal(row)
  texts = [HUMAN + one for one in (" a", " a", " b")]
  assert message in refusal({"text": texts, "score": [3, 1, 2]})
  turns = [[bot("a")], [bot("b")], [bot("a")]]
  assert message in refusal({"prompt": [Q], "ranked": turns})
  assert len(formats.pairs_of(row | {"scores": [3, 2, 1]}, "row 1")) == 3


@pytest.mark.parametrize(
  "better, worse",
  [
    ({"score_chosen": 9, "score_rejected": 1}, [1, 9]),
    ({"chosen_score": 9.5, "rejected_score": 1}, [1, 9.5]),
    ({"chosen-rating": 5, "rejected-rating": 4}, [4, 5]),
    ({"chosen_score": "10", "rejected_score": " 9.5"}, ["9.5", "10"]),
    ({"reward_chosen": 0, "reward_rejected": -1}, [-1, 0]),
    ({"chosen_rank": 1, "rejected_rank": 2}, [2, 1]),
    ({"preference": "chosen"}, ["rejected"]),
    ({"winner": "chosen"}, [" Rejected"]),
  ],
)
def test_a_verdict_against_the_columns_is_refused(tmp_path, better, worse):
  row = {"prompt": HOW} | SIDES
  pair = PreferencePair(*row.values())
  assert only(row, **better) == pair
  assert only(row, **dict.fromkeys(better)) == pair
  worse = row | dict(zip(better, worse, strict=True))
  assert "the rejected response" in refusal(worse)
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([worse]), path)
  with pytest.raises(InputError, match="parquet row 1: .* rejected response"):
    list(formats.read(path))


def test_pairs_of_equal_scores_are_counted(caplog):
  caplog.set_level("INFO")
  row = {"prompt": HOW} | SIDES
  tied = {"score_chosen": 7, "score_rejected": 7.0}
  rows = [
    row | tied,
    row | {"chosen-rating": "4", "rejected-rating": 4},
    row | tied | {"reward_chosen": 2, "reward_rejected": 1},  # that decides
    row | {"score_chosen": 7},
    row,
  ]
  placed = [(f"line {n}", one) for n, one in enumerate(rows, 1)]
  assert len(list(formats.pairs_of_rows(placed, "a.jsonl"))) == len(rows)
  (line,) = caplog.messages
  assert line.startswith("a.jsonl: 2 of 5 pairs give the chosen and the")


def test_a_key_that_stands_twice_in_tools_is_refused():
  tools = '[{"function": {"name": "a", "name": "b"}}]'
  row = {"prompt": [Q], "chosen": [OWL], "rejected": [CAT], "tools": tools}
  assert "tools: the key 'name' stands there twice" in refusal(row)


def test_a_whole_dialogue_stands_beside_a_context():
  row = WHOLE | {"context": "Bob is ill.", "question": " ", "prompt": ""}
  assert only(row) == PreferencePair(HUMAN, " fine", " bad")


def test_one_response_that_repeats_the_prompt_is_counted(caplog):
  caplog.set_level("INFO")
  sides = {"chosen": HOW + " I am fine.", "rejected": "Bad."}
  rows = [{"prompt": HOW} | sides, {"question": HOW} | sides]
  rows += [{"prompt": HOW} | SIDES, {"messages": [Q, OWL]}]
  places = [(f"line {i}", row) for i, row in enumerate(rows, 1)]
  assert len(list(formats.pairs_of_rows(places, "a.jsonl"))) == 4
  (line,) = caplog.messages
  assert line.startswith("a.jsonl: in 2 of 4 pairs one response alone begins")
