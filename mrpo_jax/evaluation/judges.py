# SPDX-License-Identifier: Apache-2.0
"""Judges of two answers to a prompt: any command, or a reward.

A judge takes requests, dicts of `prompt` (text or messages), `first` and
`second` (the answers), `index` (of the prompt) and `order`; it gives a dict
with `preference` for each, in order: 1, the first is better, to 2, the second
is.
"""

import os

from mrpo_jax import external
from mrpo_jax.errors import InputError
from mrpo_jax.external import TIMEOUT, shown

WINNERS = {"first": 1.0, "tie": 1.5, "second": 2.0}
BATCH = external.BATCH // 2  # pairs that a reward is given at once


def judge_of(text, *, timeout=TIMEOUT, of_folder=None):
  """The judge that a flag names: "module:name", a folder, or a command.

  Args:
    text: the flag's.
    timeout: seconds that a command may take for an answer.
    of_folder: folder -> function reward(prompts, responses) of a trained
      reward, with its fingerprint as `script`; raises InputError.  None: none
      is read.

  Raises:
    InputError: there is no such command, module or function.
  """
  if external.FUNCTION.fullmatch(text):
    found = external.Function(text, flag="--judge")
    return RewardJudge(text, found.function, found.script)
  if os.path.isdir(text) and of_folder:
    found = of_folder(text)
    return RewardJudge(text, found, found.script)
  return CommandJudge(text, timeout=timeout)


class CommandJudge:
  """A command that reads requests as JSON lines and answers a line to each.

  Answers are {"preference": 1 to 2} or {"winner": "first", "second" or "tie"}.
  The command is started once; see `external.Command`.  Which place is asked for
  first matters to many, so each pair is a request in both orders.
  """

  orders = (0, 1)

  def __init__(self, command, *, timeout=TIMEOUT):
    self.name = command
    self._command = external.Command(
      command,
      flag="--judge",
      role="judge",
      instead="a reward as module:name",
      timeout=timeout,
    )

  @property
  def script(self):
    """SHA-256 of the program that the command names, or None."""
    return self._command.script

  def __call__(self, requests):
    """Yields {"preference": ...} of each request.

    Raises:
      InputError: the command fails; names the first request without an answer.
      external.Withdrawn: it answers more than it was asked, or ends with an
        exit code other than 0 after its last answer.
    """
    for answer in self._command(requests, read=preference_of, where=_where):
      yield {"preference": answer}


def _where(request):
  return f"prompt {request['index']} in order {request['order']}"


def preference_of(line):
  """The preference of an answer, a line of JSON.

  Raises:
    InputError: it is none; says what it is.
  """
  answer = external.answer_of(line, '{"preference": 1.5} or {"winner": "tie"}')
  given = [key for key in ("preference", "winner") if key in answer]
  if len(given) != 1:
    has = "both a preference and a winner" if given else "neither"
    raise InputError(f"{shown(line)}: want preference or winner, it has {has}")
  value = answer[given[0]]
  if given == ["winner"]:
    if not isinstance(value, str) or value not in WINNERS:
      raise InputError(f"{shown(line)}: winner is one of {', '.join(WINNERS)}")
    return WINNERS[value]
  if type(value) not in (int, float) or not 1 <= value <= 2:
    raise InputError(
      f"{shown(line)}: preference is from 1 (the first is better) to 2 (the "
      "second is)"
    )
  return float(value)


class RewardJudge:
  """A function reward(prompts, responses) -> floats; larger is better.

  It sees an answer at a time, so that there is no order.

  Attributes:
    name: as it was given.
    script: SHA-256 of the function's file or of the model; None without one.
  """

  orders = (0,)

  def __init__(self, name, function, script):
    self.name, self.script, self._function = name, script, function

  def __call__(self, requests):
    """Yields {"preference": ..., "rewards": [first, second]} of each request.

    Raises:
      InputError: the function fails, or gives other than a finite number for
        each answer.
    """
    for first in range(0, len(requests), BATCH):
      some = requests[first : first + BATCH]
      rewards = self._rewards(some)
      for a, b in zip(rewards[::2], rewards[1::2], strict=True):
        yield {"preference": 1.5 + (b > a) / 2 - (b < a) / 2, "rewards": [a, b]}

  def _rewards(self, requests):
    return external.numbers(
      f"the reward {self.name}",
      self._function,
      [one["prompt"] for one in requests for _ in range(2)],
      [answer for one in requests for answer in (one["first"], one["second"])],
      where=lambda place: f"prompt {requests[place // 2]['index']}",
    )
