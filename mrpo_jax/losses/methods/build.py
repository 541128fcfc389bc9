# SPDX-License-Identifier: Apache-2.0
"""build: from names in a config to one function of arrays."""

import dataclasses
from typing import Any

from mrpo_jax.losses import pair, related, rewards
from mrpo_jax.losses.arguments import (
  arrays_of,
  by_name,
  check_numbers,
  keywords_of,
)
from mrpo_jax.losses.methods import auxiliary as auxiliaries
from mrpo_jax.losses.methods import choices
from mrpo_jax.losses.methods.catalogue import (
  LOSSES,
  OF_TOKENS,
  PUBLISHED,
  names,
  unknown,
)
from mrpo_jax.losses.methods.inputs import INPUTS, inputs_of
from mrpo_jax.losses.methods.method import Memory, Method
from mrpo_jax.losses.methods.mixing import Mixing, Unit
from mrpo_jax.losses.methods.token_loss import VALUE_WEIGHT, TokenLoss

AS_PUBLISHED = "published"  # what a choice is unless given
# What it is where nothing was published.
USUAL = dict(weights="uniform", nll=0.0, scale="sum", official_weights=False)
# Of losses of single responses: what a batch, or the steps before it, say.
FOUND = {"kl_shift", "shift"}


@by_name
def build(
  name: str,
  *,
  mixture: Any = AS_PUBLISHED,
  clip: Any = AS_PUBLISHED,
  weights: Any = AS_PUBLISHED,
  token_weight: Any = AS_PUBLISHED,
  dispersion: Any = AS_PUBLISHED,
  nll: Any = AS_PUBLISHED,
  scale: Any = AS_PUBLISHED,
  auxiliary: Any = AS_PUBLISHED,
  **hyper: Any,
) -> Method:
  """Turns names from a config into one loss function.

  Args:
    name: a loss of this package by its own name ("dpo", "simpo", ...), or a
      published method: a loss with that paper's choices, each of which may be
      given here ("mrpo", "multi_dpo", "beta_dpo", "d2po", "ld_dpo", "sampo",
      "bmc", "wpo", "mpo", "hpo"); or a loss of the tokens of rollouts, which
      takes its own keywords and `value_weight` alone ("apa", "awr", "ppo").
    mixture: "harmonic", "geometric", "arithmetic", "minimum", "maximum", a
      number p (see `power_mean`), or "multi" (one loss per reference).  A
      loss without a mixture takes a single reference.
    clip: None, or dict(epsilon_max=0.1, adaptive=True); see `trust_region`.
    weights: a tuple of numbers, one per reference, or the name of a rule,
      "uniform", "adaptive", "discrimination", "accuracy", "sliding_window",
      "thompson", alone or as dict(name=..., and its keywords); "by_pair" are
      those of the figure `weight_BK`.
    token_weight: None, or one of "temporal_decay", "length_desensitized",
      "down_sample", "bridged" and "wpo", alone or as dict(name=..., and its
      keywords).  `temporal_decay` takes offset="prompt" too.
    dispersion: None, or the mean of -log dispersion over the data set, a
      number or dict(mean=...): MallowsPO's factor on each pair's margin.
    nll: weight of the chosen response's `nll`, added to the loss; with a
      token weight it is of the weighted tokens, over the whole length.
    scale: the unit of log-probabilities, before anything else: "sum";
      "mean", per response token, each model by its own count; "character",
      per response character; "zscore", references by `scale_factors` of the
      training pairs (1 until `Method.measure`).
    auxiliary: None, or "hpo", alone or as dict(name="hpo", and its keywords):
      terms that follow rewards of the responses, added to the loss; see
      `auxiliary.Auxiliary`.
    **hyper: keywords of the loss, `beta` first; `betas`, one per reference:
      the objective sum_k w_k beta_k KL(policy || r_k) has beta = sum_k w_k
      beta_k, and mixes by w_k beta_k; `official_weights` of a mixture by a
      power, see `virtual_reference`; `adaptive_beta`, strength of beta-DPO's
      beta, with `running`, momentum of its running margin (also of
      `alpha_dpo`); `losses` and `loss_weights` of "combine"; `win_rate` of
      "sppo" and `phi` of "mallows_phi", one number for all pairs.

  Returns:
    f(policy_logp_BC, ref_logp_BCK) -> loss_B; see `Method` for what some
    losses need besides, and for those with a memory.

  Raises:
    ValueError: an unknown name, or a keyword that the method does not take;
      it lists what exists.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[-5.0, -9.0]])
  >>> loss = build("mrpo", weights="uniform", beta=0.1)
  >>> bool(jnp.isclose(loss(logp, logp[..., None])[0], jnp.log(2.0)))
  True
  """
  if name not in names():
    raise ValueError(unknown(name))
  chosen = dict(
    mixture=mixture,
    clip=clip,
    weights=weights,
    token_weight=token_weight,
    dispersion=dispersion,
    nll=nll,
    scale=scale,
    auxiliary=auxiliary,
  )
  for key, value in chosen.items():
    if not choices.is_word(value, AS_PUBLISHED):
      hyper[key] = value
  if name in OF_TOKENS:
    return _token_method(name, hyper)
  given = {**PUBLISHED.get(name, {"loss": name}), **hyper}
  return _method(name, LOSSES[given.pop("loss")], given)


