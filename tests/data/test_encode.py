# SPDX-License-Identifier: Apache-2.0
"""Ids, borders and cuts of a pair, by hand and against the tokenizer."""

import copy
import dataclasses
import itertools
import logging

import pytest

from mrpo_jax import configs
from mrpo_jax.data.encode import Encoded, encode, encode_all
from mrpo_jax.data.templates import chat_template
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  train_tokenizer,
  with_template,
)

TEXTS = [
  "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
  "\n\nHuman: What is the answer?\n\nAssistant: The answer is forty-two.",
  "Numbers 1 2 3 and words, words, words; nothing else is in here.",
] * 5
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n'"
  " + m['content'] + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
  "{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
  "{% elif m['role'] == 'assistant' %}"
  "{{ ' ' + m['content'].strip() + eos_token }}"
  "{% else %}{{ raise_exception('no ' + m['role'] + ' turns') }}"
  "{% endif %}{% endfor %}"
)
ROLES = (  # no EOS, and a generation prompt that no answer starts with
  "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': '"
  " + m['content'] + ';' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant: <think>' }}{% endif %}"
)
# Mistral's: the system text goes into the last turn if that is the user's.
SYSTEM_LAST = (
  "{{ bos_token }}{% if messages[0].role == 'system' %}"
  "{% set said = messages[0].content + '\n\n' %}{% set ms = messages[1:] %}"
  "{% else %}{% set said = '' %}{% set ms = messages %}{% endif %}"
  "{% for m in ms %}{% if m.role == 'user' %}"
  "{{ '[INST] ' + (said if loop.last else '') + m.content + '[/INST]' }}"
  "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# The last answer alone has a block of thoughts, be it empty.
THOUGHTS_LAST = (
  "{% for m in messages %}{{ m.role + ': ' }}"
  "{% set at = loop.index0 %}{% set later = messages[at + 1:] %}"
  "{% if m.role == 'assistant' and "
  "'assistant' not in later | map(attribute='role') %}"
  "{{ '<think></think>' }}{% endif %}{{ m.content + ';' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SWAPPED = "{{ messages[-1]['content'] + messages[0]['content'] }}"
UPPER_LAST = (
  "{% for m in messages %}{{ m.role + ': ' }}"
  "{{ m.content | upper if loop.last else m.content | lower }};{% endfor %}"
)
BOS, EOS, PAD = 0, 1, 2
A, B, C, AB, BC, SPACE = 3, 4, 5, 6, 7, 8
BIG = 10**9


@dataclasses.dataclass(frozen=True)
class Pair:
  prompt: str | list
  chosen: str | list
  rejected: str | list


def small(*, bos="<bos>", eos="<eos>", pad="<pad>", ends=""):
  """BPE over "abc " that merges ab and bc; starts with BOS if it has one."""
  from tokenizers import AddedToken, Tokenizer, models, processors
  from transformers import PreTrainedTokenizerFast

  names = ["<bos>", "<eos>", "<pad>", "a", "b", "c", "ab", "bc", " "]
  vocab = {name: i for i, name in enumerate(names)}
  backend = Tokenizer(models.BPE(vocab, [("a", "b"), ("b", "c")]))
  backend.add_special_tokens(
    [AddedToken(name, normalized=False) for name in names[:3]]
  )
  if bos:
    backend.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A {ends}".strip(),
      special_tokens=[(bos, vocab[bos]), ("<eos>", 1)],
    )
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad
  )


@pytest.fixture(scope="session")
def trained():
  """One of bytes, trained here, and the one of pieces that configs use."""
  return {
    "bpe": train_tokenizer(TEXTS, 500),
    "unigram": load_tokenizer(configs.TOKENIZERS / "unigram-512"),
  }


@pytest.fixture(params=["bpe", "unigram"])
def tokenizer(request, trained):
  return copy.deepcopy(trained[request.param])


def run(tokenizer, prompt, chosen, rejected, limits=(BIG, BIG)):
  pair = Pair(prompt, chosen, rejected)
  return encode(tokenizer, pair, max_prompt=limits[0], max_response=limits[1])


