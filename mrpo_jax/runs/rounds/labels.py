# SPDX-License-Identifier: Apache-2.0
"""Labels of a policy's responses: by a reward, or by D2PO's discriminator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import files, parallel, processes
from mrpo_jax.data.reading.row_files import check_file
from mrpo_jax.errors import InputError, blames
from mrpo_jax.online.advantages import RunningScale
from mrpo_jax.online.pairs import CUT, agreement, pair_of, reward_figures
from mrpo_jax.runs.inference.reward import named_reward
from mrpo_jax.runs.rounds.discriminator import Discriminator

SILVER = "discriminator"  # that a pair is labelled by
# Tells the draw of pairs that are bought from that of their order; the number
# of a pass stands there.
BUYING = 1 << 31
# Of all rewards so far, in float32: count, mean and sum of squared distances.
MOMENTS = ("reward_count", "reward_mean", "reward_squares")


class Labels:
  """Who says which response is better, and what is kept of it.

  Its state, a dict of arrays, stands in the run's TrainState: `gold_spent`,
  the pairs that the reward has labelled (two judged responses are a pair), and
  the discriminator's TrainState.

  Source: D2PO, arXiv:2405.01511.  Where its code has traps it is decided so:
  pairs are bought among all of a round, before any of them is trained on; the
  discriminator labels without dropout; where gold ties, the pair is paid for
  and left out of both trainings; where rewards tie, there is no pair.
  """

  def __init__(self, config, mesh, policy, tokenizer, *, scales=False):
    """Finds the reward; reads no weights.

    Args:
      config: Config of the run.
      mesh: of the run.
      policy: models.Described of the policy.
      tokenizer: of the policy.
      scales: is the scale of the rewards kept, for rollouts?

    Raises:
      InputError: there is no such reward or discriminator.
    """
    given = self._given = config.online
    with blames("config.online.prompts", InputError):
      check_file(given.prompts)
    self._seed, self._mesh, self._scales = config.seed, mesh, scales
    if given.discriminates and given.reward == SILVER:
      raise InputError(
        f"config.online.reward={SILVER!r} is how pairs are marked that the "
        f"discriminator labels; name the folder ./{SILVER}"
      )
    self.reward = named_reward(
      given.reward,
      options=given.reward_options,
      flag="config.online.reward",
      timeout=given.reward_timeout,
      timeout_flag="config.online.reward_timeout",
    )
    self._discriminator = None
    if given.discriminates:
      self._discriminator = Discriminator(config, mesh, policy, tokenizer)
      if given.samples > 2:
        raise InputError(
          f"config.online.samples={given.samples}: the discriminator's pairs "
          "are of two responses; set it to 2"
        )

  @property
  def identity(self):
    """By what rewards and discriminator are known."""
    found = {"online.prompts": files.sha256_of(self._given.prompts)}
    found["online.reward"] = self.reward.script
    if self._discriminator is not None:
      found["online.discriminator"] = self._discriminator.fingerprint
    return found

  @functools.cached_property
  def abstract(self):
    """The state as jax.ShapeDtypeStruct with shardings."""
    everywhere = parallel.replicated(self._mesh)
    gold = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    found = {"gold_spent": gold}
    if self._discriminator is not None:
      found[SILVER] = self._discriminator.abstract
    if self._scales:
      moment = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
      found |= dict.fromkeys(MOMENTS, moment)
    return found

  def create(self):
    """The state before the first round."""
    found = {"gold_spent": self._count(0)}
    if self._discriminator is not None:
      found[SILVER] = self._discriminator.create()
    return found | (self._moments(RunningScale()) if self._scales else {})

  def _count(self, value):
    return self._everywhere(np.int32(value))

  def _everywhere(self, value):
    return jax.device_put(value, parallel.replicated(self._mesh))

  # The running scale of the rewards of rollouts.

  def _moments(self, scale):
    return {
      name: self._everywhere(np.float32(value))
      for name, value in zip(MOMENTS, scale, strict=True)
    }

  def scale_of(self, state):
    """online.advantages.RunningScale of the rounds so far."""
    return RunningScale(*(float(state[name]) for name in MOMENTS))

  def counted(self, figures, state, rewards):
    """The state after a round of rollouts with these rewards."""
    spent = int(state["gold_spent"]) + figures["gold"]
    moments = self._moments(self.scale_of(state).updated(rewards))
    return {**state, "gold_spent": self._count(spent), **moments}

  def __call__(self, answered, number, state):
    """(pairs, figures) of a round; the state is only read.

    Args:
      answered: list of online.pairs.Answered.
      number: of the round, from 0.
      state: dict of arrays.

    Raises:
      InputError: a reward fails; names the prompt.
    """
    if self._discriminator is None:
      return self._of_gold(answered)
    return self._of_silver(answered, number, state)

  def rewards(self, answered):
    """(for each prompt the rewards of its responses, figures), by the reward.

    Raises:
      InputError: the reward fails; names the prompt.
    """
    found = self._gold(answered)
    every = [one for some in found for one in some]
    return found, reward_figures(every) | {"gold": -(-len(every) // 2)}

  def _gold(self, answered):
    """For each prompt the rewards of its responses."""
    prompts, texts = _flat(answered)
    found = processes.first(lambda: self.reward(prompts, texts))
    return _folded(found, answered, self._penalty)

  def _penalty(self, response):
    is_cut = response.finish == CUT
    return self._given.unended_penalty if is_cut else 0.0

  def _of_gold(self, answered):
    rewards, figures = self.rewards(answered)
    found = [
      pair_of(one, some, self.reward.name)
      for one, some in zip(answered, rewards, strict=True)
    ]
    return _without_ties(found, figures)

  def _of_silver(self, answered, number, state):
    prompts, texts = _flat(answered)
    found = self._discriminator.rewards(state[SILVER], prompts, texts)
    silver = _folded(found, answered, self._penalty)
    pairs = [
      pair_of(one, some, SILVER)
      for one, some in zip(answered, silver, strict=True)
    ]
    bought = self._choice(silver, number, int(state["gold_spent"]))
    asked = range(len(answered)) if self._given.measure else bought
    gold = dict(
      zip(asked, self._gold([answered[place] for place in asked]), strict=True)
    )
    for place in bought:
      pairs[place] = pair_of(answered[place], gold[place], self.reward.name)
    figures = {"gold": len(bought)}
    figures |= {
      f"discriminator/{name.removeprefix('reward/')}": value
      for name, value in reward_figures(
        [one for some in silver for one in some]
      ).items()
    }
    if self._given.measure:
      figures |= reward_figures([one for some in gold.values() for one in some])
    share, count = agreement([silver[place] for place in gold], gold.values())
    if count:
      figures |= {
        "discriminator/accuracy": share,
        "discriminator/judged": count,
      }
    return _without_ties(pairs, figures)

  def _choice(self, silver, number, spent):
    """Places of the pairs whose order is bought in a round."""
    given, budget = self._given.discriminator, self._given.gold_budget
    count = given.buy if number % given.every == 0 else 0
    left = budget - spent if budget else count
    count = max(min(count, left, len(silver)), 0)
    if given.choice == "random":
      rng = np.random.default_rng((self._seed, number, BUYING))
      order = rng.permutation(len(silver))
    else:
      order = np.argsort([abs(a - b) for a, b in silver], kind="stable")
    return sorted(map(int, order[:count]))

  def learned(self, pairs, number, figures, state):
    """(state, figures) after a round's gold is spent, and learned from.

    Args:
      pairs: of the round.
      number: of the round.
      figures: of the round.
      state: dict of arrays, donated.
    """
    spent = int(state["gold_spent"]) + figures["gold"]
    state = {**state, "gold_spent": self._count(spent)}
    bought = [one.texts() for one in pairs if one.labelled_by != SILVER]
    if self._discriminator is None or not bought:
      return state, {}
    state[SILVER], found = self._discriminator.fit(
      state[SILVER], bought, (self._seed, number)
    )
    return state, found


def _flat(answered):
  """(prompts, texts) of all responses."""
  prompts = [one.prompt for one in answered for _ in one.responses]
  return prompts, [one.text for some in answered for one in some.responses]


def _folded(rewards, answered, penalty):
  """For each prompt the rewards of its responses, less penalties."""
  left = iter(rewards)
  return [
    [next(left) - penalty(one) for one in some.responses] for some in answered
  ]


def _without_ties(pairs, figures):
  kept = [one for one in pairs if one is not None]
  return kept, figures | {"ties": (len(pairs) - len(kept)) / len(pairs)}
