# SPDX-License-Identifier: Apache-2.0
"""Partition of a model's activations over the axes of a mesh.

XLA's partitioner divides products well.  A loop whose length is data, or a
kernel that it cannot look into, it would run on every device over arrays that
it collects first: those run per device, on what is there, and say themselves
what they exchange.
"""

import dataclasses
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Partition:
  """Names of the mesh axes that divide each axis of the activations."""

  mesh: Mesh | None = None  # None: one device, or all left to the partitioner
  rows: tuple[str, ...] = ()
  context: tuple[str, ...] = ()  # of the positions T
  heads: tuple[str, ...] = ()
  kv_heads: tuple[str, ...] = ()
  vocab: tuple[str, ...] = ()  # of the logits
  experts: tuple[str, ...] = ()  # each has whole ones
  expert_mlp: tuple[str, ...] = ()  # of what stands within an expert
  # Of the width of embedding and head, among those of the rows: what a device
  # lacks it collects or exchanges, and gradients are scattered.
  embed: tuple[str, ...] = ()

  def size(self, axes):
    """Number of devices that these axes divide over."""
    return math.prod(self.mesh.shape[axis] for axis in axes)

  def run(self, function, in_specs, out_specs):
    """`function` of each device's own part; on one device as it is."""
    if self.mesh is None:
      return function
    # What a device sums up starts as a constant, the same on all: the check of
    # what varies between devices would refuse it.
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )

  def place(self, axes):
    """Number of the part of these axes that a device of `run` has."""
    return jax.lax.axis_index(axes) if axes else 0

  def of_weights(self, leaf_ND, axes):
    """PartitionSpecs of an embedding or a head whose N is split over `axes`."""

    def of(array):  # scales of integers have a width of 1
      return PartitionSpec(axes, self.embed if array.shape[1] > 1 else None)

    return jax.tree.map(of, leaf_ND)

  def of_experts(self, leaf, inner):
    """PartitionSpecs of the experts' matrices, whose axis `inner` is theirs."""

    def of(array):  # scales of integers have axes of 1
      names = [self.experts, None, None]
      names[inner] = self.expert_mlp
      return PartitionSpec(
        *(
          name if size > 1 else None
          for name, size in zip(names, array.shape, strict=True)
        )
      )

    return jax.tree.map(of, leaf)

  def kept(self, x_RTD):
    """Activations with whole widths, whatever the weights are split over.

    Without it the partitioner may collect rows where it should collect the
    weights of a layer.
    """
    return self._placed(x_RTD, PartitionSpec(self.rows, self.context, None))

  def joined(self, array_RT):
    """The rows of a device as one where their tokens are split.

    So a device has a run of tokens, of however many rows.  Of parts of several
    rows no axis can be made, which products do: the partitioner would collect
    the tokens before each.
    """
    if self.size(self.context) == 1:
      return array_RT
    return array_RT.reshape(self.size(self.rows), -1, *array_RT.shape[2:])

  def apart(self, x_RTD, shape):
    """Activations of `joined` tokens as rows of that shape, on every device.

    What takes them by place finds all: the partitioner would sum what each
    device has of those places, which sends twice the bytes.
    """
    if self.size(self.context) == 1:
      return x_RTD
    whole = PartitionSpec(self.rows, None, None)
    x_RTD = self._placed(self.kept(x_RTD), whole)
    return x_RTD.reshape(*shape, -1)

  def _placed(self, array, spec):
    if self.mesh is None:
      return array
    return jax.lax.with_sharding_constraint(
      array, NamedSharding(self.mesh, spec)
    )


WHOLE = Partition()
