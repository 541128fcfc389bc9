# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a GGUF file as one of transformers.

Two kinds: "gpt2" is byte-level BPE with merges, its texts split first in a way
that the file only names; "llama" is SentencePiece's BPE, whose merges follow
from scores.
"""

import collections
import dataclasses
import logging
import math

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from mrpo_jax.errors import InputError, did_you_mean
from mrpo_jax.hub.gguf.keys import REQUIRED
from mrpo_jax.models.families.family import UnsupportedModel

logger = logging.getLogger(__name__)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
START, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
SPECIAL = dict(bos="bos", eos="eos", unk="unknown", pad="padding")
ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message
SPACE = "\u2581"
BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
NO_UTF_8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
# Keys that change no ids of the kinds below.
IDLE = {"pre", "tokens", "token_type", "token_type_count", "scores", "merges"}

GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r"|\s+(?!\S)|\s+"
)
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_WORDS = (
  rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+",
  rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*",
)
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = "|".join([*_WORDS, r"\p{N}", _REST])
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = "|".join([*(w + _SUFFIX for w in _WORDS), r"\p{N}{1,3}", _REST])


@dataclasses.dataclass(frozen=True)
class Split:
  """How a kind of `pre` splits a text before its merges."""

  patterns: tuple[str, ...]  # one after the other
  whole: bool = False  # does a word of the vocabulary need no merges?
  nfc: bool = False  # is the text normalised?
  first: bool = False  # is bos added where the file does not say?


_DIGITS = Split((r"\p{N}", GPT2))
_LLAMA3 = Split((LLAMA3,), whole=True, first=True)
SPLITS = {  # tokenizer.ggml.pre -> Split, as llama.cpp's llama-vocab.cpp has it
  **dict.fromkeys(("gpt-2", "olmo"), Split((GPT2,))),
  **dict.fromkeys(("smollm", "starcoder", "refact"), _DIGITS),
  **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
  **dict.fromkeys(("dbrx", "smaug-bpe"), Split((LLAMA3,))),
  # transformers has NFC for Qwen 2, and the file does not say.
  **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Split((QWEN2,), nfc=True)),
  "stablelm2": Split((QWEN2,)),
  "tekken": Split((TEKKEN,), whole=True, first=True),
  "gpt-4o": Split((GPT4O,)),
}


def tokenizer_of(keys, vocab_size):
  """(a transformers tokenizer, the end tokens' ids) of a file.

  Args:
    keys: Keys of the file.
    vocab_size: rows of the embedding.

  Raises:
    UnsupportedModel: a kind or a way to split that is not known here.
    InputError: parts of it are missing or do not fit.
  """
  import transformers

  kind = keys.general("text", f"{START}model")
  if kind not in KINDS:
    raise UnsupportedModel(
      f"{START}model={kind!r} is not read here; known: {', '.join(KINDS)}"
    )
  texts = _list(keys, "tokens", str)
  if len(texts) > vocab_size:
    raise InputError(
      f"{START}tokens: {len(texts)} of them for {vocab_size} embeddings"
    )
  if len(texts) < vocab_size:
    logger.info(
      f"{START}tokens: {len(texts)} of them for {vocab_size} embeddings; the "
      "others are ids without a text"
    )
  types = _list(keys, "token_type", int, len(texts), [NORMAL] * len(texts))
  if odd := {*types} - {0, *range(NORMAL, BYTE + 1)}:
    raise InputError(f"{START}token_type: {min(odd)} is none of 1 to {BYTE}")
  backend, first = KINDS[kind](keys, texts)
  given, texts = texts, [backend.id_to_token(i) for i in range(len(texts))]
  if None in texts:
    at = texts.index(None)
    raise InputError(f"{START}tokens: {given[at]!r} stands there twice")
  _add(backend, given, types)
  special = _special(keys, texts)
  backend.post_processor = _around(keys, special, first)
  names = {f"{name}_token": text for name, (_, text) in special.items()}
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **names
  )
  tokenizer.chat_template = keys.general("text", TEMPLATE, None)
  others = [key for key in keys.metadata if key.startswith(f"{TEMPLATE}.")]
  if others:
    logger.info(f"left out, as no default: {', '.join(others)}")
  if len(tokenizer) != len(texts):
    raise InputError(
      f"{START}tokens: {len(texts)} of them, and {len(tokenizer)} once added"
    )
  ends = _ends(keys, len(texts))
  keys.refuse_unread(START, _is_idle)
  return tokenizer, ends


def _is_idle(key, value):
  """Does a key that nobody asked for change no ids?"""
  if key == "escape_whitespaces":
    return value is True
  return key in IDLE or key.endswith("_token_id") or not value


def _list(keys, name, of, length=None, default=REQUIRED):
  """The list of a key, checked."""
  key = START + name
  found = keys.metadata.get(key, default)
  if found is REQUIRED:
    raise InputError(f"{key} is missing")
  if not isinstance(found, list) or not all(type(v) is of for v in found):
    raise InputError(f"{key}: want a list of {of.__name__}")
  if length is not None and len(found) != length:
    raise InputError(f"{key}: {len(found)} of them for {length} tokens")
  return found


def _byte_level(keys, texts):
  """(Tokenizer, is bos the default?) of the kind "gpt2"."""
  name = keys.general("text", f"{START}pre", None)
  if name not in SPLITS:
    known = ", ".join(sorted(SPLITS))
    near = did_you_mean(str(name), SPLITS)
    raise UnsupportedModel(
      f"{START}pre={name!r} is no way to split texts that is known here;{near} "
      f"known: {known}"
    )
  split = SPLITS[name]
  merges = [tuple(merge.split(" ")) for merge in _list(keys, "merges", str)]
  vocabulary = {text: i for i, text in enumerate(texts)}
  _check_merges(merges, vocabulary)
  _say_lost(vocabulary)
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole)
  )
  if split.nfc:
    backend.normalizer = normalizers.NFC()
  steps = [
    pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    for pattern in split.patterns
  ]
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, to_bytes])
  backend.decoder = decoders.ByteLevel()
  return backend, split.first


def _say_lost(vocabulary):
  """Says which bytes have no token; transformers and llama.cpp drop them."""
  from transformers.convert_slow_tokenizer import bytes_to_unicode

  lost = [
    f"{byte:02X}"
    for byte, letter in bytes_to_unicode().items()
    if byte not in NO_UTF_8 and letter not in vocabulary
  ]
  if lost:
    logger.info(
      f"{START}tokens: none for {len(lost)} bytes, {', '.join(sorted(lost))}: "
      "texts lose them, as they do in llama.cpp"
    )


def _check_merges(merges, vocabulary):
  if len({*merges}) < len(merges):  # readers disagree on which counts
    twice, _ = collections.Counter(merges).most_common(1)[0]
    raise InputError(f"{START}merges: {' '.join(twice)!r} stands there twice")
  for merge in merges:
    fits = len(merge) == 2 and {*merge, "".join(merge)} <= vocabulary.keys()
    if not fits:
      raise InputError(
        f"{START}merges: {' '.join(merge)[:40]!r} is no merge of two tokens"
      )


def _sentencepiece(keys, texts):
  """(Tokenizer, is bos the default?) of the kind "llama"."""
  from transformers.tokenization_utils_base import generate_merges

  scores = _list(keys, "scores", float, len(texts))
  if not all(map(math.isfinite, scores)):
    raise InputError(f"{START}scores: not all of them are finite")
  gemma = keys.architecture.startswith("gemma")
  if gemma:  # runs of spaces, as SentencePiece spells them
    texts = [
      SPACE * len(one) if one and not one.strip(" ") else one for one in texts
    ]
  vocabulary = {text: i for i, text in enumerate(texts)}
  # Gemma's merges go by the place in the vocabulary, not by score.
  order = {text: -i for text, i in vocabulary.items()}
  if not gemma:
    order = dict(zip(texts, scores, strict=True))
  unknown = keys.general("token", f"{START}unknown_token_id", None)
  if unknown is None and not BYTES <= vocabulary.keys():
    raise InputError(
      f"{START}unknown_token_id is missing, and {START}tokens has not all bytes"
    )
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocabulary,
      merges=generate_merges(vocabulary, order),
      unk_token=None if unknown is None else _text(texts, "unknown", unknown),
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  spaced = keys.general("flag", f"{START}add_space_prefix", not gemma)
  steps = [
    decoders.Replace(SPACE, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if gemma:
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  elif keys.architecture == "phi3" and spaced:
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
  else:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      replacement=SPACE,
      prepend_scheme="first" if spaced else "never",
      split=False,
    )
  if spaced:
    steps.append(decoders.Strip(" ", 1, 0))
  backend.decoder = decoders.Sequence(steps)
  return backend, True


def _add(backend, texts, types):
  """Makes control and user-defined tokens ones that no merge takes apart.

  Not those whose spelling changed: merges make Gemma's runs of spaces.
  """
  for special, kind, add in (
    (True, CONTROL, backend.add_special_tokens),
    (False, USER_DEFINED, backend.add_tokens),
  ):
    add(
      [
        tokenizers.AddedToken(text, normalized=False, special=special)
        for i, (text, one) in enumerate(zip(texts, types, strict=True))
        if one == kind and text and backend.token_to_id(text) == i
      ]
    )


def _text(texts, name, number):
  if number >= len(texts):
    raise InputError(f"{START}{name}_token_id={number} of {len(texts)} tokens")
  return texts[number]


def _special(keys, texts):
  """{name in transformers: (id, text)} of the special tokens."""
  found = {}
  for name, of in SPECIAL.items():
    number = keys.general("token", f"{START}{of}_token_id", None)
    if number is not None:
      found[name] = number, _text(texts, of, number)
  return found


def _around(keys, special, first):
  """What adds bos and eos to a text, where the file says so."""
  adds = {
    "bos": keys.general("flag", f"{START}add_bos_token", first),
    "eos": keys.general("flag", f"{START}add_eos_token", False),
  }
  for name, is_added in adds.items():
    if is_added and name not in special:
      raise InputError(
        f"{START}add_{name}_token without {START}{name}_token_id"
      )
  bos, eos = ([name] if is_added else [] for name, is_added in adds.items())
  one, two = ([*bos, "$A", *eos], [f"{t}:1" for t in (*bos, "$B", *eos)])
  added = {name: special[name] for name in (*bos, *eos)}
  return TemplateProcessing(
    single=one,
    pair=[*one, *two],
    special_tokens=[  # by name: a "$" or ":" in a text has a meaning here
      {"id": name, "ids": [number], "tokens": [text]}
      for name, (number, text) in added.items()
    ],
  )


def _ends(keys, count):
  """Ids of the tokens that end a text or a turn, each once."""
  found = [
    keys.general("token", f"{START}{name}_token_id", None) for name in ENDS
  ]
  for name, number in zip(ENDS, found, strict=True):
    if number is not None and number >= count:
      raise InputError(f"{START}{name}_token_id={number} of {count} tokens")
  return list(dict.fromkeys(one for one in found if one is not None))


KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}
