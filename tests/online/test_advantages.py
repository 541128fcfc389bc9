# SPDX-License-Identifier: Apache-2.0
"""Advantages: hand numbers, the double sum, laws, refusals."""

import json

import numpy as np
import pytest

from mrpo_jax.online.advantages import RunningScale, end_rewards, gae, whiten

R, T = 5, 7


def rollouts(rng):
  """(reward_RT, value_RT, mask_RT) of ragged responses."""
  length_R = np.array([7, 1, 4, 6, 3])
  mask_RT = np.arange(T)[None] < length_R[:, None]
  return rng.normal(size=(R, T)), rng.normal(size=(R, T)), mask_RT


def test_two_tokens_by_hand():
  # V = 1, 2; the reward 5 at the end.  delta = 0 + 0.9 * 2 - 1 = 0.8 and
  # 5 - 2 = 3; A = 0.8 + 0.9 * 0.5 * 3 = 2.15 and 3; returns 3.15 and 5.
  advantage, returns = gae([[0, 5]], [[1, 2]], [[1, 1]], gamma=0.9, lam=0.5)
  np.testing.assert_allclose(advantage, [[2.15, 3.0]], rtol=1e-12)
  np.testing.assert_allclose(returns, [[3.15, 5.0]], rtol=1e-12)


@pytest.mark.parametrize("gamma,lam", [(1.0, 0.95), (0.7, 0.4), (0.0, 1.0)])
def test_it_is_the_double_sum(rng, gamma, lam):
  reward, value, mask = rollouts(rng)
  advantage, returns = gae(reward, value, mask, gamma=gamma, lam=lam)
  for r in range(R):
    length = mask[r].sum()
    values = [*value[r, :length], 0.0]
    delta = [
      reward[r, t] + gamma * values[t + 1] - values[t] for t in range(length)
    ]
    want = [
      sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length))
      for t in range(length)
    ]
    np.testing.assert_allclose(advantage[r, :length], want, rtol=1e-12)
    np.testing.assert_allclose(
      returns[r, :length], np.add(want, values[:-1]), rtol=1e-12
    )
    assert not advantage[r, length:].any() and not returns[r, length:].any()


def test_without_a_trace_it_is_the_td_error(rng):
  reward, value, mask = rollouts(rng)
  advantage, _ = gae(reward, value, mask, lam=0.0)
  after = np.where(mask, value, 0.0)
  after = np.concatenate([after[:, 1:], np.zeros((R, 1))], axis=1)
  want = np.where(mask, reward + after - value, 0.0)
  np.testing.assert_allclose(advantage, want, atol=1e-12)


def test_with_a_whole_trace_it_is_what_is_to_come_minus_the_value(rng):
  reward, value, mask = rollouts(rng)
  advantage, returns = gae(reward, value, mask, lam=1.0)
  to_come = np.where(mask, reward, 0.0)[:, ::-1].cumsum(axis=1)[:, ::-1]
  to_come = np.where(mask, to_come, 0.0)
  np.testing.assert_allclose(returns, to_come, atol=1e-12)
  want = np.where(mask, to_come - value, 0.0)
  np.testing.assert_allclose(advantage, want, atol=1e-12)


def test_a_value_that_is_right_leaves_no_advantage():
  reward = end_rewards([3.0], np.ones((1, 4)))
  advantage, returns = gae(reward, np.full((1, 4), 3.0), np.ones((1, 4)))
  np.testing.assert_array_equal(advantage, np.zeros((1, 4)))
  np.testing.assert_array_equal(returns, np.full((1, 4), 3.0))


def test_places_without_a_token_change_nothing_wherever_they_stand(rng):
  reward, value = rng.normal(size=(2, 1, 4))
  plain = gae(reward, value, np.ones((1, 4)))
  places = [1, 2, 4, 5]  # of seven, the others hold nonsense
  wide = [np.full((1, T), np.nan) for _ in range(2)]
  for array, tokens in zip(wide, (reward, value), strict=True):
    array[:, places] = tokens
  mask = np.isin(np.arange(T), places)[None]
  for got, want in zip(gae(*wide, mask), plain, strict=True):
    np.testing.assert_allclose(got[:, places], want, rtol=1e-12)
    assert not got[~mask].any()


