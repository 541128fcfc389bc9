# SPDX-License-Identifier: Apache-2.0
"""Trust in references: hand values, laws, and rules that remember."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses import weighting

# Two pairs, three references; |margins| are 6, 1, 9 and 2, 4, 0, and the
# references rank right: all; the first only (the last ties).
LOGP = jnp.array(
  [
    [[-40.0, -44.0, -38.0], [-46.0, -45.0, -47.0]],
    [[-10.0, -14.0, -12.0], [-12.0, -10.0, -12.0]],
  ]
)
FLAT = jnp.full((2, 2, 3), -3.0)


def test_uniform_weights_read_nothing():
  got = losses.uniform_weights(jnp.full((2, 2, 5), jnp.nan))
  np.testing.assert_array_equal(got, np.full((2, 5), 0.2, np.float32))


def test_adaptive_weights_are_each_pairs_own():
  # 6, 1, 9 of 16; 2, 4, 0 of 6.
  want = [[6 / 16, 1 / 16, 9 / 16], [2 / 6, 4 / 6, 0.0]]
  got = losses.adaptive_weights(LOGP)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # They do not change with the label.
  got = losses.adaptive_weights(LOGP[:, ::-1])
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_discrimination_pools_margins_over_the_data_set():
  # 6 + 2, 1 + 4, 9 + 0 of 22.
  got = losses.discrimination_weights(LOGP)
  np.testing.assert_allclose(got, [8 / 22, 5 / 22, 9 / 22], rtol=1e-6)


def test_accuracy_counts_pairs_ranked_right():
  # 2, 1, 1 pairs of 4: the tie of the last reference is not right.
  got = losses.accuracy_weights(LOGP)
  np.testing.assert_allclose(got, [0.5, 0.25, 0.25], rtol=1e-6)
  # With labels swapped only the second reference is right, once.
  got = losses.accuracy_weights(LOGP[:, ::-1])
  np.testing.assert_allclose(got, [0.0, 1.0, 0.0], rtol=1e-6)


WEIGHTS = [
  losses.uniform_weights,
  losses.adaptive_weights,
  losses.discrimination_weights,
  losses.accuracy_weights,
]


@pytest.mark.parametrize("weigh", WEIGHTS)
def test_laws_of_weights(weigh, rng):
  score_NCK = jnp.asarray(rng.normal(size=(8, 2, 4)).astype(np.float32))
  weight = weigh(score_NCK)
  assert (weight >= 0).all() and weight.dtype == jnp.float32
  np.testing.assert_allclose(weight.sum(-1), 1, rtol=1e-6)
  order = jnp.array([2, 0, 3, 1])
  np.testing.assert_allclose(
    weigh(score_NCK[..., order]), weight[..., order], rtol=1e-6
  )
  for scale in (8, 2**-10):
    np.testing.assert_allclose(weigh(scale * score_NCK), weight, rtol=1e-6)
  first = lambda x: weigh(x)[..., 0].sum()  # noqa: E731
  assert not jax.grad(first)(score_NCK).any()
  np.testing.assert_allclose(jax.jit(weigh)(score_NCK), weight, rtol=1e-6)
  half = score_NCK.astype(jnp.bfloat16)
  got = weigh(half)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, weigh(half.astype(jnp.float32)))


@pytest.mark.parametrize("weigh", WEIGHTS)
def test_nothing_to_tell_references_apart_is_uniform(weigh):
  np.testing.assert_allclose(weigh(FLAT), np.full_like(weigh(FLAT), 1 / 3))
  far = weigh(1e4 * jnp.sign(LOGP + 12.0))
  assert np.isfinite(far).all()


@pytest.mark.parametrize("weigh", WEIGHTS)
def test_a_wrong_axis_is_refused_by_name(weigh):
  with pytest.raises(ValueError, match=r"must have axes \[[BN] C K\]"):
    weigh(LOGP[0])
  with pytest.raises(ValueError, match="size 1 and must be 2"):
    weigh(LOGP[:, :1])


def batch_of(*margins):
  """One pair for each row of margins, one reference for each column."""
  margin_BK = jnp.array(margins, jnp.float32)
  return jnp.stack([margin_BK - 7.0, jnp.full_like(margin_BK, -7.0)], axis=1)


UNREAD = jnp.full((1, 2, 2), jnp.nan)


def test_the_rule_without_a_memory():
  rule = weighting.stateless(losses.adaptive_weights)
  assert isinstance(rule, losses.WeightRule)
  state = rule.init(3)
  assert jax.tree.leaves(state) == []
  want = losses.adaptive_weights(LOGP)
  np.testing.assert_array_equal(rule.weights(state, LOGP), want)
  assert rule.update(state, LOGP) is state
  assert rule.update(state, LOGP, feedback=True) is state


@pytest.mark.parametrize(
  "weigh,want", [(WEIGHTS[2], [8, 5, 9]), (WEIGHTS[3], [2, 1, 1])]
)
def test_the_rule_that_was_measured(weigh, want):
  rule = losses.measured(weigh)
  state = rule.init(3)
  unread = jnp.full((1, 2, 3), jnp.nan)
  np.testing.assert_allclose(rule.weights(state, unread), [1 / 3] * 3)
  # Margins of 6, 1, 9 and 2, 4, 0; see `LOGP`.
  state = rule.measure(state, LOGP.astype(jnp.bfloat16))
  assert state.dtype == jnp.float32
  want_K = np.array(want) / sum(want)
  np.testing.assert_allclose(rule.weights(state, unread), want_K, rtol=1e-6)
  assert rule.update(state, unread) is state
  assert rule.update(state, unread, feedback=True) is state
  # What was there before does not matter.
  again = rule.measure(rule.measure(state, LOGP[:, ::-1]), LOGP)
  np.testing.assert_array_equal(again, state)
  assert not jax.grad(lambda x: rule.measure(state, x)[0])(LOGP).any()
  for function in (rule.weights, rule.measure):
    with pytest.raises(ValueError, match="K has size 3 in .*, but 2 in"):
      function(rule.init(2), LOGP)
    with pytest.raises(ValueError, match=r"must have axes \[[BN] C K\]"):
      function(state, LOGP[0])


def test_other_rules_measure_nothing():
  assert losses.WeightRule(len, len, len).measure is None
  assert losses.sliding_window().measure is None
  assert weighting.stateless(losses.adaptive_weights).measure is None


def test_a_window_of_one_is_the_last_batch():
  rule = losses.sliding_window(window=1)
  state = rule.init(2)
  np.testing.assert_array_equal(rule.weights(state, UNREAD), [0.5, 0.5])
  # Sums over the pairs 1 + 2, 3 - and then 30, 10 alone; signs do not count.
  state = rule.update(state, batch_of([1, -3], [-2, 6]))
  np.testing.assert_allclose(rule.weights(state, UNREAD), [3 / 12, 9 / 12])
  state = rule.update(state, batch_of([-30, 10]), feedback=False)
  np.testing.assert_allclose(rule.weights(state, UNREAD), [0.75, 0.25])


def test_a_window_of_three_pools_sums():
  rule = losses.sliding_window(3)
  state = rule.init(2)
  batches = [batch_of([1, 3]), batch_of([30, 0], [0, 10])]
  batches += [batch_of([2, 2]), batch_of([0, 8])]
  # Running sums of (1, 3), (30, 10), (2, 2); then the first drops out.
  want = [(1, 3), (31, 13), (33, 15), (32, 20)]
  for ref_logp_BCK, (first, second) in zip(batches, want, strict=True):
    state = rule.update(state, ref_logp_BCK)
    got = rule.weights(state, UNREAD)
    total = first + second
    np.testing.assert_allclose(got, [first / total, second / total], rtol=1e-6)


def test_default_window():
  rule, spelled = losses.sliding_window(), losses.sliding_window(window=1)
  states = [x.init(2) for x in (rule, spelled)]
  assert states[0].shape == states[1].shape == (1, 2)


def test_a_window_gets_no_gradient_and_stays_finite():
  rule = losses.sliding_window(2)

  def first(ref_logp_BCK):
    state = rule.update(rule.init(2), ref_logp_BCK)
    return rule.weights(state, ref_logp_BCK)[0]

  value, grad = jax.value_and_grad(first)(batch_of([1e4, -1e4]))
  assert value == 0.5 and not grad.any()


def test_a_window_runs_under_jit_and_scan():
  rule = losses.sliding_window(2)
  batches = jnp.stack([batch_of([k, 8 - k]) for k in range(1, 7)])

  @jax.jit
  def run(batches):
    def step(state, ref_logp_BCK):
      weight_K = rule.weights(state, ref_logp_BCK)
      return rule.update(state, ref_logp_BCK), weight_K

    return jax.lax.scan(step, rule.init(2), batches)

  state, weight = run(batches)
  # Before batch k the window holds k - 1 and k - 2; |margins| sum to 8 each.
  first = [0.5, 1 / 8, 3 / 16, 5 / 16, 7 / 16, 9 / 16]
  np.testing.assert_allclose(weight[:, 0], first, rtol=1e-6)
  np.testing.assert_allclose(rule.weights(state, UNREAD)[0], 11 / 16)
  # 249 + 16 has more digits than bfloat16.
  half = batch_of([249, 8], [16, 1]).astype(jnp.bfloat16)
  got = jax.jit(rule.update)(state, half)
  assert got.dtype == state.dtype == jnp.float32
  np.testing.assert_array_equal(got[-1], [265, 9])


def test_an_empty_window_is_refused():
  for window in (0, -1):
    with pytest.raises(
      ValueError, match=f"window must be positive, got {window}"
    ):
      losses.sliding_window(window)
  rule = losses.sliding_window()
  for function in (rule.weights, rule.update):
    with pytest.raises(ValueError, match="K has size 3 in .*, but 2 in"):
      function(rule.init(2), LOGP)
    with pytest.raises(
      ValueError, match=r"`ref_logp_BCK` must have axes \[B C K\]"
    ):
      function(rule.init(2), LOGP[0])


def arms(rule, K=3):
  return rule.init(K), jnp.zeros((1, 2, K))


def same(one, other):
  """Whether two states are equal in every leaf, keys included."""
  equal = jax.tree.map(lambda x, y: bool((x == y).all()), one, other)
  return all(jax.tree.leaves(equal))


def test_thompson_uses_one_reference():
  rule = losses.thompson(jax.random.key(0))
  state, ref_logp_BCK = arms(rule)
  weight_K = rule.weights(state, ref_logp_BCK)
  np.testing.assert_array_equal(weight_K, np.eye(3)[int(state.arm)])
  assert weight_K.dtype == jnp.float32


def test_without_feedback_nothing_was_learnt():
  rule = losses.thompson(jax.random.key(0))
  state, ref_logp_BCK = arms(rule)
  for after in (
    rule.update(state, ref_logp_BCK),
    rule.update(state, ref_logp_BCK, feedback=None),
  ):
    assert same(state, after)


def test_feedback_counts_for_the_arm_in_use():
  rule = losses.thompson(jax.random.key(1), prior=2.0)
  state, ref_logp_BCK = arms(rule)
  won, lost = np.full(3, 2.0), np.full(3, 2.0)
  for feedback in (True, False, np.True_, jnp.array(False), 1, True):
    before = int(state.arm)
    (won if feedback else lost)[before] += 1
    key = state.key
    state = rule.update(state, ref_logp_BCK, feedback=feedback)
    assert state.key != key
    np.testing.assert_array_equal(state.won_K, won)
    np.testing.assert_array_equal(state.lost_K, lost)
    weight_K = rule.weights(state, ref_logp_BCK)
    np.testing.assert_array_equal(weight_K, np.eye(3)[int(state.arm)])


def test_default_prior():
  rule = losses.thompson(jax.random.key(0))
  spelled = losses.thompson(jax.random.key(0), prior=5.0)
  for state in (rule.init(3), spelled.init(3)):
    np.testing.assert_array_equal(state.won_K, [5.0, 5.0, 5.0])
    np.testing.assert_array_equal(state.lost_K, [5.0, 5.0, 5.0])
  assert rule.init(3).arm == spelled.init(3).arm


def test_draws_follow_the_posterior():
  # Of Beta(1, 1) and Beta(2, 1) the second is larger with probability 2/3, of
  # Beta(1, 1) and Beta(1, 2) with probability 1/3.
  ref_logp_BCK = jnp.zeros((1, 2, 2))

  def play(key, feedback):
    rule = losses.thompson(key, prior=1.0)
    state = rule.init(2)._replace(arm=1)
    return rule.update(state, ref_logp_BCK, feedback=feedback).arm

  keys = jax.random.split(jax.random.key(2), 6000)
  feedback = jnp.arange(6000) < 3000
  arm = np.asarray(jax.jit(jax.vmap(play))(keys, feedback))
  five_sigma = 5 * np.sqrt(3000 * 2 / 9)
  assert abs(arm[:3000].sum() - 2000) < five_sigma
  assert abs(arm[3000:].sum() - 1000) < five_sigma


@jax.jit
@jax.vmap
def bandit(key):
  """Three hundred rounds of three arms, which pay with rates 0.2, 0.8, 0.4."""
  key, coins = jax.random.split(key)
  rule = losses.thompson(key)
  rate_K, ref_logp_BCK = jnp.array([0.2, 0.8, 0.4]), jnp.zeros((1, 2, 3))

  def play(state, coin):
    feedback = jnp.sum(rate_K * rule.weights(state, ref_logp_BCK)) > coin
    after = rule.update(state, ref_logp_BCK, feedback=feedback)
    return after, (state.arm, feedback)

  coins = jax.random.uniform(coins, (300,))
  return jax.lax.scan(play, rule.init(3), coins)


GAMES = jax.random.split(jax.random.key(0), 8)


def test_the_good_reference_is_found():
  state, (arm, feedback) = bandit(GAMES)
  late = np.asarray(arm)[:, 150:] == 1
  assert late.mean() > 0.9 and (late.mean(axis=1) > 0.75).all()
  # Every round is counted once.
  won, lost = state.won_K.sum(1) - 15, state.lost_K.sum(1) - 15
  np.testing.assert_array_equal(won, feedback.sum(1))
  np.testing.assert_array_equal(won + lost, np.full(8, 300))


def test_games_differ_and_may_be_played_again():
  _, (arm, _) = bandit(GAMES)
  _, (again, _) = bandit(GAMES[::-1])
  np.testing.assert_array_equal(arm, again[::-1])
  assert len(set(np.asarray(arm[:, 0]).tolist())) > 1
  assert len({tuple(game) for game in np.asarray(arm).tolist()}) == 8


def test_both_kinds_of_keys_play_the_same_game():
  games = []
  for key in (jax.random.key(7), jax.random.PRNGKey(7)):
    rule = losses.thompson(key)
    state, ref_logp_BCK = arms(rule)
    games.append([int(state.arm)])
    for _ in range(12):
      state = rule.update(state, ref_logp_BCK, feedback=True)
      games[-1].append(int(state.arm))
  assert games[0] == games[1]
  assert len(set(games[0])) > 1


def test_feedback_may_be_traced():
  rule = losses.thompson(jax.random.key(5))
  state, ref_logp_BCK = arms(rule)
  update = jax.jit(rule.update)
  for feedback in (True, False):
    got = update(state, ref_logp_BCK, jnp.array(feedback))
    want = rule.update(state, ref_logp_BCK, feedback)
    assert same(got, want)


def test_a_prior_must_be_positive():
  for prior in (0, -1.0, float("nan")):
    with pytest.raises(ValueError, match=f"prior.*positive.*{prior}"):
      losses.thompson(jax.random.key(0), prior=prior)
  losses.thompson(jax.random.key(0), prior=1e-3)
  rule = losses.thompson(jax.random.key(0))
  state, _ = arms(rule)
  for function in (rule.weights, rule.update):
    with pytest.raises(
      ValueError, match="K has size 2 in .*, but 3 in `won_K`"
    ):
      function(state, jnp.zeros((1, 2, 2)))


@pytest.mark.parametrize("weight", [[0.0, 0.0], [-1.0, 2.0], [np.inf, 1.0]])
def test_weights_that_are_no_shares_are_refused(weight):
  policy_BC, ref_BCK = jnp.zeros((1, 2)), jnp.zeros((1, 2, 2))
  for call in (
    lambda weight: losses.mrpo(policy_BC, ref_BCK, weight=weight),
    lambda weight: losses.multi_dpo(policy_BC, ref_BCK, weight=weight),
    lambda weight: losses.power_mean(ref_BCK, weight, p=-1),
  ):
    for given in (weight, jnp.array(weight)):
      with pytest.raises(ValueError, match="from 0 up, finite, and one of"):
        call(given)
