# SPDX-License-Identifier: Apache-2.0
"""Rewards: (prompts, responses) -> a finite number for each response.

A reward is a function of Python, a command or a trained folder; the larger the
number, the better.  Prompts are texts or lists of messages, responses texts.
"""

import functools
import inspect
import math
import os

from mrpo_jax import external, files
from mrpo_jax.errors import InputError, blames, did_you_mean

COMMAND, DIFFERENCE = "command:", "difference:"
FORMS = (
  "module:name, command:WORDS or a folder of a trained reward; or "
  "difference:FOLDER,FOLDER, of two language models"
)
SHIPPED = "mrpo_jax."
SHOWN = 40  # characters of a prompt's beginning


def reward_of(
  text,
  *,
  options=None,
  of_folder=None,
  of_difference=None,
  flag="reward",
  timeout=external.TIMEOUT,
  timeout_flag="",
):
  """The reward that a config or a flag names.

  Args:
    text: "module:name", a function reward(prompts, responses) that is looked
      for in the current folder, too; "command:WORDS", see `CommandReward`; a
      folder; or "difference:FOLDER,FOLDER", of two language models.
    options: {name: value}, further keywords of the function.
    of_folder: f(folder, **options) that gives a function of (prompts,
      responses) for a trained reward, with its fingerprint as `script`; raises
      InputError.
    of_difference: f(folder, folder, **options), the same for a difference.
    flag: what named it, for messages: "online.reward".
    timeout: seconds that a command may take for an answer.
    timeout_flag: what gives it more, for messages; "": the flag with "_timeout"
      after it.

  Returns:
    A `Reward` or a `CommandReward`.

  Raises:
    InputError: there is no such function, command or folder, or it does not
      take the options.
  """
  options = dict(options or {})
  if text.startswith(COMMAND):
    if options:
      raise InputError(
        f"{flag}={text}: options are keywords of a function; write them into "
        "the words of the command"
      )
    return CommandReward(
      text, flag=flag, timeout=timeout, timeout_flag=timeout_flag
    )
  made = _of_folders(text, options, of_folder, of_difference, flag)
  if made is not None:
    return Reward(text, made, script=made.script)
  if not external.FUNCTION.fullmatch(text):
    raise InputError(f"{flag}={text!r} is no reward; give {FORMS}")
  found = external.Function(text, flag=flag)
  _check_options(found.function, options, f"{flag}={text}")
  function = functools.partial(found.function, **options)
  if text.startswith(SHIPPED):
    with blames(f"{flag}={text}", (TypeError, ValueError)):
      function([], [])  # they look at their options first
  return Reward(text, function, script=found.script)


def _of_folders(text, options, of_folder, of_difference, flag):
  """What a reward of trained models is made of; None for another reward."""
  if text.startswith(DIFFERENCE):
    make, folders = of_difference, text.removeprefix(DIFFERENCE).split(",")
    if len(folders) != 2 or not all(map(os.path.isdir, folders)):
      raise InputError(
        f"{flag}={text!r}: give two folders of language models, "
        f"{DIFFERENCE}FOLDER,FOLDER"
      )
  elif os.path.isdir(text):
    make, folders = of_folder, [text]
  else:
    return None
  if make is None:
    raise InputError(
      f"{flag}={text} is a folder, and trained rewards are not read here; give "
      "module:name or command:WORDS"
    )
  _check_options(make, options, f"{flag}={text}", folders, "its folders")
  return make(*folders, **options)


def _check_options(
  function, options, where, given=((), ()), what="prompts, responses"
):
  """InputError where a function does not take these keywords.

  `given` is what it is called with beside them, `what` the same in words.
  """
  try:
    signature = inspect.signature(function)
  except ValueError:  # of some that are not written in Python
    return
  try:
    signature.bind(*given, **options)
  except TypeError as error:
    known = [
      one.name
      for place, one in enumerate(signature.parameters.values())
      if one.kind is one.KEYWORD_ONLY
      or one.kind is one.POSITIONAL_OR_KEYWORD
      and place >= len(given)
    ]
    near = "".join(did_you_mean(one, known) for one in options)
    raise InputError(
      f"{where}: it is called with {what} and the options, and "
      f"{error}; it has {', '.join(known) or 'none'}{near}"
    ) from None


def beginning(prompt):
  """The beginning of a prompt, of its last message if it has some."""
  if not isinstance(prompt, str):
    prompt = prompt[-1]["content"] if prompt else ""
  text = str(prompt)
  return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


