# SPDX-License-Identifier: Apache-2.0
"""Round driver: the policy answers prompts, a reward judges, and it trains.

Learner, sampler and references are the arrays that are in memory: nothing is
saved and loaded between rounds.  What a round draws follows from the seed and
its number, and what is made of it stands in a file before the first of it is
trained on, so a run that was killed anywhere goes on bit for bit.  Labels are
asked for last and written at once: a kill in between costs one round's.
"""

import hashlib
import json
import logging
import time

import grain
import numpy as np

from mrpo_jax import parallel
from mrpo_jax.errors import InputError, blames
from mrpo_jax.generation import Sampling
from mrpo_jax.models import lora
from mrpo_jax.online.pairs import Answered, Response
from mrpo_jax.online.rounds import Rounds
from mrpo_jax.runs.config.online import prompts_of_round
from mrpo_jax.runs.inference.looks import policy_of
from mrpo_jax.runs.inference.prompts import prompt_ids, read_prompts
from mrpo_jax.runs.inference.sampler import Sampler
from mrpo_jax.runs.rounds.pair_rounds import PairRounds
from mrpo_jax.runs.rounds.rollout_rounds import RolloutRounds
from mrpo_jax.runs.workdir import essential
from mrpo_jax.text import counted

logger = logging.getLogger(__name__)


