# SPDX-License-Identifier: Apache-2.0
"""Tools, calls, reasoning and parts: read, given to a template, or refused."""

import copy
import dataclasses
import json

import pytest

from mrpo_jax.data.encode import encode
from mrpo_jax.data.formats import PreferencePair, pairs_of
from mrpo_jax.data.source import pair_id, prepare
from mrpo_jax.data.tokenizer import train_tokenizer
from mrpo_jax.data.truncate import Cut, cut_to_fit, fingerprint
from mrpo_jax.errors import InputError

# A template that writes all there is, and one that writes role and content.
WRITES = (
  "{% if tools %}tools {{ tools | tojson }}\n{% endif %}"
  "{% for m in messages %}{{ '<' + m.role + '>' }}"
  "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
  "{% if m.content is string %}{{ m.content }}"
  "{% else %}{% for part in m.content or [] %}{{ part.text }}{% endfor %}"
  "{% endif %}{% for call in m.tool_calls or [] %}"
  "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
  "{{ ';' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
BARE = (
  "{% for m in messages %}{{ '<' + m.role + '>' }}{{ m.content }};{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NAMES = WRITES.replace("{{ call.function.arguments | tojson }}", "")
FIRST_CALL = WRITES.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
SKIPS_TOOLS = BARE.replace("messages %}", "messages if m.role != 'tool' %}")
AS_JSON = BARE.replace("{{ m.content }}", "{{ m.content | tojson }}")
LAST_THOUGHTS = WRITES.replace(
  "{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.last %}"
)

USER = {"role": "user", "content": "Weather in Oslo?"}
WEATHER = {"type": "function", "function": {"name": "weather"}}


def call(city):
  named = {"name": "weather", "arguments": {"city": city}}
  return {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": named}],
  }


def called(*cities):
  """Both calls in one turn."""
  calls = [one for city in cities for one in call(city)["tool_calls"]]
  return call("") | {"tool_calls": calls}


def with_arguments(given, key="arguments"):
  named = {"name": "weather", key: given}
  calls = [{"type": "function", "function": named}]
  return {"role": "assistant", "content": None, "tool_calls": calls}


def said(text, **beside):
  return {"role": "assistant", "content": text, **beside}


@pytest.fixture(scope="module")
def plain_tokenizer():
  return train_tokenizer([], 259)


@pytest.fixture
def encoded(plain_tokenizer):
  tokenizer = copy.deepcopy(plain_tokenizer)

  def encoded(template, pair, **limits):
    tokenizer.chat_template = template
    limits = {"max_prompt": 10**6, "max_response": 10**6} | limits
    return encode(tokenizer, pair, **limits), tokenizer

  return encoded


def one_pair(row):
  (pair,) = pairs_of(row, "a.jsonl line 7")
  return pair


@pytest.mark.parametrize(
  "given, read",
  [
    (call("Oslo"), call("Oslo")),
    # Nulls and empty lists are absent, whatever fills the unions of Parquet.
    (said("b", tool_calls=[], reasoning_content=None), said("b")),
    (said("b", tool_calls=None, name="x", weight=1), said("b")),
    (
      call("Oslo")
      | {
        "tool_calls": [
          {
            "id": None,
            "function": {"name": "f", "arguments": {"a": None, "b": 1}},
          }
        ]
      },
      call("")
      | {"tool_calls": [{"function": {"name": "f", "arguments": {"b": 1}}}]},
    ),
    # As JSON, and without the key of the content.
    (
      {
        "role": "assistant",
        "tool_calls": json.dumps(call("Oslo")["tool_calls"]),
      },
      call("Oslo"),
    ),
    (  # in which a null is meant
      {
        "role": "assistant",
        "tool_calls": json.dumps(call(None)["tool_calls"]),
      },
      call(None),
    ),
    (with_arguments('{"city": "Oslo"}'), call("Oslo")),
    (with_arguments('{"city": null}'), call(None)),
    (with_arguments(" "), with_arguments({})),
    (said("b", thinking="hm"), said("b", reasoning_content="hm")),
    (said("b", reasoning="hm"), said("b", reasoning_content="hm")),
    (
      said([{"type": "text", "text": "b", "image": None}]),
      said("b"),
    ),
    (
      said([{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]),
      said([{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]),
    ),
  ],
)
def test_a_message_keeps_what_a_template_may_read(given, read):
  row = {"prompt": [USER], "chosen": [given], "rejected": [said("No idea.")]}
  assert one_pair(row).chosen == [read]


def test_a_turn_of_a_tool_keeps_its_name():
  tool = {"role": "tool", "content": "4", "name": "w", "tool_call_id": "1"}
  prompt = [USER, call("Oslo"), tool]
  row = {"prompt": prompt, "chosen": [said("a")], "rejected": [said("b")]}
  assert one_pair(row).prompt == prompt


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER])])
def test_tools_are_a_list_or_its_json(tools):
  row = {"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")]}
  assert one_pair(row | {"tools": tools}).tools == [WEATHER]
  for none in ([], None, "", "[]"):
    assert one_pair(row | {"tools": none}) == one_pair(row)