def test_a_reward_stands_at_the_last_token():
  mask = [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
  got = end_rewards([1.0, 2.0, 3.0], mask)
  np.testing.assert_array_equal(got, [[0, 1, 0], [0, 0, 2], [3, 0, 0]])
  with pytest.raises(ValueError, match="a row without a token"):
    end_rewards([1.0], [[0, 0]])


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(reward_RT=np.zeros(4)), r"`reward_RT` must have axes \[R T\]"),
    (dict(value_RT=np.zeros((2, 3))), "axis T has size 4"),
    (dict(mask_RT=np.ones((3, 4))), "axis R has size 2"),
    (dict(mask_RT=np.full((2, 4), 0.5)), "other numbers than 0 and 1"),
    (dict(value_RT=np.full((2, 4), np.inf)), "`value_RT` holds numbers that"),
    (dict(gamma=1.1), "gamma must be from 0 to 1, got 1.1"),
    (dict(lam=-0.1), "lam must be from 0 to 1, got -0.1"),
  ],
)
def test_what_is_misshapen_is_refused(changes, message):
  given = dict.fromkeys(("reward_RT", "value_RT", "mask_RT"), np.ones((2, 4)))
  with pytest.raises(ValueError, match=message):
    gae(**{**given, **changes})


def test_whitening_by_hand():
  # 1, 3, 5: mean 3, variance 8 / 3.
  one, two = whiten([np.array([1.0, 3.0]), np.array([5.0])])
  np.testing.assert_allclose(one, [-np.sqrt(1.5), 0.0], atol=1e-8)
  np.testing.assert_allclose(two, [np.sqrt(1.5)], rtol=1e-8)


def test_whitening_is_over_tokens_and_sees_no_shift_and_no_scale(rng):
  some = [rng.normal(size=n) for n in (3, 1, 6)]
  got = whiten(some)
  tokens = np.concatenate(got)
  assert [len(one) for one in got] == [3, 1, 6]
  np.testing.assert_allclose(tokens.mean(), 0.0, atol=1e-12)
  np.testing.assert_allclose((tokens**2).mean(), 1.0, rtol=1e-6)
  other = whiten([7.0 + 2.0 * one for one in some])
  np.testing.assert_allclose(np.concatenate(other), tokens, rtol=1e-6)


def test_equal_advantages_are_whitened_to_zero():
  np.testing.assert_array_equal(whiten([np.full(3, 2.0)])[0], np.zeros(3))


@pytest.mark.parametrize(
  "given,message",
  [
    ([], "no token"),
    ([np.zeros(0)], "no token"),
    ([np.zeros((1, 2))], r"`advantage_T` must have axes \[T\]"),
    ([np.array([np.nan])], "not finite"),
  ],
)
def test_what_cannot_be_whitened_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    whiten(given)


def test_a_running_scale_by_hand():
  # 1, then 2 and 6: mean 3, squares 4 + 1 + 9, over 2.
  first = RunningScale().updated([1.0])
  assert first.deviation == 1.0
  then = first.updated([2.0, 6.0])
  assert then == (3, 3.0, 14.0)
  assert then.deviation == pytest.approx(np.sqrt(7.0), rel=1e-12)
  assert first == (1, 1.0, 0.0)  # a state is not changed


def test_a_running_scale_is_that_of_all_rewards_at_once(rng):
  # Far from 0, where a sum of squares would lose its digits.
  reward_N = 1e6 + rng.normal(size=1000)
  scale = RunningScale()
  for part in np.split(reward_N, [1, 10, 400, 400]):
    scale = scale.updated(part)
  assert scale.count == 1000
  np.testing.assert_allclose(scale.mean, reward_N.mean(), rtol=1e-12)
  np.testing.assert_allclose(scale.deviation, reward_N.std(ddof=1), rtol=1e-9)
  assert RunningScale(*json.loads(json.dumps(scale))) == scale


def test_rewards_that_are_one_are_not_divided():
  assert RunningScale().updated(np.full(9, 4.0)).deviation == 1.0
  # 0.1 is no number of a computer, and a run keeps the scale in float32.
  for reward in (0.1, 0.3, -0.7):
    scale = RunningScale()
    for _ in range(3):
      scale = scale.updated(np.full(15, reward))
      assert scale.deviation == 1.0
      scale = RunningScale(*(float(np.float32(one)) for one in scale))
  assert RunningScale().updated([0.1, 0.1001]).deviation < 1e-3


def test_a_running_scale_refuses_what_is_not_finite():
  with pytest.raises(ValueError, match="not finite"):
    RunningScale().updated([1.0, np.nan])
  with pytest.raises(ValueError, match=r"`reward_N` must have axes \[N\]"):
    RunningScale().updated(1.0)
