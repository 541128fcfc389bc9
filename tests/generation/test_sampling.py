# SPDX-License-Identifier: Apache-2.0
"""Sampling: frequencies against exact shares, and transformers' order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mrpo_jax.generation.sampling import Sampling, draw, processed

LOGITS_V = np.array([2.0, -1.0, 0.5, 0.5, 3.0, -4.0, 1.0], np.float32)


def shares(sampling, seen=()):
  seen_BV = np.isin(np.arange(LOGITS_V.size), seen)[None]
  score_BV = processed(sampling, jnp.asarray(LOGITS_V)[None], seen_BV)
  return np.asarray(jax.nn.softmax(score_BV)[0])


def kept(sampling):
  return np.flatnonzero(shares(sampling)).tolist()


@pytest.mark.parametrize(
  "sampling",
  [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.7, top_k=3),
    Sampling(top_p=0.8),
    Sampling(min_p=0.1),
  ],
)
def test_frequencies_are_the_shares(sampling):
  n = 20_000
  uniform_B = jax.random.uniform(jax.random.key(0), (n,))
  logits_BV = jnp.broadcast_to(jnp.asarray(LOGITS_V), (n, LOGITS_V.size))
  token_B, logp_B, behaviour_B, _ = draw(sampling, logits_BV, uniform_B)
  share_V = shares(sampling)
  count_V = np.bincount(token_B, minlength=LOGITS_V.size)
  assert not count_V[share_V == 0].any()
  is_kept_V = share_V > 0
  share_K = share_V[is_kept_V].astype(np.float64)
  test = stats.chisquare(count_V[is_kept_V], n * share_K / share_K.sum())
  assert test.pvalue > 1e-3
  np.testing.assert_allclose(
    behaviour_B, np.log(share_V[token_B]), rtol=0, atol=1e-5
  )
  np.testing.assert_allclose(
    logp_B, np.log(shares(Sampling())[token_B]), rtol=0, atol=1e-5
  )


def test_shares_add_up_over_a_long_vocabulary():
  """Every token of 5,000 is drawn by the middle of its own interval."""
  V = 5_000
  share_V = np.asarray(
    jax.nn.softmax(jax.random.normal(jax.random.key(1), (V,)))
  )
  middle_V = np.cumsum(share_V, dtype=np.float64) - share_V / 2
  logits_BV = jnp.broadcast_to(jnp.log(share_V), (V, V))
  token_B = draw(Sampling(), logits_BV, jnp.asarray(middle_V, jnp.float32))[0]
  assert (np.asarray(token_B) == np.arange(V)).mean() > 0.999
  assert np.abs(np.asarray(token_B) - np.arange(V)).max() <= 1


@pytest.mark.parametrize(
  "uniform", [0.0, 0.5, np.nextafter(1.0, 0.0, dtype="f")]
)
def test_no_number_draws_what_has_no_share(uniform):
  logits_BV = jnp.full((1, 300), -jnp.inf).at[0, 7].set(0.0)
  token_B = draw(Sampling(), logits_BV, jnp.array([uniform], jnp.float32))[0]
  assert token_B.tolist() == [7]


def test_what_is_kept_by_hand():
  assert kept(Sampling(top_k=1)) == [4]
  assert kept(Sampling(top_k=3)) == [0, 4, 6]
  assert kept(Sampling(top_k=4)) == [0, 2, 3, 4, 6]  # two are the fourth
  assert kept(Sampling(top_k=100)) == [*range(7)]
  # Shares are 0.218, 0.011, 0.049, 0.049, 0.593, 0.001, 0.080.
  assert kept(Sampling(top_p=0.58)) == [4]
  assert kept(Sampling(top_p=0.60)) == [0, 4]
  assert kept(Sampling(top_p=0.81)) == [0, 4]
  assert kept(Sampling(top_p=0.82)) == [0, 4, 6]
  assert kept(Sampling(min_p=0.5)) == [4]
  assert kept(Sampling(min_p=0.1)) == [0, 4, 6]
  # Of what top-k leaves: 0.73 and 0.27.
  assert kept(Sampling(top_k=2, top_p=0.7)) == [4]
  assert kept(Sampling(top_k=2, top_p=0.75)) == [0, 4]


def test_the_penalty_makes_what_was_said_less_likely():
  score_BV = processed(
    Sampling(repetition_penalty=2.0),
    jnp.asarray(LOGITS_V)[None],
    jnp.array([[True, True, False, False, False, False, False]]),
  )
  np.testing.assert_allclose(score_BV[0, :3], [1.0, -2.0, 0.5])


def test_a_share_that_rounds_to_one_keeps_a_token_in_every_row():
  """Rounded sums of all shares may be less; then nothing is cut."""
  logits_BV = 2 * jax.random.normal(jax.random.key(11), (64, 5_000))
  total_B = jnp.sum(jax.nn.softmax(logits_BV), axis=1)
  assert (total_B < 1).any()
  score_BV = processed(Sampling(top_p=0.99999999), logits_BV)
  assert (jnp.sum(score_BV > -jnp.inf, axis=1) > 4_900).all()
  behaviour_B = draw(Sampling(top_p=0.99999999), logits_BV, jnp.zeros(64))[2]
  assert jnp.isfinite(behaviour_B).all()


@pytest.mark.parametrize("best", [0.0, 3.5, jnp.finfo(jnp.float32).max])
def test_greedy_takes_the_first_of_equal_ones(rng, best):
  logits_BV = rng.normal(size=(8, 300)).astype(np.float32) - 9
  for row in logits_BV:
    row[rng.choice(300, 3, replace=False)] = best
  logits_BV[3], logits_BV[4] = best, -np.inf
  logits_BV[4, 299] = best  # the last one
  token_B, *_, is_greedy_B = draw(
    Sampling(temperature=0), jnp.asarray(logits_BV), jnp.zeros(8)
  )
  np.testing.assert_array_equal(token_B, np.argmax(logits_BV, axis=1))
  assert is_greedy_B.all()


def test_greedy_takes_the_likeliest_after_penalty_and_bans():
  logits_BV = jnp.asarray(LOGITS_V)[None]
  zero_B = jnp.zeros(1)
  greedy = Sampling(temperature=0)
  token_B, logp_B, behaviour_B, is_greedy_B = draw(greedy, logits_BV, zero_B)
  assert token_B.tolist() == [4] and is_greedy_B.tolist() == [True]
  assert behaviour_B.tolist() == [0.0]
  np.testing.assert_allclose(logp_B, np.log(shares(Sampling())[4]), rtol=1e-6)
  banned_BV = jnp.arange(7)[None] == 4
  token_B, _, _, is_greedy_B = draw(
    greedy, logits_BV, zero_B, banned_BV=banned_BV
  )
  assert token_B.tolist() == [0] and is_greedy_B.tolist() == [False]


@pytest.mark.parametrize(
  "values",
  [
    dict(temperature=-1.0),
    dict(temperature=float("nan")),
    dict(temperature=1e-38),  # logits over it are no numbers
    dict(top_k=-1),
    dict(top_p=0.0),
    dict(top_p=1.1),
    dict(top_p=1e-320),
    dict(min_p=-0.1),
    dict(repetition_penalty=0.0),
    dict(repetition_penalty=1e39),
    dict(max_new_tokens=0),
    dict(min_new_tokens=9, max_new_tokens=8),
    dict(samples=0),
  ],
)
def test_what_makes_no_sense_is_refused(values):
  with pytest.raises(ValueError, match=[*values][0]):
    Sampling(**values)
