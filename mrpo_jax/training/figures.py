# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and further figures of a batch, from its models."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from mrpo_jax import losses
from mrpo_jax.losses.methods.token_loss import GIVEN
from mrpo_jax.models import packed
from mrpo_jax.training import value
from mrpo_jax.training.stacked import Stacked


@flax.struct.dataclass
class FixedFigures:
  """Figures of the pairs of a step that no parameter of the policy changes.

  Sums over the tokens of a response; None is what the method does not need.
  """

  length_BC: jax.Array  # in the policy's tokens; 0 where there is no pair
  valid_B: jax.Array
  character_BC: jax.Array | None = None  # as the data have them
  weight_BK: jax.Array | None = None  # of the references, as the data have them
  aux_reward_BC: jax.Array | None = None  # of the responses, as the store has
  desirable_B: jax.Array | None = None  # labels of single responses
  ref_length_BCK: jax.Array | None = None  # in each reference's tokens
  ref_logp_BCK: jax.Array | None = None  # nats
  normalised_entropy_BC: jax.Array | None = None  # of reference 0, in [0, 1]
  # Of every token, nats; over the parts of the policy's view.
  token_logp_ARMK: tuple[jax.Array, ...] | None = None
  # Of rollouts: {name: value of every token}, over the same parts.
  tokens_ARM: tuple[dict[str, jax.Array], ...] | None = None


@flax.struct.dataclass
class PolicyFigures:
  """Figures of the pairs under the policy: sums over response tokens, nats.

  A micro-batch leaves 0 at the responses that it does not hold, so the figures
  of a step are the sum over its micro-batches.  None is what the method does
  not need.
  """

  # In this order their gradients are summed: another one rounds otherwise.
  # log p - log sum p^2, of which `losses.wpo_weight` wants the mean.
  excess_BC: jax.Array | None = None
  kl_BC: jax.Array | None = None  # divergence from reference 0
  logp_BC: jax.Array | None = None
  ref_logp_BCK: jax.Array | None = None  # of reference 0, run along for kl_BC
  # Log-probabilities times the token weight.
  ref_score_BCK: jax.Array | None = None
  score_BC: jax.Array | None = None
  reward_BC: jax.Array | None = None  # of a scalar head, which has no others
  tokens_BC: dict[str, jax.Array] | None = None  # of `losses.TokenLoss`
  # Of the prompts: the last token's state, without a gradient; no sum.
  prompt_BD: jax.Array | None = None


def reference_figures(objective, references, views, given):
  """The FixedFigures of a step.

  Args:
    objective: Objective.
    references: tuple of K frozen parameter trees, None where scored before;
      or of Stacked ones.
    views: see `step.train_step`.
    given: dict of what is known of the pairs beforehand: `character_BC`,
      characters of the responses; `weight_BK` where the data weigh the
      references; `aux_reward_BC` where the method follows rewards;
      `desirable_B` of single responses; where references were scored
      `ref_logp_BCK` and `ref_length_BCK` (of the others any number),
      `entropy_BC` of reference 0 and `ref_token_logp_ARMK`, if the method
      needs them; `tokens_ARM` of rollouts.  It may be empty where all are
      online.

  Where the method needs the divergence from the reference, that one's
  log-probabilities come with it, in the PolicyFigures.  Of rollouts all is
  given: no reference is run.
  """
  length_BC = objective.policy.lengths(views, objective.pairs)
  fixed = FixedFigures(
    length_BC,
    length_BC[:, 0] > 0,
    character_BC=given.get("character_BC"),
    weight_BK=given.get("weight_BK"),
    aux_reward_BC=given.get("aux_reward_BC"),
    desirable_B=given.get("desirable_B"),
  )
  if objective.method.tokens is not None:
    return fixed.replace(tokens_ARM=_of_rollouts(objective, given))
  if not objective.references:
    return fixed
  fixed = fixed.replace(ref_length_BCK=_lengths(objective, views, given))
  if objective.needs("kl_BC"):
    return fixed
  wants_entropy = objective.needs("normalised_entropy_BC")
  also = ("entropy",) if wants_entropy else ()
  parts_of = _online_figures(objective, references, views, also)

  def summed(name, k):
    """[..., k] of what was given, or the sum over reference k's tokens."""
    if k not in parts_of:
      return given[f"ref_{name}_BCK"][..., k]
    rows = views[objective.references[k].view]
    return _summed(name, parts_of[k], rows, objective.pairs)

  K = range(len(objective.references))
  fixed = fixed.replace(
    ref_logp_BCK=jnp.stack([summed("logp", k) for k in K], axis=-1)
  )
  if wants_entropy:
    entropy_BC = summed("entropy", 0) if 0 in parts_of else given["entropy_BC"]
    fixed = fixed.replace(
      normalised_entropy_BC=losses.normalised_entropy(
        entropy_BC,
        fixed.ref_length_BCK[..., 0],
        vocab_size=objective.references[0].config.vocab_size,
      )
    )
  if objective.method.token_weight is not None:
    fixed = fixed.replace(token_logp_ARMK=_tokens(objective, parts_of, given))
  return jax.lax.stop_gradient(fixed)


def _of_rollouts(objective, given):
  """What is given of every token; ValueError where it lacks."""
  if "tokens_ARM" not in given:
    raise ValueError(
      f"loss {objective.method.name!r} learns from rollouts: the batch has no "
      f"`tokens_ARM` of {', '.join(GIVEN)}"
    )
  return jax.lax.stop_gradient(given["tokens_ARM"])


def _lengths(objective, views, given):
  """ref_length_BCK, of each reference by its own tokenizer."""
  lengths = [
    given["ref_length_BCK"][..., k]
    if model.scored
    else model.lengths(views, objective.pairs)
    for k, model in enumerate(objective.references)
  ]
  return jnp.stack(lengths, axis=-1)