@pytest.mark.parametrize(
  "message, problem",
  [
    (said(None), "chosen[0].content is null"),
    (said(None, tool_calls=[]), "chosen[0].content is null"),
    (said("a", tool_calls=[{}]), "chosen[0].tool_calls[0] names no function"),
    (said("a", tool_calls=3), "chosen[0].tool_calls is not a list"),
    (said("a", tool_calls="{"), "chosen[0].tool_calls is a string that"),
    (with_arguments("Oslo"), "chosen[0].tool_calls[0].arguments is a string"),
    (with_arguments("[1]"), "chosen[0].tool_calls[0].arguments would not be"),
    (with_arguments(3), "chosen[0].tool_calls[0].arguments would not be wr"),
    (with_arguments({"a": 1}, "input"), "chosen[0].tool_calls[0].input woul"),
    (with_arguments('{"a": 1, "a": 2}'), "chosen[0].tool_calls[0].arguments"),
    (said("a", reasoning=3), "chosen[0].reasoning_content is not a string"),
    (said([{"type": "image"}]), "chosen[0].content[0] is a part of type 'im"),
    (said(["a"]), "chosen[0].content[0] is a part of type None"),
    (said("a", thinking="b", reasoning="c"), "chosen[0]: reasoning_content a"),
    (said("a", weight=0), "chosen[0].weight is 0, but a response counts onc"),
    (said("a", train=False), "chosen[0].train is False, but a response count"),
    (said("a", loss=False), "chosen[0].loss is False, but a response counts"),
    (said("a", masked=True), "chosen[0].masked is True, but a response coun"),
    (said("a", channel="analysis"), "chosen[0].channel would not be read"),
    (said("a", tools=[WEATHER]), "chosen[0].tools would not be read"),
    (said("a", tool_plan="b"), "chosen[0].tool_plan would not be read"),
    (said("a", thoughts="b"), "chosen[0].thoughts would not be read"),
    (said("", refusal="No."), "chosen[0].refusal would not be read"),
    (said("") | {"text": "b"}, "chosen[0].text would not be read"),
    (said("a", reasoning_details=[{"text": "b"}]), "chosen[0].reasoning_detai"),
    (said("a", images=["b.png"]), "chosen[0].images cannot be trained on"),
    (said(None, function_call={"name": "f"}), "chosen[0].function_call cann"),
  ],
)
def test_what_is_no_message_is_refused_with_its_place(message, problem):
  row = {"prompt": [USER], "chosen": [message], "rejected": [said("b")]}
  with pytest.raises(InputError) as info:
    pairs_of(row, "a.jsonl line 7")
  assert str(info.value).startswith(f"a.jsonl line 7: {problem}")


