# SPDX-License-Identifier: Apache-2.0
"""Rollouts: what the policy said, made ready for a loss of single tokens.

A round of APA (arXiv:2306.02231), AWR or PPO: responses of the policy with
their rewards -> log-probabilities under the initial policy and values, once ->
advantages by GAE -> batches for the ordinary train step, in two passes over the
round in the paper.

Where the released code of APA does another thing than its paper, or what no
one would expect, here:

- *Ids.*  It cuts the decoded text and tokenizes it again, so that other tokens
  may be trained than were drawn.  Here the ids that were drawn are trained, the
  end token with them; a text that is cut loses ids, and gets no new ones.
- *KL penalty.*  The paper has one in the reward of every token; APA's trainer
  multiplies it by 0, PPO's by 0.05.  `kl_penalty` is 0 unless given: the loss
  of APA itself holds the policy near the initial one.
- *Scale of rewards.*  Divided by the running deviation of all rewards so far,
  this round's included, as there; not centred, since whitening does that, and
  not clipped.
- *Sampling.*  No top-k is set there, so the library's 50 applies, while its
  log-probabilities are of the whole vocabulary.  Draw at temperature 1 with
  nothing cut: `behaviour_logp` is then the policy's, up to rounding.  Else
  PPO's ratio does not start at 1: `behaviour/apart` says by how much.
- *Ends.*  A response that had to end for its length ends like any other: no
  value stands for what would have come.
- *Learning rates.*  The released comparison gives PPO 8e-6 and APA 1e-6, which
  is no matched one.
- *Whitening* is over the tokens of the minibatch that are trained together,
  before APA divides by lambda: lambda is in units of their deviation.
- *Old log-probabilities* are, in APA's code, those of the initial policy.  Here
  they have two names.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from mrpo_jax import processes
from mrpo_jax.data.batches import Known
from mrpo_jax.data.encode import Encoded
from mrpo_jax.losses.methods.token_loss import GIVEN
from mrpo_jax.online.advantages import end_rewards, gae, whiten

NONE = np.zeros(0, np.float32)  # of the rejected response that is not there


@dataclasses.dataclass(frozen=True)
class Recorded:
  """A rollout as it stands in the file of a round.

  `tokens` has what was read of every token when the round began: with other
  weights it cannot be read again.
  """

  FILE: ClassVar[str] = "rollouts.jsonl"  # of a round

  index: int  # of the prompt in its file
  prompt: str | list
  response: str
  prompt_ids: list[int]
  ids: list[int]
  finish: str
  reward: float
  labelled_by: str
  tokens: dict[str, list[float]]  # of `token_loss.GIVEN`

  def line(self, number):
    """The object of its line."""
    own = {field: getattr(self, field) for field in FIELDS}
    return {**own, **self.tokens, "round": number}

  @classmethod
  def of(cls, line):
    """The Recorded of such an object; KeyError where it is none."""
    own = {field: line[field] for field in FIELDS}
    return cls(**own, tokens={name: line[name] for name in GIVEN})


FIELDS = tuple(
  one.name for one in dataclasses.fields(Recorded) if one.name != "tokens"
)


def round_of(recorded, *, whiten_minibatch=True):
  """The RolloutData of what stands in a file; see `make_round`."""
  tokens = {
    name: [(np.array(one.tokens[name], np.float32), NONE) for one in recorded]
    for name in GIVEN
  }
  pairs = [Encoded(one.prompt_ids, one.ids, []) for one in recorded]
  return RolloutData(pairs, tokens, whiten_minibatch, {})


class Rollout(NamedTuple):
  """A response of the policy, with its reward."""

  prompt_ids: list[int]
  ids: list[int]  # as drawn, the end token included
  behaviour_logp: list[float]  # of each under what it was drawn from, nats
  reward: float

  def pair(self):
    """Encoded without a rejected response, as `TokenReader` takes it."""
    return Encoded([*self.prompt_ids], [*self.ids], [])


@dataclasses.dataclass(frozen=True)
class RolloutData:
  """The rollouts of a round as data: `pairs`, and what is known of them.

  It stands in for `batches.Known` of its pairs.
  """

  pairs: list[Encoded]  # without a rejected response
  # name -> N of (values per token, none): of `token_loss.GIVEN`.
  tokens: dict
  whiten: bool  # the advantages of a minibatch?
  figures: dict[str, float]  # means of the round, for its line of the log

  def of(self, packing, indices, views):
    """What is known of the tokens of one step; see `Known.of`."""
    tokens = self.tokens
    if self.whiten and len(indices):
      some = whiten([tokens["advantage"][n][0] for n in indices])
      advantage = {n: (one, NONE) for n, one in zip(indices, some, strict=True)}
      tokens = {**tokens, "advantage": advantage}
    return Known({}, tokens=tokens).of(packing, indices, views)


def make_round(
  rollouts,
  policy,
  ref_logps,
  scale,
  *,
  gamma=1.0,
  lam=0.95,
  kl_penalty=0.0,
  whiten_minibatch=True,
):
  """(RolloutData, the running scale after it) of a round of rollouts.

  Args:
    rollouts: list of Rollout.
    policy: {"logp": ..., "value": ...}, each a list of one array for each
      response, its tokens under the policy that said them, as a `TokenReader`
      of it gives them.
    ref_logps: the list of their log-probabilities under the initial policy, or
      under what stands for several references.
    scale: RunningScale of the rounds before.
    gamma, lam: see `gae`.
    kl_penalty: taken from the reward of each token, times log p - log r.
    whiten_minibatch: see the module.

  Raises:
    ValueError: no rollout, one without a token, arrays that do not fit its
      tokens or are not finite, by its number.

  What is stored of values and of the initial policy is of the start of the
  round, whatever the passes over it change.
  """
  pairs = _pairs(rollouts, kl_penalty)
  arrays = {
    "behaviour_logp": [one.behaviour_logp for one in rollouts],
    "ref_logp": ref_logps,
    "logp": policy["logp"],
    "value": policy["value"],
  }
  arrays = {
    name: _of_each(name, some, rollouts) for name, some in arrays.items()
  }
  # log p - log r of each token.
  arrays["apart"] = [
    p - r for p, r in zip(arrays["logp"], arrays["ref_logp"], strict=True)
  ]
  reward_R = np.array([one.reward for one in rollouts], float)
  scale = scale.updated(reward_R)
  arrays["advantage"], arrays["returns"] = _advantages(
    reward_R / scale.deviation, arrays, kl_penalty, gamma=gamma, lam=lam
  )
  tokens = {
    name: [(one.astype(np.float32), NONE) for one in arrays[name]]
    for name in GIVEN
  }
  figures = _figures(reward_R, arrays) | {"reward/scale": scale.deviation}
  data = RolloutData(pairs, tokens, whiten_minibatch, figures)
  return data, scale


def _advantages(reward_R, arrays, kl_penalty, **trace):
  """(advantages, returns): each one array for each rollout."""
  mask_RT = _padded([np.ones(len(one)) for one in arrays["value"]])
  penalty_RT = kl_penalty * _padded(arrays["apart"])
  found = gae(
    end_rewards(reward_R, mask_RT) - penalty_RT,
    _padded(arrays["value"]),
    mask_RT,
    **trace,
  )
  is_token_RT = mask_RT.astype(bool)
  return [
    [row_T[is_T] for row_T, is_T in zip(array_RT, is_token_RT, strict=True)]
    for array_RT in found
  ]


def _pairs(rollouts, kl_penalty):
  """The Encoded of each; ValueError where one is none."""
  if not rollouts:
    raise ValueError("a round has no rollout")
  if not 0 <= kl_penalty < np.inf:
    raise ValueError(f"kl_penalty must be from 0 up, got {kl_penalty!r}")
  for n, one in enumerate(rollouts):
    if not len(one.prompt_ids) or not len(one.ids):
      raise ValueError(f"rollout {n} has no token in its prompt or response")
  return [one.pair() for one in rollouts]


def _of_each(name, arrays, rollouts):
  """One array in float64 for each rollout, or ValueError."""
  if len(arrays) != len(rollouts):
    raise ValueError(f"{name} of {len(arrays)} rollouts, not {len(rollouts)}")
  arrays = [np.asarray(one, float) for one in arrays]
  for n, (array_T, one) in enumerate(zip(arrays, rollouts, strict=True)):
    if array_T.shape != (len(one.ids),):
      raise ValueError(
        f"{name} of rollout {n} has shape {array_T.shape}; its response has "
        f"{len(one.ids)} tokens"
      )
    if not np.isfinite(array_T).all():
      raise ValueError(f"{name} of rollout {n} is not finite")
  return arrays


def _padded(arrays):
  """array_RT with a row for each, 0 after its end."""
  padded_RT = np.zeros((len(arrays), max(map(len, arrays))))
  for row_T, array in zip(padded_RT, arrays, strict=True):
    row_T[: len(array)] = array
  return padded_RT


def _figures(reward_R, arrays):
  """{name: number} of a round: means over responses, or over their tokens."""
  drawn, now = map(np.concatenate, (arrays["behaviour_logp"], arrays["logp"]))
  return {
    "reward/mean": float(reward_R.mean()),
    "kl": float(np.mean([one.sum() for one in arrays["apart"]])),
    "length/mean": float(np.mean([len(one) for one in arrays["apart"]])),
    "value/mean": float(np.concatenate(arrays["value"]).mean()),
    "behaviour/apart": float(np.abs(drawn - now).mean()),
  }


class TokenReader:
  """Figures of every response token under one model, compiled once.

  With a value head one pass gives log-probability and value.
  """

  def __init__(
    self, model, packing, *, also=(), to_mesh: Callable = lambda *batch: batch
  ):
    """Compiles nothing yet.

    Args:
      model: objective.Model, whose tokens the responses are of.
      packing: batches.Packing.
      also: further figures, "value" of a model with such a head; see
        `packed.token_figures`.
      to_mesh: (views, given) on the host -> the same on the mesh; it stays as
        it is on one device.
    """
    self._packing, self._to_mesh = packing, to_mesh

    def read(params, views):
      found = model.all_token_figures(params, views, packing.batch, also=also)
      return found, [rows.slots_RM for rows in views[model.view]]

    self._read = jax.jit(read)
    # Rows of one tokenizer alone are packed here.
    if model.view:
      raise ValueError("rollouts are of the policy's own tokens, view 0")

  def __call__(self, params, pairs):
    """{figure: one array for each pair, of its chosen response's tokens}."""
    found = {}
    for first in range(0, len(pairs), self._packing.batch):
      indices = np.arange(first, min(first + self._packing.batch, len(pairs)))
      batch = self._to_mesh(self._packing.of([pairs], indices), {})
      parts, slots = processes.whole(self._read(params, batch[0]))
      slot_M = np.concatenate([one.reshape(-1) for one in slots])
      for name in parts[0]:
        value_M = np.concatenate([part[name].reshape(-1) for part in parts])
        found.setdefault(name, []).extend(
          value_M[slot_M == 2 * n] for n in range(len(indices))
        )
    return found