class Reward:
  """A reward that is a function: (prompts, responses) -> list of floats.

  Attributes:
    name: as it was given.
    script: SHA-256 of the file of the function, or None.
  """

  def __init__(self, name, function, *, script=None):
    self.name, self.script, self._function = name, script, function

  def __call__(self, prompts, responses):
    """A finite float for each response, in order.

    The function is given 128 responses at once, or fewer.  If it fails, it is
    asked for them one by one, so that the response is found.

    Raises:
      InputError: it fails, or gives other than a finite number for each; names
        the prompt.
    """
    found = []
    for first in range(0, len(responses), external.BATCH):
      batch = slice(first, first + external.BATCH)
      try:
        found += self._numbers(prompts[batch], responses[batch], first)
      except InputError:
        for place in range(*batch.indices(len(responses))):
          one = slice(place, place + 1)
          self._numbers(prompts[one], responses[one], place)
        raise
    return found

  def _numbers(self, prompts, responses, first):
    return external.numbers(
      f"the reward {self.name}",
      self._function,
      prompts,
      responses,
      where=lambda at: f"prompt {first + at} ({beginning(prompts[at])})",
    )


class CommandReward:
  """A reward that is a command: (prompts, responses) -> list of floats.

  The command reads lines {"prompt", "response", "index"}, the index from 0, and
  answers {"reward": number} to each, in order.  It is started for each call
  and ends with it, so that a run that goes on after a kill asks a fresh one, as
  a run that was not killed does.

  Attributes:
    name: "command:WORDS", as it was given.
    script: SHA-256 of the file of the command, or None.
  """

  def __init__(self, text, *, flag, timeout=external.TIMEOUT, timeout_flag=""):
    self.name = text
    self._command = external.Command(
      text.removeprefix(COMMAND),
      flag=flag,
      role="reward",
      instead="a function as module:name",
      timeout=timeout,
      timeout_flag=timeout_flag,
    )

  @property
  def script(self):
    return self._command.script

  def __call__(self, prompts, responses):
    """A finite float for each response, in order.

    Raises:
      InputError: the command fails, or answers another number of lines, or
        other than a finite number; names the prompt.
    """
    pairs = zip(prompts, responses, strict=True)
    requests = [
      {"prompt": prompt, "response": response, "index": index}
      for index, (prompt, response) in enumerate(pairs)
    ]
    return [*self._command(requests, read=reward_in, where=_where)]


def _where(request):
  return f"prompt {request['index']} ({beginning(request['prompt'])})"


def reward_in(line):
  """The reward in a command's answer, a line of JSON.

  Raises:
    InputError: it is none; says what it is.
  """
  answer = external.answer_of(line, '{"reward": 0.5}')
  value = answer.get("reward")
  if not files.is_figure(value):
    raise InputError(f"{external.shown(line)}: reward is a finite number")
  return float(value)


class Combination:
  """The weighted sum of several rewards, R = sum_i w_i r_i.

  A weight of -1 turns a reward into a penalty.  `parts` and `total` are there
  for callers that report each reward beside the sum.
  """

  def __init__(self, rewards, weights):
    """
    Args:
      rewards: {name: reward}.
      weights: {name: number}, of the same names.

    Raises:
      InputError: there is no reward, a weight is missing, of no reward, or not
        finite.
    """
    if not rewards:
      raise InputError("a sum of rewards needs at least one")
    if {*rewards} != {*weights}:
      raise InputError(
        f"rewards are {', '.join(rewards)}, but weights are of "
        f"{', '.join(weights) or 'none'}"
      )
    for name, weight in weights.items():
      with blames(f"weight of the reward {name}", (TypeError, ValueError)):
        if not math.isfinite(weight):
          raise ValueError(f"{weight} is not finite")
    self._rewards, self._weights = dict(rewards), dict(weights)
    self.name = " + ".join(
      f"{weights[name]:g} * {one.name}" for name, one in rewards.items()
    )

  @property
  def script(self):
    """{name: SHA-256 of the file of the reward, or None}."""
    return {name: one.script for name, one in self._rewards.items()}

  def parts(self, prompts, responses):
    """{name: floats, one for each response}, before they are weighted."""
    return {
      name: reward(prompts, responses) for name, reward in self._rewards.items()
    }

  def total(self, parts):
    """The weighted sum of what `parts` gives, a float for each response."""
    columns = [
      [self._weights[name] * value for value in values]
      for name, values in parts.items()
    ]
    return [math.fsum(row) for row in zip(*columns, strict=True)]

  def __call__(self, prompts, responses):
    return self.total(self.parts(prompts, responses))
