# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: trained on the texts at hand, or loaded from a folder.

Importing this module loads neither `tokenizers` nor `transformers`, which
takes seconds; calling it does.
"""

import copy
import datetime
import hashlib
import json
import logging

from mrpo_jax import files
from mrpo_jax.data import templates
from mrpo_jax.errors import InputError, Panic, first_line, panics
from mrpo_jax.snapshots import folder_of

logger = logging.getLogger(__name__)

SPECIAL = ("<bos>", "<eos>", "<pad>")  # ids 0, 1, 2
SMALLEST = len(SPECIAL) + 256  # and every byte
# Mistral's files had tiktoken's pattern in the place of their own.
WRONG_PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SUFFIXES = (".json", ".model", ".txt", ".jinja")
DAY = datetime.date(2024, 7, 26)  # which Llama's templates have for want of one
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def train_tokenizer(texts, vocab_size):
  """Trains a byte-level BPE tokenizer on texts, the same one every time.

  Args:
    texts: the strings to train on.
    vocab_size: at most so many tokens; few texts give fewer.

  Returns:
    A PreTrainedTokenizerFast that starts every text with <bos> (id 0) and adds
    no <eos> (id 1); <pad> is id 2.  Decoding gives the text back.
    `save_pretrained(folder)` stores it.
  """
  from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
  )
  from transformers import PreTrainedTokenizerFast

  if vocab_size < SMALLEST:
    raise InputError(f"vocab_size {vocab_size}; it takes {SMALLEST} or more")
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  # Lone surrogates, which JSON can hold, become "?".
  texts = (text.encode("utf-8", "replace").decode() for text in texts)
  backend.train_from_iterator(texts, trainer)
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

  folder = folder_of(folder)
  if not folder.is_dir():
    raise InputError(f"{folder}: no such folder to load a tokenizer from")
  # Without files, transformers 5 makes an empty one for some model types.
  if not any((folder / name).is_file() for name in FILES):
    raise InputError(f"{folder}: no tokenizer here (want tokenizer.json)")
  for path in folder.iterdir():
    if path.suffix in SUFFIXES and path.exists():
      files.refuse_endless(path)
  wrong = _pattern(folder) == WRONG_PATTERN
  try:
    with panics():
      tokenizer = AutoTokenizer.from_pretrained(
        str(folder),
        local_files_only=True,
        trust_remote_code=False,
        # It looks itself whether the model is one of Mistral's.
        **({"fix_mistral_regex": True} if wrong else {}),
      )
  except Exception as error:  # tokenizers raises bare Exception
    raise InputError(
      f"{folder}: no tokenizer loads: {first_line(error)}"
    ) from error
  _check(tokenizer, folder)
  if wrong and _first_pattern(_parts(tokenizer)) != WRONG_PATTERN:
    logger.info(
      f"{folder}: its tokenizer splits words by the pattern that Mistral "
      "published by mistake; transformers' fix is applied (fix_mistral_regex)"
    )
  return with_template(tokenizer, template)


def _check(tokenizer, folder):
  """Refuses one that panics or whose template is no text; no dropout is left.

  With dropout a text has other ids at every call.
  """
  own = tokenizer.chat_template
  for one in own.values() if isinstance(own, dict) else [own]:
    if one is not None and not isinstance(one, str):
      raise InputError(
        f"{folder}: its chat template is {str(one)[:20]!r}, want a text; mend "
        "chat_template in tokenizer_config.json"
      )
  try:
    with panics():
      tokenizer("Hi there")
  except Panic as error:
    raise InputError(f"{folder}: no tokenizer works: {error}") from None
  except Exception:  # it has no token for these letters; other texts may go
    logger.debug(f"{folder}: cannot encode every text", exc_info=True)
  model = tokenizer.backend_tokenizer.model
  if getattr(model, "dropout", None):
    logger.info(
      f"{folder}: its tokenizer drops merges at random (dropout "
      f"{model.dropout:g}), so that a text has other ids at every call; it is "
      "off here"
    )
    model.dropout = None


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


def _pattern(folder):
  """By what a tokenizer splits words first, None where that is no pattern."""
  try:
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return _first_pattern(json.loads(content))
  except (OSError, ValueError, RecursionError):
    return None  # loading it says why


def _first_pattern(parts):
  try:
    return parts["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
  except (TypeError, KeyError, IndexError):
    return None


def _parts(tokenizer):
  return json.loads(tokenizer.backend_tokenizer.to_str())


def with_date(tokenizer, date):
  """The tokenizer, its template as of that datetime.date if it writes one.

  Templates that call `strftime_now` give another text every day.
  """
  template = templates.chat_template(tokenizer)
  if not templates.writes_date(template):
    return tokenizer
  changed = copy.copy(tokenizer)
  changed.chat_template = templates.dated(template, date)
  return changed


def load_judges_tokenizer(folder):
  """`load_tokenizer`; a template that writes the day writes DAY on every day.

  Of models that judge texts: their numbers are kept, and are the same tomorrow.
  """
  tokenizer = load_tokenizer(folder)
  dated = with_date(tokenizer, DAY)
  if dated is not tokenizer:
    logger.info(
      f"{folder}: its chat template writes the day; for a model that judges "
      f"texts it is always {DAY}"
    )
  return dated


def id_count(tokenizer):
  """One more than the largest id; ids may have holes, `len` counts tokens."""
  return max(tokenizer.get_vocab().values(), default=-1) + 1


def tokenizer_fingerprint(tokenizer):
  """SHA-256 of all that decides the ids of a text: equal ones encode alike.

  Names and folders do not count, nor lengths, padding and the pad token, which
  `encode` does not use unless the chat template writes it.
  """
  parts = _parts(tokenizer)
  parts |= {"truncation": None, "padding": None}
  parts["ends"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
  template = templates.chat_template(tokenizer)
  parts["chat_template"] = template
  others = {
    name: str(token)
    for name, token in tokenizer.special_tokens_map.items()
    if name in template and name not in ("bos_token", "eos_token")
  }
  if others:
    parts["tokens of the template"] = others
  # No part of the backend.  Where it is off, marks are those of before.
  if tokenizer.split_special_tokens:
    parts["split_special_tokens"] = True
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
