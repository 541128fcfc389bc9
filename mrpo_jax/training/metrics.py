# SPDX-License-Identifier: Apache-2.0
"""Metrics of preference pairs and of single responses with labels."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

from mrpo_jax import losses
from mrpo_jax.losses.related import token_mean
from mrpo_jax.training.figures import (
  losses_of,
  reference_logps,
  values_of,
)


def pair_metrics(objective, state, figures, fixed):
  """dict of value_B: the loss, and rewards against each kind of reference.

  Plain names are against reference 0, or against none where there is none;
  `virtual/` is against what stands for all K, in the method's unit (sums, or
  means per token), times the weighted mean of the betas where each reference
  has its own; `policy/` against none, `policy_mean/` against none per
  token.  Log-probabilities are those of all tokens alike, whatever the loss
  weighs them by.  A scalar head has rewards alone, by their plain names, and
  rollouts the figures of their tokens.  Single responses have no pairs: see
  `_of_feedback`.
  """
  method = objective.method
  if method.tokens is not None:
    return _of_tokens(figures, fixed)
  if method.of_rewards:
    loss_B = losses_of(objective, state, figures, fixed)
    reward_BC = figures.reward_BC
    rewards = losses.preference_metrics(
      reward_BC, jnp.zeros_like(reward_BC), beta=1.0
    )
    return {"loss": loss_B} | _only_rewards(rewards)
  if method.unpaired:
    return _of_feedback(objective, state, figures, fixed)
  logp_BC, length_BC = figures.logp_BC, fixed.length_BC
  ref_logp_BCK = reference_logps(figures, fixed)
  values = {"loss": losses_of(objective, state, figures, fixed)}
  if method.supervised:
    return values | {"logps/chosen": logp_BC[:, 0]}
  against = functools.partial(losses.preference_metrics, beta=method.beta)
  zero_BC = jnp.zeros_like(logp_BC)
  mean_logp_BC = logp_BC / jnp.maximum(length_BC, 1.0)
  values |= _rewards("policy", against(logp_BC, zero_BC))
  values |= _rewards("policy_mean", against(mean_logp_BC, zero_BC))
  values |= _needed(objective, state, figures, fixed)
  if ref_logp_BCK is None:
    return values | against(logp_BC, zero_BC)
  values |= against(logp_BC, ref_logp_BCK[..., 0])
  state, policy_BC, ref_BCK = _in_unit(objective, state, figures, fixed)
  rewards = losses.preference_metrics(
    policy_BC,
    method.virtual(ref_BCK, state),
    beta=_virtual_beta(method, state, ref_BCK),
  )
  values |= _rewards("virtual", rewards)
  values |= losses.gradient_metrics(rewards["rewards/margins"])
  values |= _of_each_reference(objective, state, ref_BCK)
  return values | _as_they_are(objective, ref_logp_BCK, fixed)


def _in_unit(objective, state, figures, fixed):
  """(state with the weights of these pairs, policy_BC, ref_BCK)."""
  method = objective.method
  policy_BC, ref_BCK = method.scaled(
    figures.logp_BC,
    reference_logps(figures, fixed),
    state=state,
    length_BC=fixed.length_BC,
    ref_length_BCK=fixed.ref_length_BCK,
    character_BC=fixed.character_BC,
  )
  return method.mixing.of_pairs(state, fixed.weight_BK), policy_BC, ref_BCK


def _virtual_beta(method, state, ref_BCK):
  """beta_B1 against the mixture; the loss's own where it has one for all."""
  _, beta_B = method.mixing.shares(state, ref_BCK)
  return method.beta if beta_B is None else beta_B[:, None]


