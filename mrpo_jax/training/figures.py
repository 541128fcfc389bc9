# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and further figures of a batch, from its models."""

import functools

import jax
import jax.numpy as jnp

from mrpo_jax import losses
from mrpo_jax.models import packed
from mrpo_jax.training.stacked import Stacked


def reference_figures(objective, references, views, given):
  """What does not depend on the policy's parameters.

  Args:
    objective: Objective.
    references: tuple of K frozen parameter trees, None where scored before;
      or of Stacked ones.
    views: see `step.train_step`.
    given: dict of what is known of the pairs beforehand: `character_BC`,
      characters of the responses; where references were scored `ref_logp_BCK`
      and `ref_length_BCK` (of the others any number), `entropy_BC` of
      reference 0 and `ref_token_logp_ARMK`, as below, if the method needs
      them.  It may be empty where all are online.

  Returns:
    dict: `length_BC` in the policy's tokens, `valid_B`, `character_BC` as
    given; with references `ref_logp_BCK`, `ref_length_BCK`, and what of these
    the method needs: `normalised_entropy_BC` of reference 0,
    `token_logp_ARMK`, a tuple over the parts of the policy's view.  Where it
    needs the divergence from the reference, that one's log-probabilities come
    with it, in `policy_figures`.
  """
  pairs, method = objective.pairs, objective.method
  length_BC = objective.policy.lengths(views, pairs)
  figures = {"length_BC": length_BC, "valid_B": length_BC[:, 0] > 0}
  if "character_BC" in given:
    figures["character_BC"] = given["character_BC"]
  if not objective.references:
    return figures
  ref_lengths = [
    given["ref_length_BCK"][..., k]
    if model.scored
    else model.lengths(views, pairs)
    for k, model in enumerate(objective.references)
  ]
  figures["ref_length_BCK"] = jnp.stack(ref_lengths, axis=-1)
  if objective.needs("kl_BC"):
    return figures
  wants_entropy = objective.needs("normalised_entropy_BC")
  also = ("entropy",) if wants_entropy else ()
  parts_of = _online_figures(objective, references, views, also)
  logps, tokens = [], []
  for k, model in enumerate(objective.references):
    if model.scored:
      logps.append(given["ref_logp_BCK"][..., k])
      tokens.append(None)
      continue
    parts, rows = parts_of[k], views[model.view]
    logps.append(_summed("logp", parts, rows, pairs))
    tokens.append([part["logp"] for part in parts])
    if k == 0 and wants_entropy:
      given = {**given, "entropy_BC": _summed("entropy", parts, rows, pairs)}
  figures["ref_logp_BCK"] = jnp.stack(logps, axis=-1)
  if wants_entropy:
    figures["normalised_entropy_BC"] = losses.normalised_entropy(
      given["entropy_BC"],
      ref_lengths[0],
      vocab_size=objective.references[0].config.vocab_size,
    )
  if method.token_weight is not None:
    figures["token_logp_ARMK"] = tuple(
      jnp.stack(
        [
          given["ref_token_logp_ARMK"][n][..., k] if one is None else one[n]
          for k, one in enumerate(tokens)
        ],
        axis=-1,
      )
      for n in range(len(views[objective.policy.view]))
    )
  return jax.lax.stop_gradient(figures)


def _online_figures(objective, references, views, also_of_first):
  """{k: `Model.all_token_figures`} of the references that are online."""
  found = {}
  for k, (model, params) in enumerate(
    zip(objective.references, references, strict=True)
  ):
    figures_of = functools.partial(
      model.all_token_figures,
      views=views,
      pairs=objective.pairs,
      also=also_of_first if k == 0 else (),
    )
    if isinstance(params, Stacked):
      stacked = jax.lax.map(figures_of, params.params)
      for n, member in enumerate(params.members):
        found[member] = jax.tree.map(lambda value, n=n: value[n], stacked)
    elif params is not None:
      found[k] = figures_of(params)
  return found


def _summed(name, parts, rows, pairs):
  """sum_BC of a figure of every token, over the parts of a view."""
  return sum(
    packed.per_response(part[name], one.slots_RM, pairs)
    for part, one in zip(parts, rows, strict=True)
  )


def policy_parts(objective, views, frozen):
  """The policy's parts, each with its references' token log-probabilities."""
  parts = views[objective.policy.view]
  tokens = frozen.get("token_logp_ARMK", (None,) * len(parts))
  return tuple(zip(parts, tokens, strict=True))


def policy_figures(objective, references, key, params, micro):
  """What the policy says of one micro-batch; differentiable in `params`.

  Args:
    objective: Objective.
    references: tuple of K frozen parameter trees.
    key: of what the method draws in this micro-batch.
    params: the policy's.
    micro: one micro-batch of one of `policy_parts`.

  Returns:
    dict: `logp_BC`; with a token weight `score_BC` and `ref_score_BCK`, the
    weighted sums; where the method needs them `kl_BC` with `ref_logp_BCK`,
    and `excess_BC`, the sum over tokens of what `losses.wpo_weight` wants the
    mean of.
  """
  rows, ref_logp_RMK = micro
  method, pairs = objective.method, objective.pairs
  against = None
  if objective.needs("kl_BC"):
    base = objective.references[0]
    against = (base.config, references[0], dict(base.forward))
  also = ("log_sum_sq",) if objective.needs("mean_excess_BC") else ()
  tokens = objective.policy.token_figures(
    params, rows, pairs, also=also, against=against
  )

  def summed(value):
    return packed.per_response(value, rows.slots_RM, pairs)

  logp_RM = tokens["logp"]
  figures = {"logp_BC": summed(logp_RM)}
  if against is not None:
    figures["kl_BC"] = summed(tokens["kl"])
    figures["ref_logp_BCK"] = summed(tokens["ref_logp"])[..., None]
  if also:
    excess_RM = jax.lax.stop_gradient(logp_RM) - tokens["log_sum_sq"]
    figures["excess_BC"] = summed(excess_RM)
  if method.token_weight is not None:
    places = packed.token_places(rows, pairs)
    places |= {"key": key, "token_logp": logp_RM}
    places["keep"] = places["shorter_length"]
    weight_RM = method.token_weight(places)
    figures["score_BC"] = summed(weight_RM * logp_RM)
    if ref_logp_RMK is not None:
      figures["ref_score_BCK"] = summed(weight_RM[:, :, None] * ref_logp_RMK)
  return figures


def method_arguments(figures, frozen):
  """(policy, references, further keywords) of a call of the method."""
  policy_BC = figures.get("score_BC", figures["logp_BC"])
  ref_BCK = figures.get("ref_score_BCK", reference_logps(figures, frozen))
  names = ("length_BC", "ref_length_BCK", "character_BC", "valid_B")
  names += ("normalised_entropy_BC",)
  more = {name: frozen[name] for name in names if name in frozen}
  if "kl_BC" in figures:
    more["kl_BC"] = figures["kl_BC"]
  if "excess_BC" in figures:
    length_BC = jnp.maximum(frozen["length_BC"], 1.0)
    more["mean_excess_BC"] = figures["excess_BC"] / length_BC
  return policy_BC, ref_BCK, more


def reference_logps(figures, frozen):
  """ref_logp_BCK, summed over tokens without weights; None without any."""
  return frozen.get("ref_logp_BCK", figures.get("ref_logp_BCK"))


def losses_of(objective, state, figures, frozen):
  """loss_B; `state` is the method's."""
  policy_BC, ref_BCK, more = method_arguments(figures, frozen)
  return objective.method(policy_BC, ref_BCK, state=state, **more)
