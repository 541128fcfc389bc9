# SPDX-License-Identifier: Apache-2.0
"""Steps on images and on pairs: torch's numbers, laws of several references."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax import losses
from mrpo_jax.diffusion import errors, folder, step
from mrpo_jax.diffusion.step import ImageBatch, PairBatch, PairObjective
from mrpo_jax.errors import InputError
from mrpo_jax.training import train_state

NATS = 10.0


def objective(golden, count=1, **given):
  given.setdefault("method", losses.build("dpo", beta=golden.beta / NATS))
  return PairObjective(
    golden.config, (golden.config,) * count, nats=NATS, **given
  )


def logps(golden, figure):
  return -0.5 * NATS * jnp.asarray(golden.figures[figure])[..., None]


def test_diffusion_dpo_is_dpo_of_errors(golden):
  error_BC = jnp.asarray(golden.figures["errors"])
  one, ref_BCK = objective(golden), logps(golden, "one/ref_errors")
  state = one.method.init(1)
  found = step.pair_losses(one, state, error_BC, ref_BCK, ref_BCK)
  want = losses.diffusion_dpo(
    error_BC, golden.figures["one/ref_errors"], beta=golden.beta
  )
  np.testing.assert_allclose(found, want, rtol=1e-6)
  np.testing.assert_allclose(found, golden.figures["one/loss"], rtol=1e-6)


@pytest.mark.parametrize("name,count", [("one", 1), ("two", 2)])
def test_losses_and_gradients_are_torchs(golden, name, count):
  image, noise, time, label = golden.images()
  method = losses.build(
    "mrpo",
    beta=golden.beta / NATS,
    weights="uniform",
    mixture="geometric",
    clip=None,
  )
  one = objective(golden, count, method=method)
  error_BCK = jnp.stack(
    [
      errors.errors(
        golden.config, golden.params(shift), image, label, (time, noise)
      )
      for shift in (1.0, 2.0)[:count]
    ],
    -1,
  )
  ref_BCK = one.logps(error_BCK)

  def loss_of(params):
    error_BC = errors.errors(golden.config, params, image, label, (time, noise))
    state = method.init(count)
    loss_B = step.pair_losses(one, state, error_BC, ref_BCK, ref_BCK)
    return jnp.mean(loss_B), loss_B

  gradient, loss_B = jax.grad(loss_of, has_aux=True)(golden.params())
  np.testing.assert_allclose(loss_B, golden.figures[f"{name}/loss"], rtol=1e-5)
  for key, grad in folder.named(gradient).items():
    if key in golden.watched:
      want = golden.figures[f"{name}/grad/{key}"]
      np.testing.assert_allclose(grad, want, atol=1e-5 * np.abs(want).max())


def start(params, method=None):
  transformation = optax.adam(1e-3)
  state = method.init(1) if method else {}
  return (
    train_state.create(params, transformation, state, seed=3),
    transformation,
  )


def pairs(golden, **scores):
  image, _, _, label = golden.images()
  return PairBatch(
    image, label, jnp.arange(5), jnp.array([0, 1, 2, 0, 1]), **scores
  )


def test_a_step_towards_the_chosen(golden):
  one = objective(golden)
  state, transformation = start(golden.params(), one.method)
  run = jax.jit(
    functools.partial(
      step.preference_step, objective=one, transformation=transformation
    )
  )
  first, metrics = run(state, (golden.params(),), pairs(golden))
  # Policy and reference are one, under the same draw: no margin at all.
  assert float(metrics["loss"]) == pytest.approx(np.log(2), abs=1e-6)
  assert float(metrics["error_change/chosen"]) == 0.0
  again, _ = run(state, (golden.params(),), pairs(golden))
  for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True):
    np.testing.assert_array_equal(a, b)
  for _ in range(30):
    state, metrics = run(state, (golden.params(),), pairs(golden))
  assert float(metrics["rewards/margins"]) > 0
  assert int(state.step) == 30


def test_scored_references_are_those_of_the_step(golden):
  """Under fixed draws nobody sees whether a reference ran before or now."""
  one = objective(golden, draws=3, seed=5)
  error_MBC = step.scored(one, golden.config, golden.params(1.0), pairs(golden))
  assert error_MBC.shape == (3, 5, 2)
  batch = pairs(golden)
  drawn = errors.fixed_draws(golden.config, 5, batch.pair_B, batch.draw_B)
  now = errors.errors(
    golden.config, golden.params(1.0), batch.image_BCHWX, batch.class_B, drawn
  )
  before = error_MBC[batch.draw_B, jnp.arange(5)]
  np.testing.assert_allclose(before, now, rtol=1e-5)
  state, transformation = start(golden.params(), one.method)
  scores = dict(
    ref_error_BCK=before[..., None],
    mean_ref_error_BCK=error_MBC.mean(0)[..., None],
  )
  _, metrics = step.preference_step(
    *(state, (None,), pairs(golden, **scores)),
    objective=one,
    transformation=transformation,
  )
  policy = errors.errors(
    golden.config, golden.params(), batch.image_BCHWX, batch.class_B, drawn
  )
  # One reference: its mean falls out, and this draw's error stays.
  want = losses.diffusion_dpo(policy, now, beta=golden.beta)
  assert float(metrics["loss"]) == pytest.approx(float(want.mean()), rel=1e-5)


def test_a_running_margin_is_without_the_noise_of_the_draw(golden):
  """Policy and reference are one model: no draw gives them a margin."""
  method = losses.build("beta_dpo", beta=0.1)
  one = objective(golden, method=method, draws=3, seed=5)
  error_MBC = step.scored(one, golden.config, golden.params(), pairs(golden))
  drawn_BC = error_MBC[pairs(golden).draw_B, jnp.arange(5)]
  mean_BC = error_MBC.mean(0)
  assert np.abs(drawn_BC - mean_BC).max() > 0.01
  scores = dict(
    ref_error_BCK=drawn_BC[..., None], mean_ref_error_BCK=mean_BC[..., None]
  )
  state, transformation = start(golden.params(), method)
  state, _ = step.preference_step(
    *(state, (), pairs(golden, **scores)),
    objective=one,
    transformation=transformation,
  )
  mean, deviation, _ = state.method_state["margin"]
  np.testing.assert_allclose([mean, deviation], 0.0, atol=1e-4)


def test_a_mixture_of_means_keeps_its_expectation(golden):
  """Over all draws, what is taken from the policy adds up to nothing."""
  method = losses.build("mrpo", beta=0.1, weights=(0.3, 0.7), clip=None)
  one = objective(golden, 2, method=method, draws=4)
  rng = np.random.default_rng(0)
  ref_MBCK = jnp.asarray(-5 - rng.random((4, 6, 2, 2)), jnp.float32)
  mean_BCK = ref_MBCK.mean(0)
  error_BC = jnp.asarray(rng.random((6, 2)), jnp.float32)

  def margin(ref_BCK):
    # The loss is a known function of its margin, so that gives it back.
    loss_B = step.pair_losses(one, method.init(2), error_BC, ref_BCK, mean_BCK)
    return -jnp.log(jnp.expm1(loss_B)) / 0.1

  found = jnp.stack([margin(ref_BCK) for ref_BCK in ref_MBCK]).mean(0)
  np.testing.assert_allclose(found, margin(mean_BCK), atol=2e-4)
  # And of a geometric mean each draw gives what that draw says alone.
  method = losses.build(
    "mrpo", beta=0.1, weights=(0.3, 0.7), clip=None, mixture="geometric"
  )
  one = objective(golden, 2, method=method, draws=4)
  for ref_BCK in ref_MBCK:
    state = method.init(2)
    found = step.pair_losses(one, state, error_BC, ref_BCK, mean_BCK)
    want = method(one.logps(error_BC), ref_BCK, state=state)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_references_of_other_predictions_are_turned(golden):
  """x0's error times (signal / noise level)^2 is that of the noise."""
  other = dataclasses.replace(golden.config, prediction="x0")
  image, noise, time, label = golden.images()
  own, turned = (
    errors.errors(other, golden.params(), image, label, (time, noise), of=of)
    for of in (None, "epsilon")
  )
  angle = (np.asarray(time) + 0.008) / 1.008 * np.pi / 2
  signal = np.cos(angle) / np.cos(0.008 / 1.008 * np.pi / 2)
  factor = signal**2 / (1 - signal**2)
  np.testing.assert_allclose(turned, own * factor[:, None], rtol=1e-4)


