# SPDX-License-Identifier: Apache-2.0
"""Generation against the whole sequence computed anew, token by token."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import hub, parallel
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.errors import StoppedRun
from mrpo_jax.generation import Decoder, Sampling, generate, samples
from mrpo_jax.models import lora, packed, parameters, transformer, weights
from tests.material.adapted import ADAPTER, CONFIG, adapters_of
from tests.material.folders import GOLDEN

SLOW = pytest.mark.slow
NEW = 12  # tokens
STOP = 7
# Of every kind of layer.
QUICK = (
  *("llama_gqa_tied", "gemma3_pattern", "gpt_neox_parallel"),
  "qwen3_moe_shares",
)
NAMES = sorted(
  path.stem
  for path in GOLDEN.glob("*.npz")
  if (path.with_suffix("") / "config.json").exists()
)


@functools.cache
def model(windows=()):
  config = dataclasses.replace(CONFIG, layer_windows=windows)
  params = jax.jit(functools.partial(parameters.init, config))(
    jax.random.key(0)
  )
  # Far from uniform, so that a wrong key is seen (by 0.1 nats and more); at 6
  # float32 itself would be 3e-4 from float64.
  return config, jax.tree.map(lambda array: 2 * array, params)


def decoder_of(config, params, *, new, slots, longest):
  return Decoder(
    *(config, params),
    sampling=Sampling(max_new_tokens=new),
    stop_ids=(),
    slots=slots,
    longest=longest,
  )


def prompts_of(config, longest=60):
  draw = np.random.default_rng(0)

  def tokens(count):
    return draw.integers(3, config.vocab_size, count).tolist()

  start = tokens(36)  # of two prompts
  found = [start + tokens(3), start + tokens(9), tokens(17), tokens(1)]
  return [prompt[:longest] for prompt in found]


def assert_said(config, params, prompts, found, greedy=True):
  """The log-probabilities, and greedy choices, of each whole sequence."""
  size = max(map(len, prompts)) + NEW
  if config.longest is not None:
    size = min(size, config.longest)
  apply = jax.jit(functools.partial(transformer.apply, config))
  for prompt, some in zip(prompts, found, strict=True):
    for sample in some:
      ids = prompt + sample.ids
      tokens_1T = np.zeros((1, size), np.int32)
      tokens_1T[0, : len(ids)] = ids
      logits_TV = apply(params, tokens_1T)[0]
      said = slice(len(prompt) - 1, len(ids) - 1)
      logp_TV = jax.nn.log_softmax(logits_TV[said])
      logp_T = logp_TV[jnp.arange(len(sample.ids)), jnp.array(sample.ids)]
      np.testing.assert_allclose(sample.logp, logp_T, rtol=0, atol=1e-4)
      behind_T = np.asarray(jnp.max(logp_TV, axis=1) - logp_T)
      is_sure_T = (behind_T == 0) | (behind_T > 1e-4)  # but for ties
      assert np.all((np.array(sample.is_greedy) == (behind_T == 0))[is_sure_T])
      if greedy:  # but for ties
        assert (jnp.max(logp_TV, axis=1) - logp_T).max() < 1e-4


@pytest.mark.parametrize(
  "name",
  [pytest.param(name, marks=[] if name in QUICK else SLOW) for name in NAMES],
)
def test_every_family_says_what_it_would_score(name):
  config, params = hub.load(GOLDEN / name, dtype="float32")
  longest = 60 if config.longest is None else config.longest - NEW
  prompts = prompts_of(config, longest)
  found = generate(
    config,
    params,
    prompts,
    sampling=Sampling(temperature=0, max_new_tokens=NEW),
    slots=3,
  )
  assert_said(config, params, prompts, found)


@pytest.mark.parametrize(
  "windows",
  [pytest.param((), marks=SLOW), pytest.param((5, 5), marks=SLOW), (0, 5)],
)
def test_slots_and_order_change_nothing(windows):
  config, params = model(windows)
  prompts = prompts_of(config)
  sampling = Sampling(max_new_tokens=NEW, samples=3)

  def run(slots, **more):
    found = generate(
      *(config, params, prompts),
      **dict(sampling=sampling, seed=3, stop_ids=[STOP], slots=slots) | more,
    )
    return [[one.ids for one in samples] for samples in found], found

  ids, found = run(4)
  for slots in (1, 64):
    assert run(slots)[0] == ids
  assert run(4, block=5)[0] == ids
  assert run(4, seed=4)[0] != ids
  assert_said(config, params, prompts, found, greedy=False)
  assert any(a != b for a, b, _ in ids)  # samples differ
  for some in found:
    for one in some:
      assert STOP not in one.ids[:-1]
      is_stop = one.ids[-1] == STOP
      assert one.finish == ("stop" if is_stop else "length")
      assert len(one.ids) == NEW or is_stop


def test_what_enables_x64_generates_the_same():
  config, params = model((0, 5))
  prompts = prompts_of(config)
  sampling = Sampling(max_new_tokens=NEW)

  def ids():
    found = generate(config, params, prompts, sampling=sampling, seed=1)
    return [one.ids for (one,) in found]

  want = ids()
  with jax.enable_x64(True):
    assert ids() == want


@SLOW
def test_a_prompt_by_itself_says_what_it_says_among_others():
  config, params = model()
  prompts = prompts_of(config)
  sampling = Sampling(max_new_tokens=NEW)
  (all_of_them, alone) = (
    generate(config, params, some, sampling=sampling, seed=1)
    for some in (prompts, prompts[:1])
  )
  assert all_of_them[0][0].ids == alone[0][0].ids


@pytest.mark.parametrize("windows", [(), (0, 5)])
def test_log_probabilities_are_those_of_scoring(windows):
  """Of packed pairs and the chunked head, as `mrpo score` has them."""
  config, params = model(windows)
  prompts = prompts_of(config)
  sampling = Sampling(temperature=0.7, top_k=20, max_new_tokens=NEW, samples=2)
  found = generate(config, params, prompts, sampling=sampling, stop_ids=[STOP])
  pairs = [
    Encoded(prompt, one.ids, other.ids)
    for prompt, (one, other) in zip(prompts, found, strict=True)
  ]
  rows = pack.pack(pairs, length=2 * max(map(pack.size, pairs)))
  logp_ARM = packed.all_token_figures(config, params, rows, len(pairs))["logp"]
  for slot, one in enumerate(one for some in found for one in some):
    logp_T = np.asarray(logp_ARM)[np.asarray(rows.slots_RM) == slot]
    np.testing.assert_allclose(one.logp, logp_T, rtol=0, atol=1e-4)


def test_nothing_ends_before_it_may():
  config, params = model()
  sampling = Sampling(max_new_tokens=NEW, min_new_tokens=4, samples=8)
  stops = [*range(3, 40)]
  (found,) = generate(
    config, params, [[5, 6]], sampling=sampling, stop_ids=stops
  )
  assert {len(one.ids) for one in found} - {NEW}
  for one in found:
    assert len(one.ids) > 4 and not {*stops} & {*one.ids[:-1]}


def test_adapters_and_integers_are_decoded_too():
  config, params = model()
  table = parameters.table(config)
  own = adapters_of()
  prompts = prompts_of(config)
  sampling = Sampling(temperature=0, max_new_tokens=NEW)
  for changed in (
    lora.attach(params, own, ADAPTER),
    weights.quantize(params, table, "int8"),
    weights.quantize(params, table, "int4", group=16),
  ):
    found = generate(config, changed, prompts, sampling=sampling, slots=2)
    assert_said(config, changed, prompts, found)


def test_the_cache_is_updated_in_place():
  """No copy of it among the temporaries of the compiled block."""
  config, params = model()
  decoder = decoder_of(config, params, new=400, slots=4, longest=60)
  memory = decoder.lowered().compile().memory_analysis()
  cache = 2 * 2 * 4 * 2 * 512 * 8 * 4  # K and V, LBGSE, bytes
  assert memory.alias_size_in_bytes >= cache
  assert memory.temp_size_in_bytes < cache


def test_half_as_many_bytes_are_kept_where_asked():
  config, params = model()
  prompts = prompts_of(config)
  sampling = Sampling(temperature=0, max_new_tokens=NEW)
  found = generate(
    config, params, prompts, sampling=sampling, cache_dtype="bfloat16"
  )
  exact = generate(config, params, prompts, sampling=sampling)
  for one, other in zip(found, exact, strict=True):
    assert abs(one[0].logp[0] - other[0].logp[0]) < 0.1


@pytest.mark.parametrize(
  "prompts, message", [([[1], []], "prompt 1 is empty"), ([[99]], "99")]
)
def test_prompts_that_cannot_be_read_are_refused(prompts, message):
  config, params = model()
  with pytest.raises(ValueError, match=message):
    generate(config, params, prompts)


def test_what_is_not_finite_stops_and_names_the_prompt():
  """Numbers that overflow on the way, from weights that are finite."""
  config, params = model()
  params = {**params, "norm": params["norm"] * 1e38}
  with pytest.raises(StoppedRun, match="after prompt 0 .* is not finite"):
    generate(config, params, [[5, 6, 7]], sampling=Sampling(max_new_tokens=2))


def test_what_passes_the_longest_sequence_is_refused():
  config, params = model()
  config = dataclasses.replace(config, learned_positions=True, max_positions=20)
  with pytest.raises(ValueError, match="20 .* allows"):
    generate(config, params, [[1] * 10], sampling=Sampling(max_new_tokens=11))


def test_requests_are_asked_for_as_slots_are_free():
  """So that many samples of a prompt take no memory before they are made."""
  config, params = model()
  decoder = decoder_of(config, params, new=2, slots=2, longest=3)
  requests = zip(itertools.repeat(0), itertools.count(), strict=False)
  found = samples(decoder, [[5, 6, 7]], requests, 0)
  first = [request for request, _ in itertools.islice(found, 5)]
  assert first == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
  assert next(requests)[1] < 1000


def test_no_prompts_no_samples():
  config, params = model()
  assert generate(config, params, []) == []


@pytest.mark.parametrize(
  "axes, windows, rules",
  [
    (dict(data=2, fsdp=2, model=2), (0, 5), None),
    pytest.param(dict(fsdp=4, context=2), (), None, marks=SLOW),
    pytest.param(dict(model=4, data=2), (5, 5), {"kv_heads": ()}, marks=SLOW),
  ],
)
def test_a_mesh_says_what_one_device_says(axes, windows, rules):
  config, params = model(windows)
  prompts = prompts_of(config)
  sampling = Sampling(max_new_tokens=NEW, samples=2)
  given = dict(sampling=sampling, seed=3, stop_ids=[STOP])
  alone = generate(config, params, prompts, slots=3, **given)
  mesh = parallel.make_mesh(**axes)
  split = jax.device_put(params, parallel.param_shardings(config, mesh, rules))
  partition = parallel.partition_of(mesh, rules)
  found = generate(
    config, split, prompts, slots=3, partition=partition, **given
  )
  for some, others in zip(alone, found, strict=True):
    for one, other in zip(some, others, strict=True):
      assert one.ids == other.ids and one.finish == other.finish
      np.testing.assert_allclose(one.logp, other.logp, rtol=0, atol=1e-4)
