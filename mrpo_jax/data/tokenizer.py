# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: trained on the texts at hand, or loaded from a folder.

Importing this module loads neither `tokenizers` nor `transformers`, which
takes seconds; calling it does.
"""

import copy
import hashlib
import json
import math
import pathlib
import string
from collections import Counter

from mrpo_jax.data import templates
from mrpo_jax.errors import InputError, first_line

SPECIAL = ("<bos>", "<eos>", "<pad>")  # ids 0, 1, 2 in both kinds
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
SPACE = "▁"
REQUIRED = sorted((set(string.printable) - set(" \r\v\f")) | {SPACE})
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
LONGEST = 16  # characters in a Unigram piece, SentencePiece's default
SMALLEST = {
  "bpe": len(SPECIAL) + 256,
  "unigram": len(SPECIAL) + 1 + len(BYTES) + len(REQUIRED),
}


def train_tokenizer(texts, *, kind, vocab_size):
  """A PreTrainedTokenizerFast trained on `texts`, the same one every time.

  Args:
    texts: the strings to train on.
    kind: "bpe", byte-level BPE, or "unigram", pieces with log-probabilities
      as in SentencePiece, spaces written as U+2581, and bytes for any
      character that is no piece.
    vocab_size: at most so many tokens; few texts give fewer.

  Returns:
    A tokenizer that starts every text with <bos> (id 0) and adds no <eos>
    (id 1); <pad> is id 2.  Decoding gives the text back, but for U+2581 in
    "unigram", which becomes a space.  `save_pretrained(folder)` stores it.
  """
  from tokenizers import processors
  from transformers import PreTrainedTokenizerFast

  if kind not in SMALLEST:
    known = ", ".join(SMALLEST)
    raise InputError(f"tokenizer kind {kind!r}; the known are {known}")
  if vocab_size < SMALLEST[kind]:
    least = SMALLEST[kind]
    raise InputError(f"vocab_size {vocab_size}; {kind} needs {least} or more")
  train = {"bpe": _byte_level_bpe, "unigram": _unigram}[kind]
  # Lone surrogates, which JSON can hold, become "?".
  texts = [text.encode("utf-8", "replace").decode() for text in texts]
  backend = train(texts, vocab_size)
  backend.post_processor = processors.TemplateProcessing(
    single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 0)]
  )
  bos, eos, pad = SPECIAL
  return PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token=bos,
    eos_token=eos,
    pad_token=pad,
    clean_up_tokenization_spaces=False,
  )


def load_tokenizer(folder, template=""):
  """The tokenizer saved in `folder`; nothing is downloaded, no code runs.

  `template` names its chat template, see `with_template`.
  """
  from transformers import AutoTokenizer

  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise InputError(f"{folder}: no such folder to load a tokenizer from")
  # Without files, transformers 5 makes an empty one for some model types.
  if not any((folder / name).is_file() for name in FILES):
    raise InputError(f"{folder}: no tokenizer here (want tokenizer.json)")
  try:
    tokenizer = AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # tokenizers raises bare Exception
    raise InputError(
      f"{folder}: no tokenizer loads: {first_line(error)}"
    ) from error
  return with_template(tokenizer, template)


def with_template(tokenizer, template):
  """The tokenizer with a chat template; itself where the name is empty.

  Args:
    tokenizer: a Hugging Face tokenizer; it is not changed.
    template: a name or path as in `templates.load_template`.  A named one
      begins with BOS where plain text does; a file says so itself.
  """
  if not template:
    return tokenizer
  changed = copy.copy(tokenizer)
  changed.chat_template = templates.template_for(tokenizer, template)
  return changed


def tokenizer_fingerprint(tokenizer):
  """SHA-256 of all that decides the ids of a text: equal ones encode alike.

  Names and folders do not count, nor the pad token, lengths and padding,
  which `encode` does not use.
  """
  parts = json.loads(tokenizer.backend_tokenizer.to_str())
  parts |= {"truncation": None, "padding": None}
  parts["ends"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
  parts["chat_template"] = templates.chat_template(tokenizer)
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _byte_level_bpe(texts, vocab_size):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  return backend


def _unigram(texts, vocab_size):
  """Viterbi training on BPE's pieces, twice as many as asked, then the best.

  UnigramTrainer sums in the order of a randomly seeded hash table: two runs
  differ in scores and ids.  Everything here is counted in integers.
  """
  from tokenizers import Tokenizer, models, trainers

  room = vocab_size - len(SPECIAL) - 1 - len(BYTES)
  candidates = Tokenizer(models.BPE())
  candidates.pre_tokenizer = _metaspace()
  trainer = trainers.BpeTrainer(
    vocab_size=2 * room,
    initial_alphabet=REQUIRED,
    max_token_length=LONGEST,
    show_progress=False,
  )
  candidates.train_from_iterator(texts, trainer)
  count = _piece_counts(candidates, texts)
  count = {p: count[p] for p in sorted(candidates.get_vocab())}
  for keep in (2 * room, room, room):
    required = {piece: count[piece] for piece in REQUIRED}
    best = sorted(count.keys() - required, key=lambda p: (-count[p], p))
    best = required | {p: count[p] for p in best[: keep - len(required)]}
    backend = _unigram_model(best)
    seen = _piece_counts(backend, texts)
    count = {piece: seen[piece] for piece in best}
  return backend


def _unigram_model(count):
  from tokenizers import AddedToken, Tokenizer, decoders, models

  total = sum(count.values()) + len(count)
  score = {p: math.log((n + 1) / total) for p, n in count.items()}
  ranked = sorted(score.items(), key=lambda item: (-item[1], item[0]))
  fixed = [(token, 0.0) for token in (*SPECIAL, "<unk>")]
  # So unlikely that the text "<0x41>" is six characters, never a byte.
  low = [(token, -1000.0) for token in BYTES]
  backend = Tokenizer(
    models.Unigram([*fixed, *low, *ranked], unk_id=3, byte_fallback=True)
  )
  backend.pre_tokenizer = _metaspace()
  backend.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  backend.add_special_tokens(
    [AddedToken(token, normalized=False) for token in SPECIAL]
  )
  return backend


def _metaspace():
  from tokenizers import pre_tokenizers

  # "never": a dummy first space would make "a" and " a" the same ids.
  return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never")


def _piece_counts(backend, texts):
  count = Counter()
  for start in range(0, len(texts), 1000):
    for encoding in backend.encode_batch(texts[start : start + 1000]):
      count.update(encoding.tokens)
  return count
