# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model, turn by turn."""

import contextlib
import dataclasses
import logging
import signal
import threading

from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.prompts import encode_prompts
from mrpo_jax.data.templates import DEFAULT
from mrpo_jax.errors import InputError
from mrpo_jax.generation import samples
from mrpo_jax.generation.stops import HALF, Stops
from mrpo_jax.runs.inference import model
from mrpo_jax.runs.inference.sampling import sampling_of

logger = logging.getLogger(__name__)

LONGEST = 4096  # tokens of a chat, where the model allows as many


class Chat:
  """A model, and what was said so far."""

  def __init__(
    self,
    source,
    *,
    given,
    seed=0,
    stops=(),
    max_length=None,
    cache_dtype=None,
    generation_config=False,
    system="",
  ):
    """Reads the model; its programs are compiled by the first answer.

    Args:
      source: model.Source.
      given: as `generate.generate` takes it, and so are `seed`, `stops`,
        `cache_dtype` and `generation_config`.
      max_length: tokens that the chat and an answer have together; None is
        what the model allows, at most LONGEST.
      system: what the system turn says; "" is none.
    """
    if "" in stops:
      raise InputError("--stop is empty; give the text that ends an answer")
    self._model = found = model.find_model(source)
    self.max_length = _max_length(found, max_length)
    self._sampling = sampling_of(given, found, generation_config)
    most = self.max_length // 4 or 1
    if not given.get("max_new_tokens") and self._sampling.max_new_tokens > most:
      if self._sampling.min_new_tokens > most:
        raise InputError(
          f"--min_new_tokens={self._sampling.min_new_tokens} is more than an "
          f"answer has, {most} tokens, a quarter of the chat; give "
          "--max_new_tokens, or a larger --max_length"
        )
      self._sampling = dataclasses.replace(self._sampling, max_new_tokens=most)
      logger.info(
        f"an answer has at most {most} tokens, a quarter of the chat; "
        "--max_new_tokens gives it others"
      )
    self._room = self.max_length - self._sampling.max_new_tokens
    if self._room < 1:
      raise InputError(
        f"--max_new_tokens={self._sampling.max_new_tokens} leaves no room for "
        f"a message in a chat of {self.max_length} tokens; give less, or a "
        "larger --max_length"
      )
    if not found.tokenizer.chat_template:
      logger.info(
        f"{found.name} has no chat template: the chat is given as {DEFAULT!r}; "
        "--template=NAME names another"
      )
    tokens, texts = model.ends(found, chats=True, stops=stops)
    model.say_ends(found, tokens, texts)
    self._text_of = model.text_of(found.tokenizer)
    self._stops, self._seed = texts, seed
    self._decoder = model.decoder(
      found,
      found.load(),
      sampling=self._sampling,
      stop_ids=(*tokens,),
      slots=1,
      longest=self._room,
      cache_dtype=cache_dtype,
    )
    self._turns, self._tries = [], 0
    self.system = system

  def reset(self):
    """Forgets what was said."""
    self._turns, self._tries = [], 0

  def answer(self, message, show):
    """Takes a message, and the model's answer, which it also returns.

    Args:
      message: text.
      show: function of each further piece of the answer, no half characters.

    Raises:
      InputError: the chat has become too long; then nothing has changed.
    """
    return self._say([*self._turns, _turn("user", message)], 0, show)

  def retry(self, show):
    """Another answer to the last message.

    Raises:
      InputError: there is none.
    """
    if not self._turns:
      raise InputError("nothing was said yet; type a message")
    return self._say(self._turns[:-1], self._tries + 1, show)

  def _ids(self, turns):
    if self.system:
      turns = [_turn("system", self.system), *turns]
    pair = PreferencePair(turns, ANSWER, None)
    (found,) = encode_prompts(self._model.tokenizer, [pair])
    if found.dropped:
      raise InputError(f"the message cannot be given: {found.dropped}")
    if found.left_out:
      logger.warning(f"warning: the chat template leaves out {found.left_out}")
    if max(found.ids) >= self._model.config.vocab_size:
      raise InputError("the message has a token that the model does not know")
    if len(found.ids) > self._room:
      raise InputError(
        f"the chat has {len(found.ids)} tokens now, and an answer may have "
        f"{self._sampling.max_new_tokens}, more than {self.max_length} "
        "together: /reset forgets it; --max_length and --max_new_tokens change "
        "that where the model allows it"
      )
    return found.ids

  def _say(self, turns, tries, show):
    """The answer to turns, taken with them, also where Ctrl-C ends it."""
    ids = self._ids(turns)
    stops, stream = Stops(self._stops, self._text_of), Stream(self._stops, show)
    ends = self._decoder.stop_ids

    def ended(request, said):
      interrupt()
      count = stops.ended(request, said)
      if count is None:  # its end token may have a text
        stream.take(self._text_of(said[:-1] if said[-1] in ends else said))
      return count

    number = len(turns)  # another one for each turn: so are the samples
    prompts, request = [ids] * (number + 1), (number, tries)
    try:
      with (
        _interrupts_held() as interrupt,
        contextlib.closing(
          samples(self._decoder, prompts, [request], self._seed, ended)
        ) as found,
      ):
        ((_, sample),) = found
      stopped = stops.text(request)
      stream.end(model.said_text(sample, stopped, ends, self._text_of))
    finally:
      # Templates that end in "Assistant:" write this space themselves.
      answer = stream.shown.removeprefix(" ")
      self._turns, self._tries = [*turns, _turn("assistant", answer)], tries
    return stream.shown


@contextlib.contextmanager
def _interrupts_held():
  """Yields a function that raises KeyboardInterrupt if Ctrl-C came meanwhile.

  While a program is compiled, an exception breaks jax's caches: Python would
  crash at its end.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: None  # signals do not come here
    return
  came = []
  before = signal.signal(signal.SIGINT, lambda *given: came.append(given))

  def interrupt():
    if came:
      raise KeyboardInterrupt

  try:
    yield interrupt
  finally:
    signal.signal(signal.SIGINT, before)


class Stream:
  """Text that grows, shown piece by piece, nothing that may change yet."""

  def __init__(self, stops, show):
    self._stops, self._show, self.shown = stops, show, ""

  def take(self, text):
    """Shows what is certain of the text so far."""
    self.end(text[: len(text) - self._uncertain(text)])

  def end(self, text):
    """Shows all of the text that is not yet."""
    if text.startswith(self.shown) and text != self.shown:
      self._show(text[len(self.shown) :])
      self.shown = text

  def _uncertain(self, text):
    """Characters at the end that are half, or may begin a stop."""
    whole = text.rstrip(HALF)
    begun = [
      size
      for stop in self._stops
      for size in range(1, len(stop))
      if whole.endswith(stop[:size])
    ]
    return len(text) - len(whole) + max(begun, default=0)


def _max_length(found, given):
  """Tokens of a chat with that InferenceModel."""
  bound = found.config.longest or found.config.max_positions
  if given and given > bound:
    raise InputError(f"--max_length={given}: {found.name} takes {bound} tokens")
  return given or min(bound, LONGEST)


def _turn(role, content):
  return {"role": role, "content": content}


ANSWER = [_turn("assistant", "x")]