def test_supervised_on_winners_is_their_error(golden):
  method = losses.build("nll")
  one = PairObjective(golden.config, (), method, nats=NATS)
  state, transformation = start(golden.params(), method)
  _, metrics = step.preference_step(
    *(state, (), pairs(golden)), objective=one, transformation=transformation
  )
  error = float(metrics["error/chosen"])
  assert float(metrics["loss"]) == pytest.approx(NATS / 2 * error, rel=1e-6)


@pytest.mark.parametrize("share,taught", [(0.0, [0, 1, 2]), (1.0, [3])])
def test_classes_are_told_or_not(golden, share, taught):
  """Only the rows of classes that were told move; the last is of none."""
  state, transformation = start(golden.params())
  image, *_ = golden.images()
  batch = ImageBatch(image[:, 0], jnp.array([0, 1, 2, 0, 1]))
  state, _ = step.denoising_step(
    *(state, batch),
    config=golden.config,
    transformation=transformation,
    without_class=share,
  )
  moved = state.params["classes"] != golden.params()["classes"]
  assert np.flatnonzero(moved.any(axis=1)).tolist() == taught


def test_supervised_steps_lower_the_error(golden):
  state, transformation = start(golden.params())
  image, _, _, label = golden.images()
  batch = ImageBatch(image[:, 0], label)
  run = jax.jit(
    functools.partial(
      step.denoising_step, config=golden.config, transformation=transformation
    )
  )
  found = []
  for _ in range(60):
    state, metrics = run(state, batch)
    found.append(float(metrics["loss"]))
  assert np.mean(found[-20:]) < np.mean(found[:20]) - 0.01


