# SPDX-License-Identifier: Apache-2.0
"""Rounds of rollouts: every response, token by token, by APA, AWR or PPO."""

import functools

import numpy as np

from mrpo_jax import parallel
from mrpo_jax.data.encode import Encoded
from mrpo_jax.losses.methods.token_loss import GIVEN
from mrpo_jax.models import lora
from mrpo_jax.online.pairs import figures
from mrpo_jax.online.rollouts import (
  Recorded,
  Rollout,
  TokenReader,
  make_round,
  round_of,
)
from mrpo_jax.training.stacked import member
from mrpo_jax.training.train_state import moved_references


class RolloutRounds:
  """What a round is made of where single tokens are trained on.

  Of several references the harmonic mean stands for the initial policy, MRPO's
  virtual reference (arXiv:2405.16388), here of each token's probability.
  """

  entry = Recorded

  def __init__(self, setup):
    """Args: setup.Setup."""
    self._setup = setup
    to_mesh = functools.partial(parallel.global_batch, mesh=setup.mesh)
    read = functools.partial(
      TokenReader, packing=setup.packing, to_mesh=to_mesh
    )
    objective = setup.objective
    self._policy = read(objective.policy, also=("value",))
    self._references = [read(one) for one in objective.references]

  def make(self, program, number, state, answered):
    """(list of Recorded, figures) of a round."""
    labels, given = self._setup.labels, self._setup.config.online.rollouts
    pairs = [
      Encoded(one.ids, response.ids, [])
      for one in answered
      for response in one.responses
    ]
    params = lora.join(program.frozen[0], state.params)
    policy = self._policy(params, pairs)
    ref_logps = self._ref_logps(program, state, pairs)
    # Last: whatever fails before it has paid for no label.
    rewards, about = labels.rewards(answered)
    said = [
      (one, response, reward)
      for one, some in zip(answered, rewards, strict=True)
      for response, reward in zip(one.responses, some, strict=True)
    ]
    found, _ = make_round(
      [
        Rollout(one.ids, response.ids, response.behaviour_logp, reward)
        for one, response, reward in said
      ],
      policy,
      ref_logps,
      labels.scale_of(state.online),
      gamma=given.gamma,
      lam=given.lam,
      kl_penalty=given.kl_penalty,
    )
    recorded = [
      Recorded(
        *(one.index, one.prompt, response.text, one.ids, response.ids),
        *(response.finish, reward, labels.reward.name),
        tokens={name: found.tokens[name][n][0].tolist() for name in GIVEN},
      )
      for n, (one, response, reward) in enumerate(said)
    ]
    return recorded, {**figures(answered), **found.figures, **about}

  def _ref_logps(self, program, state, pairs):
    """Log-probabilities of the tokens of each response, in nats."""
    base, references = program.frozen
    references = moved_references(state, base, references)
    each = [
      read(member(references, k), pairs)["logp"]
      for k, read in enumerate(self._references)
    ]
    return [harmonic_mean(some) for some in zip(*each, strict=True)]

  def learned(self, recorded, number, about, online):
    """(state of the rounds, {}) after a round's rollouts."""
    rewards = [one.reward for one in recorded]
    return self._setup.labels.counted(about, online, rewards), {}

  def data(self, recorded):
    """(views, what is known, how many there are) of a round's rollouts."""
    given = self._setup.config.online.rollouts
    found = round_of(recorded, whiten_minibatch=given.whiten)
    return [found.pairs], found, len(recorded)


def harmonic_mean(ref_logps):
  """Logs of the harmonic mean of K references' probabilities of tokens.

  As `losses.harmonic` has it with equal weights, but of arrays of any length,
  on the host.

  Args:
    ref_logps: K arrays, of the same tokens; nats.
  """
  array_KT = np.stack(ref_logps).astype(float)
  return np.log(len(array_KT)) - np.logaddexp.reduce(-array_KT, axis=0)
