# SPDX-License-Identifier: Apache-2.0
"""Unit of log-probabilities, and Mixing of references into one."""

import dataclasses

import jax
import jax.numpy as jnp

from mrpo_jax.losses.mixture import swapped, virtual_reference
from mrpo_jax.losses.multi import weighted_losses
from mrpo_jax.losses.weighting import (
  WeightRule,
  normalised_weight,
  scale_factors,
)
from mrpo_jax.shapes import check, widen

COUNTS = {"mean": "length_BC", "character": "character_BC"}  # of the units


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
  """The unit of log-probabilities, in which everything else is counted."""

  name: str  # "sum", "mean", "character" or "zscore"
  loss: str  # whose unit it is, for messages

  @property
  def needs(self):
    """Names of the figures that it divides by."""
    return {COUNTS[self.name]} if self.name in COUNTS else set()

  @property
  def measures(self):
    """Does it want to see the references of the training pairs?"""
    return self.name == "zscore"

  def init(self, K):
    """Its part of a method's state."""
    return {"scale": jnp.ones(K)} if self.measures else {}

  def measure(self, state, train):
    """The state after a look at the training pairs; see `Method.measure`."""
    check(ref_logp_NCK=train["ref_logp_NCK"], scale_K=state["scale"])
    factor_K = scale_factors(train["ref_logp_NCK"])
    return {**state, "scale": factor_K.astype(state["scale"].dtype)}

  def of_policy(self, logp_BC, length_BC, character_BC):
    """A policy's sums in this unit."""
    return self._per(widen(logp_BC), length_BC, character_BC)

  def of_references(self, state, logp_BCK, length_BCK, character_BC):
    """The references' sums in this unit, without a gradient."""
    logp_BCK = jax.lax.stop_gradient(widen(logp_BCK))
    if self.measures:
      check(ref_logp_BCK=logp_BCK, scale_K=state["scale"])
      return logp_BCK * state["scale"][None, None]
    if character_BC is not None:
      character_BC = jnp.asarray(character_BC)[..., None]
    return self._per(logp_BCK, length_BCK, character_BC)

  def _per(self, value, length, character):
    if self.name not in COUNTS:
      return value
    count = {"mean": length, "character": character}[self.name]
    if count is None:
      raise ValueError(f"loss {self.loss!r} needs {COUNTS[self.name]}")
    return value / jnp.maximum(widen(jnp.asarray(count)), 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixing:
  """K references into one: weights, clip, mean, one beta for each.

  Their log-probabilities are in the method's unit.
  """

  loss: str  # whose mixing it is, for messages
  p: float | None  # power of the mean; None for one loss per reference
  single: bool  # no mixture was named: one reference only
  rule: WeightRule
  learns: bool  # its rule wants to know whether validation accuracy rose
  by_pair: bool  # its rule reads what each pair says; see `of_pairs`
  epsilon_max: float | None
  adaptive_epsilon: bool
  official_weights: bool
  betas: tuple[float, ...] | None  # one per reference

  @property
  def mean(self):
    """The mixture itself, as keywords of `virtual_reference`."""
    return dict(
      p=0 if self.p is None else self.p,
      epsilon_max=self.epsilon_max,
      adaptive_epsilon=self.adaptive_epsilon,
    )

  def init(self, K):
    """Its part of a method's state."""
    state = {"weights": self.rule.init(K)}
    if self.learns:
      state["accuracy"] = jnp.full((), -1.0)  # none so far
    return state

  @property
  def needs(self):
    """Names of the figures that its rule reads."""
    return {"weight_BK"} if self.by_pair else set()

  def of_pairs(self, state, weight_BK):
    """The state, for these pairs alone, with their weights."""
    if not self.by_pair or weight_BK is None:
      return state
    return {**state, "weights": weight_BK}

  def measure(self, state, score_NCK):
    """The state after a look at the held-out pairs."""
    weights = self.rule.measure(state["weights"], score_NCK)
    return {**state, "weights": weights}

  def update(self, state, ref_BCK):
    """The state after a step on these pairs."""
    return {**state, "weights": self.rule.update(state["weights"], ref_BCK)}

  def judge(self, state, accuracy, K):
    """The state after an evaluation, whose accuracy the rule may learn from.

    The first evaluation has none before it to compare with.
    """
    if not self.learns:
      return state
    before = state["accuracy"]
    judged = self.rule.update(
      state["weights"], jnp.zeros((1, 2, K)), accuracy > before
    )
    weights = jax.tree.map(
      lambda new, old: jnp.where(before >= 0, new, old),
      judged,
      state["weights"],
    )
    accuracy = jnp.asarray(accuracy, before.dtype)
    return {**state, "weights": weights, "accuracy": accuracy}

  def weights(self, state, ref_BCK):
    """[K] or [B, K]: how much each reference weighs in the mixture."""
    K = ref_BCK.shape[-1]
    if self.single and K != 1:
      raise ValueError(
        f"loss {self.loss!r} takes one reference, got K={K}; "
        "name a mixture: harmonic, geometric, arithmetic, multi, ..."
      )
    weight = self.rule.weights(state["weights"], ref_BCK)
    return swapped(weight, ref_BCK) if self.official_weights else weight

  def shares(self, state, ref_BCK):
    """(what the mixture weighs by, beta_B or None where there is one beta).

    The first is the weights, times the betas if given.
    """
    weight = self.weights(state, ref_BCK)
    if self.betas is None:
      return weight, None
    K = ref_BCK.shape[-1]
    if len(self.betas) != K:
      raise ValueError(
        f"loss {self.loss!r} has {len(self.betas)} betas, but K={K} references"
      )
    share_BK = normalised_weight(weight, ref_BCK)
    share_BK = share_BK * jnp.asarray(self.betas, share_BK.dtype)[None]
    return share_BK, jnp.sum(share_BK, axis=-1)

  def virtual(self, state, ref_BCK):
    """logp_BC of the one reference that stands for K.

    For one loss per reference it is their geometric mean, against which the
    reward is the weighted mean of the K rewards.
    """
    weight, _ = self.shares(state, ref_BCK)
    return virtual_reference(ref_BCK, weight=weight, **self.mean)

  def mixed(self, loss_against, state, ref_BCK):
    """`loss_against(ref_BC, beta)` of the mixture, or the weighted sum over K.

    beta is None where there is one for all.
    """
    _, beta_B = self.shares(state, ref_BCK)
    if self.p is not None:
      return loss_against(self.virtual(state, ref_BCK), beta_B)
    return weighted_losses(
      loss_against,
      ref_BCK,
      weight=self.weights(state, ref_BCK),
      epsilon_max=self.epsilon_max,
      adaptive_epsilon=self.adaptive_epsilon,
      betas=self.betas,
    )