def turn(role, content):
  return {"role": role, "content": content}


def said(content):
  return [turn("assistant", content)]


def assert_split(encoded, alone, chosen, rejected):
  """The wholes are kept, and the border is the longest common start."""
  assert encoded.dropped is None
  assert encoded.prompt_ids + encoded.chosen_ids == chosen
  assert encoded.prompt_ids + encoded.rejected_ids == rejected
  n = len(encoded.prompt_ids)
  assert alone[:n] == encoded.prompt_ids
  heads = {tuple(ids[n : n + 1]) for ids in (alone, chosen, rejected)}
  assert len(heads) > 1 or heads == {()}
  assert encoded.chosen_ids and encoded.rejected_ids


@pytest.mark.parametrize(
  "special, prompt, chosen, rejected, want",
  [
    # Nothing crosses the border.
    ({}, "a", "c", "a", ([BOS, A], [C, EOS], [A, EOS])),
    # a|b becomes ab: the prompt gives up its a to both responses.
    ({}, "ca", "b", "c", ([BOS, C], [AB, EOS], [A, C, EOS])),
    # Nothing of the prompt is left but BOS.
    ({}, "a", "b", "c", ([BOS], [AB, EOS], [A, C, EOS])),
    # Both responses start alike: still theirs, not the prompt's.
    ({}, "a", "ca", "cb", ([BOS, A], [C, A, EOS], [C, B, EOS])),
    # One response is the other's start.
    ({}, "a", "ca", "c", ([BOS, A], [C, A, EOS], [C, EOS])),
    # An empty prompt is BOS.
    ({}, "", "a", "b", ([BOS], [A, EOS], [B, EOS])),
    # BOS and EOS written out in the text stand there once.
    ({}, "<bos>a", "c<eos>", "a", ([BOS, A], [C, EOS], [A, EOS])),
    ({}, "<bos><bos>a", "c", "a", ([BOS, A], [C, EOS], [A, EOS])),
    ({}, "", "<bos>c", "a", ([BOS], [C, EOS], [A, EOS])),
    # White space after it does not bring a second.
    ({}, "a", "c<eos> ", "a", ([BOS, A], [C, EOS, SPACE], [A, EOS])),
    ({}, "a", "c<eos>\n", "a<eos>", ([BOS, A], [C, EOS], [A, EOS])),
    ({}, "a<eos> ", "c", "a", ([BOS, A, EOS, SPACE], [C, EOS], [A, EOS])),
    # The tokenizer ends with EOS by itself.
    ({"ends": "<eos>"}, "a", "c", "a", ([BOS, A], [C, EOS], [A, EOS])),
    ({"ends": "<eos>"}, "a", "c<eos>", "a", ([BOS, A], [C, EOS], [A, EOS])),
    (
      {"ends": "<eos>"},
      *("a", "c<eos> ", "a"),
      ([BOS, A], [C, EOS, SPACE], [A, EOS]),
    ),
    # pad is EOS, or there is none: nothing changes.
    ({"pad": "<eos>"}, "a", "c", "a", ([BOS, A], [C, EOS], [A, EOS])),
    ({"pad": None}, "a", "c", "a", ([BOS, A], [C, EOS], [A, EOS])),
    # BOS is EOS, as in GPT-2.
    ({"bos": "<eos>"}, "a", "c", "a", ([EOS, A], [C, EOS], [A, EOS])),
    # No BOS: EOS predicts the first token where the prompt gives none.
    ({"bos": None}, "a", "c", "a", ([A], [C, EOS], [A, EOS])),
    ({"bos": None}, "", "c", "a", ([EOS], [C, EOS], [A, EOS])),
    ({"bos": None}, "a", "b", "c", ([EOS], [AB, EOS], [A, C, EOS])),
    # No EOS: nothing is added.
    ({"eos": None}, "a", "c", "a", ([BOS, A], [C], [A])),
    # Neither.
    ({"bos": None, "eos": None}, "a", "c", "a", ([A], [C], [A])),
  ],
)
def test_the_border_of_plain_text(special, prompt, chosen, rejected, want):
  assert run(small(**special), prompt, chosen, rejected) == Encoded(*want)


