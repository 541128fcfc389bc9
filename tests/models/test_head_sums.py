# SPDX-License-Identifier: Apache-2.0
"""Running sums equal the plain formulas, however the logits are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import parallel
from mrpo_jax.models.head_sums import Entropy, LogSoftmax, Rise, Sums

NAMES = ("entropy", "log_sum_sq", "kl")


def plain(logits_RMV, ref_RMV, targets_RM):
  logp, ref = jax.nn.log_softmax(logits_RMV), jax.nn.log_softmax(ref_RMV)
  places = targets_RM[..., None]
  return {
    "logp": jnp.take_along_axis(logp, places, axis=-1)[..., 0],
    "ref_logp": jnp.take_along_axis(ref, places, axis=-1)[..., 0],
    "entropy": -jnp.sum(jnp.exp(logp) * logp, axis=-1),
    "log_sum_sq": jnp.log(jnp.sum(jnp.exp(2 * logp), axis=-1)),
    "kl": jnp.sum(jnp.exp(ref) * (ref - logp), axis=-1),
  }


def added(logits_RMV, ref_RMV, hit_RMV, sizes):
  """Sums of the logits in blocks of these sizes."""
  sums, ends = Sums.start(jnp.zeros(hit_RMV.shape[:2]), 2, NAMES), [0]
  for size in sizes:
    here = slice(ends[-1], ends[-1] + size)
    logits = [logits_RMV[..., here], ref_RMV[..., here]]
    sums = sums.add(logits, hit_RMV[..., here])
    ends.append(here.stop)
  return sums


def case(rng, V=12, rising=False):
  logits_RMV, ref_RMV = (
    jnp.asarray(rng.normal(size=(2, 3, V)) * 3, jnp.float32) for _ in range(2)
  )
  if rising:  # every block brings a greater logit
    logits_RMV = jnp.sort(logits_RMV, axis=-1)
  targets_RM = jnp.asarray(rng.integers(0, V, (2, 3)))
  return logits_RMV, ref_RMV, targets_RM


@pytest.mark.parametrize("sizes", [(12,), (5, 4, 3), (1,) * 12])
@pytest.mark.parametrize("rising", [False, True])
def test_blocks_change_nothing(rng, sizes, rising):
  logits_RMV, ref_RMV, targets_RM = case(rng, rising=rising)
  hit_RMV = jax.nn.one_hot(targets_RM, 12, dtype=bool)
  got, norms = added(logits_RMV, ref_RMV, hit_RMV, sizes).result()
  want = plain(logits_RMV, ref_RMV, targets_RM)
  assert got.keys() == want.keys()
  for name, value_RM in want.items():
    np.testing.assert_allclose(got[name], value_RM, atol=2e-5, err_msg=name)
  for norm_RM, one_RMV in zip(norms, (logits_RMV, ref_RMV), strict=True):
    want = jax.nn.logsumexp(one_RMV, axis=-1)
    np.testing.assert_allclose(norm_RM, want, rtol=1e-6)


@pytest.mark.slow
def test_devices_put_their_sums_together(rng):
  logits_RMV, ref_RMV, targets_RM = case(rng, V=16, rising=True)
  hit_RMV = jax.nn.one_hot(targets_RM, 16, dtype=bool)
  mesh = parallel.make_mesh(data=1, model=8)

  def here(logits_RMV, ref_RMV, hit_RMV):  # two tokens of the vocabulary
    sums = added(logits_RMV, ref_RMV, hit_RMV, (1, 1))
    return sums.together("model").result()[0]

  by_token = jax.sharding.PartitionSpec(None, None, "model")
  got = jax.shard_map(
    here,
    mesh=mesh,
    in_specs=by_token,
    out_specs=jax.sharding.PartitionSpec(),
    check_vma=False,
  )(logits_RMV, ref_RMV, hit_RMV)
  for name, value_RM in plain(logits_RMV, ref_RMV, targets_RM).items():
    np.testing.assert_allclose(got[name], value_RM, atol=2e-5, err_msg=name)


def tied(rng, V):
  """Logits of which many are equal, and targets that are often the greatest."""
  logits_RMV = jnp.asarray(rng.integers(0, 3, (2, 30, V)), jnp.float32)
  targets_RM = jnp.asarray(rng.integers(0, V // 2, (2, 30)))
  return logits_RMV, targets_RM, jax.nn.one_hot(targets_RM, V, dtype=bool)


def of_blocks(logits_RMV, hit_RMV, sizes):
  sums, end = Sums.start(jnp.zeros(hit_RMV.shape[:2]), 1, ("is_greedy",)), 0
  for size in sizes:
    here = slice(end, end + size)
    sums, end = (
      sums.add([logits_RMV[..., here]], hit_RMV[..., here]),
      end + size,
    )
  return sums


@pytest.mark.parametrize("sizes", [(8,), (3, 4, 1), (1,) * 8])
def test_of_equal_logits_the_first_is_the_likeliest(rng, sizes):
  logits_RMV, targets_RM, hit_RMV = tied(rng, 8)
  got = of_blocks(logits_RMV, hit_RMV, sizes).result()[0]["is_greedy"]
  want = np.asarray(logits_RMV).argmax(axis=-1) == targets_RM
  assert 0 < want.sum() < want.size
  np.testing.assert_array_equal(got, want)


def test_of_equal_logits_on_devices_the_first_is_the_likeliest(rng):
  logits_RMV, targets_RM, hit_RMV = tied(rng, 16)
  mesh = parallel.make_mesh(data=1, model=8)

  def here(logits_RMV, hit_RMV):  # two tokens of the vocabulary
    return of_blocks(logits_RMV, hit_RMV, (1, 1)).together("model").result()[0]

  by_token = jax.sharding.PartitionSpec(None, None, "model")
  got = jax.jit(
    jax.shard_map(
      here,
      mesh=mesh,
      in_specs=by_token,
      out_specs=jax.sharding.PartitionSpec(),
      check_vma=False,
    )
  )(logits_RMV, hit_RMV)["is_greedy"]
  want = np.asarray(logits_RMV).argmax(axis=-1) == targets_RM
  np.testing.assert_array_equal(got, want)


def test_a_rise_by_hand():
  # Logits 0 and log 2: shares 1/2 and 1 against the greater.  Against log 4
  # both are worth half of that, 3/4 in all, and the sum of share * (logit -
  # top) is 1/4 * log(1/4) + 1/2 * log(1/2) = -log 2.
  one = jnp.ones((1, 1))
  softmax = LogSoftmax(one * np.log(2), one * 1.5, one * 0.0)
  to, rise = softmax.to(one * np.log(4))
  assert isinstance(rise, Rise)
  assert float(to.sum[0, 0]) == pytest.approx(0.75)
  assert float(to.norm()[0, 0]) == pytest.approx(np.log(3))
  # Against log 2 it was 1/2 * log(1/2).
  total = Entropy(one * -0.5 * np.log(2)).to(rise).total
  assert float(total[0, 0]) == pytest.approx(-np.log(2))


def test_nothing_asked_for_is_nothing_summed():
  sums = Sums.start(jnp.zeros((1, 2)), 1, ())
  assert len(jax.tree.leaves(sums)) == 3
  sums = sums.add([jnp.zeros((1, 2, 4))], jnp.zeros((1, 2, 4), bool))
  assert set(sums.result()[0]) == {"logp"}
