# SPDX-License-Identifier: Apache-2.0
"""Auxiliary: terms beside a loss that follow rewards of the responses (HPO)."""

import dataclasses

import jax.numpy as jnp

from mrpo_jax.losses.arguments import check_numbers
from mrpo_jax.losses.methods import choices
from mrpo_jax.losses.regression import expectile
from mrpo_jax.losses.related import advantage_weighted
from mrpo_jax.shapes import check, widen


@dataclasses.dataclass(frozen=True)
class Auxiliary:
  """HPO's two terms, added to the loss of a pair, its host.

      weight * advantage_weighted(mean_logp, R - V)
        + value_weight * expectile(R - V)

  R is the weighted sum of a response's rewards, V the value of its prompt,
  which a network beside the model learns by the second term; both are means
  over the two responses.  The first term starts after `delay` steps, when V
  means something.  Neither gives the other a gradient: the advantage has none,
  and V reads the policy's states without one.

  Source: HPO, arXiv:2405.17956, the pseudo-code of its appendix; its tau and
  the width of V are unverified.
  """

  weight: float = 0.5
  lam: float = 5.0  # per unit of reward
  value_weight: float = 0.1
  tau: float = 0.7
  delay: int = 100  # steps
  width: int = 256  # of V's hidden layers
  value_rate: float = 1.0  # V's learning rate, times the policy's

  needs = frozenset({"length_BC", "aux_reward_BC", "value_B"})

  def init(self):
    """Its part of a method's state: how many steps are done."""
    return {"steps": jnp.zeros((), jnp.int32)}

  def update(self, state):
    """The state after a step."""
    return {**state, "steps": state["steps"] + 1}

  def __call__(self, state, mean_logp_BC, aux_reward_BC, value_B):
    """loss_B of both terms; `state` is the method's."""
    check(
      mean_logp_BC=mean_logp_BC, aux_reward_BC=aux_reward_BC, value_B=value_B
    )
    advantage_BC = widen(aux_reward_BC) - widen(value_B)[:, None]
    actor_B = jnp.mean(_actor(mean_logp_BC, advantage_BC, self.lam), axis=1)
    actor_B = jnp.where(state["steps"] >= self.delay, actor_B, 0.0)
    value_loss_B = jnp.mean(expectile(advantage_BC, tau=self.tau), axis=1)
    return self.weight * actor_B + self.value_weight * value_loss_B


def _actor(mean_logp_BC, advantage_BC, lam):
  flat = advantage_weighted(
    mean_logp_BC.reshape(-1), advantage_BC.reshape(-1), lam=lam
  )
  return flat.reshape(mean_logp_BC.shape)


def of(given):
  """The Auxiliary of a config's choice: None, "hpo" or dict(name="hpo", ...).

  Raises:
    ValueError: another name, a keyword that is none, or a number out of range.
  """
  if given is None:
    return None
  keywords = choices.named("auxiliary", given, {"hpo": Auxiliary})[1]
  defaults = {one.name: one.default for one in dataclasses.fields(Auxiliary)}
  choices.refuse("auxiliary 'hpo'", keywords, defaults)
  check_numbers("auxiliary 'hpo'", keywords, defaults)
  found = Auxiliary(**keywords)
  for key, least in (("delay", 0), ("width", 1)):
    value = getattr(found, key)
    if not isinstance(value, int) or value < least:
      raise ValueError(
        f"auxiliary 'hpo': {key} must be a whole number from {least} on, got "
        f"{value!r}"
      )
  for key in ("weight", "value_weight", "value_rate"):
    if getattr(found, key) < 0:
      raise ValueError(f"auxiliary 'hpo': {key} must not be negative")
  return found
