# SPDX-License-Identifier: Apache-2.0
"""What is trained against what, and what its models say of a batch.

Figures are dicts of arrays over the pairs of a step, named with their axes.
Those of the frozen references come first; the policy's are sums over
micro-batches, each of which leaves 0 at the responses that it does not hold.
"""

import dataclasses
import functools
import itertools

import flax.struct
import jax
import jax.numpy as jnp

from mrpo_jax import losses
from mrpo_jax.losses.method import Method
from mrpo_jax.models import rows as packed
from mrpo_jax.models.spec import ModelConfig


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as the step sees it; its parameters are arguments."""

  config: ModelConfig
  view: int = 0  # which tokenizer's rows it reads
  forward: tuple[tuple[str, object], ...] = ()  # kernel, remat, dtype, split
  head: tuple[tuple[str, object], ...] = ()  # chunk
  scored: bool = False  # its figures are given: no parameters, no rows

  def token_figures(self, params, rows, pairs, **wanted):
    """`rows.token_figures` of one micro-batch."""
    how = dict(self.forward + self.head)
    return packed.token_figures(
      self.config, params, rows, pairs, **wanted, **how
    )

  def all_token_figures(self, params, views, pairs, *, also=()):
    """List over the parts of the model's view of dict of value_ARM."""
    return [
      packed.all_token_figures(
        self.config,
        params,
        rows,
        pairs,
        also=also,
        **dict(self.forward + self.head),
      )
      for rows in views[self.view]
    ]

  def lengths(self, views, pairs):
    """length_BC in its tokens; 0 where a batch holds fewer pairs."""
    return sum(
      packed.response_lengths(rows, pairs) for rows in views[self.view]
    )


@flax.struct.dataclass
class Stacked:
  """Parameters of references that differ in their numbers alone.

  It stands at the first of them, None at the others: one program, compiled
  once, runs them one after the other.
  """

  params: dict  # leaves with an axis in front, one place for each member
  members: tuple[int, ...] = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Objective:
  """Everything static of a step."""

  pairs: int  # B
  policy: Model
  references: tuple[Model, ...]  # K of them; 0 is the base
  names: tuple[str, ...]
  method: Method  # losses.build(...)

  @property
  def views(self):
    """How many tokenizers' rows the step reads."""
    online = [model.view for model in self.references if not model.scored]
    return 1 + max([self.policy.view, *online])

  def compares_tokens(self):
    """Do references have to read the policy's tokens?"""
    return self.method.token_weight is not None or self.needs("kl_BC")

  def needs(self, figure):
    return figure in self.method.needs

  def check(self):
    """Raises ValueError where the models cannot give what the method needs."""
    for name, model in zip(self.names, self.references, strict=True):
      if self.compares_tokens() and model.view != self.policy.view:
        raise ValueError(
          f"loss {self.method.name!r} compares tokens, so reference {name!r} "
          "needs the policy's tokenizer"
        )
    if self.needs("normalised_entropy_BC") and not self.references:
      raise ValueError(
        f"loss {self.method.name!r} takes its dispersion from reference 0, "
        "but there is no reference"
      )
    if self.needs("kl_BC"):
      if self.references and self.references[0].scored:
        raise ValueError(
          f"loss {self.method.name!r} needs every probability of reference "
          f"{self.names[0]!r}, so its mode must be 'online'"
        )
      sizes = [m.config.vocab_size for m in (self.policy, *self.references)]
      if len(set(sizes)) > 1:
        raise ValueError(
          f"loss {self.method.name!r} needs one vocabulary, got sizes {sizes}"
        )
    pair_BC = jax.ShapeDtypeStruct((self.pairs, 2), jnp.float32)
    K = len(self.references)
    ref_BCK = jax.ShapeDtypeStruct((*pair_BC.shape, K), jnp.float32)
    figures = dict.fromkeys(self.method.needs, pair_BC)
    # Traced on K references: what the loss refuses, it refuses now.
    jax.eval_shape(self.method, pair_BC, ref_BCK if K else None, **figures)


