# SPDX-License-Identifier: Apache-2.0
"""A loss with all its choices made, as the trainer sees it.

A loss says what it needs by the names of its arrays (`logratio_BC`,
`mean_logp_BC`, `kl_BC`, ...); a Method makes them from what the models give.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mrpo_jax.losses.batch import adaptive_beta, masked_moments
from mrpo_jax.losses.dispersion import dispersion_scale, neg_log_dispersion
from mrpo_jax.losses.mixture import virtual_reference
from mrpo_jax.losses.multi import weighted_losses
from mrpo_jax.losses.pair import margin
from mrpo_jax.losses.unreferenced import nll
from mrpo_jax.losses.weighting import (
  WeightRule,
  normalised_weight,
  scale_factors,
  stateless,
  uniform_weights,
)
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen

# Arrays that come from a reference.
REFERENCED = {"logratio_BC", "ref_logp_BC", "ref_mean_logp_BC", "ref_margin_BK"}


def arrays_of(function):
  """Names of the arrays that a function takes."""
  return _parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def keywords_of(function):
  """Its hyper-parameters: {name: default}."""
  return _parameters(function, inspect.Parameter.KEYWORD_ONLY)


def _parameters(function, kind):
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is kind}


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
  p: float | None  # power of the mean; None for one loss per reference
  single: bool  # no mixture was named: one reference only
  rule: WeightRule
  learns: bool  # its rule wants to know whether validation accuracy rose
  epsilon_max: float | None
  adaptive_epsilon: bool
  official_weights: bool
  betas: tuple[float, ...] | None  # one per reference
  scale: str  # "sum", "mean", "character", "zscore": unit of log-probabilities
  token_weight: Callable | None  # dict of arrays of one shape -> weights
  token_arrays: tuple[str, ...]  # which of them it reads
  pair_weight: Callable | None  # mean_excess_BC -> weight_B
  dispersion: float | None  # mean of -log phi over the data set
  nll: float  # weight of the chosen response's likelihood
  adaptive_beta: float | None  # strength
  running: float | None  # momentum of the running margin
  stand_ins: dict[str, float]

  def __call__(
    self, policy_logp_BC, ref_logp_BCK=None, *, state=None, **figures
  ):
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
        `wpo_weight`; `normalised_entropy_BC` under reference 0; `valid_B`,
        the real pairs.

    Raises:
      ValueError: a figure that the method needs is missing.
    """
    check(policy_logp_BC=policy_logp_BC)
    state = self._state(state, ref_logp_BCK)
    policy_BC, ref_BCK = self.scaled(
      policy_logp_BC, ref_logp_BCK, state=state, **figures
    )
    hyper = self._hyper(state, policy_BC, ref_BCK, figures)
    given = self._given(policy_logp_BC, policy_BC, figures)

    def loss_against(ref_BC, beta=None):
      made = {**given, **_against(policy_BC, ref_BC)}
      arrays = [_need(self.name, made, key)() for key in arrays_of(self.loss)]
      if beta is not None and jnp.ndim(beta) == 1:
        return _with_betas(self.loss, arrays, hyper, beta)
      own = hyper if beta is None else {**hyper, "beta": beta}
      return _per_pair(self.loss(*arrays, **own), policy_BC)

    loss_B = self._mixed(loss_against, state, ref_BCK)
    if self.pair_weight is not None:
      excess_BC = _need(self.name, figures, "mean_excess_BC")
      loss_B = self.pair_weight(excess_BC) * loss_B
    if self.nll:
      loss_B = loss_B + self.nll * nll(given["mean_logp_B"]())
    return loss_B

  # What it needs.

  @property
  def needs(self):
    """Names of what `__call__` must be given beside log-probabilities."""
    names = {*arrays_of(self.loss), *(["mean_logp_B"] if self.nll else [])}
    found = {"kl_BC", "length_BC"} & names
    if self.scale == "mean" or names & {"mean_logp_B", "gold_mean_logp_B"}:
      found.add("length_BC")
    if self.scale == "character":
      found.add("character_BC")
    if self.pair_weight is not None:
      found.add("mean_excess_BC")
    if self.dispersion is not None:
      found.add("normalised_entropy_BC")
    return found

  @property
  def measures(self):
    """Splits whose references `measure` wants to see before the first step."""
    found = {"train"} if self.scale == "zscore" else set()
    return found | ({"validation"} if self.rule.measure else set())

  @property
  def takes_reference(self):
    return not REFERENCED.isdisjoint(arrays_of(self.loss))

  @property
  def supervised(self):
    """Reads the chosen response alone."""
    return list(arrays_of(self.loss)) == ["mean_logp_B"]

  @property
  def reads_differences(self):
    """Its token weight asks which tokens of a pair differ."""
    return "differs" in self.token_arrays

  @property
  def coupled(self):
    """A pair's loss depends on the other pairs of the batch."""
    return "valid_B" in keywords_of(self.loss) or self.running is not None

  @property
  def start_loss(self):
    """The loss where policy and references agree; None where it depends."""
    fixed = {"logratio_BC", "kl_BC", "win_rate_BC", "phi_B", "scale_B"}
    if not fixed.issuperset(arrays_of(self.loss)) or self.nll:
      return None
    if self.pair_weight is not None:
      return None
    zero_BC, one_BC = jnp.zeros((1, 2)), jnp.ones((1, 2))
    figures = {key: one_BC for key in self.needs} | {"kl_BC": zero_BC}
    if self.betas is not None:
      zero_BCK = jnp.zeros((1, 2, len(self.betas)))
      return float(self(zero_BC, zero_BCK, **figures)[0])
    # References that agree are one, whatever weighs them.
    rule = stateless(uniform_weights)
    alone = dataclasses.replace(self, rule=rule, official_weights=False)
    return float(alone(zero_BC, zero_BC[..., None], **figures)[0])

  # What it remembers.

  def init(self, K):
    """The state before the first step: a tree of arrays, empty for most."""
    state = {"weights": self.rule.init(K)}
    if self.scale == "zscore":
      state["scale"] = jnp.ones(K)
    if self.running is not None:
      state["margin"] = jnp.zeros(3)  # sums of mean, deviation, 1
    if self.learns:
      state["accuracy"] = jnp.full((), -1.0)  # none so far
    return state

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
    state, splits = dict(state), dict(train=train, validation=validation)
    for split in sorted(self.measures):
      if splits[split] is None:
        raise ValueError(f"loss {self.name!r} measures the {split} pairs")
    if self.scale == "zscore":
      check(ref_logp_NCK=train["ref_logp_NCK"], scale_K=state["scale"])
      factor_K = scale_factors(train["ref_logp_NCK"])
      state["scale"] = factor_K.astype(state["scale"].dtype)
    if self.rule.measure:
      score_NCK = self._scaled_references(
        validation["ref_logp_NCK"],
        validation.get("ref_length_NCK"),
        validation.get("character_NC"),
        state,
      )
      state["weights"] = self.rule.measure(state["weights"], score_NCK)
    return state

  def update(self, state, policy_logp_BC, ref_logp_BCK, **figures):
    """The state after a step on these pairs; arguments as in `__call__`."""
    policy_BC, ref_BCK = self.scaled(
      policy_logp_BC, ref_logp_BCK, state=state, **figures
    )
    state = dict(state)
    if self.running is not None:
      valid_B = figures.get("valid_B")
      state["margin"] = self._running(state, policy_BC, ref_BCK, valid_B)
    if ref_BCK is not None:
      state["weights"] = self.rule.update(state["weights"], ref_BCK)
    return state

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

  def _state(self, state, ref_logp_BCK):
    if state is not None:
      return state
    return self.init(0 if ref_logp_BCK is None else ref_logp_BCK.shape[-1])

  def _running(self, state, policy_BC, ref_BCK, valid_B):
    """Decayed sums of the margin's mean and deviation, this batch included."""
    ref_BC = self._virtual(state, ref_BCK)
    moments = masked_moments(margin(policy_BC - ref_BC), valid_B)
    newest = jax.lax.stop_gradient(jnp.stack([*moments, jnp.ones(())]))
    return self.running * state["margin"] + (1.0 - self.running) * newest

  # What stands for the references.

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
    policy_BC = self._per(widen(policy_logp_BC), length_BC, character_BC)
    if ref_logp_BCK is None:
      return policy_BC, None
    check(policy_BC=policy_BC, ref_logp_BCK=ref_logp_BCK)
    if ref_length_BCK is None and length_BC is not None:
      ref_length_BCK = jnp.asarray(length_BC)[..., None]
    return policy_BC, self._scaled_references(
      ref_logp_BCK, ref_length_BCK, character_BC, state
    )

  def _scaled_references(self, ref_logp_BCK, length_BCK, character_BC, state):
    ref_BCK = jax.lax.stop_gradient(widen(ref_logp_BCK))
    if self.scale == "zscore":
      factor_K = self._state(state, ref_BCK)["scale"]
      check(ref_BCK=ref_BCK, factor_K=factor_K)
      return ref_BCK * factor_K[None, None]
    if character_BC is not None:
      character_BC = jnp.asarray(character_BC)[..., None]
    return self._per(ref_BCK, length_BCK, character_BC)

  def _per(self, value, length, character):
    """value per token or character, where that is the unit."""
    counts = {"mean": ("length_BC", length)}
    counts["character"] = ("character_BC", character)
    if self.scale not in counts:
      return value
    key, count = counts[self.scale]
    count = widen(jnp.asarray(_need(self.name, {key: count}, key)))
    return value / jnp.maximum(count, 1.0)

  def weights(self, state, ref_BCK):
    """[K] or [B, K] of references in the method's unit."""
    K = ref_BCK.shape[-1]
    if self.single and K != 1:
      raise ValueError(
        f"loss {self.name!r} takes one reference, got K={K}; "
        "name a mixture: harmonic, geometric, arithmetic, multi, ..."
      )
    return self.rule.weights(state["weights"], ref_BCK)

  def mixing(self, state, ref_BCK):
    """weight_BK that the mixture uses: the weights, times betas if given."""
    return self._mixing(state, ref_BCK)[0]

  def _mixing(self, state, ref_BCK):
    """(weight, beta_B); the second is None where there is one beta."""
    weight = self.weights(state, ref_BCK)
    if self.betas is None:
      return weight, None
    K = ref_BCK.shape[-1]
    if len(self.betas) != K:
      raise ValueError(
        f"loss {self.name!r} has {len(self.betas)} betas, but K={K} references"
      )
    share_BK = normalised_weight(weight, ref_BCK)
    share_BK = share_BK * jnp.asarray(self.betas, share_BK.dtype)[None]
    return share_BK, jnp.sum(share_BK, axis=-1)

  def virtual(self, ref_BCK, state=None):
    """logp_BC, in the method's unit, of the one reference that stands for K.

    For one loss per reference it is their geometric mean, against which the
    reward is the weighted mean of the K rewards.
    """
    return self._virtual(self._state(state, ref_BCK), ref_BCK)

  def _virtual(self, state, ref_BCK):
    return virtual_reference(
      ref_BCK,
      weight=self.mixing(state, ref_BCK),
      epsilon_max=self.epsilon_max,
      adaptive_epsilon=self.adaptive_epsilon,
      p=0 if self.p is None else self.p,
      official_weights=self.official_weights,
    )

  def _mixed(self, loss_against, state, ref_BCK):
    """`loss_against(ref_BC)` of the mixture, or its weighted sum over K."""
    if not self.takes_reference:
      return loss_against(None)
    if ref_BCK is None:
      raise ValueError(f"loss {self.name!r} needs a reference")
    if "ref_margin_BK" in arrays_of(self.loss):
      return loss_against(ref_BCK)
    _, beta_B = self._mixing(state, ref_BCK)
    if self.p is not None:
      return loss_against(self._virtual(state, ref_BCK), beta_B)
    return weighted_losses(
      loss_against,
      ref_BCK,
      weight=self.weights(state, ref_BCK),
      epsilon_max=self.epsilon_max,
      adaptive_epsilon=self.adaptive_epsilon,
      betas=self.betas,
    )

  # What the loss is called with.

  def _hyper(self, state, policy_BC, ref_BCK, figures):
    """Its keywords, with what this batch and the steps before say."""
    hyper = dict(self.hyper)
    takes = keywords_of(self.loss)
    if "valid_B" in takes:
      hyper["valid_B"] = figures.get("valid_B")
    if "scale_B" in takes and self.dispersion is not None:
      hyper["scale_B"] = self._scale(figures)
    if "ref_margin_BK" in arrays_of(self.loss):
      hyper["weight"] = self.weights(state, ref_BCK)
    if self.running is None:
      return hyper
    valid_B = figures.get("valid_B")
    sums = self._running(state, policy_BC, ref_BCK, valid_B)
    mean, deviation = sums[:2] / sums[2]
    if self.adaptive_beta is not None:
      ref_BC = self._virtual(state, ref_BCK)
      hyper["beta"] = adaptive_beta(
        margin(policy_BC - ref_BC),
        mean,
        beta=self.beta,
        strength=self.adaptive_beta,
        valid_B=valid_B,
      )
    if "std" in takes:
      deviation = jnp.where(deviation > 0, deviation, 1.0)
      hyper |= dict(mean=self.beta * mean, std=self.beta * deviation)
    return hyper

  def _scale(self, figures):
    entropy_BC = _need(self.name, figures, "normalised_entropy_BC")
    return dispersion_scale(
      neg_log_dispersion(entropy_BC), mean=self.dispersion
    )

  def _given(self, policy_logp_BC, policy_BC, figures):
    """Arrays, by name and made when asked for, that need no reference."""

    def chosen_mean():
      length_BC = _need(self.name, figures, "length_BC")
      length_B = jnp.maximum(widen(length_BC[:, CHOSEN]), 1.0)
      return widen(policy_logp_BC[:, CHOSEN]) / length_B

    def scale():
      if self.dispersion is None:
        return jnp.ones(len(policy_BC))
      return self._scale(figures)

    def phi():
      if self.dispersion is None:
        return jnp.full(len(policy_BC), self.stand_ins["phi"])
      return jnp.exp(-self._scale(figures))

    def win_rate():
      rate = self.stand_ins["win_rate"]
      return jnp.broadcast_to(jnp.array([[rate, 1.0 - rate]]), policy_BC.shape)

    made = dict.fromkeys(
      ("policy_logp_BC", "logp_BC", "mean_logp_BC"), lambda: policy_BC
    )
    made |= dict.fromkeys(("mean_logp_B", "gold_mean_logp_B"), chosen_mean)
    made |= dict(scale_B=scale, phi_B=phi, win_rate_BC=win_rate)
    made["policy_margin_B"] = lambda: margin(policy_BC)
    return made | {
      key: functools.partial(_same, array) for key, array in figures.items()
    }