def _method(name, loss, given):
  """The Method of a loss and what was chosen for it, by name."""
  given = dict(given)
  if loss is pair.combine:
    loss = _combined(given.pop("losses", ()), given.pop("loss_weights", ()))
  asked, keywords = inputs_of(loss).values(), keywords_of(loss)
  numbers = dict(one.number for one in asked if one.number)
  numbers = {key: given.pop(key, number) for key, number in numbers.items()}
  choices.refuse(_called(name), given, _taken(loss, given), numbers)
  defaults = {"official_weights": False, **keywords}
  called = getattr(loss, "__name__", "")
  check_numbers(_called(name), {**given, **numbers}, defaults, of=called)
  if _is_unpaired(loss):
    _refuse_comparing(name, given)
  elif "valid_B" in keywords:
    _refuse_by_pair(name, given)
  strength = given.get("adaptive_beta")
  token_weight, token_arrays, pair_weight = choices.token_weight(
    given.get("token_weight")
  )
  hyper = {key: given[key] for key in keywords if key in given}
  return Method(
    name=name,
    loss=loss,
    hyper=hyper,
    beta=float({**keywords, **hyper}.get("beta", 1.0)),
    unit=_unit(name, given, asked),
    mixing=_mixing(name, given, asked),
    memory=Memory(
      choices.momentum(given.get("running", 0.9 if strength else None)),
      strength,
      of_rewards=loss is related.bco_unpaired,
    ),
    token_weight=token_weight,
    token_arrays=token_arrays,
    pair_weight=pair_weight,
    dispersion=choices.dispersion(given.get("dispersion")),
    nll=given.get("nll", USUAL["nll"]),
    auxiliary=auxiliaries.of(given.get("auxiliary")),
    numbers=numbers,
  )


def _token_method(name, given):
  """The Method of a loss of tokens: their mean, and how each is made."""
  choices.refuse(_called(name), given, taken(name))
  check_numbers(_called(name), given, taken(name))
  hyper = {key: one for key, one in given.items() if key != "value_weight"}
  weight = float(given.get("value_weight", VALUE_WEIGHT))
  tokens = TokenLoss(OF_TOKENS[name], hyper, weight)
  mean = _method(name, related.token_mean, {})
  return dataclasses.replace(mean, tokens=tokens)


def taken(name):
  """{keyword: its default} of what `build` takes for a name.

  Not those that another keyword brings, as `adaptive_beta` does `running`.
  """
  if name in OF_TOKENS:
    return keywords_of(OF_TOKENS[name]) | {"value_weight": VALUE_WEIGHT}
  given = dict(PUBLISHED.get(name, {"loss": name}))
  loss, own = LOSSES[given.pop("loss")], {}
  if loss is pair.combine:
    own = {key: given.pop(key, ()) for key in ("losses", "loss_weights")}
    loss = _combined(("dpo",), (1.0,))
  asked, keywords = inputs_of(loss).values(), keywords_of(loss)
  own |= dict(one.number for one in asked if one.number)
  defaults = {**USUAL, **keywords, **given}
  return own | {key: defaults.get(key) for key in _taken(loss, given)}


