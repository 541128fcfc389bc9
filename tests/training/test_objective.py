# SPDX-License-Identifier: Apache-2.0
"""Methods that need more than sums, against every sequence alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax import losses
from mrpo_jax.data import pack
from mrpo_jax.data.encode import Encoded
from mrpo_jax.models import parameters, transformer
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.packed import Computation
from mrpo_jax.training import train_state
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.step import train_step

CONFIG = ModelConfig(
  vocab_size=61,
  width=16,
  layers=1,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=32,
)
OTHER = dataclasses.replace(CONFIG, width=24, layers=2)
PAIRS = 6
XLA = Computation(kernel="xla")  # of all kernels the fastest to compile


@functools.cache
def init_of(config):
  return jax.jit(functools.partial(parameters.init, config))


@functools.cache
def params_of(seed, config=CONFIG):
  params = init_of(config)(jax.random.key(seed))
  # Away from uniform, or every token would look alike.
  return params | {"embed": 20 * params["embed"], "head": 30 * params["head"]}


def some_pairs(seed=0):
  """Ragged pairs whose responses share a start and now and then a token."""
  rng = np.random.default_rng(seed)
  pairs = []
  for _ in range(PAIRS):
    prompt, shared, *ends = (
      rng.integers(3, 12, rng.integers(1, 7)).tolist() for _ in range(4)
    )
    pairs.append(Encoded(prompt, *(shared + end for end in ends)))
  return pairs


def objective_of(name, *, K=1, config=CONFIG, **hyper):
  return Objective(
    pairs=PAIRS,
    policy=Model(CONFIG, computation=XLA),
    references=(Model(config, computation=XLA),) * K,
    names=tuple("abc"[:K]),
    method=losses.build(name, **hyper),
  )


KEEP = optax.trace(decay=0.0)  # a transformation that keeps the gradient


@functools.cache
def compiled(objective):
  step = functools.partial(train_step, objective=objective, transformation=KEEP)
  return jax.jit(step)


def step(objective, references, pairs, *, rows=1, state=None, seed=3, parts=1):
  """(metrics, gradient, method state) of one train step.

  Long and short rows, two parts, are two loops to compile.
  """
  more = dict(mark_differences=objective.method.reads_differences)
  if parts == 2:
    view = pack.pack_step(pairs, length=48, rows=rows, batch=PAIRS, **more)
  else:
    more["batches"] = -(-PAIRS // rows)  # room for all, as in a run
    view = (pack.pack(pairs, length=48, rows=rows, **more),)
  state = state or objective.method.init(len(references))
  state = train_state.create(params_of(0), KEEP, state, seed=seed)
  state, metrics = compiled(objective)(state, None, references, (view,), {})
  return metrics, state.opt_state.trace, state.method_state


def padded(pairs):
  """(tokens, ids, mask, start): every sequence in a row of its own."""
  whole = [
    pair.prompt_ids + ids
    for pair in pairs
    for ids in (pair.chosen_ids, pair.rejected_ids)
  ]
  tokens_NT = np.zeros((len(whole), max(map(len, whole)) + 1), int)
  for n, ids in enumerate(whole):
    tokens_NT[n, : len(ids)] = ids
  start_N = np.repeat([len(pair.prompt_ids) for pair in pairs], 2)
  place_T = np.arange(tokens_NT.shape[1])
  mask_NT = place_T >= start_N[:, None]
  mask_NT &= place_T < np.array([len(ids) for ids in whole])[:, None]
  return tokens_NT, mask_NT, start_N


def plain(config, params, pairs):
  """dict of per-token arrays [B, C, T] from full logits of plain sequences.

  What stands to the right of a sequence changes nothing in it.
  """
  tokens_NT, mask_NT, start_N = padded(pairs)
  logits_NTV = transformer.apply(config, params, jnp.asarray(tokens_NT))
  # The distribution of a token stands at the place before it.
  full_NTV = jnp.roll(jax.nn.log_softmax(logits_NTV), 1, axis=1)
  logp_NT = jnp.take_along_axis(full_NTV, tokens_NT[..., None], -1)[..., 0]
  index_NT = np.arange(tokens_NT.shape[1])[None] - start_N[:, None]
  arrays = dict(
    full=full_NTV,
    logp=jnp.where(mask_NT, logp_NT, 0.0),
    mask=mask_NT,
    index=index_NT,
  )
  return {k: v.reshape(-1, 2, *v.shape[1:]) for k, v in arrays.items()}


def summed_logps(params, pairs):
  return plain(CONFIG, params, pairs)["logp"].sum(-1)


def mean_over_tokens(value_BCT, mask_BCT):
  return jnp.where(mask_BCT, value_BCT, 0.0).sum(-1) / mask_BCT.sum(-1)


@functools.cache
def known_logps(seed, count=PAIRS):
  """logp_BC of the first pairs under `params_of(seed)`."""
  pairs = some_pairs()[:count]
  return jax.jit(lambda params: summed_logps(params, pairs))(params_of(seed))


@functools.cache
def value_and_gradient(loss_of):
  """Of `loss_of(params, pairs)`."""
  value_and_grad = jax.value_and_grad(loss_of)
  pairs = some_pairs()
  return jax.jit(lambda params: value_and_grad(params, pairs))(params_of(0))


def expect(objective, references, loss_of, **given):
  """Value and gradient of a step equal those of `loss_of(params, pairs)`."""
  pairs = some_pairs()
  metrics, gradient, _ = step(objective, references, pairs, **given)
  want, want_gradient = value_and_gradient(loss_of)
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=3e-5 * np.abs(b).max())


def weighted(weigh):
  """DPO on token-weighted sums; weigh(pairs, plain figures of the policy)."""

  def loss_of(params, pairs):
    policy = plain(CONFIG, params, pairs)
    ref = plain(CONFIG, params_of(1), pairs)
    weight_BCT = weigh(pairs, policy)
    score_BC = (weight_BCT * (policy["logp"] - ref["logp"])).sum(-1)
    return jnp.mean(losses.dpo(score_BC, beta=0.3))

  return loss_of


@pytest.mark.parametrize("offset", [0, 1, "prompt"])
def test_temporal_decay(offset):
  def weigh(pairs, policy):
    start = offset
    if offset == "prompt":
      start = np.array([len(p.prompt_ids) for p in pairs])[:, None, None]
    return 0.9 ** (policy["index"] + start)

  decay = dict(name="temporal_decay", gamma=0.9, offset=offset)
  objective = objective_of("dpo", token_weight=decay, beta=0.3)
  expect(objective, (params_of(1),), weighted(weigh))


def test_length_desensitized():
  def weigh(pairs, policy):
    short_B11 = policy["mask"].sum(-1).min(-1)[:, None, None]
    return np.where(policy["index"] < short_B11, 1.0, 0.5)

  expect(objective_of("ld_dpo", beta=0.3), (params_of(1),), weighted(weigh))


def test_bridged_weighs_policy_and_reference_by_the_policy():
  def weigh(pairs, policy):
    differs_BCT = np.zeros(policy["mask"].shape, bool)
    for n, pair in enumerate(pairs):
      for c, marks in enumerate(pack.differences(pair)):
        differs_BCT[n, c, policy["mask"][n, c]] = marks
    surprise_BCT = jnp.exp(-jax.lax.stop_gradient(policy["logp"]))
    return 1 + differs_BCT * jnp.minimum(surprise_BCT, 2.0)

  objective = objective_of("bmc", beta=0.3)
  expect(objective, (params_of(1),), weighted(weigh), parts=2)


def test_down_sampling_draws_once_for_both_and_anew_at_each_step():
  pairs, references = some_pairs(), (params_of(0),)
  objective = objective_of("sampo")
  metrics, _, _ = step(objective, references, pairs)
  # One draw: policy and reference agree, whatever is drawn.
  np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-6)
  one, two = (
    step(objective, (params_of(1),), pairs, seed=seed)[0] for seed in (3, 4)
  )
  assert abs(one["loss"] - two["loss"]) > 1e-4
  again, _, _ = step(objective, (params_of(1),), pairs)
  assert again["loss"] == one["loss"]


def test_token_weights_against_several_references():
  def loss_of(params, pairs):
    policy_BC, *ref_BC = (
      (0.9 ** one["index"] * one["logp"]).sum(-1)
      for one in (
        plain(CONFIG, p, pairs) for p in (params, params_of(1), params_of(2))
      )
    )
    ref_BCK = jnp.stack(ref_BC, axis=-1)
    return jnp.mean(losses.mrpo(policy_BC, ref_BCK, beta=0.3))

  decay = dict(name="temporal_decay", gamma=0.9)
  objective = objective_of("mrpo", K=2, token_weight=decay, beta=0.3)
  expect(objective, (params_of(1), params_of(2)), loss_of, parts=2)


@pytest.mark.parametrize("version,config", [(1, CONFIG), (2, OTHER)])
def test_divergence_from_a_reference_of_any_shape(version, config):
  def loss_of(params, pairs):
    policy = plain(CONFIG, params, pairs)
    ref = plain(config, params_of(1, config), pairs)
    gap_BCTV = ref["full"] - policy["full"]
    kl_BCT = (jnp.exp(ref["full"]) * gap_BCTV).sum(-1)
    loss_B = losses.tdpo(
      (policy["logp"] - ref["logp"]).sum(-1),
      jnp.where(policy["mask"], kl_BCT, 0.0).sum(-1),
      beta=0.3,
      version=version,
    )
    return jnp.mean(loss_B)

  objective = objective_of("tdpo", config=config, beta=0.3, version=version)
  # Once in two parts: both have the figures of full distributions.
  expect(objective, (params_of(1, config),), loss_of, parts=version)


def test_weight_of_the_pair_from_squared_probabilities():
  def loss_of(params, pairs):
    policy = plain(CONFIG, params, pairs)
    squares_BCT = jnp.log(jnp.exp(2 * policy["full"]).sum(-1))
    excess_BC = mean_over_tokens(policy["logp"] - squares_BCT, policy["mask"])
    logratio_BC = policy["logp"].sum(-1) - summed_logps(params_of(1), pairs)
    weight_B = losses.wpo_weight(excess_BC)
    return jnp.mean(weight_B * losses.dpo(logratio_BC, beta=0.3))

  expect(objective_of("wpo", beta=0.3), (params_of(1),), loss_of)


def test_dispersion_from_the_entropy_of_reference_zero():
  def loss_of(params, pairs):
    ref = plain(CONFIG, params_of(1), pairs)
    entropy_BCT = -(jnp.exp(ref["full"]) * ref["full"]).sum(-1)
    share_BC = mean_over_tokens(entropy_BCT, ref["mask"]) / np.log(61)
    scale_B = -jnp.log(jnp.mean(share_BC, axis=-1)) / 0.7
    logratio_BC = summed_logps(params, pairs) - ref["logp"].sum(-1)
    return jnp.mean(losses.mallows_theta(logratio_BC, scale_B, beta=0.3))

  objective = objective_of("mallows_theta", dispersion=0.7, beta=0.3)
  expect(objective, (params_of(1),), loss_of)


COUPLED = {
  "aot": lambda policy, ref: losses.aot(policy, ref, beta=0.3),
  "aot_unpaired": lambda policy, ref: losses.aot_unpaired(
    policy - ref, beta=0.3
  ),
  "dr_dpo": lambda policy, ref: losses.dr_dpo(policy - ref, beta=0.3),
  "beta_dpo": lambda policy, ref: losses.dpo(policy - ref, beta=0.3),
}


@functools.cache
def coupled_loss(name):
  def loss_of(params, pairs):
    policy, ref = (summed_logps(p, pairs) for p in (params, params_of(1)))
    return jnp.mean(COUPLED[name](policy, ref))

  return loss_of


@pytest.mark.parametrize(
  "name,rows,parts",
  [
    *((name, 1, 2) for name in COUPLED),
    ("aot", PAIRS, 1),
    *(
      pytest.param(name, PAIRS, 1, marks=pytest.mark.slow)
      for name in COUPLED
      if name != "aot"
    ),
  ],
)
def test_losses_across_the_batch_do_not_see_the_micro_batches(
  name, rows, parts
):
  objective = objective_of(name, beta=0.3)
  # At the first step the running margin is the batch's own: beta is beta.
  given = dict(rows=rows, parts=parts)
  expect(objective, (params_of(1),), coupled_loss(name), **given)


def test_a_smaller_batch_of_a_coupled_loss_ignores_the_missing_pairs():
  pairs = some_pairs()[:4]
  objective = objective_of("aot", beta=0.3)
  metrics, _, _ = step(objective, (params_of(1),), pairs, parts=2)
  policy, ref = (known_logps(seed, 4) for seed in (0, 1))
  want = jnp.mean(losses.aot(policy, ref, beta=0.3))
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)


def test_the_running_margin_is_remembered():
  pairs, references = some_pairs(), (params_of(1),)
  objective = objective_of("beta_dpo", beta=0.3, adaptive_beta=0.6)
  logratio_BC = np.asarray(known_logps(0) - known_logps(1))
  margin_B = logratio_BC[:, 0] - logratio_BC[:, 1]
  moments = np.array([margin_B.mean(), margin_B.std(), 1.0])
  _, _, state = step(objective, references, pairs)
  np.testing.assert_allclose(state["margin"], 0.1 * moments, rtol=1e-4)
  # A history of margin 1: the running mean is 0.9 * 1 + 0.1 * this one, over
  # the weight of what was seen, here all.
  before = {"weights": (), "margin": jnp.array([1.0, 0.0, 1.0])}
  metrics, _, _ = step(objective, references, pairs, state=before)
  running = 0.9 + 0.1 * margin_B.mean()
  beta = max(0.3 * (1 + 0.6 * (margin_B.mean() - running)), 1e-3)
  want = np.mean(np.log1p(np.exp(-beta * margin_B)))
  np.testing.assert_allclose(metrics["loss"], want, rtol=1e-4)


def test_a_window_of_weights_moves_with_the_steps():
  pairs, references = some_pairs(), (params_of(1), params_of(2))
  objective = objective_of("mrpo", K=2, weights="sliding_window", clip=None)
  metrics, _, state = step(objective, references, pairs)
  assert metrics["references/a/weight"] == 0.5  # nothing seen yet
  sizes = [
    float(jnp.abs(known_logps(seed)[:, 0] - known_logps(seed)[:, 1]).sum())
    for seed in (1, 2)
  ]
  np.testing.assert_allclose(state["weights"], [sizes], rtol=1e-5)
  metrics, _, _ = step(objective, references, pairs, state=state)
  np.testing.assert_allclose(
    metrics["references/a/weight"], sizes[0] / sum(sizes), rtol=1e-5
  )


def test_a_loss_without_reference_trains_without_one():
  def mean_logps(params, pairs):
    policy = plain(CONFIG, params, pairs)
    return mean_over_tokens(policy["logp"], policy["mask"])

  def loss_of(params, pairs):
    mean_logp_BC = mean_logps(params, pairs)
    likelihood_B = losses.nll(mean_logp_BC[:, 0])
    return jnp.mean(losses.simpo(mean_logp_BC) + 0.2 * likelihood_B)

  objective = objective_of("simpo", K=0, nll=0.2)
  expect(objective, (), loss_of)
  metrics, _, _ = step(objective, (), some_pairs())
  mean_logp_BC = jax.jit(lambda p: mean_logps(p, some_pairs()))(params_of(0))
  np.testing.assert_allclose(  # beta 2, against none
    metrics["policy_mean/rewards/chosen"],
    2 * np.mean(mean_logp_BC[:, 0]),
    rtol=1e-5,
  )
  assert "rewards/accuracies" in metrics


def test_divergence_and_entropy_are_watched():
  metrics, _, _ = step(objective_of("tdpo"), (params_of(1),), some_pairs())
  assert metrics["kl/chosen"] > 0 and metrics["kl/rejected"] > 0
  objective = objective_of("dpo", dispersion=0.7)
  metrics, _, _ = step(objective, (params_of(1),), some_pairs())
  assert 0 < metrics["neg_log_dispersion"] < 5


@pytest.mark.parametrize(
  "name,change,match",
  [
    ("d2po", dict(view=1), "compares tokens.*'a' needs the policy's tokenizer"),
    ("tdpo", dict(view=1), "needs the policy's tokenizer"),
    (
      "tdpo",
      dict(config=dataclasses.replace(CONFIG, vocab_size=62)),
      r"needs one vocabulary, got sizes \[61, 62\]",
    ),
    ("mrpo", dict(view=1), None),
    ("wpo", dict(view=1), None),
  ],
)
def test_what_the_models_cannot_give_is_refused(name, change, match):
  objective = objective_of(name)
  (model,) = objective.references
  changed = dataclasses.replace(model, **change)
  objective = dataclasses.replace(objective, references=(changed,))
  if match is None:
    objective.check()
    return
  with pytest.raises(ValueError, match=match):
    objective.check()


def test_dispersion_needs_a_reference():
  objective = objective_of("simpo", K=0, dispersion=0.7)
  with pytest.raises(ValueError, match="there is no reference"):
    objective.check()


def test_one_reference_too_many_is_refused():
  with pytest.raises(ValueError, match="takes one reference, got K=2"):
    objective_of("hinge", K=2).check()


def test_a_loss_without_a_reference_has_one_for_its_metrics_alone():
  objective_of("simpo").check()
  with pytest.raises(ValueError, match="compare with one alone, got a, b"):
    objective_of("simpo", K=2).check()