@pytest.mark.parametrize(
  "count,name,hyper,message",
  [
    (1, "simpo", {}, "needs length_BC"),
    (1, "bradley_terry", {}, "not one of pairs of log-probabilities"),
    (1, "ld_dpo", {}, "weighs tokens"),
    (2, "multi_dpo", dict(weights="accuracy"), "measured on held-out pairs"),
    (
      *(2, "multi_dpo", dict(weights=dict(name="thompson", prior=5.0))),
      "measured on held-out pairs",
    ),
    (2, "mrpo", {}, "biased under a single draw"),
    (
      2,
      "mrpo",
      dict(mixture="geometric", clip=None),  # whose weights are adaptive
      "biased under a single draw",
    ),
  ],
)
def test_refused(golden, count, name, hyper, message):
  with pytest.raises(InputError, match=message):
    objective(golden, count, method=losses.build(name, **hyper))


@pytest.mark.parametrize(
  "hyper",
  [
    dict(name="mrpo", betas=(0.1, 0.2)),
    dict(name="mrpo", weights="uniform", official_weights=True),
  ],
)
def test_what_hides_the_weights_of_a_mixture_is_refused_with_draws(
  golden, hyper
):
  method = losses.build(**hyper)
  with pytest.raises(InputError, match="not taken with fixed draws"):
    objective(golden, 2, method=method, draws=4)


def test_references_of_other_images_are_refused(golden):
  policy = golden.config
  for change, message in (
    (
      dict(image=(8, 8, 3)),
      r"its image is \(8, 8, 3\), the policy's \(4, 8, 3",
    ),
    (dict(schedule="flow"), "its schedule is flow, the policy's cosine"),
    (dict(classes=5), "it knows 5 classes, the policy 3"),
  ):
    with pytest.raises(InputError, match=message):
      errors.check_reference(
        policy, dataclasses.replace(policy, **change), "references.a"
      )
  errors.check_reference(
    policy, dataclasses.replace(policy, prediction="v", width=32), "a"
  )
  # Of a policy without classes every image would be told to it as class 0.
  none = dataclasses.replace(policy, classes=0)
  with pytest.raises(InputError, match="it knows 3 classes, the policy 0"):
    errors.check_reference(none, policy, "references.a")
  errors.check_reference(policy, none, "a")
