# SPDX-License-Identifier: Apache-2.0
"""Denoising errors: what stands for log-probabilities where there are none.

A pair's two images are noised alike: the same time, the same noise.  So do the
policy and all references see them, and what the draw does to every error falls
out of their differences (Diffusion-DPO, arXiv:2311.12908, section 4).
"""

import jax
import jax.numpy as jnp

from mrpo_jax.diffusion import schedule
from mrpo_jax.diffusion.denoiser import predict
from mrpo_jax.errors import InputError


def draw(config, key):
  """(time, noise_HWX) of one draw."""
  kind = schedule.SCHEDULES[config.schedule]
  time_key, noise_key = jax.random.split(key)
  ends = dict(minval=kind.first, maxval=kind.last)
  time = jax.random.uniform(time_key, dtype=jnp.float32, **ends)
  return time, jax.random.normal(noise_key, config.image, jnp.float32)


def draws(config, key, count):
  """(time_B, noise_BHWX): new ones, of `count` images or pairs."""
  keys = jax.random.split(key, count)
  return jax.vmap(lambda one: draw(config, one))(keys)


def fixed_draws(config, seed, pair_B, draw_B):
  """(time_B, noise_BHWX) that belong to a pair for good.

  Args:
    config: DenoiserConfig.
    seed: of all draws.
    pair_B: the pair's place in its data.
    draw_B: which of the pair's draws.
  """

  def one(pair, number):
    key = jax.random.fold_in(jax.random.key(seed), pair)
    return draw(config, jax.random.fold_in(key, number))

  return jax.vmap(one)(pair_B, draw_B)


def errors(config, params, image_BCHWX, class_B, drawn, *, of=None):
  """error_BC: mean squared error of the prediction of each image.

  Args:
    config: DenoiserConfig, static.
    params: its parameters.
    image_BCHWX: float32, C images that are noised alike.
    class_B: of both; see `denoiser.predict`.
    drawn: (time_B, noise_BHWX).
    of: the prediction, of schedule.PREDICTIONS, in whose units the error is;
      None: the denoiser's own.  One unit times a factor of the time is another.
  """
  time_B, noise_BHWX = drawn
  B, C = image_BCHWX.shape[:2]
  noise_BCHWX = jnp.broadcast_to(noise_BHWX[:, None], image_BCHWX.shape)
  noisy = schedule.noised(config.schedule, image_BCHWX, noise_BCHWX, time_B)
  wanted = schedule.target(
    config.schedule, config.prediction, image_BCHWX, noise_BCHWX, time_B
  )
  found = predict(
    config,
    params,
    noisy.reshape(B * C, *config.image),
    jnp.repeat(time_B, C),
    None if class_B is None else jnp.repeat(class_B, C),
  )
  miss = found.reshape(wanted.shape) - wanted
  error_BC = jnp.mean(jnp.square(miss), axis=(2, 3, 4))
  if of in (None, config.prediction):
    return error_BC
  own, other = (
    schedule.noise_per(config.schedule, name, time_B)
    for name in (config.prediction, of)
  )
  return error_BC * jnp.square(own / other)[:, None]


def mean_errors(config, params, image_BCHWX, class_B, drawn_of, count, **given):
  """(error_MBC, their mean_BC) over M draws, one after the other.

  `drawn_of(m)` is (time_B, noise_BHWX) of draw m.
  """

  def one(_, number):
    drawn = drawn_of(number)
    return None, errors(config, params, image_BCHWX, class_B, drawn, **given)

  _, error_MBC = jax.lax.scan(one, None, jnp.arange(count))
  return error_MBC, jnp.mean(error_MBC, axis=0)


def check_reference(policy, reference, name):
  """InputError where a reference sees other images or classes than the policy.

  Args:
    policy: DenoiserConfig.
    reference: DenoiserConfig.
    name: of the reference, for the message.
  """
  for what in ("image", "schedule"):
    ours, theirs = getattr(policy, what), getattr(reference, what)
    if ours != theirs:
      raise InputError(
        f"{name}: its {what} is {theirs}, the policy's {ours}; errors can only "
        "be compared of the same noisy images"
      )
  if reference.classes not in (0, policy.classes):
    raise InputError(
      f"{name}: it knows {reference.classes} classes, the policy "
      f"{policy.classes}; use one of the same classes, or of none"
    )