@pytest.mark.parametrize(
  "beside", [{"weight": 0}, {"train": False}, {"loss": 0}, {"masked": 1}]
)
def test_a_turn_that_is_not_trained_on_is_no_part_of_a_response(beside):
  first, last = said("a", **beside), said("c", weight=1)
  response = [first, USER, last]
  row = {"prompt": [USER], "chosen": response, "rejected": [said("b")]}
  ranked = {"prompt": [USER], "ranked": [[said("b")], response]}
  for one in (row, ranked, {"prompt": [USER], "completion": response}):
    with pytest.raises(InputError, match=f"[.]{[*beside][0]} is .*, but a re"):
      pairs_of(one, "row 1")
  # What leads to a response is not trained on.
  asked = [USER | beside]
  assert one_pair({"prompt": asked, "completion": [last]}).prompt == [USER]
  whole = [USER, *response]
  pair = one_pair({"chosen": whole, "rejected": [*whole[:-1], said("d")]})
  assert pair.prompt == [USER, said("a"), USER]
  assert {type(turn) for turn in pair.prompt} == {dict}
  assert one_pair({"messages": whole}).chosen == [said("c")]
  other = [USER, said("a"), USER, said("d")]
  assert one_pair({"chosen": whole, "rejected": other}).prompt == pair.prompt


@pytest.mark.parametrize(
  "beside",
  [
    {"channel": "final"},
    {"refusal": " "},
    {"reasoning": "b", "reasoning_details": [{"text": "b"}]},
    {"tools": [], "thoughts": None, "tool_plan": ""},
    {"loss": True, "masked": False, "train": True},
  ],
)
def test_keys_of_a_message_that_change_nothing_pass(beside):
  row = {"prompt": [USER], "chosen": [said("a", **beside)]}
  assert one_pair(row | {"rejected": [said("b")]}).chosen[0]["content"] == "a"


def test_the_id_of_a_pair_without_them_is_as_it_was():
  pair = PreferencePair(
    [said("a") | {"role": "user"}], [said("b")], [said("c")]
  )
  assert (
    pair_id(pair)
    == "bf47bf55e0d096ff70ee1ea5634da21227dab9526e39917b5048acded2854dd1"
  )
  assert (
    fingerprint(pair, Cut())
    == "16e5291052cbfc348508988993c6c51183724cfd8097ac1feac59e65ceb0d727"
  )
  assert (
    pair_id(PreferencePair("a", "b", "c"))
    == "fa1844c2988ad15ab7b49e0ece09684500fad94df916859fb9a43ff85f5bb477"
  )
  tools = dataclasses.replace(pair, tools=[WEATHER])
  calls = [
    dataclasses.replace(pair, chosen=[call(city)]) for city in ("Oslo", "Rome")
  ]
  for mark in (pair_id, lambda pair: fingerprint(pair, Cut())):
    assert len({mark(one) for one in (pair, tools, *calls)}) == 4


def test_the_template_is_given_all_of_it(encoded):
  tool = {"role": "tool", "content": "4 degrees"}
  thought = said("Cold.", reasoning_content="4 is cold")
  pair = PreferencePair(
    [USER, call("Oslo"), tool], [thought], [said("Warm.")], [WEATHER]
  )
  one, tokenizer = encoded(WRITES, pair)
  assert one.dropped is None
  for response, ids in [
    (pair.chosen, one.chosen_ids),
    (pair.rejected, one.rejected_ids),
  ]:
    whole = tokenizer.apply_chat_template(
      pair.prompt + response, tools=[WEATHER], return_dict=False
    )
    assert one.prompt_ids + ids == whole
  text = tokenizer.decode(one.prompt_ids + one.chosen_ids)
  assert text == (
    'tools [{"type": "function", "function": {"name": "weather"}}]\n'
    '<user>Weather in Oslo?;<assistant>weather{"city": "Oslo"};'
    "<tool>4 degrees;<assistant>(4 is cold)Cold.;"
  )


