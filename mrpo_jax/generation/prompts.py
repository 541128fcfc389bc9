# SPDX-License-Identifier: Apache-2.0
"""Prompts packed into rows for prefill; what several share stands once."""

import dataclasses

import numpy as np

SHARED = 32  # tokens of a common start that are worth a group of prompts


@dataclasses.dataclass(frozen=True)
class PromptRow:
  """A row of prompts as the model reads it, and where each stands."""

  tokens_T: np.ndarray
  positions_T: np.ndarray
  segments_T: np.ndarray  # groups of prompts with a common start, from 1
  branches_T: np.ndarray  # 0: the common start; then one for each prompt
  sources: list  # of each prompt: where in the row each of its tokens stands


def take(prompts, length):
  """(PromptRow, how many prompts it holds): as many from the first as fit.

  Args:
    prompts: lists of token ids, none longer than `length`; no more of them is
      looked at than the first that does not fit.
    length: tokens of a row.
  """
  groups, size, count = [], 0, -1
  for count, prompt in enumerate(prompts):
    alone = len(prompt)
    joined = _size([*groups[-1], prompt]) if groups else None
    before = _size(groups[-1]) if groups else 0
    joins = joined is not None and joined < before + alone
    more = joined - before if joins else alone
    if size + more > length:
      return _row(groups, length), count
    size += more
    if joins:
      groups[-1].append(prompt)
    else:
      groups.append([prompt])
  return _row(groups, length), count + 1


def _common(prompts):
  """How many tokens at their start all have in common, if worth a group."""
  shortest, longest = min(prompts), max(prompts)  # by their first difference
  pairs = zip(shortest, longest, strict=False)
  apart = (i for i, (a, b) in enumerate(pairs) if a != b)
  common = next(apart, min(len(shortest), len(longest)))
  return common if common >= SHARED else 0


def _size(group):
  if len(group) == 1:
    return len(group[0])
  common = _common(group)
  return common + sum(len(prompt) - common for prompt in group)


def _row(groups, length):
  tokens, positions, segments, branches = np.zeros((4, length), np.int32)
  sources, at = [], 0
  for segment, group in enumerate(groups, 1):
    common = _common(group) if len(group) > 1 else 0
    start = at
    parts = [(group[0][:common], 0, 0)]
    parts += [(one[common:], common, i) for i, one in enumerate(group, 1)]
    for ids, position, branch in parts:
      here = slice(at, at + len(ids))
      tokens[here] = ids
      positions[here] = np.arange(position, position + len(ids))
      segments[here], branches[here] = segment, branch
      if branch:
        shared = np.arange(start, start + common)
        sources.append(np.concatenate([shared, np.arange(at, here.stop)]))
      at = here.stop
  return PromptRow(tokens, positions, segments, branches, sources)
