# SPDX-License-Identifier: Apache-2.0
"""INPUTS: every array that a loss may ask for, by the name of its parameter.

A loss says what it needs by its parameters (`logratio_BC`, `length_BC`, ...).
What else follows from an array, from the figures that the models must give to
the keywords that a config may set, stands in its row here and nowhere else.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mrpo_jax.errors import did_you_mean
from mrpo_jax.losses.arguments import AXES, arrays_of, keywords_of
from mrpo_jax.losses.dispersion import dispersion_scale, neg_log_dispersion
from mrpo_jax.losses.pair import margin
from mrpo_jax.shapes import CHOSEN, REJECTED, check, widen

# Figures beside log-probabilities, and what the models must give for them.
FIGURES = {
  "length_BC": "token counts",
  "character_BC": "character counts",
  "kl_BC": "full distributions of policy and reference (online, the policy's "
  "tokenizer)",
  "mean_excess_BC": "sums of squared probabilities of the policy",
  "normalised_entropy_BC": "entropies of reference 0",
  "weight_BK": "weights of the references, from the data",
  "token_loss_BC": "rollouts: of every token log-probabilities, advantage and "
  "return; a value head",
  "aux_reward_BC": "rewards of the responses, from the store",
  "desirable_B": "single responses with labels",
  "value_B": "values of the prompts, by a network beside the policy",
}


@dataclasses.dataclass(frozen=True)
class BatchArrays:
  """A batch and a Method's choices, from which arrays of its loss are made."""

  loss: str  # its name, for messages
  policy_logp_BC: jax.Array  # nats, summed over response tokens
  policy_BC: jax.Array  # the same in the method's unit
  figures: Mapping[str, Any]  # see FIGURES; `valid_B`; arrays by their names
  numbers: Mapping[str, float]  # of a config: win_rate, phi
  dispersion: float | None  # mean of -log dispersion over the data set
  ref: jax.Array | None = None  # [B, C] of one reference or [B, C, K], in unit

  def array(self, name):
    """The array that a loss calls by this name; ValueError where it lacks."""
    taken = INPUTS[name]
    if taken.from_reference or self.figures.get(name) is None:
      return taken.make(self)
    return self.figures[name]

  def figure(self, name):
    """A figure of the models; ValueError where it is missing."""
    if self.figures.get(name) is None:
      raise ValueError(f"loss {self.loss!r} needs {name}")
    return self.figures[name]

  def scale_B(self):
    """MallowsPO's factor on each margin."""
    entropy_BC = self.figure("normalised_entropy_BC")
    return dispersion_scale(
      neg_log_dispersion(entropy_BC), mean=self.dispersion
    )


@dataclasses.dataclass(frozen=True)
class Input:
  """An array that a loss may take: how it is made, and what follows from it."""

  make: Callable[[BatchArrays], jax.Array]
  needs: tuple[str, ...] = ()  # figures that the models must give
  from_reference: bool = False  # then mixtures, clip and weights apply
  all_references: bool = False  # the loss mixes them by itself
  per_token: bool = False  # then "mean" is the method's unit
  over_tokens: bool = False  # summed over tokens, which no token weight reaches
  dispersed: bool = False  # then a config may give `dispersion`
  across_batch: bool = False  # a pair's loss depends on the other pairs
  known_at_start: bool = False  # where policy and references agree
  of_scalar_head: bool = False  # then the model is one of rewards, not of texts
  number: tuple[str, float] | None = None  # what a config gives for it, default


def _chosen_mean(given):
  length_B = widen(given.figure("length_BC")[:, CHOSEN])
  return widen(given.policy_logp_BC[:, CHOSEN]) / jnp.maximum(length_B, 1.0)


def _scale(given):
  pairs = len(given.policy_BC)
  return jnp.ones(pairs) if given.dispersion is None else given.scale_B()


def _phi(given):
  if given.dispersion is None:
    return jnp.full(len(given.policy_BC), given.numbers["phi"])
  return jnp.exp(-given.scale_B())


def _win_rate(given):
  rate = given.numbers["win_rate"]
  return jnp.broadcast_to(
    jnp.array([[rate, 1.0 - rate]]), given.policy_BC.shape
  )


