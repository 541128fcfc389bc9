# SPDX-License-Identifier: Apache-2.0
"""Advantages of the tokens of rollouts, from rewards and values.

NumPy in float64, on the host: they are made once in a round.  Axes: `R`
responses, one to a row, `T` their tokens, `N` rewards.
"""

from typing import NamedTuple

import numpy as np

from mrpo_jax.shapes import check

EPSILON = 1e-8  # added to a variance before it divides
ROUNDING = 2e-7  # of a reward in float32, relative


def end_rewards(reward_R, mask_RT):
  """reward_RT: the reward of a response at its last token, 0 elsewhere.

  Args:
    reward_R: one for each response.
    mask_RT: 1 at its tokens.

  Raises:
    ValueError: wrong axes, a mask that is none, or a response without a token,
      whose reward would be lost.

  >>> end_rewards(np.array([2.0, 3.0]), np.array([[1, 1, 0], [1, 1, 1]]))
  array([[0., 2., 0.],
         [0., 0., 3.]])
  """
  reward_R, mask_RT = np.asarray(reward_R, float), np.asarray(mask_RT)
  check(reward_R=reward_R, mask_RT=mask_RT)
  mask_RT = _mask(mask_RT)
  if not mask_RT.any(axis=1).all():
    raise ValueError("`mask_RT` has a row without a token, which has no reward")
  last_R = mask_RT.shape[1] - 1 - np.argmax(mask_RT[:, ::-1], axis=1)
  reward_RT = np.zeros(mask_RT.shape)
  reward_RT[np.arange(len(last_R)), last_R] = reward_R
  return reward_RT


def gae(reward_RT, value_RT, mask_RT, *, gamma=1.0, lam=0.95):
  """Generalised advantage estimation: (advantage_RT, return_RT).

      delta_t = reward_t + gamma V_{t+1} - V_t
      A_t = sum_{k >= 0} (gamma lam)^k delta_{t+k},   return_t = A_t + V_t

  V_t is the value before token t, of what the policy sees when it draws it.
  After the last token it is 0, also where the response had to end for its
  length, as in trlx: what would have come is not guessed.

  Args:
    reward_RT: of each token.
    value_RT: of the state before each token.
    mask_RT: 1 at the tokens of a response.  Places without one are as if they
      were not there, wherever they stand, whatever they hold.
    gamma: discount of a token, in [0, 1].
    lam: decay of the trace, in [0, 1]: at 0 the TD error alone, at 1 the
      rewards to come minus the value.

  Returns:
    Both in float64, 0 where there is no token.

  Raises:
    ValueError: wrong axes, a mask that is none, a number that is not finite,
      gamma or lam out of range.

  Source: Schulman et al., arXiv:1506.02438, equation 16; gamma 1 and lam 0.95
  are those of APA, arXiv:2306.02231.

  >>> one = np.ones((1, 2))
  >>> advantage_RT, return_RT = gae(2 * one, one, one, lam=0.5)
  >>> advantage_RT, return_RT
  (array([[2.5, 1. ]]), array([[3.5, 2. ]]))
  """
  check(
    reward_RT=np.asarray(reward_RT),
    value_RT=np.asarray(value_RT),
    mask_RT=np.asarray(mask_RT),
  )
  for name, value in dict(gamma=gamma, lam=lam).items():
    if not 0 <= value <= 1:
      raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
  mask_RT = _mask(np.asarray(mask_RT))
  reward_RT = _finite("reward_RT", reward_RT, mask_RT)
  value_RT = _finite("value_RT", value_RT, mask_RT)
  advantage_RT = np.zeros(mask_RT.shape)
  after_R = next_value_R = np.zeros(len(mask_RT))
  for t in reversed(range(mask_RT.shape[1])):
    delta_R = reward_RT[:, t] + gamma * next_value_R - value_RT[:, t]
    is_token_R = mask_RT[:, t]
    after_R = np.where(is_token_R, delta_R + gamma * lam * after_R, after_R)
    next_value_R = np.where(is_token_R, value_RT[:, t], next_value_R)
    advantage_RT[:, t] = np.where(is_token_R, after_R, 0.0)
  return advantage_RT, advantage_RT + value_RT


def whiten(advantages):
  """The advantages of a minibatch, with mean 0 and mean square 1.

      (A - mean) / sqrt(variance + 1e-8)

  Every token counts alike, so long responses count more.  The variance is that
  of the tokens that are there (trlx divides by one token less, and counts
  padding as tokens).

  Args:
    advantages: array of one axis for each response; lengths may differ.

  Returns:
    The same list, in float64.

  Raises:
    ValueError: no token at all, or a number that is not finite.

  >>> whiten([np.array([1.0, 3.0]), np.array([5.0])])[1].round(4)
  array([1.2247])
  """
  advantages = [np.asarray(one, float) for one in advantages]
  for advantage_T in advantages:
    check(advantage_T=advantage_T)
  tokens = np.concatenate(advantages) if advantages else np.zeros(0)
  if not tokens.size:
    raise ValueError("there is no token whose advantage could be whitened")
  if not np.isfinite(tokens).all():
    raise ValueError("`advantages` holds numbers that are not finite")
  deviation = np.sqrt(tokens.var() + EPSILON)
  return [(one - tokens.mean()) / deviation for one in advantages]


class RunningScale(NamedTuple):
  """Moments of all rewards so far, by whose deviation rewards are divided.

  A state: `updated` gives the next one.  Three numbers, so that JSON keeps it.
  """

  count: int = 0
  mean: float = 0.0
  squares: float = 0.0  # sum of squared distances from the mean

  def updated(self, reward_N):
    """The state after these rewards.

    Source: Chan, Golub and LeVeque, 1979, as in trlx's RunningMoments.

    Raises:
      ValueError: a reward that is not finite, which would stay for ever.

    >>> RunningScale().updated(np.array([1.0])).updated(np.array([2.0, 6.0]))
    RunningScale(count=3, mean=3.0, squares=14.0)
    """
    reward_N = np.asarray(reward_N, float)
    check(reward_N=reward_N)
    if not np.isfinite(reward_N).all():
      raise ValueError("`reward_N` holds numbers that are not finite")
    if not reward_N.size:
      return self
    count, mean = self.count + reward_N.size, float(reward_N.mean())
    apart = mean - self.mean
    squares = float(np.sum((reward_N - mean) ** 2))
    return RunningScale(
      count,
      self.mean + apart * reward_N.size / count,
      self.squares + squares + apart**2 * self.count * reward_N.size / count,
    )

  @property
  def deviation(self):
    """The standard deviation, over count - 1; 1 while all rewards are one.

    So they are where they differ by less than they round, in float32.
    """
    rounding = self.count * (ROUNDING * self.mean) ** 2
    if self.count < 2 or self.squares <= rounding:
      return 1.0
    return float(np.sqrt(self.squares / (self.count - 1)))


def _mask(mask_RT):
  """The mask as booleans; ValueError where it holds anything but 0 and 1."""
  if not np.isin(mask_RT, (0, 1)).all():
    raise ValueError("`mask_RT` holds other numbers than 0 and 1")
  return mask_RT.astype(bool)


def _finite(name, array_RT, mask_RT):
  """The array in float64, 0 without a token; ValueError if it is not finite."""
  array_RT = np.where(mask_RT, np.asarray(array_RT, float), 0.0)
  if not np.isfinite(array_RT).all():
    raise ValueError(f"`{name}` holds numbers that are not finite")
  return array_RT