class RoundDriver:
  """The data of an online run, made from the state as it trains."""

  def __init__(self, setup):
    """Reads and encodes the prompts; no weights, and writes nothing.

    Raises:
      InputError: names the prompt that the policy cannot be given, or what
        does not fit a row.
    """
    config, self._setup = setup.config, setup
    given, policy = config.online, policy_of(setup)
    self._steps = config.steps // given.rounds
    self._many = prompts_of_round(config, setup.method)
    self._prompts, self._ids = self._read(policy)
    self._check_sizes(given, config.data.row_length)
    with blames("config.online"):
      sampling = Sampling(
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        max_new_tokens=given.max_new_tokens,
        min_new_tokens=given.min_new_tokens,
        samples=given.samples,
      )
    self._sampler = Sampler(
      policy,
      sampling=sampling,
      chats=any(one.is_chat for one in self._prompts),
      longest=max(map(len, self._ids)),
      requests=self._many * given.samples,
    )
    if self._sampler.stops:
      raise InputError(
        "config.online: the policy's chat template ends an answer with the "
        f"text {self._sampler.stops[0]!r}, which is no token, so that an end "
        "could not be trained on; make it a special token of the tokenizer"
      )
    kind = PairRounds if setup.method.tokens is None else RolloutRounds
    self._kind = kind(setup)
    order = grain.MapDataset.range(len(self._prompts)).seed(config.seed)
    self._order = order.shuffle().repeat()

  def _read(self, policy):
    """(prompts, ids of each) that are no longer than data.max_prompt."""
    config = self._setup.config
    given, most = config.online, config.data.max_prompt
    with blames("config.online", InputError):
      prompts = read_prompts(
        given.prompts, keys=(), conversations=policy.conversations
      )
      ids = prompt_ids(
        *(policy, prompts, given.max_new_tokens),
        name="config.online.max_new_tokens",
        most=most,
      )
    for one in prompts:
      if one.pair.tools:
        raise InputError(
          f"{one.where}: has tools, of which rewards and other tokenizers "
          "would be told nothing; leave them out"
        )
    kept = [n for n, one in enumerate(ids) if one is not None]
    if not kept:
      raise InputError(
        f"{given.prompts}: none of its {len(prompts)} prompts has at most "
        f"config.data.max_prompt={most} tokens"
      )
    logger.info(
      f"{len(kept)} of {len(prompts)} prompts; dropped: "
      f"{len(prompts) - len(kept)} longer than config.data.max_prompt={most}"
    )
    return [prompts[n] for n in kept], [ids[n] for n in kept]

  def _check_sizes(self, given, length):
    longest = max(range(len(self._ids)), key=lambda n: len(self._ids[n]))
    in_row = 2 if self._setup.method.tokens is None else 1
    tokens = len(self._ids[longest]) + in_row * given.max_new_tokens
    if tokens > length:
      raise InputError(
        f"{self._prompts[longest].where}: its {len(self._ids[longest])} tokens "
        f"and {counted(in_row, 'sample')} of config.online.max_new_tokens="
        f"{given.max_new_tokens} are more than a row of "
        f"config.data.row_length={length}; make one of them smaller, or the "
        "row longer"
      )

  def of(self, program, start):
    """state -> (state, step, batch on the mesh) of the next step.

    Args:
      program: program.Program.
      start: steps that are done.
    """
    mark = hashlib.sha256(
      json.dumps(
        essential(
          {**self._setup.config.to_dict(), "identity": self._setup.identity}
        ),
        sort_keys=True,
      ).encode()
    ).hexdigest()
    rounds = Rounds(self._setup.workdir, mark, self._kind.entry)
    step, current = start, None
    number, place = divmod(start, self._steps)
    if place and start < self._setup.config.steps:  # before anything is written
      current = self._batches(number, *rounds.require(number, start))

    def next_batch(state):
      nonlocal step, current
      number, place = divmod(step, self._steps)
      if place == 0:
        state, current = self._begin(rounds, program, number, state)
      step += 1
      return state, step, current(place)

    return next_batch

  # A round.

  def _begin(self, rounds, program, number, state):
    """(state, place -> batch) of a round from its first step on."""
    state = program.begin_round(state)
    found = rounds.read(number)
    if found is None:
      found = self._make(program, number, state)
      rounds.write(number, *found)
    entries, about = found
    online, more = self._kind.learned(entries, number, about, state.online)
    about |= more | {"gold_spent": int(online["gold_spent"])}
    rounds.note(number, about)
    return state.replace(online=online), self._batches(number, entries, about)

  def _make(self, program, number, state):
    """(entries, figures) of a round: samples, and what is made of them."""
    clock = [time.perf_counter()]
    answered = self._answered(program, number, state)
    clock.append(time.perf_counter())
    entries, about = self._kind.make(program, number, state, answered)
    clock.append(time.perf_counter())
    for name, before, after in zip(
      ("sampling", "labels"), clock, clock[1:], strict=False
    ):
      about[f"seconds/{name}"] = round(after - before, 4)
    return entries, about

  def _answered(self, program, number, state):
    """Answered of each prompt of the round."""
    params = lora.join(program.frozen[0], state.params)
    places = range(number * self._many, (number + 1) * self._many)
    chosen = [int(self._order[place]) for place in places]
    seed = np.random.SeedSequence((self._setup.config.seed, number))
    said = self._sampler(
      params,
      [self._ids[one] for one in chosen],
      int(seed.generate_state(1)[0]),
    )
    responses = iter(
      Response(text, one.ids, one.logp, one.behaviour_logp, one.finish)
      for one, text in said
    )
    samples = self._setup.config.online.samples
    return [
      Answered(
        *(one, self._prompts[one].pair.prompt, self._ids[one]),
        [next(responses) for _ in range(samples)],
      )
      for one in chosen
    ]

  # Batches.

  def _batches(self, number, entries, about):
    """place in the round -> (views, given, figures of the line) on the mesh."""
    setup, passes = self._setup, self._setup.config.online.passes
    views, known, kept = self._kind.data(entries)
    about = {
      **about,
      "round": float(number),
      "dropped": float(len(entries) - kept),
    }
    seed = setup.config.seed, number
    places = np.concatenate(
      [
        np.random.default_rng((*seed, n)).permutation(kept)
        for n in range(passes)
      ]
    )
    parts = np.array_split(places, self._steps)

    def batch(place):
      rows = setup.packing.of(views, parts[place])
      given = known.of(setup.packing, parts[place], rows)
      figures = {**about, "labelled": float(len(parts[place]))}
      return *parallel.global_batch(rows, given, setup.mesh), figures

    return batch


def with_figures(run_step):
  """`Program.step` of batches that carry figures for the line of the step."""

  def step(state, batch):
    *batch, about = batch
    state, metrics = run_step(state, batch)
    return state, {**metrics, **about}

  return step
