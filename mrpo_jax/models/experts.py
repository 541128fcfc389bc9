# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts: an MLP of many, of which a router gives each token some.

No token is dropped and no expert has a capacity: what a token gets does not
depend on the others of its batch (Mixtral, arXiv:2401.04088).
"""

import functools

import jax
import jax.numpy as jnp
import qwix
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from mrpo_jax.models import grouped
from mrpo_jax.models.attention.layout import SAVED
from mrpo_jax.models.weights import dense


def mlp(config, activation, x_RTD, weights, is_real_RT, partition):
  """The experts' branch of one layer: y_RTD.

  Under a mesh each device has some of the experts, or a part of each, and all
  tokens of its rows: it adds up what its experts give for them, and the devices
  add their sums.  So no token moves.

  Args:
    config: ModelConfig with experts.
    activation: of the gate.
    x_RTD: what the experts read.
    weights: {name: leaf} of the layer, see `parameters.expert_weights`.
    is_real_RT: padding has no expert: it costs nothing, and gives 0.
    partition: Partition of the activations.
  """
  whole = partition.experts + partition.expert_mlp
  parts = 1 if not whole else partition.size(partition.experts)

  def here(x_RTD, router_DX, up, gate, down, is_real_RT):
    R, T, D = x_RTD.shape
    x_ND = x_RTD.reshape(-1, D)
    share_NA, expert_NA = route(config, x_ND, router_DX)
    local = config.experts // parts
    expert_NA -= partition.place(partition.experts) * local
    is_mine_NA = (expert_NA >= 0) & (expert_NA < local)
    is_mine_NA &= is_real_RT.reshape(-1, 1)
    y_ND = _dispatched(
      functools.partial(
        _expert_mlps, activation, up, gate, down, local * parts
      ),
      x_ND,
      share_NA,
      jnp.where(is_mine_NA, expert_NA, local),
      local,
    )
    y_RTD = y_ND.reshape(R, T, D)
    return jax.lax.psum(y_RTD, whole) if whole else y_RTD

  rows = PartitionSpec(partition.rows, partition.context)
  into = partition.of_experts(weights["expert_up"], 2)
  specs = rows, PartitionSpec(), into, into
  specs += partition.of_experts(weights["expert_down"], 1), rows
  names = "router", "expert_up", "expert_gate", "expert_down"
  return partition.run(here, specs, rows)(
    x_RTD, *(weights[name] for name in names), is_real_RT
  )


def check_groups(config, group, partition):
  """Raises ValueError where devices would share a group of int4 weights.

  Args:
    config: ModelConfig.
    group: inputs that share a scale in int4; None of other weights.
    partition: Partition of the model over a mesh.
  """
  devices = partition.size(partition.expert_mlp)
  groups = config.mlp_width // group if config.experts and group else 1
  if groups > 1 and groups % devices:
    raise ValueError(
      f"blocks.expert_down: {groups} groups of {group} do not divide over "
      f"{devices} devices; take int8, or an empty mesh.rules.expert_mlp"
    )


def route(config, x_ND, router_DX):
  """(share_NA, expert_NA): the A experts of each token, and what each counts.

  Shares are float32 or better, and so are the scores that they come from: in
  bfloat16 many scores would be the same, and the choice between such experts
  a matter of their order.
  """
  wide = jnp.promote_types(x_ND.dtype, jnp.float32)
  score_NX = jnp.einsum(
    "ND,DX->NX",
    x_ND,
    router_DX.astype(x_ND.dtype),
    precision="highest",
    preferred_element_type=wide,
  )
  share_NX = jax.nn.softmax(score_NX, axis=-1)
  _, expert_NA = jax.lax.top_k(
    jax.lax.stop_gradient(share_NX), config.experts_per_token
  )
  # Kept where the products are whose rows stand in their order: chosen anew for
  # the backward pass, of two shares that rounding tells apart the other might
  # be the larger one, and every row between both experts another token's.
  expert_NA = checkpoint_name(expert_NA, SAVED)
  share_NA = jnp.take_along_axis(
    share_NX, expert_NA, axis=-1, mode="promise_in_bounds"
  )
  if config.shares_sum_to_one:
    share_NA /= jnp.sum(share_NA, axis=-1, keepdims=True)
  return share_NA, expert_NA


def _dispatched(mlps, x_ND, share_NA, expert_NA, experts):
  """y_ND: tokens dispatched to their experts, and what these give combined.

  Args:
    mlps: (rows of tokens, rows of each expert) -> rows of what these give.
    x_ND: the tokens.
    share_NA: what an expert counts.
    expert_NA: numbers of experts; `experts` stands for none.
    experts: how many there are.
  """
  N, A = expert_NA.shape
  order_M = jnp.argsort(expert_NA.reshape(-1), stable=True)
  size_X = jnp.bincount(expert_NA.reshape(-1), length=experts + 1)[:experts]
  rows_MD = jnp.broadcast_to(x_ND[:, None], (N, A, x_ND.shape[1]))
  y_MD = mlps(_permuted(rows_MD.reshape(N * A, -1), order_M), size_X)
  y_NAD = _permuted(y_MD, jnp.argsort(order_M)).reshape(rows_MD.shape)
  y_ND = jnp.einsum(
    "NAD,NA->ND", y_NAD, share_NA, preferred_element_type=share_NA.dtype
  )
  return y_ND.astype(x_ND.dtype)


def _permuted(rows_MD, order_M):
  """The rows in that order, each once: so its gradient adds up nothing.

  On a GPU a sum over equal places would differ from run to run.
  """
  return rows_MD.at[order_M].get(unique_indices=True, mode="promise_in_bounds")


def _expert_mlps(activation, up, gate, down, experts, rows_MD, size_X):
  """The experts' MLPs, each on its own rows: SwiGLU, and its like."""
  # Of M rows a device's experts are expected to have their even share.
  expected = -(-rows_MD.shape[0] * size_X.size // experts)

  def product(rows, leaf):
    def plain(rows, leaf):
      return grouped.product(rows, dense(leaf, rows.dtype), size_X, expected)

    if isinstance(leaf, qwix.QArray):  # see `weights.project`
      plain = jax.checkpoint(plain, prevent_cse=False)
    return checkpoint_name(plain(rows, leaf), SAVED)

  y_MF = product(rows_MD, up) * activation(product(rows_MD, gate))
  return product(y_MF, down)
