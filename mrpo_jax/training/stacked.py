# SPDX-License-Identifier: Apache-2.0
"""References that differ in their numbers alone, as one program."""

import collections

import flax.struct
import jax
import jax.numpy as jnp


def stack(models, trees, taken=()):
  """The trees of references, those alike as one `Stacked`.

  Their arrays are deleted one by one as they are copied, so that no second set
  stands in memory.

  Args:
    models: `Model` of each.
    trees: parameters of each, or None.
    taken: trees whose arrays are also used elsewhere: what shares one of them,
      or one with another reference, stays as it is.
  """
  uses = collections.Counter(
    id(array) for tree in (*trees, *taken) for array in jax.tree.leaves(tree)
  )
  alike = {}
  for k, (model, tree) in enumerate(zip(models, trees, strict=True)):
    arrays, treedef = jax.tree.flatten(tree)
    if arrays and max(uses[id(array)] for array in arrays) == 1:
      kinds = tuple((a.shape, a.dtype, a.sharding) for a in arrays)
      alike.setdefault((model, treedef, kinds), []).append(k)
  trees = list(trees)
  for members in alike.values():
    if len(members) > 1:
      params = jax.tree.map(_stacked, *(trees[k] for k in members))
      for k in members:
        trees[k] = None
      trees[members[0]] = Stacked(params, tuple(members))
  return tuple(trees)


def _stacked(*arrays):
  """One array with an axis in front, sharded as each was."""
  sharding = arrays[0].sharding
  if isinstance(sharding, jax.sharding.NamedSharding):
    spec = jax.sharding.PartitionSpec(None, *sharding.spec)
    sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
  if isinstance(arrays[0], jax.ShapeDtypeStruct):  # of a plan
    shape = (len(arrays), *arrays[0].shape)
    return jax.ShapeDtypeStruct(shape, arrays[0].dtype, sharding=sharding)
  make = jax.jit(lambda *arrays: jnp.stack(arrays), out_shardings=sharding)
  stacked = jax.block_until_ready(make(*arrays))
  for array in arrays:
    array.delete()
  return stacked


@flax.struct.dataclass
class Stacked:
  """Parameters of references that differ in their numbers alone.

  It stands at the first of them, None at the others: one program, compiled
  once, runs them one after the other.
  """

  params: dict  # leaves with an axis in front, one place for each member
  members: tuple[int, ...] = flax.struct.field(pytree_node=False)


def member(references, k):
  """The parameters of the k-th of references, as `stack` gave them."""
  for one in references:
    if isinstance(one, Stacked) and k in one.members:
      place = one.members.index(k)
      return jax.tree.map(lambda array, n=place: array[n], one.params)
  return references[k]