INPUTS = {
  # Of the policy, in the method's unit.
  "policy_logp_BC": Input(lambda given: given.policy_BC),
  "logp_BC": Input(lambda given: given.policy_BC),
  "mean_logp_BC": Input(lambda given: given.policy_BC, per_token=True),
  "policy_margin_B": Input(lambda given: margin(given.policy_BC)),
  # Of a model with a scalar head, which has nothing else.
  "reward_BC": Input(lambda given: given.policy_BC, of_scalar_head=True),
  # Of the policy's chosen responses, per token whatever the unit.
  "mean_logp_B": Input(_chosen_mean, needs=("length_BC",)),
  "gold_mean_logp_B": Input(_chosen_mean, needs=("length_BC",)),
  # Against the reference, or the one that stands for K.
  "logratio_BC": Input(
    lambda given: given.policy_BC - given.ref,
    from_reference=True,
    known_at_start=True,
  ),
  "ref_logp_BC": Input(lambda given: given.ref, from_reference=True),
  "ref_mean_logp_BC": Input(
    lambda given: given.ref, from_reference=True, per_token=True
  ),
  # Of single responses, which stand where a pair has its chosen one; a response
  # of another prompt, where it is asked for, stands in the other's place.
  "logratio_B": Input(
    lambda given: (given.policy_BC - given.ref)[:, CHOSEN],
    from_reference=True,
    known_at_start=True,
  ),
  "mismatched_logratio_B": Input(
    lambda given: (given.policy_BC - given.ref)[:, REJECTED],
    from_reference=True,
    across_batch=True,
    known_at_start=True,
  ),
  "desirable_B": Input(
    lambda given: given.figure("desirable_B"),
    needs=("desirable_B",),
    known_at_start=True,
  ),
  "ref_margin_BK": Input(
    lambda given: given.ref[:, CHOSEN] - given.ref[:, REJECTED],
    from_reference=True,
    all_references=True,
  ),
  # Of the models, as they are.
  "length_BC": Input(
    lambda given: given.figure("length_BC"), needs=("length_BC",)
  ),
  "kl_BC": Input(
    lambda given: given.figure("kl_BC"),
    needs=("kl_BC",),
    over_tokens=True,
    known_at_start=True,
  ),
  "valid_B": Input(
    lambda given: given.figures.get("valid_B"), across_batch=True
  ),
  # Of rollouts, whose tokens have losses of their own.
  "token_loss_BC": Input(
    lambda given: given.figure("token_loss_BC"), needs=("token_loss_BC",)
  ),
  # Of a config, or of the dispersion under reference 0.
  "scale_B": Input(_scale, dispersed=True, known_at_start=True),
  "phi_B": Input(
    _phi, dispersed=True, known_at_start=True, number=("phi", 0.05)
  ),
  # Of the data's rewards, which are quantiles then.
  "quantile_BC": Input(
    lambda given: given.figure("aux_reward_BC"), needs=("aux_reward_BC",)
  ),
  "win_rate_BC": Input(
    _win_rate, known_at_start=True, number=("win_rate", 1.0)
  ),
}


def inputs_of(loss):
  """{name: Input} of what a loss takes, as arrays or as keywords."""
  names = (*arrays_of(loss), *keywords_of(loss))
  return {name: INPUTS[name] for name in names if name in INPUTS}


def refuse_unknown(losses):
  """A ValueError for the first loss that asks for an array not in INPUTS."""
  for loss in losses:
    keywords = [key for key in keywords_of(loss) if AXES.search(key)]
    for array in (*arrays_of(loss), *keywords):
      if array not in INPUTS:
        known = ", ".join(INPUTS)
        raise ValueError(
          f"loss {loss.__name__!r} asks for {array!r}; known: {known}"
        )


def check_figures(loss, figures, **logps):
  """A ValueError for the first figure that is none, or of another shape.

  Args:
    loss: its name, for the message.
    figures: {name: array or None} of FIGURES, `ref_length_BCK`, `valid_B` and
      the arrays of INPUTS that are not made from references.
    **logps: the log-probabilities that go with them, by their names.
  """
  own = [name for name, one in INPUTS.items() if not one.from_reference]
  own.remove("policy_logp_BC")  # given beside them
  known = dict.fromkeys([*FIGURES, "ref_length_BCK", *own])
  for name in figures:
    if name in INPUTS and name not in known:
      raise ValueError(
        f"loss {loss!r} is given {name!r}, which it makes itself"
      )
    if name not in known:
      raise ValueError(
        f"loss {loss!r} is given {name!r}, which is no figure;"
        f"{did_you_mean(name, known)} known: {', '.join(known)}"
      )
  given = {name: one for name, one in figures.items() if one is not None}
  scale_B = given.get("scale_B", ())
  if not isinstance(scale_B, list | tuple) and not jnp.ndim(scale_B):
    del given["scale_B"]  # one number for all pairs
  check(**logps, **given)
