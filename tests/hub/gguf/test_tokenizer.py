# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of GGUF files: by hand, and as transformers converts them."""

import numpy as np
import pytest
import transformers

from mrpo_jax.errors import InputError
from mrpo_jax.hub.gguf import tokenizer as module
from mrpo_jax.hub.gguf.keys import Keys
from mrpo_jax.hub.gguf.tokenizer import SPLITS, tokenizer_of
from mrpo_jax.models.families.family import UnsupportedModel
from tests.material.gguf_files import byte_level, sentencepiece

TEXTS = [
  *("the low", " the", "  12 the\n\n\n1", "don't WE'LL", "naïve 日本 😀"),
  *("<s>low</s>", "a<think>b", "he<b>!", "", "\t x\r\n", "\x00", "١٢ ²½"),
  *("theologian loth  lo", "x1y22z333", "\u00a0\u2003", "A'S", "▁▁ low"),
]


def converted(tokenizer, architecture="llama", vocab_size=1000, **more):
  keys = {f"tokenizer.ggml.{k}": v for k, v in tokenizer.items()}
  named = {key.replace("__", "."): value for key, value in more.items()}
  keys = keys | {"general.architecture": architecture} | named
  return tokenizer_of(Keys(keys), vocab_size)


def tokens_of(tokenizer, text):
  return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


@pytest.mark.parametrize(
  "text,want",
  [
    ("the the", ["t", "he", "Ġthe"]),
    ("12 12", ["12", "Ġ", "12"]),
    ("   low", ["ĠĠ", "Ġ", "lo", "w"]),  # a word keeps one of its spaces
    ("<s>the</s>", ["<s>", "t", "he", "</s>"]),
    ("a<think>b", ["a", "<think>", "b"]),
    # Control tokens outside of the bytes' alphabet are control tokens, too.
    ("a<｜end▁of▁turn｜>", ["a", "<｜end▁of▁turn｜>"]),
    ("é", ["Ã", "©"]),
  ],
)
def test_bytes_are_merged_by_hand(text, want):
  tokenizer, _ = converted(byte_level())
  assert tokens_of(tokenizer, text) == want
  assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
  "text,want",
  [
    ("the low", ["<s>", "▁the", "▁low"]),
    ("low", ["<s>", "▁low"]),
    ("he", ["<s>", "▁", "he"]),
    ("é", ["<s>", "▁", "<0xC3>", "<0xA9>"]),
    ("the<b>", ["<s>", "▁the", "<b>"]),
    ("the  low", ["<s>", "▁the", "▁", "▁low"]),
  ],
)
def test_pieces_are_merged_by_their_scores_by_hand(text, want):
  tokenizer, _ = converted(sentencepiece())
  assert tokens_of(tokenizer, text) == want
  ids = tokenizer(text, add_special_tokens=False).input_ids
  assert tokenizer.decode(ids) == text


def test_gemma_adds_no_space_and_keeps_runs_of_them():
  tokenizer, _ = converted(sentencepiece(gemma=True), "gemma3")
  assert tokens_of(tokenizer, "low  he") == ["<s>", "low", "▁▁", "he"]
  assert tokenizer.decode(tokenizer("low  he").input_ids[1:]) == "low  he"


def theirs(tokenizer, architecture):
  """The tokenizer as transformers converts it, which needs no torch for it."""
  mapping = pytest.importorskip(
    "transformers.integrations.gguf.gguf_tokenizer_mapping"
  )
  names = mapping.GGUF_TOKENIZER_MAPPING["tokenizer"]
  given = {
    name: tokenizer[key.removeprefix("ggml.")]
    for key, name in names.items()
    if key.removeprefix("ggml.") in tokenizer
  }
  return mapping.convert_gguf_tokenizer(architecture, given)[0]


@pytest.mark.parametrize(
  "pre",
  # It splits no digits apart for the others, and ignores what it does not know.
  sorted({*SPLITS} - {"smollm", "starcoder", "refact", "stablelm2"}),
)
def test_bytes_are_split_as_transformers_splits_them(pre):
  given = byte_level(pre)
  # It drops control tokens outside of the bytes' alphabet.
  given["tokens"][4] = "<|end_of_turn|>"
  ours, _ = converted(given)
  reference = theirs(given, "llama")
  for text in TEXTS:
    want = reference.encode(text, add_special_tokens=False).ids
    assert ours(text, add_special_tokens=False).input_ids == want, text


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_pieces_are_those_of_transformers(architecture):
  given = sentencepiece(gemma=architecture == "gemma3")
  ours, _ = converted(given, architecture)
  reference = theirs(given, architecture)
  for text in TEXTS:
    want = reference.encode(text, add_special_tokens=False).ids
    assert ours(text, add_special_tokens=False).input_ids == want, text


