# SPDX-License-Identifier: Apache-2.0
"""Scores of trees in packed rows equal those of each request by itself."""

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest

from mrpo_jax import parallel
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.evaluation.loglikelihood import Scorer, row_length
from mrpo_jax.models import parameters, transformer
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.rope import Rope

CONFIG = ModelConfig(
  vocab_size=37,
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=24,
  max_positions=64,
)
# Windows shorter than a request, which count in its own positions.
WINDOWS = dataclasses.replace(
  CONFIG,
  ropes=(Rope(1e3), Rope(1e2)),
  layer_ropes=(1, 0),
  layer_windows=(5, 0),
  logits_softcap=3.0,
)


@functools.cache
def params_of(config):
  params = parameters.init(config, jax.random.key(0))
  # Away from a uniform head, or errors would hide.
  return jax.tree.map(lambda leaf: leaf * 3, params)


def random_trees(rng, count):
  """Requests with common starts, some of them equal or a start of another."""
  starts = [rng.integers(0, 37, n).tolist() for n in (1, 9, 20)]
  found = []
  for _ in range(count):
    start = starts[rng.integers(3)]
    context = start[: rng.integers(1, len(start) + 1)]
    context += rng.integers(0, 3, rng.integers(0, 5)).tolist()
    continuation = rng.integers(0, 3, rng.integers(1, 6)).tolist()
    found.append((context, continuation))
  return found


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens_BT, segments_BT):
  return transformer.apply(config, params, tokens_BT, segments_BT=segments_BT)


def alone(config, params, context, continuation):
  """(nats, is greedy) by a plain forward pass of one request."""
  ids = np.array([*context, *continuation[:-1]])
  padded_1T, real_1T = np.zeros((2, 1, 32), np.int32)
  padded_1T[0, : len(ids)], real_1T[0, : len(ids)] = ids, 1
  logits_TV = logits_of(config, params, padded_1T, real_1T)[0]
  logits_TV = logits_TV[len(context) - 1 : len(ids)]
  logp_TV = jax.nn.log_softmax(logits_TV)
  places = np.arange(len(continuation)), np.array(continuation)
  likeliest = np.asarray(logits_TV).argmax(axis=1)
  return float(logp_TV[places].sum()), likeliest.tolist() == continuation


@pytest.mark.parametrize("config", [CONFIG, WINDOWS], ids=["llama", "windows"])
def test_scores_are_those_of_each_request_alone(rng, config):
  params, requests = params_of(config), random_trees(rng, 60)
  # What is greedy by itself is found so, too.
  ids = requests[0][0]
  for _ in range(3):
    likeliest = [n for n in range(37) if alone(config, params, ids, [n])[1]]
    requests.append((ids, likeliest))
    ids = ids + likeliest
  want = [alone(config, params, *one) for one in requests]
  assert 3 <= sum(is_greedy for _, is_greedy in want) < len(want)
  for row in (24, 300):
    got = Scorer(config, row=row).scores(params, requests)
    # A sum over tokens rounds by its size: 20 nats, by 16 ulps.
    np.testing.assert_allclose(
      *([logp for logp, _ in some] for some in (got, want)),
      rtol=2e-6,
      atol=2e-5,
    )
    assert [one for _, one in got] == [one for _, one in want]


def test_devices_share_rows_of_a_length_that_they_do_not_divide(rng):
  config = dataclasses.replace(CONFIG, vocab_size=39, heads=3, width=18)
  params, requests = params_of(config), random_trees(rng, 12)
  mesh = parallel.make_mesh(data=2, context=3, devices=jax.devices()[:6])
  partition = parallel.partition_of(mesh)
  split = jax.device_put(params, parallel.param_shardings(config, mesh))
  got = Scorer(config, row=64, partition=partition).scores(split, requests)
  want = Scorer(config, row=64).scores(params, requests)
  np.testing.assert_allclose(
    [logp for logp, _ in got], [logp for logp, _ in want], atol=2e-5
  )