def reference_figures(objective, references, views, given):
  """What does not depend on the policy's parameters.

  Args:
    objective: Objective.
    references: tuple of K frozen parameter trees, None where scored before;
      or of Stacked ones.
    views: see `train.train_step`.
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


def pair_metrics(objective, state, figures, frozen):
  """dict of value_B: the loss, and rewards against each kind of reference.

  Plain names are against reference 0, or against none where there is none;
  `virtual/` is against what stands for all K, in the method's unit (sums, or
  means per token); `policy/` against none, `policy_mean/` against none per
  token.  Log-probabilities are those of all tokens alike, whatever the loss
  weighs them by.
  """
  method = objective.method
  logp_BC, length_BC = figures["logp_BC"], frozen["length_BC"]
  ref_logp_BCK = reference_logps(figures, frozen)
  values = {"loss": losses_of(objective, state, figures, frozen)}
  if method.supervised:
    return values | {"logps/chosen": logp_BC[:, 0]}
  against = functools.partial(losses.preference_metrics, beta=method.beta)
  zero_BC = jnp.zeros_like(logp_BC)
  mean_logp_BC = logp_BC / jnp.maximum(length_BC, 1.0)
  values |= _rewards("policy", against(logp_BC, zero_BC))
  values |= _rewards("policy_mean", against(mean_logp_BC, zero_BC))
  values |= _needed(figures, frozen)
  if ref_logp_BCK is None:
    return values | against(logp_BC, zero_BC)
  values |= against(logp_BC, ref_logp_BCK[..., 0])
  names = ("length_BC", "ref_length_BCK", "character_BC")
  counts = {name: frozen[name] for name in names if name in frozen}
  policy_BC, ref_BCK = method.scaled(
    logp_BC, ref_logp_BCK, state=state, **counts
  )
  virtual_BC = method.virtual(ref_BCK, state)
  rewards = against(policy_BC, virtual_BC)
  values |= _rewards("virtual", rewards)
  values |= losses.gradient_metrics(rewards["rewards/margins"])
  values |= _of_each_reference(objective, state, ref_BCK)
  return values | _as_they_are(objective, ref_logp_BCK, frozen)


def _of_each_reference(objective, state, ref_BCK):
  """What each says and does in the mixture, in the method's unit."""
  method, names = objective.method, objective.names
  arguments = dict(
    p=0 if method.p is None else method.p,
    epsilon_max=method.epsilon_max,
    adaptive_epsilon=method.adaptive_epsilon,
  )
  weight = method.mixing(state, ref_BCK)
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


def _as_they_are(objective, ref_logp_BCK, frozen):
  """How likely each reference finds the responses, whatever the loss does."""
  values = {}
  size_BCK = {"token_logp": frozen["ref_length_BCK"]}
  if "character_BC" in frozen:
    character_BC = frozen["character_BC"]
    values["characters"] = jnp.mean(character_BC, axis=1)
    size_BCK["character_logp"] = character_BC[..., None]
  for figure, count_BCK in size_BCK.items():
    mean_BK = jnp.mean(ref_logp_BCK / jnp.maximum(count_BCK, 1.0), axis=1)
    for k, name in enumerate(objective.names):
      values[f"references/{name}/{figure}"] = mean_BK[:, k]
  for k, name in enumerate(objective.names):
    about = f"references/{name}/"
    values[about + "tokens"] = jnp.mean(frozen["ref_length_BCK"][..., k], 1)
    values[about + "logp_size"] = jnp.mean(jnp.abs(ref_logp_BCK[..., k]), 1)
  for (j, one), (k, other) in itertools.combinations(
    enumerate(objective.names), 2
  ):
    apart_BC = jnp.abs(ref_logp_BCK[..., j] - ref_logp_BCK[..., k])
    values[f"references/{one}/distance/{other}"] = jnp.mean(apart_BC, axis=1)
  return values


def summary(values, mean):
  """Means of value_B over pairs, and the deviations of those that spread.

  `mean` takes one value_B, an array of any library.
  """
  means = {name: mean(value_B) for name, value_B in values.items()}
  for name, value_B in values.items():
    if name == "gradient_scale" or _is_margin(name):
      variance = mean((value_B - means[name]) ** 2)
      means[f"{name}_sd"] = variance**0.5
  return means


def _is_margin(name):
  return name.startswith("references/") and name.endswith("/margin")


def _rewards(prefix, values):
  return {
    f"{prefix}/{name}": value_B
    for name, value_B in values.items()
    if name.startswith("rewards/")
  }


def _needed(figures, frozen):
  """What only some methods need, worth a curve where it is there."""
  values = {}
  if "kl_BC" in figures:
    values["kl/chosen"] = figures["kl_BC"][:, 0]
    values["kl/rejected"] = figures["kl_BC"][:, 1]
  if "normalised_entropy_BC" in frozen:
    values["neg_log_dispersion"] = losses.neg_log_dispersion(
      frozen["normalised_entropy_BC"]
    )
  return values
