# SPDX-License-Identifier: Apache-2.0
"""From names in a config to one function of arrays.

A new loss is a function, and its name in LOSSES.
"""

import functools
import inspect
import math

import jax
import jax.numpy as jnp

from mrpo_jax.losses import batch, pair, rewards, weighting
from mrpo_jax.losses import dispersion as mallows
from mrpo_jax.losses import mixture as mixtures
from mrpo_jax.losses import token_weights as tokens
from mrpo_jax.losses import unreferenced as free
from mrpo_jax.losses.method import REFERENCED, Method, arrays_of, keywords_of
from mrpo_jax.shapes import check, widen

LOSSES = {
  function.__name__: function
  for function in (
    *(pair.dpo, pair.robust_dpo, pair.hinge, pair.ipo, pair.exo),
    *(pair.discopop, pair.focal_dpo, pair.combine),
    *(rewards.nca, rewards.bco, rewards.sppo_hard, rewards.sppo),
    *(rewards.apo_zero, rewards.apo_down, rewards.kto, rewards.f_dpo),
    *(rewards.minor_dpo, rewards.cal_dpo, rewards.r_dpo, rewards.dpop),
    *(batch.aot, batch.aot_unpaired, batch.dr_dpo),
    *(mallows.mallows_theta, mallows.mallows_phi, tokens.tdpo),
    *(mixtures.hypo, mixtures.mnpo, mixtures.forward_kl_dpo),
    *(free.simpo, free.alpha_po, free.cpo, free.slic, free.orpo, free.nll),
    *(free.rainbow_po, free.alpha_dpo, free.tpo),
  )
}
# A published method is a loss with that paper's choices; each may be changed.
PUBLISHED = {
  # The released 0.29 is 1 / mean: Llama-3-8B-Instruct on UltraFeedback.
  "mallows_theta": dict(loss="mallows_theta", dispersion=1 / 0.29),
  "mrpo": dict(
    loss="dpo",
    mixture="harmonic",
    clip=dict(epsilon_max=0.1, adaptive=True),
    weights="adaptive",
  ),
  "multi_dpo": dict(loss="dpo", mixture="multi"),
  "beta_dpo": dict(loss="dpo", adaptive_beta=0.6, running=0.9),
  "d2po": dict(
    loss="dpo", token_weight=dict(name="temporal_decay", gamma=0.98, offset=1)
  ),
  "ld_dpo": dict(loss="dpo", token_weight="length_desensitized"),
  "sampo": dict(loss="dpo", token_weight="down_sample"),
  "bmc": dict(loss="dpo", token_weight="bridged"),
  "wpo": dict(loss="dpo", token_weight="wpo"),
  "mpo": dict(
    loss="combine", losses=("dpo", "bco"), loss_weights=(0.8, 0.2), nll=1.0
  ),
}
TRL_NAMES = {  # TRL's loss_type -> ours; * on means per token: scale="mean"
  "sigmoid": "dpo",
  "sigmoid_norm": "dpo",  # *
  "robust": "robust_dpo",
  "hinge": "hinge",
  "ipo": "ipo",  # *
  "exo_pair": "exo",
  "nca_pair": "nca",
  "bco_pair": "bco",
  "sppo_hard": "sppo_hard",
  "aot": "aot",
  "aot_unpaired": "aot_unpaired",
  "apo_zero": "apo_zero",
  "apo_down": "apo_down",
  "discopop": "discopop",
  "sft": "nll",  # per response here, over all tokens of the batch there
  "kto": "kto",
  "simpo": "simpo",
  "alphapo": "alpha_po",
}
MIXTURES = {
  "harmonic": -1.0,
  "geometric": 0.0,
  "arithmetic": 1.0,
  "minimum": -math.inf,
  "maximum": math.inf,
}
RULES = {
  "uniform": lambda: weighting.stateless(weighting.uniform_weights),
  "adaptive": lambda: weighting.stateless(weighting.adaptive_weights),
  "sliding_window": weighting.sliding_window,
  "thompson": lambda prior=5.0, seed=0: weighting.thompson(
    jax.random.PRNGKey(seed), prior
  ),
}
TOKEN_WEIGHTS = {
  "temporal_decay": tokens.temporal_decay,
  "length_desensitized": tokens.length_desensitized,
  "down_sample": tokens.down_sample,
  "bridged": tokens.bridged,
  "wpo": tokens.wpo_weight,
}
# Arrays per response token.
MEANS = {"mean_logp_BC", "ref_mean_logp_BC"}
# Arrays for which a config gives one number.
STAND_INS = {"win_rate_BC": dict(win_rate=1.0), "phi_B": dict(phi=0.05)}
# Numbers that would divide by zero or turn a loss around.
POSITIVE = {"beta", "temperature", "beta_prime", "eta", "std", "epsilon"}
POSITIVE |= {"cap", "prior", "window"}
OPTIONAL = {"adaptive_beta", "running"}
NUMBERS = {"nll", "win_rate", "phi", *OPTIONAL}
SHARES = {"label_smoothing", "win_rate", "phi"}
# Keywords of a loss that its Method fills.
FILLED = {"scale_B", "valid_B"}
AS_PUBLISHED = "published"  # what a choice is unless given


