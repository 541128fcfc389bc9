# SPDX-License-Identifier: Apache-2.0
"""Floating point operations that a step cannot do without, from lengths.

What is counted is the work of the mathematics, not of a program: no padding,
the prompt of a pair once, nothing that is computed anew in the backward pass.
Two programs that train on the same pairs have the same count.  A product of
matrices has 2 operations for each multiplication; norms, rotations, softmax
and the optimizer are left out.
"""

import numpy as np

from mrpo_jax.models import parameters
from mrpo_jax.models.config import VALUED

FORMULA = (
  "forward = tokens x 2 x matrix parameters of the blocks (of experts: those"
  " of the ones that a token is sent to)"
  " + sum over layers of 4 x heads x head_dim x visible keys"
  " + scored tokens (of a scalar head: responses) x 2 x width x vocabulary"
  " (of a scalar head: 1; a value head: 1 more); policy x 3 (with an adapter"
  " blocks and head x 2, and tokens x 6 x its parameters), references that are"
  " not scored x 1"
)


def pair_lengths(view):
  """Tokens of each pair's branches, from the rows that hold them.

  Args:
    view: Rows of NumPy arrays with any leading axes, a tuple of parts.

  Returns:
    length_N3: of prompt, chosen and rejected response.
  """
  lengths = []
  for rows in view:
    T = rows.segments_RT.shape[-1]
    segment_RT = rows.segments_RT.reshape(-1, T)
    branch_RT = rows.branches_RT.reshape(-1, T)
    for segment_T, branch_T in zip(segment_RT, branch_RT, strict=True):
      count = np.bincount(3 * segment_T + branch_T)
      count = np.pad(count, (0, -len(count) % 3)).reshape(-1, 3)
      lengths.append(count[1:])  # segment 0 is padding
  return np.concatenate(lengths)


def block_parameters(config):
  """Weights of all layers with which a token is multiplied.

  Of experts those that it is sent to.
  """
  blocks = parameters.table(config)["blocks"].values()
  return parameters.count_active(config, [one for one in blocks if one.inputs])


def visible_keys(length_N3, window=0):
  """Positions that the tokens of all pairs look at, summed over tokens.

  A token of the prompt sees the prompt up to itself, one of a response the
  prompt and its own response up to itself; with a window the last `window` of
  these alone.
  """

  def causal(length_N):
    near_N = np.minimum(length_N, window) if window else length_N
    return near_N * (near_N + 1) // 2 + window * (length_N - near_N)

  prompt_N, chosen_N, rejected_N = np.asarray(length_N3, np.int64).T
  prompt = causal(prompt_N)
  both = causal(prompt_N + chosen_N) + causal(prompt_N + rejected_N)
  return int((both - prompt).sum())


def forward(config, length_N3):
  """{part: operations} of one forward pass over the pairs.

  Args:
    config: ModelConfig.
    length_N3: see `pair_lengths`.
  """
  length_N3 = np.asarray(length_N3, np.int64)
  windows = config.layer_windows or (0,) * config.layers
  keys = sum(visible_keys(length_N3, window) for window in windows)
  return {
    "blocks": 2 * block_parameters(config) * int(length_N3.sum()),
    "attention": 4 * config.heads * config.head_dim * keys,
    "head": 2 * config.width * _outputs(config, length_N3[:, 1:]),
  }


def _outputs(config, length_N2):
  """Numbers that the head gives for the responses."""
  if config.head == "scalar":
    return int((length_N2 > 0).sum())  # one for each
  each = config.vocab_size + (config.head == VALUED)
  return each * int(length_N2.sum())


def training(config, length_N3, adapter=0):
  """Operations of forward and backward pass of a policy over the pairs.

  The backward pass has two products for each one of the forward pass, the
  gradients of both factors.  `adapter` is how many weights are trained beside
  frozen ones: the gradient of those is not computed.
  """
  parts = forward(config, length_N3)
  if not adapter:
    return 3 * sum(parts.values())
  added = 2 * adapter * int(np.sum(length_N3))
  frozen = parts["blocks"] + parts["head"]
  return 2 * frozen + 3 * (parts["attention"] + added)


def step(objective, views, adapter=0):
  """Operations of one step: the policy's, and the online references'.

  Args:
    objective: Objective.
    views: per tokenizer the Rows of the step, as NumPy arrays.
    adapter: see `training`.
  """
  length_N3 = [pair_lengths(view) for view in views]
  policy = objective.policy
  total = training(policy.config, length_N3[policy.view], adapter)
  for model in objective.references:
    if not model.scored:
      total += sum(forward(model.config, length_N3[model.view]).values())
  return total