@pytest.mark.parametrize(
  "limits, want, truncated, response_cut",
  [
    ((5, 4), ([BOS, A, C, A, C], [A, C, A, EOS], [C, C, EOS]), False, False),
    # The prompt keeps BOS and its end, a response its start, not its EOS.
    ((4, 4), ([BOS, C, A, C], [A, C, A, EOS], [C, C, EOS]), True, False),
    ((5, 3), ([BOS, A, C, A, C], [A, C, A], [C, C, EOS]), True, True),
    ((2, 1), ([BOS, C], [A], [C]), True, True),
    ((1, 1), ([BOS], [A], [C]), True, True),
  ],
)
def test_cutting(limits, want, truncated, response_cut):
  encoded = run(small(), "acac", "aca", "cc", limits)
  how = dict(truncated=truncated, response_cut=response_cut)
  assert encoded == Encoded(*want, **how)


def test_a_prompt_without_bos_keeps_its_end():
  encoded = run(small(bos=None), "acac", "a", "c", (3, 9))
  assert encoded.prompt_ids == [C, A, C]


@pytest.mark.parametrize("limits", [(0, 1), (1, 0), (-1, 1), (1, float("nan"))])
def test_limits_below_one_are_refused(limits):
  with pytest.raises(ValueError, match="max_(prompt|response)"):
    run(small(), "a", "b", "c", limits)


@pytest.mark.parametrize(
  "special, prompt, chosen, rejected, reason",
  [
    ({}, "a", "", "b", "empty response"),
    ({}, "a", "b", " \n\t", "empty response"),
    ({}, "a", "c", "xyz", "empty response"),  # ids of which there are none
    ({"eos": None}, "a", "c", "xyz", "empty response"),
    ({}, "a", "<eos>", "c", "empty response"),
    ({}, "a", "c", " <eos> ", "empty response"),
    ({}, "a", "b", "b", "equal responses"),
    ({}, "a", "cx", "c", "equal responses"),  # other text, equal ids
    ({}, "a", "cca", "ccb", "equal responses"),  # equal once cut to two
    ({}, "a\ud800", "c", "b", "not encodable: 'utf-8' codec"),
    ({}, "a", "c", "\udfff", "not encodable: 'utf-8' codec"),
    ({"bos": None, "eos": None}, "", "c", "b", "empty prompt"),
    ({"bos": None, "eos": None}, "a", "b", "c", "empty prompt"),
    ({}, [turn("user", "a")], said(" "), said("b"), "empty response"),
    ({}, [turn("user", "a")], [], said("b"), "empty response"),
    # No turn of it is the assistant's, or the first is not.
    ({}, [turn("user", "a")], [turn("user", "c")], said("b"), "empty response"),
    ({}, [turn("user", "a")], [turn("tool", "c")], said("b"), "empty response"),
    ({}, said("a"), [turn("user", "b"), *said("c")], [], "empty response"),
    (
      {},
      [turn("user", "a")],
      [turn("user", "b"), *said("c")],
      said("b"),
      "response begins with another turn",
    ),
    ({}, [turn("user", "a")], said("b"), said("b"), "equal responses"),
    ({}, [turn("user", "a\ud800")], said("b"), said("c"), "not encodable: "),
    (
      {},
      [turn("tool", "a")],
      said("b"),
      said("c"),
      "refused by the chat template: unknown role tool",
    ),
  ],
)
def test_what_is_dropped(special, prompt, chosen, rejected, reason):
  encoded = run(small(**special), prompt, chosen, rejected, (9, 2))
  assert encoded.dropped.startswith(reason)
  assert encoded == Encoded([], [], [], dropped=encoded.dropped)
  assert "\n" not in encoded.dropped


def test_one_text_that_cannot_be_encoded_does_not_touch_the_others():
  pairs = [Pair("a", "c", "a"), Pair("\ud800", "c", "a"), Pair("c", "a", "b")]
  encoded = encode_all(small(), pairs, max_prompt=9, max_response=9)
  assert [bool(pair.dropped) for pair in encoded] == [False, True, False]


