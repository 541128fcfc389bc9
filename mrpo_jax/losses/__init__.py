# SPDX-License-Identifier: Apache-2.0
"""Preference losses: pure functions of log-probabilities.

    from mrpo_jax import losses
    loss_B = losses.mrpo(policy_logp_BC, ref_logp_BCK, beta=0.1)

Arrays first, hyper-parameters keyword-only; one value per pair comes back.
Everything works under jit, grad and vmap, takes bfloat16, float32 or float64,
and computes in float32 or better.
"""

from mrpo_jax.losses.diagnostics import preference_metrics, reference_metrics
from mrpo_jax.losses.methods import build, names
from mrpo_jax.losses.mixture import (
  mrpo,
  multi_dpo,
  power_mean,
  trust_region,
  virtual_reference,
)
from mrpo_jax.losses.pair import dpo
from mrpo_jax.losses.unreferenced import nll
from mrpo_jax.losses.weighting import adaptive_weights, uniform_weights

__all__ = [
  "adaptive_weights",
  "build",
  "dpo",
  "mrpo",
  "multi_dpo",
  "names",
  "nll",
  "power_mean",
  "preference_metrics",
  "reference_metrics",
  "trust_region",
  "uniform_weights",
  "virtual_reference",
]