def _same(array):
  return array


def _against(policy_BC, ref_BC):
  """Arrays of a loss against a reference, by name."""
  return {
    "logratio_BC": lambda: policy_BC - ref_BC,
    "ref_logp_BC": lambda: ref_BC,
    "ref_mean_logp_BC": lambda: ref_BC,
    "ref_margin_BK": lambda: ref_BC[:, CHOSEN] - ref_BC[:, REJECTED],  # all K
  }


def _with_betas(loss, arrays, hyper, beta_B):
  """loss_B of a loss whose beta is another for each pair."""
  hyper = dict(hyper)
  # What is there per pair goes with its pair.
  own = {"beta": beta_B}
  if jnp.ndim(hyper.get("scale_B", 1.0)):
    own["scale_B"] = hyper.pop("scale_B")

  def of_one(arrays, own):
    arrays = [array[None] for array in arrays]
    return _per_pair(loss(*arrays, **{**hyper, **own}), arrays[0])[0]

  return jax.vmap(of_one)(arrays, own)


def _need(name, arrays, key):
  if arrays.get(key) is None:
    raise ValueError(f"loss {name!r} needs {key}")
  return arrays[key]


def _per_pair(loss, policy_BC):
  """loss_B of what a loss returned: a scalar, [B], or one per response."""
  if loss.ndim == 2:
    return jnp.mean(loss, axis=-1)
  return jnp.broadcast_to(loss, policy_BC.shape[:1])
