# SPDX-License-Identifier: Apache-2.0
"""Requests as trees in packed rows: what several begin with stands once.

A request is (context, continuation), two lists of token ids, of which the
continuation is scored.  Its last token is only a target and has no place.
Requests with a common start are a tree in a row, [trunk | branch 1 | branch 2
| ...], where positions of branches go on from the trunk's end and no branch
sees another; requests of one context stand in one branch as far as they are
equal, so that all choices of one token are targets of one place.
"""

import dataclasses
import itertools

import numpy as np

from mrpo_jax.data.pack import first_fit
from mrpo_jax.rows import Rows

NOBODY = np.iinfo(np.int32).max  # the slot of a place that scores nothing


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A sequence that no other one continues, and who is scored in it."""

  ids: np.ndarray
  scored: list  # of (number of a request, its first place, its targets)

  @property
  def targets(self):
    return sum(len(targets) for *_, targets in self.scored)


@dataclasses.dataclass(frozen=True)
class Tree:
  """Leaves whose first `depth` tokens are the same."""

  depth: int
  leaves: list

  @property
  def tokens(self):
    return self.depth + sum(len(leaf.ids) - self.depth for leaf in self.leaves)

  @property
  def size(self):
    """Places that it takes of a row, which has as many for targets."""
    return max(self.tokens, sum(leaf.targets for leaf in self.leaves))


@dataclasses.dataclass
class _Node:
  """A place where sequences part, and the trees below it so far."""

  depth: int
  leaves: list
  trees: list  # the best ones of its leaves
  cost: int  # tokens of those


def leaves_of(requests):
  """The Leaves of requests, in the order of their ids."""
  found = {}
  for number, (context, continuation) in enumerate(requests):
    ids = np.array([*context, *continuation[:-1]], ">i4")
    scored = number, len(context) - 1, continuation
    found.setdefault(ids.tobytes(), (ids, []))[1].append(scored)
  leaves = []
  for key in sorted(found, reverse=True):  # a start comes after what goes on
    ids, scored = found[key]
    if leaves and _common(ids, leaves[-1].ids) == len(ids):
      leaves[-1].scored.extend(scored)
    else:
      leaves.append(Leaf(ids.astype(np.int32), scored))
  return leaves[::-1]


def _common(one, other):
  """How many tokens at their start are the same."""
  size = min(len(one), len(other))
  differs = one[:size] != other[:size]
  return int(differs.argmax()) if differs.any() else size


def trees_of(leaves, length):
  """The trees of leaves that have the fewest tokens, in rows of so many.

  Of the leaves below each place where sequences part, either all are one tree
  with that place as the end of its trunk, or each part below stays as it is.
  """
  stack = [_Node(0, [], [], 0)]
  for leaf, other in itertools.zip_longest(leaves, leaves[1:]):
    common = 0 if other is None else _common(leaf.ids, other.ids)
    node = _Node(len(leaf.ids), [leaf], [Tree(0, [leaf])], len(leaf.ids))
    while stack[-1].depth > common:
      node = _closed(_joined(stack.pop(), node), length)
    if stack[-1].depth == common:
      stack.append(_joined(stack.pop(), node))
    else:
      stack.append(_Node(common, node.leaves, node.trees, node.cost))
  return _closed(stack.pop(), length).trees


def _joined(node, other):
  node.leaves += other.leaves
  node.trees += other.trees
  node.cost += other.cost
  return node


def _closed(node, length):
  """The node with the better choice: its leaves in one tree, or as they are."""
  if not node.depth:
    return node
  trees = _cut(node.depth, node.leaves, length)
  cost = sum(tree.tokens for tree in trees)
  if cost < node.cost:
    node.trees, node.cost = trees, cost
  return node


def _cut(depth, leaves, length):
  """Trees of these leaves, as many leaves in each as a row has room for."""
  trees, tokens, targets = [], 0, 0
  for leaf in leaves:
    tokens += len(leaf.ids) - depth
    targets += leaf.targets
    if not trees or max(tokens, targets) > length:
      trees.append(Tree(depth, []))
      tokens, targets = len(leaf.ids), leaf.targets
    trees[-1].leaves.append(leaf)
  return trees


def rows_of(requests, length):
  """Trees of requests by rows: a list of lists, the fullest rows first.

  A row is longer than `length` only where one leaf is: one request has as many
  tokens, or those that are scored in it have as many targets.  It is a row by
  itself then.
  """
  trees = trees_of(leaves_of(requests), length)
  sizes = np.array([tree.size for tree in trees], int)
  long = [[trees[n]] for n in np.flatnonzero(sizes > length)]
  short = [trees[n] for n in np.flatnonzero(sizes <= length)]
  rows = [[] for _ in short]
  for tree, row in zip(
    short, first_fit(sizes[sizes <= length], length), strict=True
  ):
    rows[row].append(tree)
  return sorted(long + list(filter(None, rows)), key=size_of, reverse=True)


def size_of(row):
  """Places that a row of trees takes."""
  return sum(tree.size for tree in row)


def packed(rows, length):
  """Rows of trees as arrays, and who is scored where.

  Args:
    rows: lists of Tree, one for each row.
    length: T, tokens of a row, and M, its targets.

  Returns:
    (Rows of int32 NumPy arrays [R, T], of which slots are 0 where something is
    scored; [R] lists of (number of a request, slice of M)).
  """
  shape = (len(rows), length)
  arrays = Rows(*(np.zeros(shape, np.int32) for _ in range(7)))
  arrays.slots_RM[:] = NOBODY
  found = []
  for r, row in enumerate(rows):
    start, scored = 0, []
    for segment, tree in enumerate(row, 1):
      start = _place(arrays, r, tree, segment, start, scored)
    found.append(scored)
  return arrays, found


def _place(arrays, r, tree, segment, start, scored):
  """Writes a tree at `start`; returns where the next one begins."""
  trunk = np.arange(start, start + tree.depth)
  at = start
  for branch, leaf in enumerate(tree.leaves):
    first = 0 if branch == 0 else tree.depth  # the trunk comes with the first
    own = slice(at, at + len(leaf.ids) - first)
    arrays.tokens_RT[r, own] = leaf.ids[first:]
    arrays.positions_RT[r, own] = np.arange(first, len(leaf.ids))
    arrays.segments_RT[r, own] = segment
    after = slice(own.stop - len(leaf.ids) + tree.depth, own.stop)
    arrays.branches_RT[r, after] = branch + 1
    place = np.concatenate([trunk, np.arange(after.start, after.stop)])
    for number, begin, targets in leaf.scored:
      last = scored[-1][1].stop if scored else 0
      here = slice(last, last + len(targets))
      arrays.places_RM[r, here] = place[begin : begin + len(targets)]
      arrays.targets_RM[r, here] = targets
      arrays.slots_RM[r, here] = 0
      scored.append((number, here))
    at = own.stop
  return at
