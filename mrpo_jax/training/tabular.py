# SPDX-License-Identifier: Apache-2.0
"""Tabular policy: what a loss asks for, without a language model.

A softmax over a small set of responses, all of them counted, trained by
full-batch gradient descent.  Nothing is sampled, so where it ends can be
compared with the exact optimum of the loss.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax.shapes import check


class Task(NamedTuple):
  """A loss, its references and its pairs."""

  loss: Callable  # (policy_logp_BC, ref_logp_BCK) -> loss_B
  ref_logp_XYK: jax.Array  # nats
  prompt_B: jax.Array  # place of each pair's prompt on the axis X
  response_BC: jax.Array  # places of chosen and rejected on the axis Y
  weight_B: jax.Array  # of each pair in the loss; sum 1 for a mean


class State(NamedTuple):
  """The logits of the descent, and sums over its steps."""

  logits_XY: jax.Array
  policy_XY: jax.Array  # sum over the steps that are averaged
  loss: jax.Array  # of the last step, before its update


def fit(
  loss,
  ref_logp_XYK,
  prompt_B,
  response_BC,
  *,
  weight_B=None,
  lr,
  steps,
  average=1,
):
  """The policy that gradient descent on a pair loss ends with.

      logits <- logits - lr * d/dlogits sum_b weight_b * loss_b

  It starts at reference 0, and computes in float64 throughout.

  Args:
    loss: f(policy_logp_BC, ref_logp_BCK) -> loss_B, as `losses.build` makes.
    ref_logp_XYK: log-probability of every response to every prompt under each
      reference; nats.
    prompt_B: each pair's prompt, a place on X.
    response_BC: its responses, places on Y; index 0 chosen, 1 rejected.
    weight_B: of each pair in the sum; None is the mean.
    lr: size of a step.
    steps: number of steps.
    average: of how many last steps the policy is averaged.

  Returns:
    policy_XY: probabilities, a NumPy array in float64.

  Raises:
    ValueError: wrong axes, a place that is not on X or Y, steps or average
      below 1.
  """
  for name, number in dict(steps=steps, average=average).items():
    if number < 1:
      raise ValueError(f"{name} must be from 1 up, got {number}")
  with jax.enable_x64(True):
    if weight_B is None:
      weight_B = np.full(len(prompt_B), 1.0 / len(prompt_B))
    task = Task(
      loss,
      jnp.asarray(ref_logp_XYK, float),
      jnp.asarray(prompt_B),
      jnp.asarray(response_BC),
      jnp.asarray(weight_B, float),
    )
    state = start(task)
    prompts, responses, _ = task.ref_logp_XYK.shape
    _check_places("prompt_B", prompt_B, prompts)
    _check_places("response_BC", response_BC, responses)
    average = min(average, steps)
    walk = jax.jit(
      functools.partial(descend, task, lr=lr, average_from=steps - average)
    )
    return np.asarray(walk(state, 0, steps).policy_XY / average)


def _check_places(name, places, size):
  """A ValueError for a place off its axis, which JAX would move onto it."""
  for place in np.unique(places):
    if not 0 <= place < size:
      raise ValueError(
        f"`{name}` holds {place}, but its places are from 0 to {size - 1}"
      )


def start(task):
  """The state before the first step: the policy is reference 0."""
  check(ref_logp_XYK=task.ref_logp_XYK, prompt_B=task.prompt_B)
  check(
    response_BC=task.response_BC, weight_B=task.weight_B, prompt_B=task.prompt_B
  )
  logits_XY = task.ref_logp_XYK[..., 0]
  return State(logits_XY, jnp.zeros_like(logits_XY), jnp.zeros(()))


def descend(task, state, first, end, *, lr, average_from):
  """The state after steps first, ..., end - 1, in one loop.

  Args:
    task: see `Task`.
    state: see `State`, after `first` steps.
    first: steps done.
    end: steps to be done then.
    lr: size of a step.
    average_from: policies of this step and later ones are summed.
  """

  def step(i, state):
    loss, slope_XY = jax.value_and_grad(_loss, 1)(task, state.logits_XY)
    logits_XY = state.logits_XY - lr * slope_XY
    policy_XY = jax.nn.softmax(logits_XY)
    kept_XY = jnp.where(i >= average_from, policy_XY, 0.0)
    return State(logits_XY, state.policy_XY + kept_XY, loss)

  return jax.lax.fori_loop(first, end, step, state)


def _loss(task, logits_XY):
  """The weighted sum of the pairs' losses."""
  policy_logp_XY = jax.nn.log_softmax(logits_XY)
  places = task.prompt_B[:, None], task.response_BC
  loss_B = task.loss(policy_logp_XY[places], task.ref_logp_XYK[places])
  return jnp.sum(task.weight_B * loss_B)
