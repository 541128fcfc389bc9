# SPDX-License-Identifier: Apache-2.0
"""Answers: text that a model generates, by the harness's arguments."""

import contextlib
import functools
import logging

import jax

from mrpo_jax.errors import InputError, did_you_mean
from mrpo_jax.generation import Decoder, Sampling, samples
from mrpo_jax.generation.generate import SLOTS
from mrpo_jax.generation.stops import Stops
from mrpo_jax.progress import Progress

logger = logging.getLogger(__name__)

# Of keys and values, where nobody says how many slots there are.
CACHE_BYTES = {"cpu": 2 << 30}
OTHER_BYTES = 8 << 30
ROUND = 256  # lengths of prompts are multiples: few programs
DRAWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
LENGTHS = (  # aliases of one argument, the first that is given counts
  *("max_gen_toks", "max_new_tokens", "max_tokens"),
  "max_completion_tokens",
)
KNOWN = (*DRAWN, *LENGTHS, "until", "do_sample")


def asked(arguments, most):
  """(Sampling, stop texts) of the harness's `generation_kwargs`.

  Unless `do_sample` or a temperature asks for it nothing is drawn; what is
  drawn is drawn from all tokens unless `top_k` says otherwise.

  Args:
    arguments: dict of them.
    most: tokens of an answer where they do not say.

  Raises:
    InputError: names an argument that is not known here, or out of range.
  """
  arguments = {key: one for key, one in arguments.items() if one is not None}
  for key in arguments:
    if key not in KNOWN:
      raise InputError(
        f"generation_kwargs: {key!r} is not known here;"
        f"{did_you_mean(key, KNOWN)} known: {', '.join(KNOWN)}"
      )
  until = arguments.get("until", [])
  until = [until] if isinstance(until, str) else list(until)
  given = {key: arguments[key] for key in DRAWN if key in arguments}
  temperature = float(given.get("temperature", 0.0))
  draws = arguments.get("do_sample", temperature > 0)
  if draws and not temperature and "temperature" in given:
    raise InputError(
      "generation_kwargs: do_sample is true and temperature is 0; leave out one"
    )
  given["temperature"] = (temperature or 1.0) if draws else 0.0
  for key in LENGTHS[::-1]:
    most = arguments.get(key, most)
  try:
    if "top_k" in given:
      given["top_k"] = int(given["top_k"])
    return Sampling(**given, max_new_tokens=int(most)), until
  except (TypeError, ValueError) as error:
    raise InputError(f"generation_kwargs: {error}") from None


class Answers:
  """The programs that answer prompts, compiled once for each kind of them."""

  def __init__(
    self,
    config,
    tokenizer,
    *,
    stop_ids,
    longest,
    seed,
    slots,
    cache_dtype,
    **forward,
  ):
    """Compiles nothing yet; see `HarnessLM`, `longest` is its max_length."""
    self._config, self._tokenizer = config, tokenizer
    ends = (*stop_ids, tokenizer.eos_token_id, config.eos_id)
    self._ends = {one for one in ends if one is not None}
    self._longest, self._seed, self._slots = longest, seed, slots
    self._forward = {**forward, "cache_dtype": cache_dtype}
    self._decoders = {}
    # As the harness's own back end does: by itself, not within a longer text.
    self._text_of = functools.partial(
      tokenizer.decode, skip_special_tokens=True
    )

  def said(self, params, prompts, arguments, most, title="generating"):
    """The text after each prompt, cut where the first stop begins.

    Args:
      params: of the model.
      prompts: lists of token ids; where prompt and answer are too long
        together, the start of the prompt is cut off.
      arguments, most: see `asked`.
      title: what to call the work while it goes on.
    """
    sampling, until = asked(arguments, most)
    prompts = self._fitting(prompts, sampling.max_new_tokens)
    # Neighbours that begin alike are read together.
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    prompts = [prompts[n] for n in order]
    ends = self._ends | self._tokens_of(until)
    decoder = self._decoder(params, sampling, ends, prompts)
    eos = self._tokenizer.eos_token
    texts = [*filter(None, until), *([eos] if eos else [])]
    found, tokens = [None] * len(prompts), 0
    stops = Stops(texts, self._text_of)
    requests = [(n, 0) for n in range(len(prompts))]
    with (
      _released(decoder),
      Progress(title, len(prompts), "answers") as progress,
      contextlib.closing(
        samples(decoder, prompts, requests, self._seed, stops.ended)
      ) as coming,
    ):
      for request, sample in coming:
        text = stops.text(request)
        if text is None:
          text = self._text_of(sample.ids)
          for stop in texts:
            text = text.split(stop)[0]
        found[order[request[0]]] = text
        tokens += len(sample.ids)
        progress.update(1, [f"{progress.per_second(tokens):,.0f} tokens/s"])
      speed = progress.per_second(tokens)
    logger.info(
      f"{title}: {len(prompts)} answers of {tokens:,} tokens, {speed:,.0f} a "
      "second"
    )
    return found

  def _fitting(self, prompts, new):
    room = self._longest - new
    if room < 1:
      raise InputError(
        f"answers of {new} tokens leave no room for a prompt: the model looks "
        f"at {self._longest}; give generation_kwargs a smaller max_gen_toks"
      )
    over = [len(prompt) - room for prompt in prompts]
    if cut := sum(one > 0 for one in over):
      logger.warning(
        f"warning: of {cut} of {len(prompts)} prompts the start is cut off, up "
        f"to {max(over)} tokens: the model looks at {self._longest}, and an "
        f"answer may have {new}"
      )
    size = self._config.vocab_size
    if (most := max(map(max, prompts))) >= size:
      raise InputError(
        f"a prompt has the token {most}, and the model only {size}; give the "
        "tokenizer that it was made for"
      )
    return [list(prompt[-room:]) for prompt in prompts]

  def _tokens_of(self, until):
    """Stops that are a token without a text of its own."""
    known = self._tokenizer.get_added_vocab()
    return {known[text] for text in until if text in known}

  def _decoder(self, params, sampling, ends, prompts):
    """The Decoder of such prompts, with these parameters."""
    new = sampling.max_new_tokens
    longest = -(-max(map(len, prompts)) // ROUND) * ROUND
    longest = min(longest, self._longest - new)
    ends = tuple(sorted(one for one in ends if one < self._config.vocab_size))
    # No more than a power of two that holds all.
    slots = min(self._slots or SLOTS, 1 << (len(prompts) - 1).bit_length())
    key = sampling, ends, longest, slots
    if key in self._decoders:
      self._decoders[key].use(params)
      return self._decoders[key]
    most = CACHE_BYTES.get(jax.default_backend(), OTHER_BYTES)
    made = functools.partial(
      Decoder,
      self._config,
      sampling=sampling,
      stop_ids=ends,
      longest=longest,
      **self._forward,
    )
    # How many fit is known from shapes: each Decoder gathers what it is given.
    shapes = jax.tree.map(_shape, params)
    while not self._slots and slots > 1:
      if made(shapes, slots=slots).bytes <= most:
        break
      slots //= 2
    self._decoders[key] = made(params, slots=slots)
    return self._decoders[key]


def _shape(array):
  return jax.ShapeDtypeStruct(
    array.shape, array.dtype, sharding=getattr(array, "sharding", None)
  )


@contextlib.contextmanager
def _released(decoder):
  """Lets go of a Decoder's weights and cache afterwards; its programs stay."""
  try:
    yield
  finally:
    decoder.release()
