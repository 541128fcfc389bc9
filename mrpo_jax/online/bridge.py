# SPDX-License-Identifier: Apache-2.0
"""Bridge of BMC: rejected answers rewritten, with the chosen ones as guides.

An editor changes in the rejected answer what the chosen one does better, and
nothing else.  What it writes is the new chosen answer beside the old rejected
one, so that the two differ where it matters, and the loss `bmc` can tell where.
"""

import collections
import logging
import pathlib

import numpy as np

from mrpo_jax import external, files
from mrpo_jax.data import pack, source
from mrpo_jax.data.chat import messages
from mrpo_jax.errors import InputError
from mrpo_jax.progress import appended

logger = logging.getLogger(__name__)

ANSWERS = ".rewrites.jsonl"  # after the name of the file: all that was answered
ABOUT = ".bridge.json"  # who answered what, and the statistics


class CommandEditor:
  """An editor that is a command.

  It reads lines {"prompt", "chosen", "rejected", "index"} and answers
  {"rewrite": text} to each, in order.

  Attributes:
    name: the command, as it was given.
    script: SHA-256 of its program, or None.
  """

  def __init__(self, command, *, timeout=external.TIMEOUT):
    """`timeout`: seconds that the command may take for an answer."""
    self._command = external.Command(
      command,
      flag="--command",
      role="editor",
      instead="the path of one",
      timeout=timeout,
    )
    self.name, self.script = self._command.name, self._command.script

  def answers(self, requests, todo):
    """Yields the rewrite of each request of `todo`, which are of `requests`."""
    del requests
    return self._command(
      todo, read=_rewrite_in, where=lambda one: f"pair {one['index']}"
    )


def bridge(pairs, editor, to, *, timeout=external.TIMEOUT):
  """Writes a file of preference rows whose chosen answers are rewrites.

  A row of it is {"prompt", "chosen": the rewrite, "rejected", "guide": the
  chosen answer before, "index": of the pair}.  It appears when all is done; the
  same call goes on where it was killed.

  Args:
    pairs: what `source.load` takes.
    editor: the words of a command, see `CommandEditor`, or another editor with
      its attributes and `answers`.
    to: the file, .jsonl.
    timeout: seconds that the command may take for an answer.

  Returns:
    The statistics, a dict; see `statistics`.

  Raises:
    InputError: the pairs or the command are none; the command fails, where what
      it answered before is kept; the file is of others, or nothing is left.

  Source: BMC, arXiv:2408.07471.
  """
  to = pathlib.Path(to)
  if to.suffix != ".jsonl":
    raise InputError(f"--to={to}: name a file .jsonl")
  if isinstance(editor, str):
    editor = CommandEditor(editor, timeout=timeout)
  found = source.load(pairs)
  requests, dropped = _requests(found, pairs)
  record = {
    "pairs": source.fingerprint(found),
    "command": editor.name,
    "script": editor.script,
  }
  with files.alone(to):
    rewrites = _rewrites(to, editor, record, requests)
    rows, about = _rows(found, requests, rewrites, dropped)
    if not rows:
      raise InputError(f"{pairs}: no rewrite is left: {about['dropped']}")
    text = "".join(files.as_json(row, to) + "\n" for row in rows)
    content = {**record, "statistics": about}
    path = _beside(to, ABOUT)
    files.write_together({to: text, path: files.json_text(content, path)})
  return about


def _beside(to, suffix):
  return to.with_name(to.name + suffix)


def _requests(pairs, where):
  """(requests of pairs that can be rewritten, how often which cannot)."""
  requests, dropped = [], collections.Counter()
  for index, pair in enumerate(pairs):
    if pair.rejected is None:
      raise InputError(f"{where}: pair {index} has no rejected answer")
    if pair.tools:
      raise InputError(
        f"{where}: pair {index} has tools, which editors are not told of; "
        "leave such pairs out"
      )
    chosen = messages.one_text(pair.chosen)
    rejected = messages.one_text(pair.rejected)
    if chosen is None or rejected is None:
      dropped["more than one turn of text"] += 1
      continue
    request = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
    requests.append(request | {"index": index})
  return requests, dropped


def _rewrites(to, editor, record, requests):
  """{index: rewrite} of all requests, asked for where none is known."""
  path, about = _beside(to, ANSWERS), _beside(to, ABOUT)
  files.cut_half_line(path)
  known = _known(path)
  if known or to.exists():
    _refuse_other(to, path, about, record)
  else:  # a command that answered nothing may be another now
    files.write_json(about, record)
  todo = [one for one in requests if one["index"] not in known]
  done = len(requests) - len(todo)
  if done and todo:
    logger.info(f"{path} holds {done} of {len(requests)} rewrites; going on")
  answers = appended(
    path,
    editor.answers(requests, todo),
    todo,
    lambda request, answer: {"index": request["index"], "rewrite": answer},
    title="rewriting",
    unit="answers",
    done=done,
  )
  for request, answer in answers:
    known[request["index"]] = answer
  return known