def _tokens(objective, parts_of, given):
  """token_logp_ARMK over the parts; all read the policy's tokens."""
  K = range(len(objective.references))
  scored = given.get("ref_token_logp_ARMK")
  parts = len(scored or next(iter(parts_of.values())))
  return tuple(
    jnp.stack(
      [
        parts_of[k][n]["logp"] if k in parts_of else scored[n][..., k]
        for k in K
      ],
      axis=-1,
    )
    for n in range(parts)
  )


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


def policy_parts(objective, views, fixed):
  """The policy's parts, each with what is known of its tokens beforehand.

  That is the references' log-probabilities, and the values of rollouts.
  """
  parts = views[objective.policy.view]
  none = (None,) * len(parts)
  known = (fixed.token_logp_ARMK or none, fixed.tokens_ARM or none)
  return tuple(zip(parts, *known, strict=True))


def policy_figures(objective, references, key, params, micro):
  """The PolicyFigures of one micro-batch; differentiable in `params`.

  Args:
    objective: Objective.
    references: tuple of K frozen parameter trees.
    key: of what the method draws in this micro-batch.
    params: the policy's.
    micro: one micro-batch of one of `policy_parts`.
  """
  rows, ref_logp_RMK, known = micro
  method, pairs = objective.method, objective.pairs
  if method.of_rewards:
    reward_BC = objective.policy.rewards(params, rows, pairs)
    return PolicyFigures(reward_BC=reward_BC)
  if method.tokens is not None:
    return _token_losses(objective, params, rows, known)
  against = None
  if objective.needs("kl_BC"):
    base = objective.references[0]
    against = (base.config, references[0], base.computation)
  also = ("log_sum_sq",) if objective.needs("mean_excess_BC") else ()
  tokens = objective.policy.token_figures(
    params,
    rows,
    pairs,
    also=also,
    against=against,
    prompts=objective.needs("value_B"),
  )

  def summed(value):
    return packed.per_response(value, rows.slots_RM, pairs)

  logp_RM, excess_BC, kl_BC, ref_logp_BCK = tokens["logp"], None, None, None
  score_BC = ref_score_BCK = None
  if against is not None:
    kl_BC = summed(tokens["kl"])
    ref_logp_BCK = summed(tokens["ref_logp"])[..., None]
  if also:
    excess_RM = jax.lax.stop_gradient(logp_RM) - tokens["log_sum_sq"]
    excess_BC = summed(excess_RM)
  if method.token_weight is not None:
    places = packed.token_places(rows, pairs)
    places |= {"key": key, "token_logp": logp_RM}
    places["keep"] = places["shorter_length"]
    weight_RM = method.token_weight(places)
    score_BC = summed(weight_RM * logp_RM)
    if ref_logp_RMK is not None:
      ref_score_BCK = summed(weight_RM[:, :, None] * ref_logp_RMK)
  return PolicyFigures(
    excess_BC,
    kl_BC,
    summed(logp_RM),
    ref_logp_BCK,
    ref_score_BCK,
    score_BC,
    prompt_BD=tokens.get("prompt_BD"),
  )


def _token_losses(objective, params, rows, known):
  """The PolicyFigures of rollouts: sums of what each token gives."""
  pairs = objective.pairs
  tokens = objective.policy.token_figures(params, rows, pairs, also=("value",))
  found = objective.method.tokens(tokens["logp"], tokens["value"], known)

  def summed(value):
    return packed.per_response(value, rows.slots_RM, pairs)

  return PolicyFigures(
    logp_BC=summed(tokens["logp"]), tokens_BC=jax.tree.map(summed, found)
  )


def method_arguments(figures, fixed):
  """(policy, references, further keywords) of a call of the method."""
  policy_BC = _given(figures.score_BC, said_of_responses(figures))
  ref_BCK = _given(figures.ref_score_BCK, reference_logps(figures, fixed))
  more = dict(
    length_BC=fixed.length_BC,
    ref_length_BCK=fixed.ref_length_BCK,
    character_BC=fixed.character_BC,
    weight_BK=fixed.weight_BK,
    aux_reward_BC=fixed.aux_reward_BC,
    desirable_B=fixed.desirable_B,
    valid_B=fixed.valid_B,
    normalised_entropy_BC=fixed.normalised_entropy_BC,
    kl_BC=figures.kl_BC,
  )
  if figures.excess_BC is not None:
    length_BC = jnp.maximum(fixed.length_BC, 1.0)
    more["mean_excess_BC"] = figures.excess_BC / length_BC
  if figures.tokens_BC is not None:
    more["token_loss_BC"] = figures.tokens_BC["loss"]
  more = {name: value for name, value in more.items() if value is not None}
  return policy_BC, ref_BCK, more


def said_of_responses(figures):
  """logp_BC, or reward_BC of a scalar head."""
  return _given(figures.reward_BC, figures.logp_BC)


def reference_logps(figures, fixed):
  """ref_logp_BCK, summed over tokens without weights; None without any."""
  return _given(fixed.ref_logp_BCK, figures.ref_logp_BCK)


def _given(value, other):
  return other if value is None else value


def losses_of(objective, state, figures, fixed):
  """loss_B; `state` is the method's."""
  policy_BC, ref_BCK, more = method_arguments(figures, fixed)
  if objective.needs("value_B"):
    more["value_B"] = values_of(state, figures)
  return objective.method(policy_BC, ref_BCK, state=state, **more)


def values_of(state, figures):
  """value_B of the prompts, by the network in the method's state."""
  return value.value(state[value.STATE]["params"], figures.prompt_BD)