def _of_feedback(objective, state, figures, fixed):
  """dict of value_B of single responses, each with a label.

  What ends in `/chosen` is of those that are good and 0 at the others, and
  `/rejected` the other way round: `summary` divides them by their shares.  A
  reward is right where it has the sign of the label.
  """
  method, good_B = objective.method, fixed.desirable_B
  values = {"loss": losses_of(objective, state, figures, fixed)}
  values["desirable"] = good_B.astype(jnp.float32)
  logp_BC = figures.logp_BC
  ref_logp_BCK = reference_logps(figures, fixed)
  state, policy_BC, ref_BCK = _in_unit(objective, state, figures, fixed)
  logratio_BC = policy_BC - method.virtual(ref_BCK, state)
  virtual_BC = _virtual_beta(method, state, ref_BCK) * logratio_BC
  for prefix, reward_B in (
    ("", method.beta * (logp_BC - ref_logp_BCK[..., 0])[:, 0]),
    ("virtual/", virtual_BC[:, 0]),
  ):
    values |= _of_labels(f"{prefix}rewards", reward_B, good_B)
    is_right_B = jnp.where(good_B, reward_B, -reward_B) > 0
    values[f"{prefix}rewards/accuracies"] = is_right_B.astype(jnp.float32)
  values |= _of_labels("logps", logp_BC[:, 0], good_B)
  if method.mismatched:
    values["kl"] = logratio_BC[:, 1]
  weight, _ = method.mixing.shares(state, ref_BCK)
  about = losses.reference_metrics(ref_BCK, weight, **method.mixing.mean)
  for k, name in enumerate(objective.names):
    for figure in ("weight", "responsibility"):
      values[f"references/{name}/{figure}"] = about[figure][:, k]
  own = fixed.replace(ref_length_BCK=fixed.ref_length_BCK[:, :1])
  if fixed.character_BC is not None:
    own = own.replace(character_BC=fixed.character_BC[:, :1])
  return values | _as_they_are(objective, ref_logp_BCK[:, :1], own)


def _of_labels(name, value_B, good_B):
  return {
    f"{name}/chosen": jnp.where(good_B, value_B, 0.0),
    f"{name}/rejected": jnp.where(good_B, 0.0, value_B),
  }


def _by_label(means):
  """Means over the responses of a label, of sums over all; 0 for none.

  Margins are their differences, 0 where there is one label alone.
  """
  share = means["desirable"]
  found = {}
  for side, part in (("chosen", share), ("rejected", 1 - share)):
    for name, mean in means.items():
      if name.endswith(f"/{side}"):
        found[name] = mean / (part + (part == 0))
  for name in [*found]:
    if name.endswith("rewards/chosen"):
      start = name.removesuffix("chosen")
      gap = found[name] - found[f"{start}rejected"]
      found[f"{start}margins"] = gap * (0 < share) * (share < 1)
  return found


def ranking(values):
  """{"rewards/auc": ...} of value_N of single responses; {} of pairs.

  That is how often a good response has a larger reward than a bad one, where
  ties count half.  Without one of both there is none.
  """
  if "desirable" not in values:
    return {}
  reward_N = values["rewards/chosen"] + values["rewards/rejected"]
  good_N = values["desirable"] > 0
  bad = np.sort(reward_N[~good_N])
  if not 0 < len(bad) < len(reward_N):
    return {}
  below = [np.searchsorted(bad, reward_N[good_N], s) for s in ("left", "right")]
  return {"rewards/auc": float(np.mean(below) / len(bad))}


OF_TOKENS = {  # figures of `TokenLoss` -> names of metrics
  "loss": "loss",
  "policy": "loss/policy",
  "value": "loss/value",
  "kl": "kl/token",
  "ratio": "ratio",
  "clipped": "ratio/clipped",
  "returns": "returns",
}
# By them stands how much of the returns a value explains.
MOMENTS = ("returns_squared", "error", "error_squared")
ALIKE = 1e-8  # variance of returns that do not differ


def _of_tokens(figures, fixed):
  """dict of value_B whose means are over tokens; see `token_mean`."""
  return {
    OF_TOKENS.get(name, name): token_mean(value_BC, fixed.length_BC)
    for name, value_BC in figures.tokens_BC.items()
  }


def _explained(means):
  """1 - Var(return - value) / Var(return): 1 for a value that foresees all.

  0 for one that is the same everywhere, and where the returns are all one.
  """
  variance = means["returns_squared"] - means["returns"] ** 2
  error = means["error_squared"] - means["error"] ** 2
  return (1.0 - error / (variance + ALIKE)) * (variance > ALIKE)


