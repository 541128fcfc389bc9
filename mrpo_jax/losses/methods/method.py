# SPDX-License-Identifier: Apache-2.0
"""Method: a loss with all its choices made, as the trainer sees it.

A Method makes the arrays that its loss asks for (`inputs.INPUTS`) from what the
models give; Unit, Mixing and Memory are its parts, each with its own keys of
the state, and TokenLoss where single tokens of rollouts have losses.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import arrays_of, by_name, keywords_of
from mrpo_jax.losses.batch import adaptive_beta, masked_moments
from mrpo_jax.losses.methods.auxiliary import Auxiliary
from mrpo_jax.losses.methods.inputs import (
  INPUTS,
  BatchArrays,
  check_figures,
  inputs_of,
)
from mrpo_jax.losses.methods.mixing import Mixing, Unit
from mrpo_jax.losses.methods.token_loss import TokenLoss
from mrpo_jax.losses.pair import margin
from mrpo_jax.losses.unreferenced import nll
from mrpo_jax.losses.weighting import stateless, uniform_weights
from mrpo_jax.shapes import CHOSEN, axes_of, check, widen


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
  """Running means: of the margin, and of the reward (BCO).

  Of the margin follows a beta (beta-DPO).
  """

  running: float | None  # momentum of the running margin; None for no memory
  adaptive_beta: float | None  # strength
  of_rewards: bool = False  # the mean over all single responses so far

  def init(self):
    """Its part of a method's state.

    Of the margin sums of mean, deviation, 1; of rewards their mean and number.
    """
    found = {} if self.running is None else {"margin": jnp.zeros(3)}
    return found | ({"reward": jnp.zeros(2)} if self.of_rewards else {})

  def rewards(self, state, reward_B, valid_B):
    """Mean and number of the rewards so far, this batch included."""
    before, count = state["reward"]
    mean, _ = masked_moments(jax.lax.stop_gradient(reward_B), valid_B)
    new = len(reward_B) if valid_B is None else jnp.sum(valid_B)
    share = new / jnp.maximum(count + new, 1.0)
    return jnp.stack([before + share * (mean - before), count + new])

  def sums(self, state, margin_B, valid_B):
    """Decayed sums of the margin's mean and deviation, this batch included."""
    moments = masked_moments(margin_B, valid_B)
    newest = jax.lax.stop_gradient(jnp.stack([*moments, jnp.ones(())]))
    return self.running * state["margin"] + (1.0 - self.running) * newest

  def hyper(self, state, margin_B, valid_B, *, beta, takes):
    """Keywords of the loss that follow from the margins seen so far."""
    sums = self.sums(state, margin_B, valid_B)
    mean, deviation = sums[:2] / sums[2]
    found = {}
    if self.adaptive_beta is not None:
      found["beta"] = adaptive_beta(
        margin_B, mean, beta=beta, strength=self.adaptive_beta, valid_B=valid_B
      )
    if "std" in takes:
      deviation = jnp.where(deviation > 0, deviation, 1.0)
      found |= dict(mean=beta * mean, std=beta * deviation)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """A loss with all its choices made; call it like a function.

  `losses.build` makes it.  It is hashed by identity, so that it may be a static
  argument of a jitted function.

  >>> import jax.numpy as jnp
  >>> from mrpo_jax import losses
  >>> method = losses.build("r_dpo", alpha=0.05)
  >>> sorted(method.needs), method.takes_reference, method.coupled
  (['length_BC'], True, False)
  >>> logp_BC, length_BC = jnp.zeros((1, 2)), jnp.array([[30, 10]])
  >>> got = method(logp_BC, logp_BC[..., None], length_BC=length_BC)
  >>> bool(jnp.isclose(got[0], jnp.log1p(jnp.exp(-1.0))))
  True
  """

  name: str
  loss: Callable
  hyper: dict[str, Any]  # keywords of the loss
  beta: float  # of the rewards that metrics show
  unit: Unit
  mixing: Mixing
  memory: Memory
  token_weight: Callable | None  # dict of arrays of one shape -> weights
  token_arrays: tuple[str, ...]  # which of them it reads
  pair_weight: Callable | None  # mean_excess_BC -> weight_B
  dispersion: float | None  # mean of -log phi over the data set
  nll: float  # weight of the chosen response's likelihood
  auxiliary: Auxiliary | None  # terms that follow rewards
  numbers: dict[str, float]  # that stand for arrays of the loss
  tokens: TokenLoss | None = None  # of rollouts, whose mean the loss is

  @by_name
  def __call__(
    self,
    policy_logp_BC: ArrayLike,
    ref_logp_BCK: ArrayLike | None = None,
    *,
    state: Any = None,
    **figures: ArrayLike | None,
  ) -> jax.Array:
    """loss_B of a batch, in nats or what the loss counts in.

    Args:
      policy_logp_BC: nats, summed over response tokens, or the sum of the
        token-weighted log-probabilities where the method has a token weight.
      ref_logp_BCK: the same under each reference; None for a loss without.
      state: see `init`; None is the state before the first step.
      **figures: what else the method needs, of these: `length_BC`, response
        tokens; `ref_length_BCK`, the same under each reference's tokenizer
        (`length_BC` unless given); `character_BC`, response characters, one
        count for all models; `kl_BC`, see `tdpo`; `mean_excess_BC`, see
        `wpo_weight`; `normalised_entropy_BC` under reference 0; `weight_BK`,
        how much each reference is trusted with weights "by_pair";
        `aux_reward_BC` and `value_B` of an auxiliary term, in units of reward;
        `token_loss_BC`, sums of what `tokens` gives; `desirable_B`, which of
        single responses are good; `valid_B`, the real pairs.

    Raises:
      ValueError: a figure that the method needs is missing; one that is not
        known, or has other axes than its name says.
    """
    self._check(policy_logp_BC, ref_logp_BCK, figures)
    state = self._state(state, ref_logp_BCK)
    state = self.mixing.of_pairs(state, figures.get("weight_BK"))
    policy_BC, ref_BCK = self.scaled(
      policy_logp_BC, ref_logp_BCK, state=state, **figures
    )
    given = BatchArrays(
      self.name,
      policy_logp_BC,
      policy_BC,
      figures,
      self.numbers,
      self.dispersion,
    )
    loss_B = self._loss(given, state, ref_BCK)
    if self.pair_weight is not None:
      loss_B = self.pair_weight(given.figure("mean_excess_BC")) * loss_B
    if self.nll:
      loss_B = loss_B + self.nll * nll(given.array("mean_logp_B"))
    if self.auxiliary is not None:
      length_BC = jnp.maximum(widen(given.figure("length_BC")), 1.0)
      loss_B = loss_B + self.auxiliary(
        state,
        widen(policy_logp_BC) / length_BC,
        given.figure("aux_reward_BC"),
        given.figure("value_B"),
      )
    return loss_B

  # What it needs.

  @property
  def needs(self):
    """Names of what `__call__` must be given beside log-probabilities."""
    asked = [*inputs_of(self.loss).values()]
    if self.nll:
      asked.append(INPUTS["mean_logp_B"])
    found = {figure for one in asked for figure in one.needs}
    found |= self.unit.needs | self.mixing.needs
    if self.auxiliary is not None:
      found |= self.auxiliary.needs
    if self.pair_weight is not None:
      found.add("mean_excess_BC")
    if self.dispersion is not None:
      found.add("normalised_entropy_BC")
    return found

  @property
  def measures(self):
    """Splits whose references `measure` wants to see before the first step."""
    found = {"train"} if self.unit.measures else set()
    return found | ({"validation"} if self.mixing.rule.measure else set())

  @property
  def takes_reference(self):
    return any(one.from_reference for one in inputs_of(self.loss).values())

  @property
  def of_rewards(self):
    """Trains a scalar head: called with rewards, not log-probabilities."""
    return any(one.of_scalar_head for one in inputs_of(self.loss).values())

  @property
  def reads_quantiles(self):
    """Its rewards of the responses are quantiles, from 0 to 1."""
    return "quantile_BC" in inputs_of(self.loss)

  @property
  def supervised(self):
    """Reads the chosen response alone."""
    return list(arrays_of(self.loss)) == ["mean_logp_B"]

  @property
  def unpaired(self):
    """Reads single responses, each good or bad."""
    return "desirable_B" in inputs_of(self.loss)

  @property
  def mismatched(self):
    """Wants a response of another prompt beside each single one."""
    return "mismatched_logratio_B" in inputs_of(self.loss)

  @property
  def reads_differences(self):
    """Its token weight asks which tokens of a pair differ."""
    return "differs" in self.token_arrays

  @property
  def coupled(self):
    """A pair's loss depends on the other pairs of the batch."""
    across = any(one.across_batch for one in inputs_of(self.loss).values())
    memory = self.memory
    return across or memory.running is not None or memory.of_rewards

  @property
  def learns(self):
    """Its weights follow the accuracy of evaluations; see `judge`."""
    return self.mixing.learns

  @property
  def start_loss(self):
    """The loss where policy and references agree; None where it depends."""
    known = all(INPUTS[key].known_at_start for key in arrays_of(self.loss))
    added = (self.pair_weight, self.auxiliary)
    if not known or self.nll or any(one is not None for one in added):
      return None
    zero_BC, betas = jnp.zeros((2, 2)), self.mixing.betas
    sizes = {"B": 2, "C": 2, "K": 1 if betas is None else len(betas)}
    figures = {
      name: jnp.ones([sizes[axis] for axis in axes_of(name)])
      for name in self.needs
    }
    figures["kl_BC"] = zero_BC
    if self.unpaired:  # one of each label: their weights may differ
      figures["desirable_B"] = jnp.array([True, False])
    if betas is not None:
      alone, zero_BCK = self, jnp.zeros((2, 2, len(betas)))
    else:
      # References that agree are one, whatever weighs them.
      rule = stateless(uniform_weights)
      one = dataclasses.replace(self.mixing, rule=rule, official_weights=False)
      alone = dataclasses.replace(self, mixing=one)
      zero_BCK = zero_BC[..., None]
    first, second = alone(zero_BC, zero_BCK, **figures).tolist()
    return first if first == second else None

  # What it remembers.

  def init(self, K: int) -> dict[str, Any]:
    """The state before the first step: a tree of arrays, empty for most."""
    own = {} if self.auxiliary is None else self.auxiliary.init()
    return self.mixing.init(K) | self.unit.init(K) | self.memory.init() | own

  def measure(self, state, *, train=None, validation=None):
    """The state before the first step, from the references' data sets.

    The scale's factors come first, then the weights, on log-probabilities in
    the method's unit.

    Args:
      state: of `init`.
      train: dict(ref_logp_NCK=..., ref_length_NCK=..., character_NC=...) of
        the training pairs; the last two as the scale needs.
      validation: the same of held-out pairs.

    Raises:
      ValueError: a split that the method `measures` is missing.
    """
    splits = dict(train=train, validation=validation)
    for split in sorted(self.measures):
      if splits[split] is None:
        raise ValueError(f"loss {self.name!r} measures the {split} pairs")
    if "train" in self.measures:
      state = self.unit.measure(state, train)
    if "validation" in self.measures:
      score_NCK = self.unit.of_references(
        state,
        validation["ref_logp_NCK"],
        validation.get("ref_length_NCK"),
        validation.get("character_NC"),
      )
      state = self.mixing.measure(state, score_NCK)
    return state

  def update(self, state, policy_logp_BC, ref_logp_BCK, **figures):
    """The state after a step on these pairs; arguments as in `__call__`."""
    self._check(policy_logp_BC, ref_logp_BCK, figures)
    policy_BC, ref_BCK = self.scaled(
      policy_logp_BC, ref_logp_BCK, state=state, **figures
    )
    if self.memory.running is not None:
      own = self.mixing.of_pairs(state, figures.get("weight_BK"))
      margin_B = self._margin(own, policy_BC, ref_BCK)
      sums = self.memory.sums(state, margin_B, figures.get("valid_B"))
      state = {**state, "margin": sums}
    if self.memory.of_rewards:
      found = self._rewards(state, policy_BC, ref_BCK, figures)
      state = {**state, "reward": found}
    if self.auxiliary is not None:
      state = self.auxiliary.update(state)
    return state if ref_BCK is None else self.mixing.update(state, ref_BCK)

  def judge(self, state, accuracy, K):
    """The state after an evaluation; see `Mixing.judge`."""
    return self.mixing.judge(state, accuracy, K)

  def _check(self, policy_logp_BC, ref_logp_BCK, figures):
    logps = dict(policy_logp_BC=policy_logp_BC, ref_logp_BCK=ref_logp_BCK)
    logps = {name: logp for name, logp in logps.items() if logp is not None}
    check_figures(self.name, figures, **logps)

  def _state(self, state, ref_logp_BCK):
    if state is not None:
      return state
    return self.init(0 if ref_logp_BCK is None else ref_logp_BCK.shape[-1])

  # What its loss is called with.

  def scaled(
    self,
    policy_logp_BC,
    ref_logp_BCK,
    *,
    state=None,
    length_BC=None,
    ref_length_BCK=None,
    character_BC=None,
    **figures,
  ):
    """Both in the method's unit; see `build` for what that may be."""
    del figures
    policy_BC = self.unit.of_policy(policy_logp_BC, length_BC, character_BC)
    if ref_logp_BCK is None:
      return policy_BC, None
    check(policy_logp_BC=policy_BC, ref_logp_BCK=ref_logp_BCK)
    if ref_length_BCK is None and length_BC is not None:
      ref_length_BCK = jnp.asarray(length_BC)[..., None]
    state = self._state(state, ref_logp_BCK)
    return policy_BC, self.unit.of_references(
      state, ref_logp_BCK, ref_length_BCK, character_BC
    )

  def virtual(self, ref_BCK, state=None):
    """logp_BC, in the method's unit, of the one reference that stands for K."""
    return self.mixing.virtual(self._state(state, ref_BCK), ref_BCK)

  def _margin(self, state, policy_BC, ref_BCK):
    """margin_B to the one reference that stands for K."""
    return margin(policy_BC - self.mixing.virtual(state, ref_BCK))

  def _rewards(self, state, policy_BC, ref_BCK, figures):
    """Mean and number of the rewards of single responses so far."""
    own = self.mixing.of_pairs(state, figures.get("weight_BK"))
    virtual_BC = self.mixing.virtual(own, ref_BCK)
    reward_B = self.beta * (policy_BC - virtual_BC)[:, CHOSEN]
    return self.memory.rewards(state, reward_B, figures.get("valid_B"))

  def _loss(self, given, state, ref_BCK):
    """loss_B before what is weighed or added pair by pair."""
    asked, hyper = inputs_of(self.loss), self._hyper(given, state, ref_BCK)

    def loss_against(ref_BC, beta=None):
      against = dataclasses.replace(given, ref=ref_BC)
      arrays = [against.array(key) for key in arrays_of(self.loss)]
      if beta is not None and jnp.ndim(beta) == 1:
        return _with_betas(self.loss, arrays, hyper, beta)
      own = hyper | {
        key: against.array(key)
        for key in keywords_of(self.loss)
        if key in asked and asked[key].from_reference
      }
      own |= {} if beta is None else {"beta": beta}
      return _per_pair(self.loss(*arrays, **own), given.policy_BC)

    if not self.takes_reference:
      return loss_against(None)
    if ref_BCK is None:
      raise ValueError(f"loss {self.name!r} needs a reference")
    if any(one.all_references for one in asked.values()):
      return loss_against(ref_BCK)
    return self.mixing.mixed(loss_against, state, ref_BCK)

  def _hyper(self, given, state, ref_BCK):
    """Its keywords, with what this batch and the steps before say."""
    hyper, takes = dict(self.hyper), keywords_of(self.loss)
    asked = inputs_of(self.loss)
    for key in takes:
      if key not in asked or asked[key].from_reference:
        continue  # what is of a reference goes with each
      # Without a dispersion the default, a number, is enough.
      if given.dispersion or not asked[key].dispersed:
        hyper[key] = given.array(key)
    if any(one.all_references for one in asked.values()):
      hyper["weight"] = self.mixing.weights(state, ref_BCK)
    if self.memory.of_rewards:
      found = self._rewards(state, given.policy_BC, ref_BCK, given.figures)
      hyper["shift"] = found[0]
    if self.memory.running is None:
      return hyper
    margin_B = self._margin(state, given.policy_BC, ref_BCK)
    valid_B = given.figures.get("valid_B")
    return hyper | self.memory.hyper(
      state, margin_B, valid_B, beta=self.beta, takes=takes
    )


def _with_betas(loss, arrays, hyper, beta_B):
  """loss_B of a loss whose beta is another for each pair."""
  # What is there per pair goes with its pair.
  own = {key: hyper[key] for key in hyper if key in INPUTS}
  hyper = {key: hyper[key] for key in hyper if key not in own}
  own["beta"] = beta_B

  def of_one(arrays, own):
    arrays = [array[None] for array in arrays]
    return _per_pair(loss(*arrays, **{**hyper, **own}), arrays[0])[0]

  return jax.vmap(of_one)(arrays, own)


def _per_pair(loss, policy_BC):
  """loss_B of what a loss returned: a scalar, [B], or one per response."""
  if loss.ndim == 2:
    return jnp.mean(loss, axis=-1)
  return jnp.broadcast_to(loss, policy_BC.shape[:1])