def _refuse_other(to, path, about, record):
  """InputError where files that are there are of other pairs or editors."""
  if not about.is_file():
    raise InputError(
      f"{to} or {path.name} exists, and no {about.name} says of what it is; "
      "remove it or name another file"
    )
  there = files.read_json(about)
  for key, here in record.items():
    if there.get(key) != here:
      raise InputError(
        f"{to} is of another {key}: {about.name} has {there.get(key)!r}, here "
        f"it is {here!r}; name another file, or remove it, {path.name} and "
        f"{about.name}"
      )


def _known(path):
  """{index: rewrite or None} of a file that an earlier call has left."""
  known = {}
  for number, line in enumerate(files.read_lines(path), 1):
    index, rewrite = line.get("index"), line.get("rewrite")
    if type(index) is not int or not isinstance(rewrite, str | None):
      raise InputError(
        f"{path} line {number} is not as it was written; remove the line"
      )
    known[index] = rewrite
  return known


def _rewrite_in(line):
  """The rewrite in a command's answer, a line of JSON."""
  value = external.answer_of(line, '{"rewrite": "..."}').get("rewrite")
  if not isinstance(value, str):
    raise InputError(f"{external.shown(line)}: rewrite is a text")
  return value


def _rows(pairs, requests, rewrites, dropped):
  """(rows of the new file, statistics)."""
  rows, kept = [], []
  for request in requests:
    index, rejected = request["index"], request["rejected"]
    rewrite = rewrites[index]  # None where it was cut off
    reason = _unusable(rewrite, request)
    if reason:
      dropped[reason] += 1
      continue
    pair = pairs[index]
    if isinstance(pair.chosen, str):
      # Plain answers begin with the space that divides them from the prompt.
      lead = rejected[: len(rejected) - len(rejected.lstrip())]
      chosen = rewrite = lead + rewrite.lstrip()
    else:
      chosen = [{**pair.chosen[0], "content": rewrite}]
    row = {"prompt": pair.prompt, "chosen": chosen, "rejected": pair.rejected}
    rows.append(row | {"guide": request["chosen"], "index": index})
    kept.append((request["chosen"], rejected, rewrite))
  return rows, statistics(len(pairs), kept, dropped)


def _unusable(rewrite, request):
  """Why a rewrite makes no pair, in words; "" where it does."""
  if rewrite is None:
    return "cut off"
  said = rewrite.split()
  if not said:
    return "empty"
  for name in ("rejected", "chosen"):
    if said == request[name].split():
      return f"the {name} answer again"
  return ""


def statistics(pairs, kept, dropped):
  """What the editor did, over all pairs that are kept.

  Args:
    pairs: how many there were.
    kept: (chosen, rejected, rewrite) of each that is kept.
    dropped: {reason: how many}.

  Returns:
    dict: `pairs`, `kept`, `dropped`; `words` {answer: mean number}; `changed`
    {answer: mean share of words that the other of its new pair lacks}, of the
    rewrite and the rejected; `changed_before`, the same of the chosen and the
    rejected in the old pair.  White space divides words; the alignment is that
    of `pack.differing`, with which `bmc` marks tokens.
  """
  names = ("chosen", "rejected", "rewrite")
  words = [[text.split() for text in one] for one in kept]

  def shares(first):
    """Mean shares of the answer `first` and of the rejected one."""
    found = [pack.differing(one[first], one[1]) for one in words]
    return [
      float(
        np.mean(
          [np.mean(both[side]) if both[side].size else 0.0 for both in found]
        )
      )
      if found
      else 0.0
      for side in (0, 1)
    ]

  return {
    "pairs": pairs,
    "kept": len(kept),
    "dropped": dict(sorted(dropped.items())),
    "words": {
      name: float(np.mean([len(one[n]) for one in words])) if words else 0.0
      for n, name in enumerate(names)
    },
    "changed": dict(zip(("rewrite", "rejected"), shares(2), strict=True)),
    "changed_before": dict(zip(("chosen", "rejected"), shares(0), strict=True)),
  }


def summary(about):
  """The statistics in a few lines."""
  words, new, old = about["words"], about["changed"], about["changed_before"]
  dropped = ", ".join(f"{n} {why}" for why, n in about["dropped"].items())
  return "\n".join(
    [
      f"{about['kept']} of {about['pairs']} pairs are bridged"
      + (f"; dropped: {dropped}" if dropped else ""),
      f"words: chosen {words['chosen']:.1f}, rejected {words['rejected']:.1f}, "
      f"rewrite {words['rewrite']:.1f}",
      f"changed: {new['rewrite']:.0%} of the rewrite, {new['rejected']:.0%} of "
      f"the rejected; of chosen and rejected before {old['chosen']:.0%} and "
      f"{old['rejected']:.0%}",
    ]
  )
