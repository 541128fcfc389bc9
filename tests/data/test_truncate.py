# SPDX-License-Identifier: Apache-2.0
"""One cut of the text for all tokenizers: by hand, and the laws of it."""

import copy
import dataclasses
import itertools
import json
import random

import pytest
import tokenizers as rust
from transformers import PreTrainedTokenizerFast

from mrpo_jax import configs
from mrpo_jax.data.encode import encode, encode_all
from mrpo_jax.data.formats import PreferencePair as Pair
from mrpo_jax.data.tokenizer import SMALLEST, load_tokenizer, train_tokenizer
from mrpo_jax.data.truncate import Cut, cut_to_fit, fingerprint

TEXTS = [
  "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
  "Numbers 1 2 3 and words, words, words; nothing else is in here.",
  "早上好，世界。今天天气很好。",
] * 5
STRIPS = (
  "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
  "{{ 'Q ' + m['content'].strip() + ' A' }}"
  "{% elif m['role'] == 'assistant' %}"
  "{{ ' ' + m['content'].strip() + eos_token }}"
  "{% endif %}{% endfor %}"
)
DOUBLE = (
  "{% for m in messages %}{{ '|' + m['content'] }}{% endfor %}"
  "{{ messages[-1]['content'][1:] }}"
)
BEGINS = (
  "{{ 'x' if 'prompt' in messages[0]['content'] else 'y' }}"
  "{% for m in messages %}{{ '|' + m['content'] }}{% endfor %}"
)
UPPER = "{% for m in messages %}{{ '|' + m['content'] | upper }}{% endfor %}"
BOS, EOS = 0, 1


def turn(role, content):
  return {"role": role, "content": content}


def chat(*contents):
  """A conversation of user and assistant in turn; the last is the prompt's."""
  roles = itertools.cycle(["user", "assistant"])
  return [turn(*both) for both in zip(roles, contents, strict=False)]


def said(content):
  return [turn("assistant", content)]


@pytest.fixture(scope="module")
def tokenizers():
  """Of bytes, of letters, and of words: from tight to loose in ASCII."""

  return {
    "bytes": train_tokenizer([], SMALLEST),
    "letters": _letters(configs.TOKENIZERS / "unigram-512"),
    "ab": train_tokenizer(["ab"] * 9, SMALLEST + 1),
    "words": train_tokenizer(TEXTS, 500),
    "pieces": load_tokenizer(configs.TOKENIZERS / "unigram-512"),
  }


def _letters(folder):
  """The tokenizer of a folder without its pieces of several letters."""
  tokenizer = load_tokenizer(folder)
  content = json.loads(tokenizer.backend_tokenizer.to_str())
  content["model"]["vocab"] = [
    (piece, score)
    for piece, score in content["model"]["vocab"]
    if len(piece) == 1 or piece.startswith("<")
  ]
  backend = rust.Tokenizer.from_str(json.dumps(content))
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, **tokenizer.special_tokens_map
  )


def fit(tokenizers, pairs, limits):
  return cut_to_fit(
    tokenizers, pairs, max_prompt=limits[0], max_response=limits[1]
  )


def encoded(tokenizer, pairs, cuts, limits):
  limits = {"max_prompt": limits[0], "max_response": limits[1]}
  return encode_all(tokenizer, pairs, cuts=cuts, **limits)


def templated(tokenizer, template):
  changed = copy.copy(tokenizer)
  changed.chat_template = template
  return changed


def texts(tokenizer, one):
  """What the two sequences of ids say."""
  return [
    tokenizer.decode(one.prompt_ids + ids, skip_special_tokens=True)
    for ids in (one.chosen_ids, one.rejected_ids)
  ]