def _taken(loss, given):
  """Keywords that `build` takes for a loss."""
  asked, keywords = inputs_of(loss).values(), keywords_of(loss)
  taken = keywords.keys() - INPUTS.keys()
  alone = list(arrays_of(loss)) == ["mean_logp_B"]
  if alone or any(one.of_scalar_head for one in asked):
    return taken
  if _is_unpaired(loss):
    return taken - FOUND | {"mixture", "weights", "scale"}
  taken |= {"nll", "auxiliary"}
  if not any(one.over_tokens for one in asked):
    taken |= {"token_weight"}
  if not any(one.per_token for one in asked):
    taken |= {"scale"}
  if any(one.dispersed for one in asked):
    taken |= {"dispersion"}
  if any(one.from_reference for one in asked):
    taken |= {"mixture", "clip", "weights", "official_weights"}
    if "beta" in keywords:
      taken |= {"adaptive_beta"}
      # One beta for all: what looks across the batch, or swaps the weights.
      memory = [given.get(key) for key in ("adaptive_beta", "running")]
      across = any(one.across_batch for one in asked)
      coupled = across or any(x is not None for x in memory)
      if not coupled and not given.get("official_weights"):
        taken |= {"betas"}
  if any(one.all_references for one in asked):
    taken -= {"mixture", "clip", "official_weights", "weight"}
  if "std" in keywords or given.get("adaptive_beta") is not None:
    taken |= {"running"}
  return taken


def _is_unpaired(loss):
  return "desirable_B" in arrays_of(loss)


def _refuse_comparing(name, given):
  """A ValueError for a choice that compares the two responses of a pair."""
  scale = given.get("scale", USUAL["scale"])
  _, called = choices.rule(given.get("weights", USUAL["weights"]))
  if called not in ("", "uniform", "by_pair"):
    raise ValueError(
      f"{_called(name)} reads single responses, and weights {called!r} compare "
      "those of pairs; it takes uniform, by_pair or numbers"
    )
  if scale not in ("sum", "mean", "character"):
    raise ValueError(
      f"{_called(name)} reads single responses, and scale {scale!r} is of "
      "pairs; it takes sum, mean or character"
    )


def _refuse_by_pair(name, given):
  """A ValueError for what multiplies the loss of each pair, where none has one.

  `aot` gives its values in sorted order, `dr_dpo` one of all pairs.
  """
  _, _, pair_weight = choices.token_weight(given.get("token_weight"))
  _, called = choices.rule(given.get("weights", USUAL["weights"]))
  factor = None
  if pair_weight is not None:
    factor = "token_weight 'wpo'"
  elif given.get("mixture") == "multi" and called in ("adaptive", "by_pair"):
    factor = f"weights {called!r}"
  if factor is not None:
    raise ValueError(
      f"{_called(name)} has no loss of a single pair for {factor} to multiply"
    )


def _mixing(name, given, asked):
  """The mixing of a loss's references."""
  mixture, betas = given.get("mixture"), choices.betas(given.get("betas"))
  if betas and mixture is None and len(betas) != 1:
    raise ValueError(
      f"{_called(name)} takes one reference, got {len(betas)} betas; name a "
      "mixture"
    )
  rule, called = choices.rule(given.get("weights", USUAL["weights"]))
  p = choices.power(mixture)
  official = given.get("official_weights", USUAL["official_weights"])
  if official and p is None:
    raise ValueError(
      f"{_called(name)}: official_weights are of a mixture by a power, and "
      f"mixture is {mixture!r}"
    )
  return Mixing(
    loss=name,
    p=p,
    single=mixture is None and not any(one.all_references for one in asked),
    rule=rule,
    learns=called == "thompson",
    by_pair=called == "by_pair",
    official_weights=official,
    betas=betas,
    **choices.trust_region(given.get("clip")),
  )


def _unit(name, given, asked):
  """The unit by name; a loss of means has no other."""
  scale = choices.scale(given.get("scale", USUAL["scale"]))
  if scale == "zscore" and not any(one.from_reference for one in asked):
    raise ValueError(
      f"{_called(name)} has no references for scale 'zscore' to act on"
    )
  return Unit("mean" if any(one.per_token for one in asked) else scale, name)


def _called(name):
  return f"loss {name!r}" if name in names() else name


def _combined(losses, weights):
  """`combine` of pair losses given by name."""
  simple = [
    key
    for key, loss in LOSSES.items()
    if list(arrays_of(loss)) == ["logratio_BC"]
    and "valid_B" not in keywords_of(loss)  # it has a mask to be given
    and loss is not rewards.kto  # one value per response
  ]
  for key in losses:
    if key not in simple:
      raise ValueError(
        f"combine does not take the loss {key!r}; it takes: {', '.join(simple)}"
      )
  return pair.combine([LOSSES[key] for key in losses], weights)
