# SPDX-License-Identifier: Apache-2.0
"""From names in a config to one function of arrays."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import jax.numpy as jnp

from mrpo_jax.losses import mixture as mixtures
from mrpo_jax.losses.pair import dpo
from mrpo_jax.losses.unreferenced import nll
from mrpo_jax.losses.weighting import adaptive_weights, uniform_weights
from mrpo_jax.shapes import CHOSEN, check, widen

PAIR_LOSSES = {"dpo": dpo}
# A published method is a pair loss with that paper's mixture, clip and weights.
PUBLISHED = {
  "mrpo": dict(
    mixture="harmonic",
    clip=dict(epsilon_max=0.1, adaptive=True),
    weights="adaptive",
  ),
  "multi_dpo": dict(mixture="multi", clip=None, weights="uniform"),
}
UNREFERENCED = {"nll": nll}
MIXTURES = {
  "harmonic": -1.0,
  "geometric": 0.0,
  "arithmetic": 1.0,
  "minimum": float("-inf"),
  "maximum": float("inf"),
}
WEIGHTS = {"uniform": uniform_weights, "adaptive": adaptive_weights}
AS_PUBLISHED = "published"  # the default of build's three choices


@dataclasses.dataclass(frozen=True)
class Referenced:
  """A pair loss against K mixed references; call it like a function."""

  pair_loss: Callable
  beta: float
  p: float | None  # power of the mean; None for one loss per reference
  weigh: Callable  # ref_logp_BCK -> [K] or [B, K]
  epsilon_max: float | None
  adaptive_epsilon: bool
  official_weights: bool

  def __call__(self, policy_logp_BC, ref_logp_BCK, *, length_BC=None):
    del length_BC  # sums, not means
    given = dict(
      beta=self.beta,
      pair_loss=self.pair_loss,
      weight=self.weigh(ref_logp_BCK),
      epsilon_max=self.epsilon_max,
      adaptive_epsilon=self.adaptive_epsilon,
    )
    if self.p is None:
      return mixtures.multi_dpo(policy_logp_BC, ref_logp_BCK, **given)
    given |= dict(p=self.p, official_weights=self.official_weights)
    return mixtures.mrpo(policy_logp_BC, ref_logp_BCK, **given)

  def virtual(self, ref_logp_BCK):
    """logp_BC of the one reference that stands for all K.

    For one loss per reference it is their geometric mean, against which the
    reward is the weighted mean of the K rewards.
    """
    return mixtures.virtual_reference(
      ref_logp_BCK,
      weight=self.weigh(ref_logp_BCK),
      epsilon_max=self.epsilon_max,
      adaptive_epsilon=self.adaptive_epsilon,
      p=0 if self.p is None else self.p,
      official_weights=self.official_weights,
    )


@dataclasses.dataclass(frozen=True)
class Supervised:
  """A loss of the chosen response alone; call it like a function."""

  loss: Callable

  def __call__(self, policy_logp_BC, ref_logp_BCK=None, *, length_BC):
    del ref_logp_BCK
    check("B 2", policy_logp_BC, "B 2", length_BC)
    length_B = jnp.maximum(widen(length_BC[:, CHOSEN]), 1.0)
    return self.loss(widen(policy_logp_BC[:, CHOSEN]) / length_B)


def names():
  """Every name that `build` knows, sorted."""
  return sorted([*PAIR_LOSSES, *PUBLISHED, *UNREFERENCED])


def build(
  name,
  *,
  mixture=AS_PUBLISHED,
  clip=AS_PUBLISHED,
  weights=AS_PUBLISHED,
  **hyper,
):
  """Turns names from a config into one loss function.

  Args:
    name: a pair loss ("dpo"), a published multi-reference method ("mrpo",
      "multi_dpo": the DPO loss with that paper's mixture, clip and weights,
      each of which may be given here) or "nll".
    mixture: "harmonic", "geometric", "arithmetic", "minimum", "maximum", a
      number p (see `power_mean`), or "multi" (one loss per reference).  A
      pair loss without a mixture takes a single reference.
    clip: None, or dict(epsilon_max=0.1, adaptive=True); see `trust_region`.
    weights: "uniform", "adaptive", or a tuple of numbers, one per reference.
    **hyper: `beta` (0.1), `official_weights`, keywords of the pair loss.

  Returns:
    f(policy_logp_BC, ref_logp_BCK, *, length_BC=None) -> loss_B in nats;
    "nll" needs length_BC, the response tokens.

  Raises:
    ValueError: an unknown name, or a keyword that the method does not take;
      it lists what exists.

  >>> import jax.numpy as jnp
  >>> logp = jnp.array([[-5.0, -9.0]])
  >>> loss = build("mrpo", weights="uniform", beta=0.1)
  >>> bool(jnp.isclose(loss(logp, logp[..., None])[0], jnp.log(2.0)))
  True
  """
  choices = dict(mixture=mixture, clip=clip, weights=weights)
  given = {k: v for k, v in choices.items() if not _is(v, AS_PUBLISHED)}
  if name in UNREFERENCED:
    _refuse(name, {**given, **hyper}, UNREFERENCED[name], known=())
    return Supervised(UNREFERENCED[name])
  if name not in PAIR_LOSSES and name not in PUBLISHED:
    raise ValueError(f"unknown loss {name!r}; known: {', '.join(names())}")
  single = dict(mixture=None, clip=None, weights="uniform")
  choices = {**single, **PUBLISHED.get(name, {}), **given}
  pair_loss = PAIR_LOSSES.get(name, dpo)
  official = hyper.pop("official_weights", False)
  _refuse(name, hyper, pair_loss, known=(*choices, "official_weights"))
  return Referenced(
    pair_loss=functools.partial(pair_loss, **_without(hyper, "beta")),
    beta=hyper.get("beta", 0.1),
    p=_power(choices["mixture"]),
    weigh=_weigh(name, choices["weights"], choices["mixture"]),
    official_weights=official,
    **_epsilon(choices["clip"]),
  )


def _is(value, word):
  return isinstance(value, str) and value == word


def _without(mapping, key):
  return {k: v for k, v in mapping.items() if k != key}


def _refuse(name, given, function, *, known):
  """A ValueError that names the first keyword the function does not take."""
  parameters = inspect.signature(function).parameters.values()
  keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  taken = sorted({*keywords, *known} - {"scale_B"})
  for key in given:
    if key not in taken:
      raise ValueError(
        f"loss {name!r} does not take {key!r}; it takes: "
        f"{', '.join(taken) or 'nothing'}"
      )


def _power(mixture):
  if mixture is None or _is(mixture, "multi"):
    return None
  if isinstance(mixture, str):
    if mixture not in MIXTURES:
      known = ", ".join([*MIXTURES, "multi"])
      raise ValueError(f"unknown mixture {mixture!r}; known: {known}, a number")
    return MIXTURES[mixture]
  return float(mixture)


def _weigh(name, weights, mixture):
  """ref_logp_BCK -> weight; a single reference is refused a second one."""
  if isinstance(weights, str):
    if weights not in WEIGHTS:
      known = ", ".join(WEIGHTS)
      raise ValueError(
        f"unknown weights {weights!r}; known: {known}, a tuple of numbers"
      )
    weigh = WEIGHTS[weights]
  else:
    fixed_K = tuple(float(weight) for weight in weights)
    if not all(0 <= w < float("inf") for w in fixed_K) or sum(fixed_K) <= 0:
      raise ValueError(
        f"weights {fixed_K} must be non-negative, finite and not all 0"
      )

    def weigh(ref_logp_BCK):
      weight_K = jnp.asarray(fixed_K, widen(ref_logp_BCK).dtype)
      check("B 2 K", ref_logp_BCK, "K", weight_K)
      return weight_K

  if mixture is not None:
    return weigh

  def weigh_one(ref_logp_BCK):
    if ref_logp_BCK.shape[-1] != 1:
      raise ValueError(
        f"loss {name!r} takes one reference, got K={ref_logp_BCK.shape[-1]}; "
        "name a mixture: harmonic, geometric, arithmetic, multi, ..."
      )
    return weigh(ref_logp_BCK)

  return weigh_one


def _epsilon(clip):
  if clip is None:
    return dict(epsilon_max=None, adaptive_epsilon=True)
  clip = dict(clip)
  epsilon_max = clip.pop("epsilon_max", 0.1)
  adaptive = clip.pop("adaptive", True)
  if clip:
    raise ValueError(
      f"clip does not take {sorted(clip)[0]!r}; it takes: adaptive, epsilon_max"
    )
  if not 0 <= epsilon_max < float("inf"):
    raise ValueError(f"clip.epsilon_max must be >= 0, got {epsilon_max}")
  return dict(epsilon_max=epsilon_max, adaptive_epsilon=adaptive)