@pytest.mark.parametrize(
  "pair, limits, want",
  [
    # All fits: BOS and 3 bytes, 3 bytes and EOS.
    (("abc", "uvw", "xyz"), (4, 4), Cut()),
    # The prompt keeps BOS and its last two.
    (("abc", "uvw", "xyz"), (3, 4), Cut(prompt=1)),
    # Only EOS is too much: every character stays.
    (("abc", "uvw", "xy"), (4, 3), Cut(chosen=3)),
    (("abc", "uvw", "xy"), (4, 2), Cut(chosen=2, rejected=2)),
    # One token: BOS alone, and one byte.
    (("abc", "uvw", "xy"), (1, 1), Cut(3, 1, 1)),
    # A character is three bytes: four bytes hold one, two bytes none.
    (("日本", "語言", "x"), (5, 4), Cut(1, 1)),
    (("日本", "語言", "x"), (3, 2), Cut(2, 0)),
    (("a\U0001f600", "b\U0001f601c", "b"), (5, 5), Cut(1, 2)),
    # White space is text; where nothing else is kept, `encode` drops it.
    (("a", "  b", "c"), (9, 2), Cut(chosen=2)),
    (("  a ", "  b ", " c"), (3, 3), Cut(2, 3)),
  ],
)
def test_bytes_by_hand(tokenizers, pair, limits, want):
  assert fit([tokenizers["bytes"]], [Pair(*pair)], limits) == [want]


@pytest.mark.parametrize(
  "pair, limits, want",
  [
    # ab is one token, and is not cut in two.
    (("cab", "ab", "cc"), (2, 9), Cut(prompt=1)),
    (("cab", "abab", "cc"), (9, 1), Cut(chosen=2, rejected=1)),
    # The token that crosses the border is the response's: a|b.
    (("ca", "b", "cab"), (9, 1), Cut(chosen=1, rejected=0)),
  ],
)
def test_merged_letters_by_hand(tokenizers, pair, limits, want):
  assert fit([tokenizers["ab"]], [Pair(*pair)], limits) == [want]


@pytest.mark.parametrize(
  "template, prompt, limits",
  [
    (None, "qwxyzk", (3, 2)),
    (
      "{{ bos_token }}{% for m in messages %}{{ m.content + '|' }}{% endfor %}",
      chat("qwxyzk"),
      (4, 2),
    ),
  ],
)
def test_a_cut_that_breaks_a_merge_is_cut_again(template, prompt, limits):
  # Two tokens are xy|zk and kw|xy of the one, wxyz|k and k|wxyz of the other;
  # four letters would do, but of them that makes x|yz|k and k|wx|y.
  words = ["xy", "zk", "kw"] * 9, ["wx", "yz"] * 9 + ["wxyz"]
  size = SMALLEST + 3
  both = [templated(train_tokenizer(some, size), template) for some in words]
  plain = isinstance(prompt, str)
  pair = Pair(prompt, *(s if plain else said(s) for s in ("kwxyzq", "y")))
  cuts = fit(both, [pair], limits)
  assert cuts == [Cut(3, 3)]
  for tokenizer in both:
    one = encoded(tokenizer, [pair], cuts, limits)[0]
    assert (len(one.prompt_ids), len(one.chosen_ids)) == limits
    assert texts(tokenizer, one)[0] == ("yzkkwx" if plain else "yzk|kwx")


def test_the_ids_of_a_cut_by_hand(tokenizers):
  pair, byte = Pair("abc", "uvw", "xy"), tokenizers["bytes"]
  ids = {c: byte(c).input_ids[1] for c in "abcuvwxy"}
  limits = {"max_prompt": 3, "max_response": 9}
  one = encode(byte, pair, cut=Cut(1, 2, None), **limits)
  assert one.prompt_ids == [BOS, ids["b"], ids["c"]]
  assert one.chosen_ids == [ids["u"], ids["v"]]
  assert one.rejected_ids == [ids["x"], ids["y"], EOS]
  assert one.truncated and not one.response_cut
  assert one.characters == (2, 2)
  one = encode(byte, pair, cut=Cut(9, 9, 9), **limits)
  assert one.prompt_ids == [BOS] and one.characters == (3, 2)
  one = encode(byte, Pair("a", "  b", "c"), cut=Cut(chosen=2), **limits)
  assert one.dropped == "empty response"


