# SPDX-License-Identifier: Apache-2.0
"""A data split as token ids under every tokenizer of a run."""

import dataclasses
import logging
import time

from mrpo_jax.data import encode, pack, source, truncate
from mrpo_jax.data.mismatched import with_mismatched
from mrpo_jax.data.reading import dialogues
from mrpo_jax.data.templates import DEFAULT, chat_template, check_syntax
from mrpo_jax.errors import InputError
from mrpo_jax.progress import Progress

logger = logging.getLogger(__name__)

MARK = 16  # hex digits, by which no two of a billion prompts are alike
# Who leaves a pair out, by the start of the reason.
REFUSERS = {
  "refused by the chat template": "the chat template of {} refuses",
  "not encodable": "the tokenizer of {} cannot encode",
}


@dataclasses.dataclass(frozen=True)
class Table:
  """One split as token ids."""

  views: list  # per tokenizer a list of Encoded, aligned over pairs
  places: list  # of each pair among those of the file
  prompts: list  # what the prompt of each pair is known by
  fingerprints: list  # of each pair and of where it is cut
  ids: list  # of each pair as the file has it
  weights: list  # of each pair its reference_weights
  labels: list  # of each pair whether its one response is good; None of pairs
  dropped: int  # rows left out
  truncated: int  # rows kept of which something was cut


def encode_table(
  split,
  pairs,
  tokenizers,
  *,
  origin,
  row_length,
  places=None,
  chosen_only=False,
  labelled=False,
  mismatched=False,
  **limits,
):
  """Encodes a split under every tokenizer and keeps what all can use.

  Args:
    split: its name.
    pairs: list of PreferencePair.
    tokenizers: their `views`, and `users` of each in words.
    origin: what the pairs are from, in words.
    row_length: tokens of a packed row.
    places: of each pair among those of the file; None: they are all of it.
    chosen_only: leave the rejected responses out?  Supervised training does
      not read them.
    labelled: are they single responses with a label?
    mismatched: are those given the responses of other prompts to stand beside
      them?  See `mismatched.with_mismatched`.
    **limits: max_prompt and max_response, in tokens.
  """
  places = range(len(pairs)) if places is None else places
  _refuse_others(pairs, places, origin, other_kind(chosen_only, labelled))
  ids = [source.pair_id(pair) for pair in pairs]
  if mismatched:
    pairs = with_mismatched(pairs, origin)
  chats = sum(not isinstance(pair.prompt, str) for pair in pairs)
  if chats:
    _check_templates(tokenizers)
  started = time.perf_counter()
  cuts, views = _encoded(split, pairs, tokenizers.views, limits)
  for line in (
    *_template_notes(split, views, places, tokenizers, chats),
    *_plain_notes(split, pairs, tokenizers),
    *_end_notes(split, pairs, tokenizers),
  ):
    logger.info(line)
  if chosen_only:
    views = [[*map(without_rejected, view)] for view in views]
  reasons = [
    unusable(encoded, row_length) for encoded in zip(*views, strict=True)
  ]
  kept = [i for i, reason in enumerate(reasons) if reason is None]
  truncated = sum(any(view[i].truncated for view in views) for i in kept)
  why = _counted(reason for reason in reasons if reason)
  if not kept:
    why += _first_reason(views, tokenizers)
    raise InputError(f"{origin}: none of its {len(pairs)} pairs is left: {why}")
  logger.info(
    f"{split}: {len(kept)} of {len(pairs)} pairs, {truncated} truncated "
    f"({truncated / len(kept):.0%})"
    + (f"; dropped: {why}" if why else "")
    + f" ({time.perf_counter() - started:.1f} s)"
  )
  return Table(
    views=[[view[i] for i in kept] for view in views],
    places=[places[i] for i in kept],
    prompts=[source.prompt_id(pairs[i])[:MARK] for i in kept],
    fingerprints=[
      truncate.fingerprint(
        pairs[i], cuts[i], [view[i].border for view in views]
      )
      for i in kept
    ],
    ids=[ids[i] for i in kept],
    weights=[pairs[i].reference_weights for i in kept],
    labels=[pairs[i].desirable for i in kept],
    dropped=len(pairs) - len(kept),
    truncated=truncated,
  )


def _encoded(split, pairs, tokenizers, limits):
  """(cut of each pair, its encodings under each tokenizer)."""
  total = (1 + len(tokenizers)) * len(pairs)  # cut, then encoded
  with Progress(f"encoding {split}", total, "texts") as progress:
    limits = {**limits, "progress": progress.update}
    cuts = truncate.cut_to_fit(tokenizers, pairs, **limits)
    return cuts, [
      encode.encode_all(tokenizer, pairs, cuts=cuts, **limits)
      for tokenizer in tokenizers
    ]