def test_responses_that_differ_in_tool_calls_alone_differ(encoded):
  pair = PreferencePair([USER], [call("Oslo")], [call("Rome")])
  one, tokenizer = encoded(WRITES, pair)
  assert tokenizer.decode(one.chosen_ids) == 'weather{"city": "Oslo"};'
  assert tokenizer.decode(one.rejected_ids) == 'weather{"city": "Rome"};'
  assert min(one.characters) > 0
  same = PreferencePair([USER], [call("Oslo")], [call("Oslo")])
  assert encoded(WRITES, same)[0].dropped == "equal responses"


@pytest.mark.parametrize(
  "template, chosen, what",
  [
    (BARE, call("Oslo"), "tool_calls"),
    (BARE, said("a", tool_calls=call("Oslo")["tool_calls"]), "tool_calls"),
    (NAMES, call("Oslo"), "the arguments of tool_calls"),
    (FIRST_CALL, called("Oslo", "Rome"), "tool_calls[1]"),
    (FIRST_CALL, called("Oslo", "Oslo"), "tool_calls[0]"),
    (BARE, said("a", reasoning_content="hm"), "reasoning_content"),
    # The list itself is written.
    (BARE, said([{"type": "text", "text": "a"}]), "a content in parts"),
    (AS_JSON, said([{"type": "text", "text": "a"}]), "a content in parts"),
  ],
)
def test_what_a_template_does_not_write_is_refused_by_name(
  encoded, template, chosen, what
):
  reason = f"refused by the chat template: it does not write {what}"
  for sides in ([chosen], [said("b")]), ([said("b")], [chosen]):
    one, _ = encoded(template, PreferencePair([USER], *sides))
    assert one.dropped == reason
  assert (
    encoded(BARE, PreferencePair([USER], [said("a")], [said("b")]))[0].dropped
    is None
  )


def test_tools_and_turns_of_tools_are_refused_by_name(encoded):
  reason = "refused by the chat template: it does not write "
  pair = PreferencePair([USER], [said("a")], [said("b")], [WEATHER])
  assert encoded(BARE, pair)[0].dropped == reason + "tools"
  tool = {"role": "tool", "content": "4"}
  pair = PreferencePair([USER, tool], [said("a")], [said("b")])
  assert encoded(SKIPS_TOOLS, pair)[0].dropped == reason + "a tool turn"
  assert encoded(BARE, pair)[0].dropped is None
  pair = PreferencePair("a", "b", "c", [WEATHER])
  assert encoded(BARE, pair)[0].dropped == "tools beside plain text"


def test_reasoning_that_a_template_keeps_to_the_last_answer_is_told(encoded):
  prompt = [USER, said("Cold.", reasoning_content="hm"), USER]
  pair = PreferencePair(prompt, [said("a")], [said("b")])
  one, _ = encoded(LAST_THOUGHTS, pair)
  assert (one.dropped, one.left_out) == (None, "reasoning of an earlier turn")
  assert encoded(WRITES, pair)[0].left_out is None


def test_a_tool_call_that_is_too_long_is_not_cut_in_two(encoded):
  pair = PreferencePair([USER], [call("Oslo")], [said("No idea.")])
  limits = {"max_prompt": 99, "max_response": 9}
  _, tokenizer = encoded(WRITES, pair)
  (cut,) = cut_to_fit([tokenizer], [pair], **limits)
  one = encode(tokenizer, pair, cut=cut, **limits)
  assert one.dropped == "cannot be cut: the response is a tool call"


def test_a_tool_call_of_the_prompt_is_not_continued(encoded):
  pair = PreferencePair([USER, call("Oslo")], [said("a")], [said("b")])
  one, _ = encoded(WRITES, pair)
  assert one.dropped.startswith("prompt ends in an assistant turn: ")


def test_tfds_refuses_what_it_cannot_store(tmp_path):
  row = {"prompt": [USER], "chosen": [call("Oslo")], "rejected": [said("b")]}
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps(row))
  with pytest.raises(InputError, match="a.jsonl pair 1: holds tools"):
    prepare(path, tmp_path / "to")