def test_heads_that_devices_of_a_row_cannot_share_are_refused():
  mesh = parallel.make_mesh(data=2, context=4)
  with pytest.raises(InputError, match="2 heads.*mesh.context=4 does not"):
    Scorer(CONFIG, partition=parallel.partition_of(mesh))


def test_rows_have_few_lengths():
  lengths = [row_length(used, 4096) for used in (1, 256, 257, 1024, 1025, 4097)]
  assert lengths == [256, 256, 1024, 1024, 4096, 8192]
  assert row_length(40, 24) == 48


def test_more_choices_than_a_row_has_places_are_scored_as_in_a_long_one():
  requests = [([5, 6], [choice]) for choice in range(30)] + [([3], [4])]
  params = params_of(CONFIG)
  short = Scorer(CONFIG, row=16).scores(params, requests)
  long = Scorer(CONFIG).scores(params, requests)
  np.testing.assert_allclose(
    [logp for logp, _ in short], [logp for logp, _ in long], atol=1e-5
  )


def test_new_parameters_compile_nothing_anew(rng, caplog):
  scorer, requests = Scorer(CONFIG), random_trees(rng, 8)
  params = params_of(CONFIG)
  one = scorer.scores(params, requests)
  half = jax.tree.map(lambda leaf: leaf / 2, params)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    other = scorer.scores(half, requests)
  assert "Compiling" not in caplog.text
  assert all(a != b for (a, _), (b, _) in zip(one, other, strict=True))


def test_what_is_too_long_loses_its_start_and_that_is_said(rng, caplog):
  caplog.set_level(logging.WARNING, "mrpo_jax")
  params, ids = params_of(CONFIG), rng.integers(0, 37, 20).tolist()
  requests = [(ids[:18], ids[18:]), (ids[:5], ids[5:9]), (ids[:2], ids[2:])]
  # Twenty tokens, of which the last has no place: the first 11 are too many.
  got = Scorer(CONFIG, longest=8).scores(params, requests[:2])
  want = [alone(CONFIG, params, ids[11:18], ids[18:])]
  want.append(alone(CONFIG, params, *requests[1]))
  np.testing.assert_allclose(
    [logp for logp, _ in got], [logp for logp, _ in want], atol=1e-5
  )
  assert "of 1 of 2 requests the start is cut off, up to 11 tokens" in (
    caplog.text
  )
  with pytest.raises(InputError, match="continuation has 18 tokens.*at 8"):
    Scorer(CONFIG, longest=8).scores(params, requests[2:])


@pytest.mark.parametrize(
  "request_,message",
  [
    (([], [1]), "empty context or continuation"),
    (([1], []), "empty context or continuation"),
    (([1], [37]), "has the token 37, and the model only 37"),
  ],
)
def test_requests_that_cannot_be_scored_are_refused(request_, message):
  with pytest.raises(InputError, match=message):
    Scorer(CONFIG).scores(params_of(CONFIG), [([1], [2]), request_])


def test_scores_that_are_no_numbers_stop_the_work():
  # Of choices whose scores are NaN the first would be taken: the right one.
  params = params_of(CONFIG) | {"norm": jax.numpy.full(16, 3e38)}
  with pytest.raises(StoppedRun, match="log-likelihood of a request is nan"):
    Scorer(CONFIG).scores(params, [([1], [2])])


def test_a_model_is_not_asked_for_more_tokens_than_it_takes():
  with pytest.raises(InputError, match="65 tokens: this llama takes 1 to 64"):
    Scorer(CONFIG, longest=65)


def test_a_mesh_scores_as_one_device_does(rng):
  config = dataclasses.replace(CONFIG, vocab_size=40)
  params, requests = params_of(config), random_trees(rng, 30)
  want = Scorer(config).scores(params, requests)
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  rules = {"kv_heads": ()}
  split = jax.device_put(params, parallel.param_shardings(config, mesh, rules))
  partition = parallel.partition_of(mesh, rules)
  got = Scorer(config, row=32, partition=partition).scores(split, requests)
  np.testing.assert_allclose(
    [logp for logp, _ in got], [logp for logp, _ in want], atol=2e-5
  )
  assert [one for _, one in got] == [one for _, one in want]