def other_kind(chosen_only, labelled):
  """Kinds of pairs that the loss does not learn from; see `encode_table`.

  Of each: is a pair of it?  What it has then, and why that is none.
  """
  singles = "config.loss.name='kto_unpaired', 'apo_zero_unpaired' or "
  singles += "'bco_unpaired'"
  if labelled:
    return [
      (
        lambda pair: pair.desirable is None,
        "no label, true or false, of a single response",
        f"{singles} learn from rows like prompt, completion, label; "
        "data.unpair=True makes such rows of pairs",
      )
    ]
  found = [
    (
      lambda pair: pair.desirable is not None,
      "one response with a label",
      f"{singles} learn from those alone",
    )
  ]
  if not chosen_only:
    found.append(
      (
        lambda pair: pair.rejected is None,
        "no rejected response",
        "without one there is supervised training alone, "
        "config.loss.name='nll'",
      )
    )
  return found


def _refuse_others(pairs, places, origin, kinds):
  """InputError where rows are not what the loss learns from."""
  for is_other, have, why in kinds:
    some = zip(places, pairs, strict=True)
    others = [place for place, pair in some if is_other(pair)]
    if others:
      raise InputError(
        f"{origin}: {len(others)} of {len(pairs)} pairs have {have}, the first "
        f"is pair {others[0]}; {why}"
      )


def _plain_notes(split, pairs, tokenizers):
  """Whose chat template is not used, since the pairs are plain text."""
  plain = [pair.prompt for pair in pairs if isinstance(pair.prompt, str)]
  users = [
    user
    for index, tokenizer in enumerate(tokenizers.views)
    if getattr(tokenizer, "chat_template", None)
    for user in tokenizers.users(index)
  ]
  if plain and users:
    said = sum(map(dialogues.is_dialogue, plain))
    hint = "config.data.conversations='hh' makes turns of Human: and Assistant:"
    yield (
      f"{split}: {len(plain)} of {len(pairs)} pairs are plain text, so the "
      f"chat template of {' and '.join(users)} is not used for them"
      + (f"; {hint}, which {said} have" if said else "")
    )


def _end_notes(split, pairs, tokenizers):
  """Whose responses have no end, which a model then never learns to write."""
  plain = sum(isinstance(pair.prompt, str) for pair in pairs)
  for index, tokenizer in enumerate(tokenizers.views):
    asked = plain < len(pairs) and "eos_token" in chat_template(tokenizer)
    if tokenizer.eos_token is None and (plain or asked):
      yield (
        f"{split}: the tokenizer of {' and '.join(tokenizers.users(index))} "
        f"has no eos_token: {len(pairs) if asked else plain} of {len(pairs)} "
        "pairs have responses without an end; set it in tokenizer_config.json"
      )


def _check_templates(tokenizers):
  """InputError where one is not Jinja: it would refuse every conversation."""
  for index, tokenizer in enumerate(tokenizers.views):
    users = " and ".join(tokenizers.users(index))
    name = f"the chat template of {users} (name another in `template`)"
    check_syntax(name, chat_template(tokenizer))


def _template_notes(split, views, places, tokenizers, chats):
  """Which template is used for want of one, and which cannot say all of it."""
  for index, view in enumerate(views):
    users = " and ".join(tokenizers.users(index))
    if chats and not tokenizers.views[index].chat_template:
      yield (
        f"{split}: the tokenizer of {users} has no chat template: its {chats} "
        f"conversations are written as {DEFAULT!r}; name another in `template`"
      )
    refused, silent = {}, {}
    for place, one in zip(places, view, strict=True):
      kind, _, why = (one.dropped or "").partition(": ")
      if kind in REFUSERS:
        who = REFUSERS[kind].format(users)
        refused.setdefault((who, why), []).append(place)
      if one.left_out:
        silent.setdefault(one.left_out, []).append(place)
    for (who, why), some in refused.items():
      yield (
        f"{split}: {who} {len(some)} of {len(view)} pairs, from pair "
        f"{some[0]} on: {why}"
      )
    who = f"{split}: the chat template of {users}"
    for what, some in silent.items():
      yield (
        f"{who} leaves out {what} in {len(some)} of {len(view)} pairs, from "
        f"pair {some[0]} on; name another in its `template`"
      )


def _first_reason(views, tokenizers):
  """The first reason to drop a pair that needs words, and whose it is."""
  for index, view in enumerate(views):
    for one in view:
      kind, _, why = (one.dropped or "").partition(": ")
      if kind in REFUSERS:
        users = " and ".join(tokenizers.users(index))
        return f"; {REFUSERS[kind].format(users)} the first: {why}"
  return ""


def without_rejected(encoded):
  """An Encoded with its chosen response alone."""
  return dataclasses.replace(encoded, rejected_ids=[])


def unusable(encoded, row_length):
  """Why a pair cannot be trained on, from its encoding in every view."""
  for one in encoded:
    if one.dropped:
      return one.dropped.partition(":")[0]
  if any(pack.size(one) > row_length for one in encoded):
    return "too long for a row"
  return None


def _counted(reasons):
  counts = {}
  for reason in reasons:
    counts[reason] = counts.get(reason, 0) + 1
  return ", ".join(f"{count} {reason}" for reason, count in counts.items())
