# SPDX-License-Identifier: Apache-2.0
"""Whole rows for attention where a mesh splits their tokens over `context`.

Between layers a device has some tokens of its rows, with all heads.  Around
attention the devices that share a row exchange: each then has all tokens with
some heads, and afterwards its tokens again (DeepSpeed-Ulysses,
arXiv:2309.14509, section 3.1).  A kernel sees whole rows, so who sees whom in a
pair, packing and windows stay its own business, whichever kernel it is.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec


def specs(partition):
  """PartitionSpecs of queries and outcome, and of keys and values."""
  of_heads = PartitionSpec(partition.rows, partition.context, partition.heads)
  if partition.heads == partition.kv_heads:
    return of_heads, of_heads
  return of_heads, PartitionSpec(partition.rows, partition.context)


def to_heads(partition, H, G, layout, query_RTHE, key_RTGE, value_RTGE):
  """All tokens of this device's heads, from its own tokens.

  Of keys a device gets those that its queries look at, and no others.

  Args:
    partition: Partition; this runs on each of its devices.
    H, G: heads of queries and of keys on all devices.
    layout: RowLayout [R, T] of this device's rows, whole.
    query_RTHE, key_RTGE, value_RTGE: what `specs` gives this device, of rows
      that are `Partition.joined`.
  """
  sent_G = _sent(partition, H, G)
  if sent_G is not None:
    key_RTGE, value_RTGE = key_RTGE[:, :, sent_G], value_RTGE[:, :, sent_G]

  def exchanged(array_RTHE):
    if partition.size(partition.context) == 1:
      return array_RTHE
    return in_rows(layout, _all_to_all(partition, array_RTHE, 2, 1))

  return [exchanged(array) for array in (query_RTHE, key_RTGE, value_RTGE)]


def to_tokens(partition, out_RTHE):
  """All heads of this device's tokens, from all tokens of its heads."""
  if partition.size(partition.context) == 1:
    return out_RTHE
  return _all_to_all(
    partition, out_RTHE.reshape(1, -1, *out_RTHE.shape[2:]), 1, 2
  )


def in_rows(layout, array_RTHE):
  """The rows of a RowLayout, which may be `Partition.joined`, one by one."""
  return array_RTHE.reshape(*layout.segments.shape, *array_RTHE.shape[2:])


def _all_to_all(partition, array, split, joined):
  with jax.named_scope("ulysses"):
    return jax.lax.all_to_all(
      array, partition.context, split, joined, tiled=True
    )


def _sent(partition, H, G):
  """Which of a device's keys go to each device of a row in turn; None: all."""
  devices, parts = (
    partition.size(axes) for axes in (partition.context, partition.heads)
  )
  first = 0
  if partition.heads == partition.kv_heads:
    H, G = H // parts, G // parts
    if G % devices == 0:
      return None
    parts = devices
  else:  # it has all, and its queries' place among them differs by device
    first = partition.place(partition.heads) * devices
    parts *= devices
  each = [keys_of(first + n, parts, H, G) for n in range(devices)]
  return jnp.concatenate(each)


def keys_of(place, parts, H, G):
  """Which of G heads of keys the queries of one part look at, in order.

  Equally many queries in a row look at each; where a part has some of such a
  group and more, its keys stand there more than once.

  Args:
    place: which of the parts.
    parts: into how many the H heads of queries are cut.
  """
  here, group = H // parts, H // G
  run = math.gcd(here, group)
  return (place * here + run * np.arange(here // run)) // group
