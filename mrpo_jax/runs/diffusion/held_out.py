# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a denoiser on held-out pairs of images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import files
from mrpo_jax.diffusion.errors import fixed_draws, mean_errors
from mrpo_jax.diffusion.step import PairBatch, figures, pair_losses
from mrpo_jax.progress import Progress
from mrpo_jax.runs.workdir import PAIRS
from mrpo_jax.training.log import finite

SEED = 1 << 20  # a bit of the run's seed that is turned: other noises


class HeldOutPairs:
  """Mean errors of held-out pairs, over noises that are always the same.

  References are run once.
  """

  def __init__(self, setup, pairs, references):
    """Args: DenoiserSetup; ImagePairs; parameters of each reference."""
    self._setup, self._pairs = setup, pairs
    self._references, self._errors = references, None

    def error_of(params, batch, config):
      policy = setup.denoiser

      def drawn_of(number):
        draw_B = jnp.full_like(batch.pair_B, number)
        seed = setup.config.seed ^ SEED
        return fixed_draws(policy, seed, batch.pair_B, draw_B)

      return mean_errors(
        *(config, params, batch.image_BCHWX, batch.class_B),
        *(drawn_of, setup.config.eval_draws),
        of=policy.prediction,
      )[1]

    self._error_of = jax.jit(error_of, static_argnames="config")
    self._values = jax.jit(functools.partial(_values, setup.objective))

  def __call__(self, state):
    """(state, figures); eval_pairs.jsonl has what is known of each pair."""
    objective = self._setup.objective
    if self._errors is None:
      columns = [
        self._mean_errors(params, config)
        for config, params in zip(
          objective.references, self._references, strict=True
        )
      ]
      self._errors = np.stack(columns, axis=-1) if columns else None
    error_NC = self._mean_errors(state.params, objective.policy)
    ref_NCK = None if self._errors is None else objective.logps(self._errors)
    means = self._values(state.method_state, error_NC, ref_NCK)
    found = {f"eval/{name}": float(value) for name, value in means.items()}
    found = finite(int(state.step), found)
    if ref_NCK is None:
      ref_NCK = np.zeros((*error_NC.shape, 0))
    logp_NC = objective.logps(error_NC)
    files.write_lines(
      self._setup.workdir / PAIRS,
      [
        {
          "pair": n,
          "policy": logp_NC[n].tolist(),
          "references": ref_NCK[n].T.tolist(),
          "tokens": [1, 1],  # an image is one thing
        }
        for n in range(len(logp_NC))
      ],
    )
    return state, found

  def _mean_errors(self, params, config):
    """error_NC, on the host."""
    size, count, found = self._setup.config.batch, len(self._pairs.ids), []
    with Progress("evaluating", count, "pairs") as progress:
      for first in range(0, count, size):
        place_B = np.arange(first, first + size)
        batch = batch_of(
          self._setup, self._pairs, np.minimum(place_B, count - 1)
        )
        error_BC = np.asarray(self._error_of(params, batch, config=config))
        found.append(error_BC[: count - first])
        progress.update(len(found[-1]))
    return np.concatenate(found).astype(np.float64)


def _values(objective, method_state, error_NC, ref_NCK):
  loss_N = pair_losses(objective, method_state, error_NC, ref_NCK, ref_NCK)
  values = figures(objective, error_NC, ref_NCK)
  return {
    "loss": jnp.mean(loss_N),
    **{name: jnp.mean(value_N) for name, value_N in values.items()},
  }


def batch_of(setup, pairs, place_B, **scores):
  """step.PairBatch of these places, on the host."""
  sides = pairs.chosen_NHWX[place_B], pairs.rejected_NHWX[place_B]
  return PairBatch(
    np.stack(sides, axis=1),
    setup.told(pairs.class_N[place_B]),
    place_B.astype(np.int32),
    **{"draw_B": np.zeros(len(place_B), np.int32), **scores},
  )
