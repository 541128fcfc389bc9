# SPDX-License-Identifier: Apache-2.0
"""Round driver: the policy answers prompts, a reward labels, pairs train it.

Learner, sampler and references are the arrays that are in memory: nothing is
saved and loaded between rounds.  What a round draws follows from the seed and
its number, and its pairs stand in a file before the first of them is trained
on, so a run that was killed anywhere goes on bit for bit, and pays no label
twice.
"""

import hashlib
import json
import logging
import time

import grain
import numpy as np

from mrpo_jax import parallel, processes
from mrpo_jax.data.batches import Packing
from mrpo_jax.data.chat.sandbox import sandbox
from mrpo_jax.data.encode import Encoded, encode_all
from mrpo_jax.data.pack import size
from mrpo_jax.errors import InputError, blames
from mrpo_jax.generation import Sampling
from mrpo_jax.models import lora
from mrpo_jax.online.pairs import Answered, Response, figures
from mrpo_jax.online.rounds import Rounds
from mrpo_jax.references.score import compile_figures, known_of
from mrpo_jax.runs.config.online import prompts_of_round
from mrpo_jax.runs.inference.looks import policy_of
from mrpo_jax.runs.inference.prompts import prompt_ids, read_prompts
from mrpo_jax.runs.inference.sampler import Sampler
from mrpo_jax.runs.workdir import essential
from mrpo_jax.training.stacked import member
from mrpo_jax.training.train_state import moved_references

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
    self._many = prompts_of_round(config)
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
    self._compare = self._comparison()
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
      )
    kept = [n for n, one in enumerate(ids) if len(one) <= most]
    if not kept:
      raise InputError(
        f"{given.prompts}: none of its {len(prompts)} prompts has at most "
        f"config.data.max_prompt={most} tokens, the shortest has "
        f"{min(map(len, ids))}"
      )
    logger.info(
      f"{len(kept)} of {len(prompts)} prompts; dropped: "
      f"{len(prompts) - len(kept)} longer than config.data.max_prompt={most}"
    )
    return [prompts[n] for n in kept], [ids[n] for n in kept]

  def _check_sizes(self, given, length):
    longest = max(range(len(self._ids)), key=lambda n: len(self._ids[n]))
    tokens = len(self._ids[longest]) + 2 * given.max_new_tokens
    if tokens > length:
      raise InputError(
        f"{self._prompts[longest].where}: its {len(self._ids[longest])} tokens "
        f"and two samples of config.online.max_new_tokens="
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
    rounds, step, current = Rounds(self._setup.workdir, mark), start, None

    def next_batch(state):
      nonlocal step, current
      number, place = divmod(step, self._steps)
      if place == 0:
        state, current = self._begin(rounds, program, number, state)
      elif current is None:
        current = self._batches(number, *rounds.require(number, step))
      step += 1
      return state, step, current(place)

    return next_batch

  # A round.

  def _begin(self, rounds, program, number, state):
    """(state, place -> batch) of a round from its first step on."""
    state, labels = program.begin_round(state), self._setup.labels
    found = rounds.read(number)
    if found is None:
      found = self._make(program, number, state)
      rounds.write(number, *found)
    pairs, about = found
    online, more = labels.learned(pairs, number, about, state.online)
    about |= more | {"gold_spent": int(online["gold_spent"])}
    rounds.note(number, pairs, about)
    return state.replace(online=online), self._batches(number, pairs, about)

  def _make(self, program, number, state):
    """(pairs, figures) of a round: samples, their labels, their divergence."""
    clock = [time.perf_counter()]
    answered = self._answered(program, number, state)
    clock.append(time.perf_counter())
    pairs, about = self._setup.labels(answered, number, state.online)
    clock.append(time.perf_counter())
    about |= figures(answered) | self._divergence(program, state, answered)
    clock.append(time.perf_counter())
    for name, before, after in zip(
      ("sampling", "labels", "kl"), clock, clock[1:], strict=False
    ):
      about[f"seconds/{name}"] = round(after - before, 4)
    if not pairs:
      logger.warning(
        f"warning: in round {number} the rewards of all {len(answered)} pairs "
        "tie: its steps train on nothing"
      )
    return pairs, about

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
      Response(text, one.ids, float(sum(one.logp)), one.finish)
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

  # Divergence from reference 0.

  def _comparison(self):
    """The program of reference 0's log-probabilities; None without one."""
    setup = self._setup
    base = next(iter(setup.objective.references), None)
    if base is None:
      return None
    if base.view:
      logger.info(
        f"reference {setup.objective.names[0]!r} has another tokenizer, so the "
        "log has no kl: that is of one vocabulary"
      )
      return None
    packing = setup.packing
    return compile_figures(base.config, packing.batch, False, base.computation)

  def _divergence(self, program, state, answered):
    """{"kl": nats a response} of the policy that sampled from reference 0.

    The mean of log p(response) / r(response) over the policy's own samples, an
    unbiased estimate at temperature 1 with nothing cut; every sample counts,
    whatever pairs are made of them.
    """
    if self._compare is None:
      return {}
    base, references = program.frozen
    params = member(moved_references(state, base, references), 0)
    encoded = [
      Encoded(one.ids, first.ids, second.ids if second else [])
      for one in answered
      for first, second in _by_two(one.responses)
    ]
    packing, total = self._setup.packing, 0.0
    for first in range(0, len(encoded), packing.batch):
      some = np.arange(first, min(first + packing.batch, len(encoded)))
      (view,) = packing.of([encoded], some)
      rows = parallel.global_rows(view, self._setup.mesh)
      found = processes.whole(self._compare(params, rows))
      total += float(np.sum(found["logp"][: len(some)], dtype=np.float64))
    said = [one.logp for some in answered for one in some.responses]
    return {"kl": (sum(said) - total) / len(said)}

  # Batches.

  def _batches(self, number, pairs, about):
    """place in the round -> (views, given, figures of the line) on the mesh."""
    setup, passes = self._setup, self._setup.config.online.passes
    views, kept = self._views(pairs)
    about = {**about, "round": float(number), "dropped": len(pairs) - kept}
    known = known_of(
      [one.characters for one in views[0]],
      {},
      len(setup.objective.references),
    )
    seed = setup.config.seed, number
    places = np.concatenate(
      [
        np.random.default_rng((*seed, n)).permutation(kept)
        for n in range(passes)
      ]
    )
    parts = np.array_split(places, self._steps)
    packing: Packing = setup.packing

    def batch(place):
      rows = packing.of(views, parts[place])
      given = known.of(packing, parts[place], rows)
      figures = {**about, "labelled": float(len(parts[place]))}
      return *parallel.global_batch(rows, given, setup.mesh), figures

    return batch

  def _views(self, pairs):
    """(Encoded of each pair under every tokenizer, how many pairs are left).

    The policy and those of its tokenizer read the very ids that were sampled,
    others the texts.
    """
    setup, data = self._setup, self._setup.config.data
    views = [[one.encoded() for one in pairs]]
    for index in range(1, setup.objective.views):
      texts = [one.texts() for one in pairs]
      limits = dict(max_prompt=data.max_prompt, max_response=data.max_response)
      tokenizer = setup.tokenizers.views[index]
      views.append([*encode_all(tokenizer, texts, **limits)])
    sandbox.close()
    kept = [
      n
      for n, some in enumerate(zip(*views, strict=True))
      if not any(one.dropped or size(one) > data.row_length for one in some)
    ]
    return [[view[n] for n in kept] for view in views], len(kept)


def _by_two(responses):
  """(first, second) of neighbours; the last second is None of an odd number."""
  pairs = [responses[n : n + 2] for n in range(0, len(responses), 2)]
  return [(*some, None)[:2] for some in pairs]


def with_figures(run_step):
  """`Program.step` of batches that carry figures for the line of the step."""

  def step(state, batch):
    *batch, about = batch
    state, metrics = run_step(state, batch)
    return state, {**metrics, **about}

  return step