def test_digits_stand_alone_where_llama_cpp_has_them_so():
  tokenizer, _ = converted(byte_level("smollm"))
  assert tokens_of(tokenizer, "  12") == ["ĠĠ", "1", "2"]
  assert tokens_of(tokenizer, " 1") == ["Ġ", "1"]


def test_qwen_composes_letters_and_llama_3_needs_no_merge():
  tokenizer, _ = converted(byte_level("qwen2"))
  assert tokens_of(tokenizer, "e\u0301") == ["Ã", "©"]
  given = byte_level("llama-bpe")
  given["tokens"][-1] = "xyz"  # which no merge makes
  given["merges"] = given["merges"][:-1]
  tokenizer, _ = converted(given | {"add_bos_token": False})
  assert tokens_of(tokenizer, "xyz") == ["xyz"]


# What is around a text.


@pytest.mark.parametrize(
  "change,want",
  [
    ({}, ["a"]),
    ({"add_bos_token": True}, ["<s>", "a"]),
    ({"add_eos_token": True}, ["a", "</s>"]),
    ({"add_bos_token": True, "add_eos_token": True}, ["<s>", "a", "</s>"]),
  ],
)
def test_first_and_last_tokens_are_added_as_the_file_says(change, want):
  assert tokens_of(converted(byte_level() | change)[0], "a") == want


@pytest.mark.parametrize(
  "given,want",
  [
    (byte_level(), ["a"]),
    (byte_level("llama-bpe"), ["<s>", "a"]),
    (sentencepiece(), ["<s>", "▁", "<0x61>"]),
  ],
)
def test_a_file_that_does_not_say_has_the_usual_of_llama_cpp(given, want):
  del given["add_bos_token"]
  assert tokens_of(converted(given)[0], "a") == want


@pytest.mark.parametrize("text", ["$A", "$0", "a:1", ":b", "$B:1", "$"])
def test_first_and_last_tokens_of_any_spelling_are_added(text, tmp_path):
  given = sentencepiece() | {"add_eos_token": True}
  given["tokens"][1:3] = text, text + text
  tokenizer, _ = converted(given)
  tokenizer.save_pretrained(tmp_path)
  for one in (tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path)):
    ids = one("low").input_ids
    assert [ids[0], ids[-1]] == [1, 2] and one.decode(ids[1:-1]) == "low"
    assert one("low", "he").input_ids[:3] == ids


def test_bytes_without_a_token_are_said(caplog):
  caplog.set_level("INFO")
  given = byte_level()
  for letter in "ÃĀÿ":  # bytes C3 and 00, and FF, which is none of UTF-8
    given["tokens"][given["tokens"].index(letter)] = f"other {letter}"
  tokenizer, _ = converted(given)
  assert "tokens: none for 2 bytes, 00, C3: texts lose them" in caplog.text
  assert tokens_of(tokenizer, "aé") == ["a", "©"]
  caplog.clear()
  converted(byte_level())
  assert "none for" not in caplog.text


def test_end_tokens_are_those_of_texts_and_turns_once_each():
  assert converted(byte_level())[1] == [2, 3]
  assert converted(byte_level() | {"eot_token_id": 2})[1] == [2]


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path, caplog):
  caplog.set_level("INFO")
  template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
  given = byte_level() | {"padding_token_id": 0, "add_bos_token": True}
  others = dict(tokenizer__chat_template__tool_use="{{ tools }}")
  tokenizer, _ = converted(given, tokenizer__chat_template=template, **others)
  assert "left out, as no default: tokenizer.chat_template.tool_use" in (
    caplog.text
  )
  tokenizer.save_pretrained(tmp_path)
  again = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in TEXTS:
    assert again(text).input_ids == tokenizer(text).input_ids
  assert again.chat_template == template
  assert [again.bos_token_id, again.eos_token_id, again.pad_token_id] == [
    1,
    2,
    0,
  ]
  assert again.unk_token == "<unk>" and len(again) == len(given["tokens"])
  assert set(again.all_special_ids) >= {0, 1, 2}
  ids = again("<think>a</s>").input_ids
  assert again.decode(ids, skip_special_tokens=True) == "<think>a"