def test_an_eos_of_the_tokenizer_does_not_follow_a_cut(tokenizers):
  from tokenizers import processors

  byte = copy.deepcopy(tokenizers["bytes"])
  byte.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
  )
  pair = Pair("abc", "uvw", "xy")
  for limits in [(9, 3), (9, 2), (2, 1)]:
    cuts = fit([tokenizers["bytes"]], [pair], limits)
    assert fit([byte], [pair], limits) == cuts
    made = [
      encoded(t, [pair], cuts, limits) for t in (byte, tokenizers["bytes"])
    ]
    assert made[0] == made[1]
    assert EOS not in made[0][0].chosen_ids


@pytest.mark.parametrize(
  "limits, want, prompt, chosen",
  [
    # <bos>Q one A two<eos>Q three A| four<eos>: contents of 3, 3 and 5.
    ((99, 99), Cut(), "Q one A two<eos>Q three A", " four<eos>"),
    ((99, 5), Cut(chosen=6), "Q one A two<eos>Q three A", " four"),
    ((99, 3), Cut(chosen=3), "Q one A two<eos>Q three A", " fo"),
    ((6, 99), Cut(prompt=8), "ree A", " four<eos>"),
    # BOS, EOS and "Q three A" are 11; the answer before stays out.
    ((11, 99), Cut(prompt=6), "three A", " four<eos>"),
    ((13, 99), Cut(prompt=4), "wo<eos>Q three A", " four<eos>"),
    # Only what the template writes is left of the prompt, then its end.
    ((3, 99), Cut(prompt=11), " A", " four<eos>"),
    ((2, 99), Cut(prompt=11), "A", " four<eos>"),
    ((1, 99), Cut(prompt=11), "", " four<eos>"),
  ],
)
def test_a_conversation_by_hand(tokenizers, limits, want, prompt, chosen):
  byte = templated(tokenizers["bytes"], STRIPS)
  pair = Pair(chat("one", "two", "three"), said(" four "), said("5"))
  cuts = fit([byte], [pair], limits)
  assert cuts == [want]
  one = encoded(byte, [pair], cuts, limits)[0]
  assert byte.decode(one.prompt_ids) == "<bos>" + prompt
  assert byte.decode(one.chosen_ids) == chosen
  assert len(one.prompt_ids) <= limits[0]
  assert len(one.chosen_ids) <= limits[1]


def test_a_response_of_several_turns_is_cut_in_its_order(tokenizers):
  byte = templated(tokenizers["bytes"], STRIPS)
  answer = [*said("one"), turn("user", "two"), *said("three")]
  pair = Pair(chat("a"), answer, said("x"))
  # " one" and EOS, "Q two A", " three" and EOS: 5, 7 and 7 tokens.
  for limit, kept, text in [
    (19, None, " one<eos>Q two A three<eos>"),
    (18, 11, " one<eos>Q two A three"),
    (15, 8, " one<eos>Q two A th"),
    (12, 6, " one<eos>Q two"),
    (9, 5, " one<eos>Q tw"),
    (5, 3, " one"),
  ]:
    cuts = fit([byte], [pair], (99, limit))
    assert cuts == [Cut(chosen=kept)]
    one = encoded(byte, [pair], cuts, (99, limit))[0]
    assert byte.decode(one.chosen_ids) == text
    assert one.characters == (11 if kept is None else kept, 1)


def test_a_bos_that_the_text_writes_stays_when_the_prompt_is_cut(tokenizers):
  bare = copy.deepcopy(tokenizers["bytes"])
  bare.backend_tokenizer.post_processor = None
  pair = Pair("<bos>abcdef", "uvw", "y")
  for byte in (bare, tokenizers["bytes"]):
    cuts = fit([byte], [pair], (4, 2))
    assert cuts == [Cut(8, 2)]
    one = encoded(byte, [pair], cuts, (4, 2))[0]
    assert byte.decode(one.prompt_ids) == "<bos>def"
    # Another tokenizer may have cut inside of it.
    one = encoded(byte, [pair], [Cut(prompt=2)], (9, 9))[0]
    assert byte.decode(one.prompt_ids) == "<bos>abcdef"