def test_a_text_at_which_the_tokenizer_panics_is_not_encodable(monkeypatch):
  class PanicException(BaseException):
    """As pyo3 has it."""

  def panicking(self, texts, *args, **options):
    if any("cc" in text for text in texts):
      raise PanicException("index out of bounds")
    return call(self, texts, *args, **options)

  tokenizer = small()
  call = type(tokenizer).__call__
  monkeypatch.setattr(type(tokenizer), "__call__", panicking)
  pairs = [Pair("a", "cc", "a"), Pair("a", "c", "a")]
  encoded = encode_all(tokenizer, pairs, max_prompt=9, max_response=9)
  assert [one.dropped for one in encoded] == [
    "not encodable: the library panics: index out of bounds",
    None,
  ]


PLAIN = [
  ("The quick brown", " fox jumps", " dog sleeps"),
  ("The quick bro", "wn fox", "ther"),
  ("The answer is", " forty", "n't forty"),
  ("words ", "words", " words"),
  ("\n\nHuman: what?\n\nAssistant:", " No.\n", " \nNo"),
  ("日本語 \U0001f600", "\U0001f601", " e\u0301"),
  ("e", "\u0301", "\u0300"),
  ("", "The fox", "the fox"),
  ("a\x00b\r\n", "\x00", "\x01"),
  ("<pad><unk>", "<pad>", "<unk>"),
]


@pytest.mark.parametrize("pair", PLAIN)
def test_plain_text_is_what_the_tokenizer_gives(tokenizer, pair):
  prompt, *sides = pair
  encoded = run(tokenizer, *pair)
  whole = [tokenizer(prompt + side).input_ids + [EOS] for side in sides]
  assert_split(encoded, tokenizer(prompt).input_ids, *whole)
  for ids in whole:
    assert [ids.count(BOS), ids.count(EOS), ids[0], ids[-1]] == [1, 1, BOS, EOS]


