# SPDX-License-Identifier: Apache-2.0
"""A language model as the editor of `mrpo bridge`."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re

from mrpo_jax.data import formats
from mrpo_jax.errors import InputError
from mrpo_jax.generation.generate import SLOTS, samples
from mrpo_jax.generation.stops import Stops
from mrpo_jax.runs.inference import model
from mrpo_jax.runs.inference.prompts import Prompt, prompt_ids
from mrpo_jax.runs.inference.sampling import sampling_of

INSTRUCTIONS = """\
Rewrite the answer so that it does better what the good answer does better. \
Change as little as that needs, and write the rewritten answer alone.

Question: {prompt}

Answer: {rejected}

Good answer: {chosen}

Rewritten answer:"""
FIELDS = re.compile(r"\{(prompt|chosen|rejected)\}")
NEEDED = ("{chosen}", "{rejected}")


def read_instructions(path):
  """The text of a file of instructions; the usual ones where it is "".

  Raises:
    InputError: it cannot be read, or does not name both answers.
  """
  if not path:
    return INSTRUCTIONS
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeError) as error:
    raise InputError(f"--instructions={path}: {error}") from None
  missing = [field for field in NEEDED if field not in text]
  if missing:
    raise InputError(
      f"--instructions={path}: has no {missing[0]}, where that answer is to "
      "stand; {prompt} is the question"
    )
  return text


class ModelEditor:
  """Rewrites by a model that is given both answers and told what to do.

  Instructions are a user's turn where the tokenizer has a chat template, and
  plain text where it has none.  What is drawn for a pair follows from the seed
  and the pair's place, so that work that was killed goes on with the same.

  Attributes:
    name: what people call it.
    script: SHA-256 of the model, the instructions and how it is sampled.
  """

  def __init__(
    self,
    source,
    *,
    instructions=INSTRUCTIONS,
    given=None,
    seed=0,
    stops=(),
    slots=SLOTS,
    cache_dtype=None,
    generation_config=False,
  ):
    """Reads the model's config; its weights when it is first asked.

    Args:
      source: model.Source.
      instructions: text with {prompt}, {chosen} and {rejected} in it.
      given: values of flags by the names of Sampling, None where not given.
      seed: of what is drawn.
      stops: texts that end a rewrite.
      slots: rewrites that are decoded side by side.
      cache_dtype: of keys and values; None is that of the activations.
      generation_config: does the model's file of that name count, too?

    Raises:
      InputError: there is no such model, or a value is out of range.
    """
    if "" in stops:
      raise InputError("--stop is empty; give the text that ends a rewrite")
    self._model = model.find_model(source)
    self._sampling = sampling_of(given or {}, self._model, generation_config)
    self._instructions, self._seed = instructions, seed
    self._slots, self._cache_dtype = slots, cache_dtype
    self._chats = bool(self._model.tokenizer.chat_template)
    self._ends, self._stops = model.ends(
      self._model, chats=self._chats, stops=stops
    )
    self.name = f"model:{self._model.name}"
    parts = [self._model.identity, dataclasses.asdict(self._sampling), seed]
    parts += [instructions, cache_dtype, sorted(self._ends), self._stops]
    text = json.dumps(parts, sort_keys=True)
    self.script = hashlib.sha256(text.encode()).hexdigest()

  def answers(self, requests, todo):
    """Yields the rewrite of each request of `todo`, in order.

    None stands for one that `max_new_tokens` cut off.

    Args:
      requests: all of them, as `bridge` makes them: the programs are made for
        these, so that a part gives what the whole gave.
      todo: those that are asked for.
    """
    if not todo:
      return
    model.say_ends(self._model, self._ends, self._stops)
    prompts = [self._prompt(one) for one in requests]
    ids = prompt_ids(self._model, prompts, self._sampling.max_new_tokens)
    decoder = model.decoder(
      self._model,
      self._model.load(),
      sampling=self._sampling,
      stop_ids=(*self._ends,),
      slots=min(self._slots, len(requests)),
      longest=max(map(len, ids)),
      cache_dtype=self._cache_dtype,
    )
    places = {one["index"]: n for n, one in enumerate(requests)}
    wanted = [(places[one["index"]], 0) for one in todo]
    yield from self._in_order(decoder, ids, wanted)

  def _prompt(self, request):
    text = self.text_of(request)
    prompt = [{"role": "user", "content": text}] if self._chats else text
    return Prompt(f"pair {request['index']}", {}, formats.answerable(prompt))

  def text_of(self, request):
    """The instructions for a request."""
    given = {**request, "prompt": _as_text(request["prompt"])}
    return FIELDS.sub(lambda found: given[found[1]], self._instructions)

  def _in_order(self, decoder, ids, wanted):
    """Texts of the samples, each when all before it are there."""
    text_of = model.text_of(self._model.tokenizer)
    stops, said, next_one = Stops(tuple(self._stops), text_of), {}, 0
    made = samples(decoder, ids, iter(wanted), self._seed, stops.ended)
    with contextlib.closing(made) as found:
      for request, sample in found:
        text = model.said_text(sample, stops.text(request), self._ends, text_of)
        said[request] = None if sample.finish == "length" else text.strip()
        while next_one < len(wanted) and wanted[next_one] in said:
          yield said.pop(wanted[next_one])
          next_one += 1


def _as_text(prompt):
  """A prompt as one text: of a conversation a line for each turn."""
  if isinstance(prompt, str):
    return prompt.strip()
  return "\n".join(f"{one['role']}: {one['content']}" for one in prompt)