def test_an_assistant_turn_that_is_continued_is_cut_in_two(tokenizers):
  byte = templated(tokenizers["bytes"], STRIPS)
  pair = Pair(chat("one", "two"), said(" four"), said("5"))
  for limits, want, prompt, chosen in [
    ((99, 99), Cut(), "<bos>Q one A two", " four<eos>"),
    ((99, 3), Cut(chosen=3), "<bos>Q one A two", " fo"),
    ((3, 9), Cut(prompt=4), "<bos>wo", " four<eos>"),
    ((1, 9), Cut(prompt=6), "<bos>", " four<eos>"),
  ]:
    cuts = fit([byte], [pair], limits)
    assert cuts == [want]
    one = encoded(byte, [pair], cuts, limits)[0]
    assert byte.decode(one.prompt_ids) == prompt
    assert byte.decode(one.chosen_ids) == chosen


def test_a_prompt_that_is_rewritten_before_an_answer_is_cut(tokenizers):
  # Alone it ends in "(x)two" and its turn "one" has its brackets.
  template = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '(x)' if loop.last }}{{ '<' + m.content + '>' }}"
    "{% else %}{{ m.content + '.' }}{% endif %}{% endfor %}"
  )
  byte = templated(tokenizers["bytes"], template)
  pair = Pair(chat("one", "b", "two"), said("four"), said("5"))
  for limits, want, prompt, chosen in [
    ((99, 99), Cut(), "<bos><one>b.<two>", "four."),
    ((99, 2), Cut(chosen=2), "<bos><one>b.<two>", "fo"),
    ((5, 99), Cut(prompt=4), "<bos>two>", "four."),
    ((4, 99), Cut(prompt=5), "<bos>wo>", "four."),
  ]:
    cuts = fit([byte], [pair], limits)
    assert cuts == [want]
    one = encoded(byte, [pair], cuts, limits)[0]
    assert byte.decode(one.prompt_ids) == prompt
    assert byte.decode(one.chosen_ids) == chosen


@pytest.mark.parametrize("template", [UPPER, DOUBLE, BEGINS])
def test_a_text_that_the_template_changes_is_not_cut(tokenizers, template):
  byte, limits = tokenizers["bytes"], (5, 5)
  changes = templated(byte, template)
  pairs = [
    Pair(chat("prompt"), said("chosen"), said("other")),
    Pair(chat("aa"), said("bb"), said("cc")),
  ]
  assert fit([changes], pairs, limits) == [Cut(), Cut()]
  cuts = fit([byte, changes], pairs[:1], limits)
  for cut in (*cuts, Cut(), Cut(chosen=2)):
    ones = encoded(changes, pairs, [cut, Cut()], limits)
    reason = "cannot be cut: the chat template changes its text"
    assert [one.dropped for one in ones] == [reason, None]
  assert [one.dropped for one in encoded(byte, pairs[:1], cuts, limits)] == [
    None
  ]
  ones = encoded(changes, pairs, None, limits)
  assert [one.dropped for one in ones] == [None, None]


WORDS = (
  "the quick brown fox \U0001f600 \U0001f468\u200d\U0001f469 dog 早上好 天气"
  " words e\u0301 1 2 <eos> \n\n \t . , ??! xyzzy"
).split(" ")


def some_pairs(chats):
  random.seed(0)

  def words(most):
    chosen = random.choices([*WORDS, "", "\n"], k=random.randint(0, most))
    return random.choice(["", " "]) + " ".join(chosen)

  pairs = [Pair(words(30), words(20), words(20)) for _ in range(40)]
  if chats:
    pairs = [
      Pair(
        chat(words(9), words(9), words(9))[-random.choice([1, 3]) :],
        said(pair.chosen),
        said(pair.rejected),
      )
      for pair in pairs
    ]
  return pairs


LIMITS = [(30, 20), (12, 7), (5, 3), (2, 2), (1, 1)]


