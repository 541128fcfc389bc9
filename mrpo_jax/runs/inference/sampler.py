# SPDX-License-Identifier: Apache-2.0
"""Samples of a policy while it trains, by programs that compile once."""

import contextlib
import itertools

from mrpo_jax.generation import samples
from mrpo_jax.generation.generate import SLOTS
from mrpo_jax.generation.stops import Stops
from mrpo_jax.progress import Progress
from mrpo_jax.runs.inference import model


class Sampler:
  """What a policy answers, whose parameters differ from call to call.

  Attributes:
    stops: texts that end a sample.
  """

  def __init__(self, policy, *, sampling, chats, longest, requests):
    """Compiles nothing yet.

    Args:
      policy: model.InferenceModel.
      sampling: generation.Sampling.
      chats: are there conversations among the prompts?
      longest: tokens of the longest prompt.
      requests: samples that are asked for at once, at most.
    """
    self._policy, self._sampling = policy, sampling
    tokens, self.stops = model.ends(policy, chats=chats)
    self._ends, self._decoder = (*tokens,), None
    self._sizes = dict(slots=min(SLOTS, requests), longest=longest)
    self._text_of = model.text_of(policy.tokenizer)

  def __call__(self, params, prompts, seed):
    """[(Sample, its text)] of each prompt, in order, sample after sample.

    Args:
      params: of the policy; let go of before this returns.
      prompts: lists of token ids.
      seed: of all of them, below 2^32.
    """
    if self._decoder is None:
      self._decoder = model.decoder(
        *(self._policy, params),
        sampling=self._sampling,
        stop_ids=self._ends,
        **self._sizes,
      )
    else:
      self._decoder.use(params)
    try:
      return self._said(prompts, seed)
    finally:
      # Training goes on in the memory of these parameters.
      self._decoder.release()

  def _said(self, prompts, seed):
    stops, text_of, found = Stops(self.stops, self._text_of), self._text_of, {}
    many = range(len(prompts)), range(self._sampling.samples)
    requests = list(itertools.product(*many))
    with (
      Progress("sampling", len(requests), "samples") as progress,
      contextlib.closing(
        samples(self._decoder, prompts, requests, seed, stops.ended)
      ) as made,
    ):
      for request, sample in made:
        said = stops.text(request)
        text = model.said_text(sample, said, self._ends, text_of)
        found[request] = sample, text
        progress.update()
    return [found[request] for request in requests]
