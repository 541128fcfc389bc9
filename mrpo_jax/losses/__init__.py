# SPDX-License-Identifier: Apache-2.0
"""Preference losses: pure functions of log-probabilities.

    from mrpo_jax import losses
    loss_B = losses.mrpo(policy_logp_BC, ref_logp_BCK, beta=0.1)

Arrays first, hyper-parameters keyword-only; one value per pair comes back.
Everything works under jit, grad and vmap, takes bfloat16, float32 or float64,
and computes in float32 or better.
"""

from mrpo_jax.losses.batch import adaptive_beta as adaptive_beta
from mrpo_jax.losses.batch import aot as aot
from mrpo_jax.losses.batch import aot_unpaired as aot_unpaired
from mrpo_jax.losses.batch import dr_dpo as dr_dpo
from mrpo_jax.losses.dispersion import dispersion_scale as dispersion_scale
from mrpo_jax.losses.dispersion import mallows_phi as mallows_phi
from mrpo_jax.losses.dispersion import mallows_theta as mallows_theta
from mrpo_jax.losses.dispersion import neg_log_dispersion as neg_log_dispersion
from mrpo_jax.losses.dispersion import normalised_entropy as normalised_entropy
from mrpo_jax.losses.methods.build import build as build
from mrpo_jax.losses.methods.catalogue import TRL_NAMES as TRL_NAMES
from mrpo_jax.losses.methods.catalogue import names as names
from mrpo_jax.losses.methods.method import Method as Method
from mrpo_jax.losses.metrics import gradient_metrics as gradient_metrics
from mrpo_jax.losses.metrics import preference_metrics as preference_metrics
from mrpo_jax.losses.metrics import reference_metrics as reference_metrics
from mrpo_jax.losses.metrics import reference_relations as reference_relations
from mrpo_jax.losses.mixture import arithmetic as arithmetic
from mrpo_jax.losses.mixture import geometric as geometric
from mrpo_jax.losses.mixture import harmonic as harmonic
from mrpo_jax.losses.mixture import maximum as maximum
from mrpo_jax.losses.mixture import minimum as minimum
from mrpo_jax.losses.mixture import power_mean as power_mean
from mrpo_jax.losses.mixture import trust_region as trust_region
from mrpo_jax.losses.mixture import virtual_reference as virtual_reference
from mrpo_jax.losses.multi import forward_kl_dpo as forward_kl_dpo
from mrpo_jax.losses.multi import hypo as hypo
from mrpo_jax.losses.multi import mnpo as mnpo
from mrpo_jax.losses.multi import mrpo as mrpo
from mrpo_jax.losses.multi import multi_dpo as multi_dpo
from mrpo_jax.losses.multi import optimistic_reference as optimistic_reference
from mrpo_jax.losses.pair import bpo as bpo
from mrpo_jax.losses.pair import combine as combine
from mrpo_jax.losses.pair import discopop as discopop
from mrpo_jax.losses.pair import dpo as dpo
from mrpo_jax.losses.pair import exo as exo
from mrpo_jax.losses.pair import focal_dpo as focal_dpo
from mrpo_jax.losses.pair import hinge as hinge
from mrpo_jax.losses.pair import ipo as ipo
from mrpo_jax.losses.pair import robust_dpo as robust_dpo
from mrpo_jax.losses.regression import dar as dar
from mrpo_jax.losses.regression import expectile as expectile
from mrpo_jax.losses.regression import qrpo as qrpo
from mrpo_jax.losses.regression import reward_quantile as reward_quantile
from mrpo_jax.losses.regression import sppo as sppo
from mrpo_jax.losses.regression import sppo_hard as sppo_hard
from mrpo_jax.losses.related import accelerate as accelerate
from mrpo_jax.losses.related import advantage_weighted as advantage_weighted
from mrpo_jax.losses.related import apa as apa
from mrpo_jax.losses.related import apo_zero_unpaired as apo_zero_unpaired
from mrpo_jax.losses.related import awr as awr
from mrpo_jax.losses.related import bco_unpaired as bco_unpaired
from mrpo_jax.losses.related import bradley_terry as bradley_terry
from mrpo_jax.losses.related import diffusion_dpo as diffusion_dpo
from mrpo_jax.losses.related import ema as ema
from mrpo_jax.losses.related import kto_unpaired as kto_unpaired
from mrpo_jax.losses.related import ppo_clip as ppo_clip
from mrpo_jax.losses.related import value_loss as value_loss
from mrpo_jax.losses.rewards import apo_down as apo_down
from mrpo_jax.losses.rewards import apo_zero as apo_zero
from mrpo_jax.losses.rewards import bco as bco
from mrpo_jax.losses.rewards import bdpo as bdpo
from mrpo_jax.losses.rewards import cal_dpo as cal_dpo
from mrpo_jax.losses.rewards import dpop as dpop
from mrpo_jax.losses.rewards import f_dpo as f_dpo
from mrpo_jax.losses.rewards import kto as kto
from mrpo_jax.losses.rewards import minor_dpo as minor_dpo
from mrpo_jax.losses.rewards import nca as nca
from mrpo_jax.losses.rewards import r_dpo as r_dpo
from mrpo_jax.losses.sequence import sequence_logp as sequence_logp
from mrpo_jax.losses.token_weights import bridged as bridged
from mrpo_jax.losses.token_weights import down_sample as down_sample
from mrpo_jax.losses.token_weights import (
  length_desensitized as length_desensitized,
)
from mrpo_jax.losses.token_weights import tdpo as tdpo
from mrpo_jax.losses.token_weights import temporal_decay as temporal_decay
from mrpo_jax.losses.token_weights import wpo_weight as wpo_weight
from mrpo_jax.losses.unreferenced import alpha_dpo as alpha_dpo
from mrpo_jax.losses.unreferenced import alpha_po as alpha_po
from mrpo_jax.losses.unreferenced import cpo as cpo
from mrpo_jax.losses.unreferenced import nll as nll
from mrpo_jax.losses.unreferenced import orpo as orpo
from mrpo_jax.losses.unreferenced import rainbow_po as rainbow_po
from mrpo_jax.losses.unreferenced import simper as simper
from mrpo_jax.losses.unreferenced import simpo as simpo
from mrpo_jax.losses.unreferenced import slic as slic
from mrpo_jax.losses.unreferenced import tpo as tpo
from mrpo_jax.losses.weighting import WeightRule as WeightRule
from mrpo_jax.losses.weighting import accuracy_weights as accuracy_weights
from mrpo_jax.losses.weighting import adaptive_weights as adaptive_weights
from mrpo_jax.losses.weighting import (
  discrimination_weights as discrimination_weights,
)
from mrpo_jax.losses.weighting import measured as measured
from mrpo_jax.losses.weighting import scale_factors as scale_factors
from mrpo_jax.losses.weighting import sliding_window as sliding_window
from mrpo_jax.losses.weighting import thompson as thompson
from mrpo_jax.losses.weighting import uniform_weights as uniform_weights