@pytest.fixture(scope="module", params=["text", "transcript", "strips"])
def data(request, tokenizers):
  kind = request.param
  template = {"strips": STRIPS}.get(kind)
  named = {name: templated(t, template) for name, t in tokenizers.items()}
  return some_pairs(kind != "text"), named


@pytest.mark.parametrize("limits", LIMITS)
def test_every_tokenizer_says_the_same_within_the_limits(data, limits):
  pairs, tokenizers = data
  cuts = fit(tokenizers.values(), pairs, limits)
  views = [encoded(t, pairs, cuts, limits) for t in tokenizers.values()]
  assert {len(view) for view in views} == {len(pairs)}
  usable = 0
  for i, ones in enumerate(zip(*views, strict=True)):
    assert len({one.dropped for one in ones}) == 1
    if ones[0].dropped:
      continue
    usable += 1
    assert len({one.characters for one in ones}) == 1
    assert {one.truncated for one in ones} == {bool(cuts[i])} or limits[0] < 13
    for one in ones:
      assert not one.response_cut
      assert len(one.prompt_ids) <= limits[0]
      assert max(len(one.chosen_ids), len(one.rejected_ids)) <= limits[1]
      assert one.prompt_ids[0] == BOS
    if limits[0] > 25 or isinstance(pairs[i].prompt, str):
      says = [
        texts(t, o) for t, o in zip(tokenizers.values(), ones, strict=True)
      ]
      assert all(say == says[0] for say in says)
  assert usable > 9 or limits < (3, 3)


@pytest.mark.parametrize("limits", LIMITS)
def test_plain_text_is_what_the_cut_keeps(tokenizers, limits):
  pairs = some_pairs(chats=False)
  cuts = fit(tokenizers.values(), pairs, limits)
  for tokenizer in tokenizers.values():
    for pair, cut, one in zip(
      pairs, cuts, encoded(tokenizer, pairs, cuts, limits), strict=True
    ):
      if not one.dropped:
        prompt = pair.prompt[cut.prompt :]
        sides = pair.chosen[: cut.chosen], pair.rejected[: cut.rejected]
        says = [
          tokenizer.decode(one.prompt_ids + ids)
          for ids in (one.chosen_ids, one.rejected_ids)
        ]
        ends = [
          "" if kept is not None else "<eos>"
          for kept in (cut.chosen, cut.rejected)
        ]
        assert says == [
          "<bos>" + prompt + side + end * (not side.rstrip().endswith("<eos>"))
          for side, end in zip(sides, ends, strict=True)
        ]


def test_what_fits_is_left_alone(data):
  pairs, tokenizers = data
  limits = (10**6, 10**6)
  cuts = fit(tokenizers.values(), pairs, limits)
  assert cuts == [Cut()] * len(pairs)
  for t in tokenizers.values():
    with_cuts = encoded(t, pairs, cuts, limits)
    without = encoded(t, pairs, None, limits)
    assert list(map(dataclasses.asdict, with_cuts)) == list(
      map(dataclasses.asdict, without)
    )


@pytest.mark.parametrize("limits", LIMITS)
def test_order_and_repeats_of_tokenizers_do_not_matter(data, limits):
  pairs, tokenizers = data
  cuts = fit(tokenizers.values(), pairs, limits)
  assert fit([*tokenizers.values()][::-1] * 2, pairs, limits) == cuts


@pytest.mark.parametrize("limits", LIMITS)
def test_each_is_cut_as_it_is_alone(data, limits):
  pairs, tokenizers = data
  both = [tokenizers["words"], tokenizers["letters"]]
  alone = [fit(both, [pair], limits)[0] for pair in pairs[:30]]
  assert fit(both, pairs * 4, limits)[-len(pairs) :][:30] == alone


def test_a_looser_tokenizer_changes_nothing(data):
  # That of "ab" is that of bytes, but for a letter less in each "ab".
  pairs, tokenizers = data
  for limits in LIMITS:
    cuts = fit([tokenizers["bytes"]], pairs, limits)
    assert fit([tokenizers["bytes"], tokenizers["ab"]], pairs, limits) == cuts