CHATS = [
  ([turn("user", "The fox?")], said("It jumps."), said("A dog.")),
  ([turn("user", " The fox? ")], said(" It jumps. "), said("Itself ")),
  (
    [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
    said("the"),
    said("then"),
  ),
  (
    [turn("user", "a")],
    [*said("b"), turn("user", "c"), *said("d")],
    said("<think> no"),
  ),
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", [CHATML, INST, ROLES, None])
def test_a_conversation_is_what_the_template_gives(tokenizer, template, chat):
  tokenizer.chat_template = template

  def ids(messages, **options):
    return tokenizer.apply_chat_template(
      messages,
      chat_template=chat_template(tokenizer),
      return_dict=False,
      **options,
    )

  prompt, *sides = chat
  whole = [ids(prompt + side) for side in sides]
  assert_split(
    run(tokenizer, *chat), ids(prompt, add_generation_prompt=True), *whole
  )
  for sequence in whole:
    assert sequence.count(BOS) == (template != CHATML)


def test_chatml_by_hand(tokenizer):
  tokenizer.chat_template = CHATML
  encoded = run(tokenizer, [turn("user", "Fox?")], said("No."), said("Yes."))
  texts = [
    tokenizer.decode(ids)
    for ids in (encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids)
  ]
  # The border may sit before a token that holds the end of the header.
  assert texts[0] + texts[1] == (
    "<|im_start|>user\nFox?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
  )
  assert texts[2].endswith("Yes.<|im_end|>\n")
  assert not {BOS, EOS} & {*encoded.prompt_ids, *encoded.chosen_ids}


def test_the_transcript_by_hand(tokenizer):
  prompt = [turn("system", "Be brief."), turn("user", "a"), *said("b")]
  encoded = run(tokenizer, [*prompt, turn("user", "c")], said("d"), said("e"))
  assert tokenizer.decode(encoded.prompt_ids + encoded.chosen_ids) == (
    "<bos>Be brief.\n\nHuman: a\n\nAssistant: b<eos>"
    "\n\nHuman: c\n\nAssistant: d<eos>"
  )
  assert tokenizer.decode(encoded.prompt_ids).endswith("Assistant:")


def test_the_transcript_has_bos_as_plain_text_has_it():
  pair = [turn("user", "a")], said("b"), said("c")
  assert run(small(), *pair).prompt_ids[0] == BOS
  assert run(small(bos=None), *pair).prompt_ids[0] != BOS
  tokenizer = small()
  tokenizer.backend_tokenizer.post_processor = None
  assert run(tokenizer, *pair).prompt_ids[0] != BOS
  assert run(small(ends="<eos>"), *pair).chosen_ids.count(EOS) == 1


def test_a_template_may_refuse_a_role(tokenizer):
  tokenizer.chat_template = INST
  prompt = [turn("system", "Be brief."), turn("user", "a")]
  encoded = run(tokenizer, prompt, said("b"), said("c"))
  assert encoded.dropped == "refused by the chat template: no system turns"


@pytest.mark.parametrize(
  "broken",
  [
    "{{ 1 + 'a' }}",
    "{{ x.y.z }}",
    "{% if %}",
    r"{{ raise_exception('two\nlines') }}",
    # Fails for the prompt alone only.
    "{{ messages[0]['content'] + messages[1]['content'] }}",
  ],
)
def test_a_broken_template_drops(tokenizer, broken):
  tokenizer.chat_template = broken
  encoded = run(tokenizer, [turn("user", "a")], said("b"), said("c"))
  assert encoded.dropped.startswith("refused by the chat template: ")
  assert "\n" not in encoded.dropped


TALK = [turn("user", "Hi"), *said("Hello"), turn("user", "Peru?")]


@pytest.mark.parametrize(
  "template, prompt, ends, starts",
  [
    (SYSTEM_LAST, [turn("system", "Be brief."), *TALK[2:]], "[/INST]", " "),
    (
      SYSTEM_LAST,
      [turn("system", "Be brief."), *TALK],
      "[INST] Hi[/INST] Hello<eos>[INST] Peru?[/INST]",
      " ",
    ),
    # Alone the prompt shows thoughts before Hello, which no whole does.
    (
      THOUGHTS_LAST,
      TALK,
      "user: Hi;assistant: Hello;user: Peru?;assistant: ",
      "<think></think>",
    ),
    (THOUGHTS_LAST, TALK[2:], "user: Peru?;assistant: ", "<think></think>"),
  ],
)
def test_a_response_begins_after_the_prompts_last_content(
  trained, template, prompt, ends, starts
):
  tokenizer = copy.deepcopy(trained["unigram"])
  tokenizer.chat_template = template
  encoded = run(tokenizer, prompt, said("Lima"), said("Quito"))
  assert encoded.dropped is None
  assert tokenizer.decode(encoded.prompt_ids).endswith(ends)
  for ids, word in [
    (encoded.chosen_ids, "Lima"),
    (encoded.rejected_ids, "Quito"),
  ]:
    assert tokenizer.decode(ids).startswith(starts + word)


@pytest.mark.parametrize(
  "template, prompt, chosen",
  [
    (
      CHATML,
      "<|im_start|>user\nPeru?<|im_end|>\n<|im_start|>assistant\nIt is",
      " Lima.<|im_end|>\n",
    ),
    (INST, "<bos>[INST] Peru? [/INST] It is", " Lima.<eos>"),
    (None, "<bos>\n\nHuman: Peru?\n\nAssistant: It is", " Lima.<eos>"),
  ],
)
def test_a_prompt_that_ends_in_an_assistant_turn_is_continued(
  trained, template, prompt, chosen
):
  tokenizer = copy.deepcopy(trained["unigram"])
  tokenizer.chat_template = template
  turns = [turn("user", "Peru?"), *said("It is")]
  encoded = run(tokenizer, turns, said(" Lima."), said(" Quito."))
  assert tokenizer.decode(encoded.prompt_ids) == prompt
  assert tokenizer.decode(encoded.chosen_ids) == chosen
  assert encoded.characters == (6, 7)
  whole = [*turns[:1], *said("It is Lima.")]
  alone = tokenizer.apply_chat_template(
    whole, chat_template=chat_template(tokenizer), return_dict=False
  )
  assert encoded.prompt_ids + encoded.chosen_ids == alone


def test_a_pair_whose_border_was_elsewhere_before_is_marked(tokenizer):
  for template, prompt in [(SYSTEM_LAST, [turn("system", "Brief"), *TALK])]:
    tokenizer.chat_template = template
    assert run(tokenizer, prompt, said("a"), said("b")).border == "moved"
    assert run(tokenizer, prompt[1:], said("a"), said("b")).border == ""
    prompt = [*prompt, *said("It")]
    assert run(tokenizer, prompt, said("a"), said("b")).border == "continued"
  for text, border in [("<eos>", ""), ("<eos> ", "ended"), (" ", "")]:
    assert run(small(), "a", "c" + text, "a").border == border


def test_what_cannot_be_continued_drops(tokenizer):
  tokenizer.chat_template = CHATML
  prompt = [turn("user", "Peru?"), *said("It is")]
  reply = [turn("user", "And?"), *said("Lima")]
  encoded = run(tokenizer, prompt, reply, said(" Quito."))
  assert encoded.dropped.startswith("response begins with another turn")
  other = [turn("model", "Lima")]
  encoded = run(tokenizer, prompt, other, said(" Quito."))
  assert encoded.dropped.startswith("prompt ends in an assistant turn: ")
  assert run(tokenizer, prompt, said(" "), said("a")).dropped == (
    "empty response"
  )
  assert run(tokenizer, prompt, [], said("a")).dropped == "empty response"
  tokenizer.chat_template = "{{ messages[0].content }}{{ messages | length }}"
  encoded = run(tokenizer, prompt, said(" Lima."), said(" Quito."))
  assert encoded.dropped.startswith("refused by the chat template: continue_")


@pytest.mark.parametrize("template", [SWAPPED, UPPER_LAST])
def test_a_prompt_whose_end_is_not_found_before_the_answer_drops(
  tokenizer, template
):
  tokenizer.chat_template = template
  encoded = run(tokenizer, [turn("user", "Peru?")], said("Lima"), said("Quito"))
  assert encoded.dropped.startswith("prompt rewritten: ")


@pytest.mark.parametrize(
  "template",
  [
    CHATML,
    "{{ messages[0]['content'] }}",
    "{{ bos_token + messages[0]['content'] }}",
  ],
)
def test_a_conversation_may_start_with_the_response(tokenizer, template):
  tokenizer.chat_template = template
  encoded = run(tokenizer, [], said("The fox"), said("the dog"))
  assert encoded.dropped is None
  text = tokenizer.decode(encoded.prompt_ids + encoded.chosen_ids)
  head, tail = "<|im_start|>assistant\n", "<|im_end|>\n"
  want = f"{head}The fox{tail}" if template == CHATML else "<bos>The fox"
  assert text == want


def test_content_parts_that_a_template_cannot_join_drop():
  parts = [{"type": "text", "text": "b"}]
  encoded = run(small(), [turn("user", "a")], said(parts), said("c"))
  assert encoded.dropped.startswith("refused by the chat template: ")


def test_many_are_encoded_as_one_is(tokenizer):
  odd = [("a", "", "b"), ("a\udc00", "b", "c"), ("a", "b", "b")]
  some = [Pair(*fields) for fields in itertools.chain(PLAIN, CHATS, odd)]
  pairs = some * 20  # several tokenizer calls
  limits = {"max_prompt": 6, "max_response": 4}
  done = []
  many = encode_all(tokenizer, iter(pairs), progress=done.append, **limits)
  assert many == [encode(tokenizer, pair, **limits) for pair in some] * 20
  assert sum(done) == len(pairs) and len(done) > 1


def test_many_texts_share_few_tokenizer_calls(tokenizer, monkeypatch):
  sizes = []
  call = type(tokenizer).__call__

  def counted(self, texts, *args, **options):
    sizes.append(len(texts))
    return call(self, texts, *args, **options)

  monkeypatch.setattr(type(tokenizer), "__call__", counted)
  pairs = [Pair(f"{i}", " a", " b") for i in range(700)]
  encode_all(tokenizer, pairs, max_prompt=9, max_response=9)
  assert len(sizes) <= 4 and max(sizes) <= 1000


@pytest.mark.parametrize("template", [None, CHATML])
def test_long_texts_are_cut_without_a_warning(tokenizer, template, caplog):
  tokenizer.chat_template = template
  tokenizer.model_max_length = 4
  logging.getLogger("transformers").addHandler(caplog.handler)
  run(tokenizer, "The quick brown fox", " jumps over", " sleeps")
  run(tokenizer, [turn("user", "The quick fox")], said("jumps"), said("sleeps"))
  logging.getLogger("transformers").removeHandler(caplog.handler)
  assert not caplog.records


def test_a_saved_cut_or_padding_is_not_applied(tokenizer):
  pair = ("The quick brown fox", " jumps over", " sleeps")
  tokenizer.chat_template = CHATML  # no call that looks for one comes between
  want = run(tokenizer, *pair)
  tokenizer.backend_tokenizer.enable_truncation(3)
  tokenizer.backend_tokenizer.enable_padding(length=50)
  assert run(tokenizer, *pair) == want


@pytest.mark.parametrize(
  "template, left_out",
  [
    ("{% for m in messages %}{{ m['content'] }}{% endfor %}", None),
    ("{{ messages[1]['content'] + messages[-1]['content'] }}", "a system turn"),
    ("{{ messages[-1]['content'] }}", "a system turn and a user turn"),
    # Its one letter stands in the text, but not as the user's turn.
    (
      "{{ 'a' + messages[0]['content'] + messages[-1]['content'] }}",
      "a user turn",
    ),
    # It needs something to read; then the text is looked through.
    (
      "{{ messages[0]['content'][:9] + messages[-1]['content']"
      " + 'a' * (1 // messages[0]['content'].count('e')) }}",
      "a user turn",
    ),
  ],
)
def test_a_turn_that_the_template_leaves_out_is_told(
  tokenizer, template, left_out
):
  tokenizer.chat_template = template
  prompt = [turn("system", " Be brief "), turn("user", "a"), *said("z")]
  encoded = run(tokenizer, prompt, said("Yes"), said("No"))
  assert (encoded.dropped, encoded.left_out) == (None, left_out)
  prompt = [turn("system", " \n"), turn("user", ""), *said("")]
  if "count" not in template:
    assert run(tokenizer, prompt, said("Yes"), said("No")).left_out is None


NO_THOUGHTS = (
  "{% for m in messages %}{% set said = m.content %}"
  "{% if m.role == 'assistant' %}{% set said = said.split('</think>')[-1] %}"
  "{% endif %}{{ m.role + ': ' + said.lstrip('\n') + ';' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# As Qwen writes the thoughts of an answer.
OWN_THOUGHTS = (
  "{% for m in messages %}{% set said = m.content %}{{ m.role + ': ' }}"
  "{% if '</think>' in said %}"
  "{{ '<think>\n' + said.split('</think>')[0].split('<think>')[-1].strip() }}"
  "{{ '\n</think>\n\n' }}{% set said = said.split('</think>')[-1] %}"
  "{% endif %}{{ said.strip() + ';' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant: <think>\n' }}{% endif %}"
)
FIRST_TWO = "{% for m in messages %}{{ m.role + m.content[:2] }};{% endfor %}"
FIRST_ANSWER = (
  "{% for m in messages[:2] %}{{ m.role + ': ' + m.content }}"
  "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize(
  "template, answer, whole",
  [
    (NO_THOUGHTS, "<think>long good</think>yes", False),
    (NO_THOUGHTS, "\nyes ", True),
    (OWN_THOUGHTS, "<think>long good</think>yes", True),
    (FIRST_TWO, "good", False),
    # It stands there, but in the prompt.
    (FIRST_TWO, "us", True),
    (FIRST_TWO, "user", False),
  ],
)
def test_a_response_that_is_not_whole_in_the_text_drops(
  tokenizer, template, answer, whole
):
  tokenizer.chat_template = template
  for sides in [(said(answer), said("n")), (said("n"), said(answer))]:
    encoded = run(tokenizer, [turn("user", "a")], *sides)
    assert encoded.dropped == (
      None
      if whole
      else "refused by the chat template: it leaves out a part of the response"
    )


def test_every_turn_of_a_response_is_looked_for(tokenizer):
  tokenizer.chat_template = FIRST_ANSWER
  asked = [turn("user", "a")]
  assert run(tokenizer, asked, said("b"), said("c")).dropped is None
  longer = [*said("b"), turn("user", "more"), *said("d")]
  dropped = run(tokenizer, asked, longer, said("c")).dropped
  assert dropped.startswith("refused by the chat template: it leaves out")


@pytest.mark.parametrize("role", ["developer", "context", "Assistant"])
def test_a_turn_of_any_role_that_is_left_out_is_told(tokenizer, role):
  tokenizer.chat_template = (
    "{% for m in messages if m.role in ('user', 'assistant') %}"
    "{{ m.role + ': ' + m.content + ';' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
  )
  prompt = [turn(role, "Be brief"), turn("user", "Hi")]
  encoded = run(tokenizer, prompt, said("Yes"), said("No"))
  article = "an" if role == "Assistant" else "a"
  assert (encoded.dropped, encoded.left_out) == (None, f"{article} {role} turn")


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_turn_of_the_prompt_that_is_cut_is_told(tokenizer, role):
  tokenizer.chat_template = NO_THOUGHTS.replace("m.role == 'assistant'", "1")
  prompt = [turn(role, "<think>long</think>yes"), turn("user", "Hi")]
  encoded = run(tokenizer, prompt, said("Yes"), said("No"))
  article = "an" if role == "assistant" else "a"
  want = f"a part of {article} {role} turn"
  assert (encoded.dropped, encoded.left_out) == (None, want)


def test_characters_are_those_of_the_responses(tokenizer):
  assert run(tokenizer, "a b", " cde", "日本", (1, 1)).characters == (4, 2)
  chosen = [*said(" b "), turn("user", "c"), *said("日本")]
  tokenizer.chat_template = INST
  encoded = run(tokenizer, [turn("user", "aaa")], chosen, said("d"))
  assert encoded.characters == (6, 1)


@pytest.mark.parametrize(
  "name, prompt, chosen",
  [
    (
      "transcript",
      "Brief.\n\nHuman: a\n\nAssistant: b<eos>\n\nHuman: c\n\nAssistant:",
      " d<eos>",
    ),
    (
      "chatml",
      "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
      "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
      "<|im_start|>assistant\n",
      "d<|im_end|>\n",
    ),
    (
      "alpaca",
      "Brief.\n\n### Instruction:\na\n\n### Response:\nb<eos>\n\n"
      "### Instruction:\nc\n\n### Response:\n",
      "d<eos>",
    ),
    ("plain", "Brief.\n\na\n\nb<eos>\n\nc\n\n", "d<eos>"),
  ],
)
def test_named_templates_by_hand(trained, name, prompt, chosen):
  tokenizer = with_template(trained["unigram"], name)
  turns = [turn("system", "Brief."), turn("user", "a"), *said("b")]
  encoded = run(tokenizer, [*turns, turn("user", "c")], said("d"), said("e"))
  assert tokenizer.decode(encoded.prompt_ids) == "<bos>" + prompt
  assert tokenizer.decode(encoded.chosen_ids) == chosen
  one = run(tokenizer, [turn("tool", "a")], said("d"), said("e"))
  assert one.dropped == "refused by the chat template: unknown role tool"
  # The answer may come first, and there may be no EOS.
  bare = with_template(small(bos=None, eos=None), name)
  assert run(bare, [turn("user", "c")], said("a"), said("b")).dropped is None
  assert run(tokenizer, [], said("d"), said("e")).dropped is None