def _of_each_reference(objective, state, ref_BCK):
  """dict of value_B: each reference in the mixture, in the method's unit."""
  method, names = objective.method, objective.names
  arguments = method.mixing.mean
  weight, _ = method.mixing.shares(state, ref_BCK)
  about = losses.reference_metrics(ref_BCK, weight, **arguments)
  values = {"effective_references": about.pop("effective_references")}
  for k, name in enumerate(names):
    for figure, value_BK in about.items():
      values[f"references/{name}/{figure}"] = value_BK[:, k]
  if len(names) == 1:
    return values
  relations = losses.reference_relations(ref_BCK, weight, **arguments)
  values["weights_cancel"] = relations["cancels"]
  for j, k in itertools.combinations(range(len(names)), 2):
    key = f"references/{names[j]}/agreement/{names[k]}"
    values[key] = relations["agreement"][:, j, k]
  return values


def _as_they_are(objective, ref_logp_BCK, fixed):
  """dict of value_B: each reference by itself, whatever the loss does."""
  values = {}
  size_BCK = {"token_logp": fixed.ref_length_BCK}
  if fixed.character_BC is not None:
    character_BC = fixed.character_BC
    values["characters"] = jnp.mean(character_BC, axis=1)
    size_BCK["character_logp"] = character_BC[..., None]
  for figure, count_BCK in size_BCK.items():
    mean_BK = jnp.mean(ref_logp_BCK / jnp.maximum(count_BCK, 1.0), axis=1)
    for k, name in enumerate(objective.names):
      values[f"references/{name}/{figure}"] = mean_BK[:, k]
  for k, name in enumerate(objective.names):
    about = f"references/{name}/"
    values[about + "tokens"] = jnp.mean(fixed.ref_length_BCK[..., k], 1)
    values[about + "logp_size"] = jnp.mean(jnp.abs(ref_logp_BCK[..., k]), 1)
  for (j, one), (k, other) in itertools.combinations(
    enumerate(objective.names), 2
  ):
    apart_BC = jnp.abs(ref_logp_BCK[..., j] - ref_logp_BCK[..., k])
    values[f"references/{one}/distance/{other}"] = jnp.mean(apart_BC, axis=1)
  return values


def summary(values, mean):
  """Means of value_B over pairs, and what follows from them.

  That is the deviations of those that spread; of single responses the means by
  label; of rollouts how much of the returns the value explains.

  `mean` takes one value_B, an array of any library.
  """
  means = {name: mean(value_B) for name, value_B in values.items()}
  for name, value_B in values.items():
    if name == "gradient_scale" or _is_margin(name):
      variance = mean((value_B - means[name]) ** 2)
      means[f"{name}_sd"] = variance**0.5
  if "desirable" in means:
    means |= _by_label(means)
  if "error" in means:
    means["value/explained_variance"] = _explained(means)
    means = {name: one for name, one in means.items() if name not in MOMENTS}
  return means


def _is_margin(name):
  return name.startswith("references/") and name.endswith("/margin")


def _only_rewards(values):
  return {k: one for k, one in values.items() if k.startswith("rewards/")}


def _rewards(prefix, values):
  return {f"{prefix}/{k}": one for k, one in _only_rewards(values).items()}


def _needed(objective, state, figures, fixed):
  """dict of value_B: figures that only some methods need."""
  values = {}
  if figures.kl_BC is not None:
    values["kl/chosen"] = figures.kl_BC[:, 0]
    values["kl/rejected"] = figures.kl_BC[:, 1]
  if fixed.normalised_entropy_BC is not None:
    values["neg_log_dispersion"] = losses.neg_log_dispersion(
      fixed.normalised_entropy_BC
    )
  if objective.needs("value_B"):
    values["auxiliary/chosen"] = fixed.aux_reward_BC[:, 0]
    values["auxiliary/rejected"] = fixed.aux_reward_BC[:, 1]
    values["auxiliary/value"] = values_of(state, figures)
  return values