def names():
  """Every name that `build` knows, sorted.

  >>> names()[:3]
  ['alpha_dpo', 'alpha_po', 'aot']
  """
  return sorted({*LOSSES, *PUBLISHED})


def build(
  name,
  *,
  mixture=AS_PUBLISHED,
  clip=AS_PUBLISHED,
  weights=AS_PUBLISHED,
  token_weight=AS_PUBLISHED,
  dispersion=AS_PUBLISHED,
  nll=AS_PUBLISHED,
  scale=AS_PUBLISHED,
  **hyper,
):
  """Turns names from a config into one loss function.

  Args:
    name: a loss of this package by its own name ("dpo", "simpo", ...), or a
      published method: a loss with that paper's choices, each of which may be
      given here ("mrpo", "multi_dpo", "beta_dpo", "d2po", "ld_dpo", "sampo",
      "bmc", "wpo", "mpo").
    mixture: "harmonic", "geometric", "arithmetic", "minimum", "maximum", a
      number p (see `power_mean`), or "multi" (one loss per reference).  A
      loss without a mixture takes a single reference.
    clip: None, or dict(epsilon_max=0.1, adaptive=True); see `trust_region`.
    weights: a tuple of numbers, one per reference, or the name of a rule,
      "uniform", "adaptive", "sliding_window", "thompson", alone or as
      dict(name=..., and its keywords).
    token_weight: None, or one of "temporal_decay", "length_desensitized",
      "down_sample", "bridged" and "wpo", alone or as dict(name=..., and its
      keywords).  `temporal_decay` takes offset="prompt" too.
    dispersion: None, or the mean of -log dispersion over the data set, a
      number or dict(mean=...): MallowsPO's factor on each pair's margin.
    nll: weight of the chosen response's `nll`, added to the loss.
    scale: "sum", or "mean": log-probabilities per response token, for policy
      and references, before anything else.
    **hyper: keywords of the loss, `beta` first; `official_weights`, see
      `virtual_reference`; `adaptive_beta`, strength of beta-DPO's beta, with
      `running`, momentum of its running margin (also of `alpha_dpo`);
      `losses` and `loss_weights` of "combine"; `win_rate` of "sppo" and `phi`
      of "mallows_phi", one number for all pairs.

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
  if name not in LOSSES and name not in PUBLISHED:
    raise ValueError(f"unknown loss {name!r}; known: {', '.join(names())}")
  choices = dict(
    mixture=mixture,
    clip=clip,
    weights=weights,
    token_weight=token_weight,
    dispersion=dispersion,
    nll=nll,
    scale=scale,
  )
  given = {k: v for k, v in choices.items() if not _is(v, AS_PUBLISHED)} | hyper
  given = {**PUBLISHED.get(name, {"loss": name}), **given}
  return _method(name, LOSSES[given.pop("loss")], given)


def _method(name, loss, given):
  """The Method of a loss and what was chosen for it, by name."""
  given = dict(given)
  if loss is pair.combine:
    loss = _combined(given.pop("losses", ()), given.pop("loss_weights", ()))
  arrays, keywords = arrays_of(loss), keywords_of(loss)
  stand_ins = {}
  for array in arrays:
    for key, default in STAND_INS.get(array, {}).items():
      stand_ins[key] = given.pop(key, default)
  _refuse(name, given, _taken(loss, given), stand_ins)
  _check_numbers(_called(name), {**given, **stand_ins}, keywords)
  strength = given.get("adaptive_beta")
  token_weight, token_arrays, pair_weight = _token_weight(
    given.get("token_weight")
  )
  rule, learns = _rule(given.get("weights", "uniform"))
  hyper = {key: given[key] for key in keywords if key in given}
  mixture = given.get("mixture")
  return Method(
    name=name,
    loss=loss,
    hyper=hyper,
    beta=float({**keywords, **hyper}.get("beta", 1.0)),
    p=_power(mixture),
    single=mixture is None and "ref_margin_BK" not in arrays,
    rule=rule,
    learns=learns,
    official_weights=given.get("official_weights", False),
    mean=_mean(given.get("scale", "sum")) or not MEANS.isdisjoint(arrays),
    token_weight=token_weight,
    token_arrays=token_arrays,
    pair_weight=pair_weight,
    dispersion=_dispersion(given.get("dispersion")),
    nll=given.get("nll", 0.0),
    adaptive_beta=strength,
    running=_momentum(given.get("running", 0.9 if strength else None)),
    stand_ins=stand_ins,
    **_epsilon(given.get("clip")),
  )


def _is(value, word):
  return isinstance(value, str) and value == word


def _taken(loss, given):
  """Keywords that `build` takes for a loss."""
  arrays, keywords = {*arrays_of(loss)}, {*keywords_of(loss)}
  taken = keywords - FILLED
  if arrays == {"mean_logp_B"}:
    return taken
  taken |= {"nll"}
  if "kl_BC" not in arrays:
    taken |= {"token_weight"}
  if arrays.isdisjoint(MEANS):
    taken |= {"scale"}
  if "scale_B" in keywords or arrays & {"scale_B", "phi_B"}:
    taken |= {"dispersion"}
  if not arrays.isdisjoint(REFERENCED):
    taken |= {"mixture", "clip", "weights", "official_weights"}
    if "beta" in keywords:
      taken |= {"adaptive_beta"}
  if "ref_margin_BK" in arrays:  # it mixes by itself
    taken -= {"mixture", "clip", "official_weights", "weight"}
  if "std" in keywords or given.get("adaptive_beta") is not None:
    taken |= {"running"}
  return taken


def _refuse(name, given, taken, stand_ins=()):
  """A ValueError that names the first keyword which is not taken."""
  for key in given:
    if key not in taken:
      known = ", ".join(sorted({*taken, *stand_ins})) or "nothing"
      raise ValueError(
        f"{_called(name)} does not take {key!r}; it takes: {known}"
      )


def _check_numbers(what, given, defaults):
  """A ValueError that names the first value which its keyword cannot be.

  What is a number by default, or is known here alone, has to be one.
  """
  for key, value in given.items():
    default = defaults.get(key, 0.0 if key in NUMBERS else None)
    if isinstance(default, bool) and not isinstance(value, bool):
      raise ValueError(f"{what}: {key} must be True or False, got {value!r}")
    if isinstance(default, bool) or not isinstance(default, int | float):
      continue
    if value is None and key in OPTIONAL:
      continue
    # An array may stand for a number where a program builds the method.
    if value is None or isinstance(value, bool | str | dict | list | tuple):
      raise ValueError(f"{what}: {key} must be a number, got {value!r}")
    if key in POSITIVE and not value > 0:
      raise ValueError(f"{what}: {key} must be positive, got {value!r}")
    if key in SHARES and not 0 <= value <= 1:
      raise ValueError(f"{what}: {key} must be from 0 to 1, got {value!r}")


def _called(name):
  return f"loss {name!r}" if name in {*LOSSES, *PUBLISHED} else name


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


def _named(what, given, known):
  """(function, its keywords) of "name" or dict(name=..., **keywords)."""
  given = {"name": given} if isinstance(given, str) else dict(given)
  name = given.pop("name", None)
  if name not in known:
    raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
  return known[name], given


def _power(mixture):
  if mixture is None or _is(mixture, "multi"):
    return None
  if isinstance(mixture, str):
    if mixture not in MIXTURES:
      known = ", ".join([*MIXTURES, "multi"])
      raise ValueError(f"unknown mixture {mixture!r}; known: {known}, a number")
    return MIXTURES[mixture]
  return float(mixture)


def _rule(weights):
  """(WeightRule, does it learn) of a name, a dict with one, or numbers."""
  if isinstance(weights, str | dict):
    make, keywords = _named("weights", weights, RULES)
    defaults = inspect.signature(make).parameters
    defaults = {key: p.default for key, p in defaults.items()}
    _refuse(f"weights {weights!r}", keywords, defaults)
    _check_numbers(f"weights {weights!r}", keywords, defaults)
    return make(**keywords), make is RULES["thompson"]
  fixed_K = tuple(float(weight) for weight in weights)
  if not all(0 <= w < math.inf for w in fixed_K) or sum(fixed_K) <= 0:
    raise ValueError(
      f"weights {fixed_K} must be non-negative, finite and not all 0"
    )

  def weigh(ref_logp_BCK):
    weight_K = jnp.asarray(fixed_K, widen(ref_logp_BCK).dtype)
    check("B 2 K", ref_logp_BCK, "K", weight_K)
    return weight_K

  return weighting.stateless(weigh), False


def _token_weight(given):
  """(token weight, the arrays it reads, pair weight); functions or None."""
  if given is None:
    return None, (), None
  function, keywords = _named("token_weight", given, TOKEN_WEIGHTS)
  defaults = keywords_of(function)
  what = f"token_weight {function.__name__!r}"
  _refuse(what, keywords, defaults)
  numbers = {k: v for k, v in keywords.items() if not _is(v, "prompt")}
  _check_numbers(what, numbers, defaults)
  if function is tokens.wpo_weight:
    return None, (), functools.partial(function, **keywords)
  weigh = functools.partial(_weigh_tokens, function, keywords)
  return weigh, tuple(arrays_of(function)), None


def _weigh_tokens(function, keywords, places):
  """Weights from the arrays of `places` that the function names."""
  if _is(keywords.get("offset"), "prompt"):
    keywords = {**keywords, "offset": places["prompt_length"]}
  arrays = [places[name] for name in arrays_of(function)]
  return function(*arrays, **keywords)


def _mean(scale):
  if scale not in ("sum", "mean"):
    raise ValueError(f"unknown scale {scale!r}; known: sum, mean")
  return scale == "mean"


def _dispersion(given):
  """The mean of -log dispersion, a number or dict(mean=number)."""
  if isinstance(given, dict):
    _refuse("dispersion", given, ["mean"])
    given = given.get("mean")
  if given is None:
    return None
  _check_numbers("dispersion", {"mean": given}, {"mean": 0.0})
  if not 0 < given < math.inf:
    raise ValueError(f"the mean of dispersion must be positive, got {given}")
  return float(given)


def _momentum(running):
  if running is not None and not 0 <= running < 1:
    raise ValueError(f"running must be in [0, 1), got {running}")
  return running


def _epsilon(clip):
  if clip is None:
    return dict(epsilon_max=None, adaptive_epsilon=True)
  clip = dict(clip)
  _refuse("clip", clip, ["epsilon_max", "adaptive"])
  epsilon_max = clip.get("epsilon_max", 0.1)
  if not 0 <= epsilon_max < math.inf:
    raise ValueError(f"clip.epsilon_max must be >= 0, got {epsilon_max}")
  return dict(
    epsilon_max=epsilon_max, adaptive_epsilon=clip.get("adaptive", True)
  )
