# SPDX-License-Identifier: Apache-2.0
"""TokenLoss: the part of a Method that learns from tokens of rollouts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mrpo_jax.losses.arguments import arrays_of, keywords_of
from mrpo_jax.losses.related import (
  importance_ratio,
  ppo_clip,
  value_loss,
)
from mrpo_jax.shapes import widen

VALUE_WEIGHT = 1.0  # of the value's loss
# What is known of each token of a rollout before the step: log-probabilities
# under the initial policy and of what it was drawn from, in nats; the
# advantage, and the return that the value is to learn.
GIVEN = ("ref_logp", "behaviour_logp", "advantage", "returns")


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLoss:
  """A loss of each token, by its advantage, and of the value before it.

  loss = policy's loss + value_weight * 1/2 (V - return)^2
  """

  policy: Callable  # arrays of one shape, `logp` among them -> the loss of each
  hyper: dict[str, Any]  # its keywords
  value_weight: float

  def __call__(self, logp, value, given):
    """{figure: one for each token}.

    Args:
      logp: the policy's, nats, any shape.
      value: of the state before each token.
      given: dict of the same shape, GIVEN at least.

    Returns:
      `loss`, of which alone gradients are taken, to `logp` and `value`; its
      two parts; `kl`, log p - log r of the token; `ratio` to what it was drawn
      from; `clipped`, 1 where PPO has no gradient (PPO alone); `returns` and
      `error`, what is left of them beside the value, and both squared.

    Raises:
      ValueError: an array that is not given.
    """
    missing = [name for name in GIVEN if name not in given]
    if missing:
      raise ValueError(f"a loss of tokens needs {', '.join(missing)} of each")
    arrays = {**given, "logp": logp}
    taken = [arrays[name] for name in arrays_of(self.policy)]
    of_policy = self.policy(*taken, **self.hyper)
    of_value = value_loss(value, given["returns"])
    about = {
      "policy": of_policy,
      "value": of_value,
      "kl": widen(logp) - widen(given["ref_logp"]),
      "ratio": importance_ratio(logp, given["behaviour_logp"]),
      "returns": widen(given["returns"]),
      "error": widen(given["returns"]) - widen(value),
    }
    if self.policy is ppo_clip:
      far = self.hyper.get("cliprange", keywords_of(ppo_clip)["cliprange"])
      towards = jnp.sign(widen(given["advantage"])) * (about["ratio"] - 1.0)
      about["clipped"] = (towards > far).astype(of_policy.dtype)
    for name in ("returns", "error"):
      about[f"{name}_squared"] = jnp.square(about[name])
    loss = of_policy + self.value_weight * of_value
    return {"loss": loss} | jax.lax.stop_gradient(about)