def test_a_text_cut_once_is_not_cut_again(tokenizers):
  pairs = some_pairs(chats=False)
  both = [tokenizers["bytes"], tokenizers["words"]]
  cuts = fit(both, pairs, (20, 12))
  again = [
    Pair(p.prompt[c.prompt :], p.chosen[: c.chosen], p.rejected[: c.rejected])
    for p, c in zip(pairs, cuts, strict=True)
  ]
  assert sum(map(bool, cuts)) > 9
  assert fit(both, again, (20, 13)) == [Cut()] * len(pairs)  # one for EOS


@pytest.mark.parametrize("limits", [(5, 6), (12, 9)])
def test_one_more_letter_does_not_fit(tokenizers, limits):
  """For a tokenizer of bytes the longest texts are known."""
  byte = tokenizers["bytes"]
  for pair in some_pairs(chats=False):
    sides = pair.prompt, pair.chosen, pair.rejected
    pair = Pair(*(side.replace("<eos>", "") for side in sides))
    (cut,) = fit([byte], [pair], limits)
    if encoded(byte, [pair], None, (99, 99))[0].dropped:
      continue
    start = cut.prompt - 1
    assert start < 0 or len(pair.prompt[start:].encode()) > limits[0] - 1
    for text, kept in (
      (pair.chosen, cut.chosen),
      (pair.rejected, cut.rejected),
    ):
      whole = len(text.encode()) + 1
      assert (kept is None) == (whole <= limits[1])
      if kept is not None and kept < len(text):
        assert len(text[: kept + 1].encode()) > limits[1]


def test_what_a_tokenizer_drops_is_not_cut(tokenizers):
  no_user = templated(tokenizers["bytes"], "{{ raise_exception('never') }}")
  long = "word " * 50
  pairs = [
    Pair("", long, " "),
    Pair("\ud800", long, "x"),
    Pair(chat(long), said(long), said("x")),
  ]
  cuts = fit([tokenizers["words"], no_user], pairs, (4, 4))
  assert cuts == [Cut()] * 3
  dropped = [one.dropped for one in encoded(no_user, pairs, cuts, (4, 4))]
  assert [reason.partition(":")[0] for reason in dropped] == [
    "empty response",
    "not encodable",
    "refused by the chat template",
  ]


def test_only_what_is_too_long_is_tokenized_again(tokenizers, monkeypatch):
  byte, sizes = tokenizers["bytes"], []
  call = type(byte).__call__

  def counted(self, texts, *args, **options):
    sizes.append(len(texts))
    return call(self, texts, *args, **options)

  monkeypatch.setattr(type(byte), "__call__", counted)
  pairs = [Pair("a", "b", "c")] * 300 + [Pair("abcdef", "b", "c")]
  fit([byte], pairs, (4, 4))
  assert sum(sizes) < 3 * 301 + 2 * 3 + 9 and len(sizes) < 5


@pytest.mark.parametrize("limits", [(0, 1), (1, 0)])
def test_limits_below_one_are_refused(tokenizers, limits):
  with pytest.raises(ValueError, match="max_(prompt|response)"):
    fit([tokenizers["bytes"]], [], limits)


def test_a_fingerprint_tells_texts_and_cuts_apart():
  pair = Pair("a", "b", "c")
  marks = {
    fingerprint(pair, Cut()),
    fingerprint(pair, Cut(prompt=1)),
    fingerprint(pair, Cut(chosen=1)),
    fingerprint(pair, Cut(rejected=1)),
    fingerprint(Pair("ab", "", "c"), Cut()),
    fingerprint(Pair("a", "c", "b"), Cut()),
  }
  assert len(marks) == 6
  assert fingerprint(pair, Cut(), ["", ""]) in marks
  assert fingerprint(pair, Cut(), ["", "moved"]) not in marks
  assert fingerprint(Pair("a", "b", "c"), Cut()) in marks
  turns = [{"role": "user", "content": "a"}, {"content": "a", "role": "user"}]
  one, two = (Pair([t], said("b"), said("c")) for t in turns)
  assert fingerprint(one, Cut()) == fingerprint(two, Cut())
