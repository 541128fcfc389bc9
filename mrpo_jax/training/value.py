# SPDX-License-Identifier: Apache-2.0
"""Value network of an auxiliary term: what a prompt's responses are worth.

Its weights and moments stand in the method's state, so that checkpoints hold
them and the model's folder does not.
"""

import jax
import jax.numpy as jnp
import optax

from mrpo_jax.shapes import check, widen

STATE = "value"  # its part of the method's state
EPSILON = 1e-6  # of a square, under which a state counts as none
KEY = 2  # tells its weights from what the method draws, and from dropout


def init(key, width, hidden):
  """Weights of three layers, `width` to `hidden`, `hidden` and one.

  The last one starts at 0, and so does every value.
  """
  sizes, params = (width, hidden, hidden, 1), {}
  for n, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
    key, own = jax.random.split(key)
    scale = 0.0 if n == 2 else (2.0 / fan_in) ** 0.5
    normal = jax.random.normal(own, (fan_in, fan_out), jnp.float32)
    bias = jnp.zeros(fan_out, jnp.float32)
    params[f"layer_{n}"] = {"weight": scale * normal, "bias": bias}
  return params


def value(params, prompt_BD):
  """value_B of prompts, in units of reward.

  Args:
    params: of `init`.
    prompt_BD: the policy's state at the last token of each prompt; its scale
      does not count.

  Source: HPO, arXiv:2405.17956: a network of three layers on detached states;
  widths and activation are unverified.
  """
  check(prompt_BD=prompt_BD)
  x_BD = widen(prompt_BD)
  square_B1 = jnp.mean(jnp.square(x_BD), axis=1, keepdims=True)
  x_BD = x_BD * jax.lax.rsqrt(square_B1 + EPSILON)
  for n in range(len(params)):
    layer = params[f"layer_{n}"]
    x_BD = jnp.dot(x_BD, layer["weight"], precision="highest")
    x_BD = x_BD + layer["bias"][None]
    x_BD = jax.nn.relu(x_BD) if n + 1 < len(params) else x_BD
  return x_BD[:, 0]


def start(objective, transformation, seed):
  """The part of the method's state; {} of a method without values."""
  if not objective.needs("value_B"):
    return {}
  key = jax.random.fold_in(jax.random.key(seed), KEY)
  params = init(
    key, objective.policy.config.width, objective.method.auxiliary.width
  )
  return {STATE: {"params": params, "opt_state": transformation.init(params)}}


def updated(objective, transformation, state, mean_loss):
  """The method's state after a step of the value network on a batch.

  Args:
    objective: Objective.
    transformation: the policy's, with moments of its own here.
    state: the method's.
    mean_loss: state -> the loss of the batch, a scalar.
  """
  if STATE not in state:
    return state
  here = state[STATE]

  def loss(params):
    return mean_loss({**state, STATE: {**here, "params": params}})

  updates, opt_state = transformation.update(
    jax.grad(loss)(here["params"]), here["opt_state"], here["params"]
  )
  rate = objective.method.auxiliary.value_rate
  updates = jax.tree.map(lambda update: rate * update, updates)
  params = optax.apply_updates(here["params"], updates)
  return {**state, STATE: {"params": params, "opt_state": opt_state}}


def restarted(transformation, state):
  """The method's state with V's optimizer as it starts, its schedule too."""
  if STATE not in state:
    return state
  here = state[STATE]
  opt_state = transformation.init(here["params"])
  return {**state, STATE: {**here, "opt_state": opt_state}}
