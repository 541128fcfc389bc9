# SPDX-License-Identifier: Apache-2.0
"""Choices of a config: from its words to numbers and functions.

Every refusal is a ValueError that says what was given and what exists.
"""

import functools
import inspect
import math
import numbers

import jax
import jax.numpy as jnp

from mrpo_jax.losses import token_weights, weighting
from mrpo_jax.losses.arguments import (
  CHOICE_OF,
  arrays_of,
  check_numbers,
  keywords_of,
)
from mrpo_jax.shapes import check, widen

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
  "by_pair": weighting.by_pair,
  "discrimination": lambda: weighting.measured(
    weighting.discrimination_weights
  ),
  "accuracy": lambda: weighting.measured(weighting.accuracy_weights),
  "sliding_window": weighting.sliding_window,
  "thompson": lambda prior=5.0, seed=0: weighting.thompson(
    jax.random.PRNGKey(seed), prior
  ),
}
SCALES = ("sum", "mean", "character", "zscore")
TOKEN_WEIGHTS = {
  "temporal_decay": token_weights.temporal_decay,
  "length_desensitized": token_weights.length_desensitized,
  "down_sample": token_weights.down_sample,
  "bridged": token_weights.bridged,
  "wpo": token_weights.wpo_weight,
}


def is_word(value, word):
  """Is the value this string?  A plain == would compare arrays."""
  return isinstance(value, str) and value == word


def refuse(what, given, taken, stand_ins=()):
  """A ValueError that names the first keyword which is not taken."""
  for key in given:
    if key not in taken:
      known = ", ".join(sorted({*taken, *stand_ins})) or "nothing"
      here = CHOICE_OF.get(key)
      meant = f", which is {here!r} here" if here in taken else ""
      raise ValueError(
        f"{what} does not take {key!r}{meant}; it takes: {known}"
      )


def named(what, given, known):
  """(function, its keywords) of "name" or dict(name=..., **keywords)."""
  keywords = dict(given) if isinstance(given, dict) else {"name": given}
  name = keywords.pop("name", None)
  if not isinstance(name, str) or name not in known:
    raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
  return known[name], keywords


def power(mixture):
  """p of a named or numbered mixture; None for one loss per reference."""
  if mixture is None or is_word(mixture, "multi"):
    return None
  p = MIXTURES.get(mixture) if isinstance(mixture, str) else mixture
  if not isinstance(p, numbers.Real) or isinstance(p, bool) or math.isnan(p):
    known = ", ".join([*MIXTURES, "multi"])
    raise ValueError(f"unknown mixture {mixture!r}; known: {known}, a number")
  return float(p)


def rule(weights):
  """(WeightRule, its name) of a name, a dict with one, or numbers."""
  if isinstance(weights, str | dict):
    make, keywords = named("weights", weights, RULES)
    defaults = inspect.signature(make).parameters
    defaults = {key: p.default for key, p in defaults.items()}
    refuse(f"weights {weights!r}", keywords, defaults)
    check_numbers(f"weights {weights!r}", keywords, defaults)
    names = {make: name for name, make in RULES.items()}
    return make(**keywords), names[make]
  try:
    fixed_K = tuple(map(float, weights))
  except (TypeError, ValueError):
    fixed_K = ()
  if not all(0 <= w < math.inf for w in fixed_K) or not any(fixed_K):
    raise ValueError(
      f"weights {weights!r} must be a rule's name, or numbers that are "
      "non-negative, finite and not all 0"
    )

  def weigh(ref_logp_BCK):
    weight_K = jnp.asarray(fixed_K, widen(ref_logp_BCK).dtype)
    check(ref_logp_BCK=ref_logp_BCK, weight_K=weight_K)
    return weight_K

  return weighting.stateless(weigh), ""


def token_weight(given):
  """(token weight, the arrays it reads, pair weight); functions or None."""
  if given is None:
    return None, (), None
  function, keywords = named("token_weight", given, TOKEN_WEIGHTS)
  defaults = keywords_of(function)
  what = f"token_weight {function.__name__!r}"
  refuse(what, keywords, defaults)
  numbers = {k: v for k, v in keywords.items() if not is_word(v, "prompt")}
  check_numbers(what, numbers, defaults, of=function.__name__)
  if function is token_weights.wpo_weight:
    return None, (), functools.partial(function, **keywords)
  weigh = functools.partial(_weigh_tokens, function, keywords)
  return weigh, tuple(arrays_of(function)), None


def _weigh_tokens(function, keywords, places):
  """Weights from the arrays of `places` that the function names."""
  if is_word(keywords.get("offset"), "prompt"):
    keywords = {**keywords, "offset": places["prompt_length"]}
  arrays = [places[name] for name in arrays_of(function)]
  return function(*arrays, **keywords)


def scale(given):
  """The unit of log-probabilities, by name."""
  if given not in SCALES:
    raise ValueError(f"unknown scale {given!r}; known: {', '.join(SCALES)}")
  return given


def betas(given):
  """One beta per reference, or None."""
  if given is None:
    return None
  try:
    beta_K = () if isinstance(given, str) else tuple(map(float, given))
  except (TypeError, ValueError):
    beta_K = ()
  if not beta_K or not all(0 < beta < math.inf for beta in beta_K):
    raise ValueError(
      f"betas must be a tuple of positive numbers, one per reference, got "
      f"{given!r}"
    )
  return beta_K


def dispersion(given):
  """The mean of -log dispersion, a number or dict(mean=number)."""
  if isinstance(given, dict):
    refuse("dispersion", given, ["mean"])
    given = given.get("mean")
  if given is None:
    return None
  check_numbers("dispersion", {"mean": given}, {"mean": 0.0})
  if not 0 < given < math.inf:
    raise ValueError(f"the mean of dispersion must be positive, got {given}")
  return float(given)


def momentum(running):
  """The momentum of a running mean, or None."""
  if running is not None and not 0 <= running < 1:
    raise ValueError(f"running must be in [0, 1), got {running}")
  return running


def trust_region(clip):
  """Its keywords, by the names of a Method."""
  if clip is None:
    return dict(epsilon_max=None, adaptive_epsilon=True)
  defaults = dict(epsilon_max=0.1, adaptive=True)
  if not isinstance(clip, dict):
    raise ValueError(f"clip must be None or like {defaults}, got {clip!r}")
  refuse("clip", clip, defaults)
  check_numbers("clip", clip, defaults)
  clip = {**defaults, **clip}
  return dict(
    epsilon_max=clip["epsilon_max"], adaptive_epsilon=clip["adaptive"]
  )