# Refusals.


@pytest.mark.parametrize(
  "change,error,match",
  [
    ({"model": "bert"}, UnsupportedModel, "model='bert' is not read here; kn"),
    ({"pre": "smolm"}, UnsupportedModel, "pre='smolm' .* did you mean smollm"),
    ({"pre": "default"}, UnsupportedModel, "pre='default' is no way to split"),
    ({"model": 5}, InputError, "model=5; want a text"),
    ({"tokens": []}, InputError, "token_type: 269 of them for 0 tokens"),
    ({"tokens": [1, 2]}, InputError, "tokens: want a list of str"),
    ({"token_type": [1]}, InputError, "token_type: 1 of them for 269 tokens"),
    ({"merges": ["a b c"]}, InputError, "merges: 'a b c' is no merge of two"),
    ({"merges": ["q z"]}, InputError, "merges: 'q z' is no merge of two"),
    (
      {"merges": ["t h", "h e", "t h"], "tokens": [*"the", "th", "he"]}
      | {"token_type": [1] * 5},
      InputError,
      "merges: 't h' stands there twice",
    ),
    ({"token_type": [7] * 269}, InputError, "token_type: 7 is none of 1 to 6"),
    (
      {"remove_extra_whitespaces": True},
      UnsupportedModel,
      "remove_extra_whitespaces=True is not computed here",
    ),
    (
      {"escape_whitespaces": False},
      UnsupportedModel,
      "escape_whitespaces=False is not computed",
    ),
    ({"add_space_prefix": True}, UnsupportedModel, "space_prefix=True is not"),
    ({"bos_token_id": 269}, InputError, "bos_token_id=269 of 269 tokens"),
    ({"eot_token_id": 999}, InputError, "eot_token_id=999 of 269 tokens"),
    ({"eos_token_id": -1}, InputError, "eos_token_id=-1; want a token id"),
    ({"add_bos_token": 1}, InputError, "add_bos_token=1; want true or false"),
  ],
  ids=str,
)
def test_what_makes_no_tokenizer_is_refused(change, error, match):
  with pytest.raises(error, match=match):
    converted(byte_level() | change)


def test_keys_that_change_no_ids_are_no_matter():
  idle = dict(mask_token_id=9999, escape_whitespaces=True, add_sep_token=False)
  idle |= dict(token_type_count=1, scores=[0.0] * 269, add_space_prefix=False)
  ours, plain = (converted(byte_level() | more)[0] for more in (idle, {}))
  text = "Hello, world 12"
  assert ours(text).input_ids == plain(text).input_ids != []


def test_pieces_without_bytes_need_an_unknown_token():
  given = sentencepiece()
  given["tokens"][4] = "zero"
  converted(given)
  del given["unknown_token_id"]
  with pytest.raises(InputError, match="unknown_token_id is missing, and"):
    converted(given)


def test_a_key_that_is_missing_is_named():
  for key in ("model", "tokens", "merges"):
    given = {k: v for k, v in byte_level().items() if k != key}
    with pytest.raises(InputError, match=f"tokenizer.ggml.{key} is missing"):
      converted(given)
  given = byte_level() | {"add_bos_token": True}
  del given["bos_token_id"]
  with pytest.raises(InputError, match="add_bos_token without tokenizer.ggml"):
    converted(given)


def test_tokens_that_repeat_or_outnumber_the_embeddings_are_refused():
  given = byte_level()
  given["tokens"][5] = "</s>"
  with pytest.raises(InputError, match="'</s>' stands there twice"):
    converted(given)
  with pytest.raises(InputError, match="269 of them for 268 embeddings"):
    converted(byte_level(), vocab_size=268)


def test_embeddings_without_a_token_are_said(caplog):
  caplog.set_level("INFO")
  converted(byte_level(), vocab_size=269)
  assert not caplog.text
  converted(byte_level(), vocab_size=270)
  assert "269 of them for 270 embeddings; the others are ids without" in (
    caplog.text
  )


def test_scores_are_those_of_every_token():
  given = sentencepiece() | {"scores": [0.0]}
  with pytest.raises(InputError, match="scores: 1 of them for 277 tokens"):
    converted(given)
  given["scores"] = [np.nan, *sentencepiece()["scores"][1:]]
  with pytest.raises(InputError, match="scores: not all of them are finite"):
    converted(given)
  assert np.isfinite(sentencepiece()["scores"]).all()
  assert {*module.KINDS} == {"gpt2", "llama"}
