# SPDX-License-Identifier: Apache-2.0
"""Sampling of images: DDIM and DPM-Solver-2, with classifier-free guidance.

Both follow the same path from noise to an image, the probability flow, and
draw nothing on the way.  An image's first noise follows from the key and its
own number alone, whatever else is in the batch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mrpo_jax.diffusion import schedule
from mrpo_jax.diffusion.denoiser import predict
from mrpo_jax.errors import InputError

SOLVERS = ("ddim", "dpm_solver_2")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How images are drawn.

  Raises:
    InputError: an unknown solver, or no step.
  """

  solver: str = "ddim"
  steps: int = 50
  guidance: float = 1.0  # 1: the class as it is; more: away from no class

  def __post_init__(self):
    if self.solver not in SOLVERS:
      raise InputError(
        f"solver={self.solver!r} is not known; known: {', '.join(SOLVERS)}"
      )
    if self.steps < 1:
      raise InputError(f"steps must be positive, got {self.steps}")


def guided(config, params, class_B, guidance):
  """(noisy_BHWX, time) -> (image, noise) that the denoiser sees in it.

  Source: Ho and Salimans, arXiv:2207.12598, with 1 + w as `guidance`.
  """

  def unguided(noisy_BHWX, time_B, class_B):
    found = predict(config, params, noisy_BHWX, time_B, class_B)
    return schedule.parts(
      config.schedule, config.prediction, noisy_BHWX, found, time_B
    )

  def see(noisy_BHWX, time):
    time_B = jnp.full(noisy_BHWX.shape[0], time)
    if guidance == 1.0 or not config.classes:
      return unguided(noisy_BHWX, time_B, class_B)
    twice = jnp.concatenate([noisy_BHWX, noisy_BHWX])
    none_B = jnp.full_like(class_B, config.classes)
    both = unguided(
      twice,
      jnp.concatenate([time_B, time_B]),
      jnp.concatenate([class_B, none_B]),
    )
    of_class, of_none = zip(*(jnp.split(one, 2) for one in both), strict=True)
    return tuple(
      none + guidance * (known - none)
      for known, none in zip(of_class, of_none, strict=True)
    )

  return see


def solve(kind, see, noisy, solver, steps):
  """The image at the end of the flow from noise.

  Args:
    kind: schedule.Schedule.
    see: (noisy, time) -> (image, noise).
    noisy: at the last time of the schedule.
    solver: of SOLVERS.
    steps: of the solver.  "ddim" evaluates `see` once in each, "dpm_solver_2"
      twice, and both once more at the end.

  Source: DDIM, Song, Meng and Ermon, arXiv:2010.02502, equation 12 without
  noise; DPM-Solver-2, Lu et al., arXiv:2206.00927, algorithm 1.
  """
  if solver == "ddim":
    times = jnp.linspace(kind.last, kind.first, steps + 1)
  else:  # evenly in log SNR, as published
    ends = (kind.half_log_snr(jnp.float32(t)) for t in (kind.last, kind.first))
    times = kind.time_of(jnp.linspace(*ends, steps + 1))

  def moved(noisy, now, then, noise):
    """Exactly, were the noise the same all the way."""
    (a, s), (a_then, s_then) = kind.levels(now), kind.levels(then)
    return a_then / a * noisy + (s_then - a_then / a * s) * noise

  def ddim(noisy, now, then):
    return moved(noisy, now, then, see(noisy, now)[1])

  def dpm_solver_2(noisy, now, then):
    middle = kind.time_of(
      (kind.half_log_snr(now) + kind.half_log_snr(then)) / 2
    )
    between = moved(noisy, now, middle, see(noisy, now)[1])
    return moved(noisy, now, then, see(between, middle)[1])

  step = dict(ddim=ddim, dpm_solver_2=dpm_solver_2)[solver]

  def one(noisy, ends):
    return step(noisy, *ends), None

  noisy, _ = jax.lax.scan(one, noisy, (times[:-1], times[1:]))
  return see(noisy, times[-1])[0]


def first_noise(config, key, number_B):
  """noise_BHWX of the images of these numbers."""

  def one(number):
    own = jax.random.fold_in(key, number)
    return jax.random.normal(own, config.image, jnp.float32)

  return jax.vmap(one)(number_B)


def sample(config, params, key, number_B, class_B, sampling):
  """image_BHWX, clipped to [-1, 1].

  Args:
    config: DenoiserConfig, static.
    params: its parameters.
    key: of all images.
    number_B: which of the key's images these are.
    class_B: their classes; None where the denoiser knows of none.
    sampling: Sampling, static.
  """
  kind = schedule.SCHEDULES[config.schedule]
  see = guided(config, params, class_B, sampling.guidance)
  noise = first_noise(config, key, number_B)
  with jax.named_scope("sampling"):
    image = solve(kind, see, noise, sampling.solver, sampling.steps)
  return jnp.clip(image, -1.0, 1.0)
