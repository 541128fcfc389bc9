# SPDX-License-Identifier: Apache-2.0
"""Every method on the four pairs of `fixture`, against values of others.

The numbers are per pair, of eight digits; a row whose method adds a
likelihood or a token weight is put together from its parts.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.batch import masked_moments
from mrpo_jax.losses.pair import margin
from tests.material import losses_fixture as fixture


def chosen_nll(f):
  return losses.nll(f.policy_mean_logp_BC[:, 0])


def neg_log_dispersion(f):
  entropy_BC = losses.normalised_entropy(
    f.entropy_BC, f.length_BC, vocab_size=fixture.VOCAB
  )
  return losses.neg_log_dispersion(entropy_BC)


def scale(f):
  """MallowsPO's c, of mean 1 over the four pairs."""
  value_B = neg_log_dispersion(f)
  return losses.dispersion_scale(value_B, mean=value_B.mean())


def phi(f, value, **keywords):
  phi_B = jnp.full(4, value, f.logratio_BC.dtype)
  return losses.mallows_phi(f.logratio_BC, phi_B, **keywords)


def weighted(f, weight_BCT, ref_weight_BCT=None, reference=True):
  """Log-ratios, or log-probabilities, of weighted tokens."""
  ref_weight_BCT = weight_BCT if ref_weight_BCT is None else ref_weight_BCT
  score_BCT = weight_BCT * f.policy_logp_BCT
  if reference:
    score_BCT -= ref_weight_BCT * f.ref_logp_BCT
  return jnp.sum(jnp.where(f.mask_BCT, score_BCT, 0.0), axis=-1)


def decayed(f, offset, **keywords):
  weight_BCT = losses.temporal_decay(f.index_BCT, gamma=0.98, offset=offset)
  return weighted(f, weight_BCT, **keywords)


def bridged(f, logp_BCT):
  return losses.bridged(logp_BCT, f.differs_BCT, cap=2.0)


def focal_slope(f, **keywords):
  """d loss / d (beta * margin)."""

  def loss(logratio_BC):
    return losses.focal_dpo(logratio_BC, beta=1.0, gamma=0.5, **keywords).sum()

  return jax.grad(loss)(0.5 * f.logratio_BC)[:, 0]


def adapted_beta(f):
  return losses.adaptive_beta(
    margin(f.logratio_BC), 0.1, beta=0.5, strength=0.6
  )


def standardised_alpha_dpo(f):
  policy_BC, ref_BC = f.policy_mean_logp_BC, f.ref_mean_logp_BC
  mean, std = masked_moments(2.0 * (margin(policy_BC) - margin(ref_BC)))
  given = dict(beta=2.0, gamma=1.0, alpha=0.2, mean=mean, std=std)
  return losses.alpha_dpo(policy_BC, ref_BC, **given)


def two_references(f):
  shift_C = jnp.asarray([0.05, -0.08], f.dtype)
  return jnp.stack([f.ref_logp_BC, f.ref_logp_BC + shift_C[None]], axis=-1)


def quantiles(f):
  """Of rewards among four of the reference's own for each prompt."""
  reward_BC = [[1.0, 0.0], [0.5, 0.25], [0.0, 1.0], [2.0, -1.0]]
  drawn_BY = [
    [0, 0.5, 1, 2],
    [0.5, 0.5, 0.75, 0],
    [-1, 0, 0.5, 2],
    [3, -2, 0, 1],
  ]
  return losses.reward_quantile(
    jnp.asarray(reward_BC, f.dtype), jnp.asarray(drawn_BY, f.dtype)
  )


def dar(f):
  shift_B = jnp.asarray([0.3, -0.2, 0.1, 0.0], f.dtype)
  advantage_B = jnp.asarray([0.1, -0.05, 0.2, 0.0], f.dtype)
  ref_logp_B = f.ref_logp_BC[:, 0]
  return losses.dar(
    f.policy_logp_BC[:, 0], ref_logp_B, ref_logp_B + shift_B, advantage_B
  )


def advantage(f):
  return jnp.asarray([0.5, -0.2, 0.1], f.dtype)


# Reproduced by TRL 1.16 or the authors' code within 5e-8.
OFFICIAL = {
  "dpo": (
    lambda f: losses.dpo(f.logratio_BC, beta=0.5),
    [1.149672, 0.33600638, 0.14489529, 1.3096791],
  ),
  "robust": (
    lambda f: losses.robust_dpo(f.logratio_BC, beta=0.5, label_smoothing=0.1),
    [1.2457709, 0.22126611, -0.087407421, 1.4340662],
  ),
  "hinge": (
    lambda f: losses.hinge(f.logratio_BC, beta=0.5),
    [1.7687912, 0.082077821, 0, 1.9950963],
  ),
  # Means per token, as in TRL and HALOs.
  "ipo_norm": (
    lambda f: losses.ipo(f.mean_logratio_BC, beta=0.5),
    [1.7759071, 0.26794198, 0.14480012, 2.7773863],
  ),
  "exo_pair": (
    lambda f: losses.exo(f.logratio_BC, beta=0.5, epsilon=1e-3),
    [4.0957171, 1.3740959, 0.53706035, 4.4604103],
  ),
  "nca_pair": (
    lambda f: losses.nca(f.logratio_BC, beta=0.5),
    [1.6321138, 1.2181051, 1.0743451, 1.6934937],
  ),
  "bco_pair": (
    lambda f: losses.bco(f.logratio_BC, beta=0.5),
    [1.8116804, 0.9807087, 0.71085514, 2.0006707],
  ),
  "sppo_hard": (
    lambda f: losses.sppo_hard(f.logratio_BC, beta=0.5),
    [6.3992765, 0.052924106, 3.2651739, 9.8666965],
  ),
  # In the order of the sorted margins.
  "aot": (
    lambda f: losses.aot(f.policy_logp_BC, f.ref_logp_BC, beta=0.5),
    [0.14489529, 1.292701, 1.1656701, 0.33600638],
  ),
  "aot_unpaired": (
    lambda f: losses.aot_unpaired(f.logratio_BC, beta=0.5),
    [0.34557761, 0.52138103, 0.59595746, 0.94719661],
  ),
  "apo_zero": (
    lambda f: losses.apo_zero(f.logratio_BC, beta=0.5),
    [1.1890556, 0.77472833, 0.58536696, 1.2305899],
  ),
  "apo_down": (
    lambda f: losses.apo_down(f.logratio_BC, beta=0.5),
    [1.0566637, 0.91467433, 0.74695289, 1.2277296],
  ),
  "discopop": (
    lambda f: losses.discopop(f.logratio_BC, beta=0.5, temperature=0.05),
    [1.1496722, 0.39934795, 0.15591853, 1.3096791],
  ),
  "sigmoid_norm": (
    lambda f: losses.dpo(f.mean_logratio_BC, beta=0.5),
    [0.77975874, 0.57980865, 0.5502232, 0.8736047],
  ),
  "sft_token_mean": (
    lambda f: (
      jnp.sum(chosen_nll(f) * f.length_BC[:, 0]) / jnp.sum(f.length_BC[:, 0])
    ),
    [2.2042797],
  ),
  "fdpo_forward_kl": (
    lambda f: losses.f_dpo(f.logratio_BC, beta=0.5, divergence="forward_kl"),
    [1.3913733, 0.33699127, 0.00031546013, 0.93709728],
  ),
  "fdpo_js": (
    lambda f: losses.f_dpo(f.logratio_BC, beta=0.5, divergence="js"),
    [0.93289232, 0.50153365, 0.24906026, 0.84640901],
  ),
  "fdpo_alpha_half": (
    lambda f: losses.f_dpo(
      f.logratio_BC, beta=0.5, divergence="alpha", alpha=0.5
    ),
    [1.241266, 0.3452113, 0.03183576, 1.0610755],
  ),
  "wpo": (
    lambda f: (
      losses.wpo_weight(f.mean_excess_BC, clamp=False)
      * losses.dpo(f.logratio_BC, beta=0.5)
    ),
    [0.14598406, 0.033995912, 0.011858527, 0.40812578],
  ),
  "ld_dpo": (
    lambda f: losses.dpo(
      weighted(
        f,
        losses.length_desensitized(
          f.index_BCT, f.shorter_BC[..., None], alpha=0.5
        ),
      ),
      beta=0.5,
    ),
    [1.1167571, 0.40946478, 0.14489529, 1.2501327],
  ),
  "simpo": (
    lambda f: losses.simpo(f.policy_mean_logp_BC, beta=2.0, gamma=1.0),
    [0.60210026, 1.0917886, 2.5585229, 2.2951025],
  ),
  # The likelihood is that of the response alone.
  "orpo": (
    lambda f: losses.orpo(f.policy_mean_logp_BC, weight=0.1) + chosen_nll(f),
    [1.8564189, 2.1207954, 2.8057106, 2.0574612],
  ),
  "alphapo": (
    lambda f: losses.alpha_po(
      f.policy_mean_logp_BC, alpha=0.25, beta=2.5, gamma=0.1
    ),
    [0.084553158, 0.44579374, 3.4350247, 2.4369305],
  ),
  "mallows_theta": (
    lambda f: losses.mallows_theta(f.logratio_BC, scale(f), beta=0.5),
    [1.1334241, 0.32576213, 0.14514576, 1.3041844],
  ),
  # 0.29 is the released 1 / mean.
  "mallows_theta_star029": (
    lambda f: losses.mallows_theta(
      f.logratio_BC,
      losses.dispersion_scale(neg_log_dispersion(f), mean=1 / 0.29),
      beta=0.5,
    ),
    [0.72442767, 0.65446127, 0.61931378, 0.73482137],
  ),
  "mallows_ipo": (
    lambda f: losses.ipo(f.logratio_BC, beta=0.5, scale_B=scale(f)),
    [6.1993112, 0.82551379, 7.3610883, 8.8513686],
  ),
  "simper": (
    lambda f: losses.simper(f.policy_mean_logp_BC),
    [-0.07304768, -0.01868638, 0.074465473, 0.11617614],
  ),
  # log Z without its -1, which at this beta is below the digits.
  "qrpo": (
    lambda f: losses.qrpo(f.logratio_BC, quantiles(f), beta=0.05),
    [0.19669157, 0.16927576, 0.079135409, 0.24907205],
  ),
  "tdpo1": (
    lambda f: losses.tdpo(f.logratio_BC, f.kl_BC, beta=0.5, version=1),
    [1.2315273, 0.36014214, 0.11854273, 1.3575673],
  ),
  "tdpo2": (
    lambda f: losses.tdpo(f.logratio_BC, f.kl_BC, beta=0.5, alpha=0.5),
    [1.1902335, 0.34789929, 0.13110068, 1.3335206],
  ),
}

# Reproduced by public code that is not the authors', within 5e-8.
OTHERS = {
  # warlockee/oxRL
  "chi_po": (
    lambda f: losses.f_dpo(
      f.logratio_BC, beta=0.5, divergence="chi_squared_kl"
    ),
    [1.6344711, 0.11239912, 0.045250936, 4.1109296],
  ),
  # The generator of SBA in the code of a token-wise BPO.
  "bpo": (
    lambda f: losses.bpo(f.logratio_BC, beta=0.5),
    [0.59077262, -0.48108564, -1.4753627, 0.94719582],
  ),
  "bpo_half": (
    lambda f: losses.bpo(f.logratio_BC, beta=0.5, power=0.5),
    [0.52094794, -0.41582058, -0.92266045, 0.7707976],
  ),
}

# Evaluations of the published formulas by two independent NumPy programs.
FORMULAS = {
  "squared_po": (
    lambda f: losses.f_dpo(f.logratio_BC, beta=0.5, divergence="log_squared"),
    [1.7918929, 0.30540763, 7.1792764e-11, 0.76929966],
  ),
  "bdpo": (
    lambda f: losses.bdpo(f.logratio_BC, beta=0.5, mixing=0.3),
    [1.0420321, 0.43127603, 0.42990876, 0.99525591],
  ),
  # The third weight, 54, is over the cap of 20.
  "dar": (dar, [65.088496, 2.3194952, 322.4472, 3.8888854]),
  "cdpo": (
    lambda f: losses.dpo(f.logratio_BC, beta=0.5, label_smoothing=0.1),
    [1.0727929, 0.4277986, 0.33073746, 1.2101695],
  ),
  "ipo_sum": (
    lambda f: losses.ipo(f.logratio_BC, beta=0.5),
    [6.4393248, 0.69863579, 7.3812378, 8.9412513],
  ),
  "bco_pair_delta": (
    lambda f: losses.bco(f.logratio_BC, beta=0.5, shift=0.1),
    [1.8204887, 0.97974916, 0.73187726, 1.9803382],
  ),
  "sppo_soft": (
    lambda f: losses.sppo(
      f.logratio_BC, jnp.asarray(4 * [[0.9, 0.1]], f.dtype), beta=0.5
    ),
    [2.5321218, 0.033630925, 2.0159556, 4.1753097],
  ),
  "sft_seq_mean": (
    chosen_nll,
    [1.8154074, 2.0600645, 2.68706, 1.9444427],
  ),
  "wpo_weight": (
    lambda f: losses.wpo_weight(f.mean_excess_BC, clamp=False),
    [0.12697888, 0.10117639, 0.08184205, 0.31162272],
  ),
  "wpo_clamped": (
    lambda f: (
      losses.wpo_weight(f.mean_excess_BC) * losses.dpo(f.logratio_BC, beta=0.5)
    ),
    [0.14598406, 0.033995912, 0.011858527, 0.40812578],
  ),
  # The four chosen responses, then the four rejected.
  "kto": (
    lambda f: losses.kto(
      f.logratio_BC, beta=0.5, kl_shift=0.2, undesirable_weight=1.33
    ).T.reshape(-1),
    [
      0.64968152,
      0.39432109,
      0.41192725,
      0.52733649,
      0.71516246,
      0.50565399,
      0.24214672,
      0.94162649,
    ],
  ),
  "cpo": (
    lambda f: losses.cpo(f.policy_logp_BC, beta=0.5) + chosen_nll(f),
    [2.3768101, 2.0879477, 5.0073832, 2.59813],
  ),
  "slic": (
    lambda f: losses.slic(f.policy_logp_BC, delta=1.0) + 0.1 * chosen_nll(f),
    [0.61450544, 0.20600645, 5.7025345, 1.0333622],
  ),
  "orpo_log_odds": (
    lambda f: (
      -jnp.log(jnp.expm1(losses.orpo(f.policy_mean_logp_BC, weight=1.0)))
    ),
    [0.6792617, 0.17974258, -0.82225032, -0.74014083],
  ),
  "mallows_neglogdisp": (
    neg_log_dispersion,
    [0.27635012, 0.29650499, 0.28492081, 0.28304629],
  ),
  "mallows_c_batch": (
    scale,
    [0.9689507, 1.0396186, 0.99900162, 0.9924291],
  ),
  "mallows_simpo": (
    lambda f: losses.simpo(
      f.policy_mean_logp_BC, beta=2.0, gamma=1.0, scale_B=scale(f)
    ),
    [0.6047903, 1.1098451, 2.5562408, 2.2802126],
  ),
  "mallows_phi_raw_0.05": (
    lambda f: phi(f, 0.05, beta=0.5, smoothing="none"),
    [2.5706055, 0.058209172, 0.0066032145, 3.0341499],
  ),
  "mallows_phi_sigmoid_0.05": (
    lambda f: phi(f, 0.05, beta=0.5, smoothing="sigmoid"),
    [2.3983568, 0.061976657, 0.0038133733, 3.0305366],
  ),
  "mallows_phi_raw_0.5": (
    lambda f: phi(f, 0.5, beta=0.5, smoothing="none"),
    [1.0282445, 0.41836225, 0.28833049, 1.0970904],
  ),
  "mallows_phi_sigmoid_0.5": (
    lambda f: phi(f, 0.5, beta=0.5, smoothing="sigmoid"),
    [0.99467358, 0.42479099, 0.24355605, 1.0963476],
  ),
  "mallows_phi_raw_0.9": (
    lambda f: phi(f, 0.9, beta=0.5, smoothing="none"),
    [0.7386986, 0.64458937, 0.61373501, 0.7470331],
  ),
  "mallows_phi_sigmoid_0.9": (
    lambda f: phi(f, 0.9, beta=0.5, smoothing="sigmoid"),
    [0.73446721, 0.64595952, 0.60002982, 0.74694251],
  ),
  # How the paper fits its cubic is unverified.
  "mallows_phi_cubic_0.05": (
    lambda f: phi(f, 0.05, beta=0.05),
    [1.3147926, 0.28643709, 0.24141393, 1.4099607],
  ),
  "mallows_phi_cubic_0.5": (
    lambda f: phi(f, 0.5, beta=0.05),
    [0.82505322, 0.56712289, 0.54760723, 0.84069468],
  ),
  "mallows_phi_cubic_0.9": (
    lambda f: phi(f, 0.9, beta=0.05),
    [0.71228556, 0.67274996, 0.66935207, 0.71442138],
  ),
  "mallows_phi_cubic_eps2log_0.5": (
    lambda f: phi(f, 0.5, beta=0.5, epsilon=-2 * np.log(0.5)),
    [0.98750268, 0.43205747, 0.28833049, 1.0781357],
  ),
  "d2po_answer0": (
    lambda f: losses.dpo(decayed(f, 0), beta=0.5),
    [1.1332878, 0.35307576, 0.1662393, 1.2926697],
  ),
  # The authors' code counts from 1, the paper from the prompt's start.
  "d2po_code1": (
    lambda f: losses.dpo(decayed(f, 1), beta=0.5),
    [1.1232132, 0.35821939, 0.17155388, 1.2786084],
  ),
  "d2po_prompt": (
    lambda f: losses.dpo(decayed(f, fixture.PROMPT), beta=0.5),
    [1.1133874, 0.36332046, 0.17691285, 1.2649019],
  ),
  "d2po_reffree": (
    lambda f: losses.cpo(decayed(f, 0, reference=False), beta=0.5),
    [0.57251744, 0.038339928, 2.2519264, 0.66921386],
  ),
  "focalpo": (
    lambda f: losses.focal_dpo(f.logratio_BC, beta=0.5, gamma=0.5),
    [0.64703214, 0.28404338, 0.1347692, 0.68041158],
  ),
  "focalpo_dmargin_attached": (
    lambda f: focal_slope(f, detach_weight=False),
    [-0.16349105, -0.20071718, -0.11637115, -0.13092006],
  ),
  "focalpo_dmargin_detached": (
    lambda f: focal_slope(f, detach_weight=True),
    [-0.38453643, -0.24124754, -0.12546046, -0.37930205],
  ),
  "minor_dpo": (
    lambda f: losses.minor_dpo(f.logratio_BC, beta=0.5),
    [1.149672, 0.4631585, 0.49091554, 1.3096791],
  ),
  "bmc": (
    lambda f: losses.dpo(weighted(f, bridged(f, f.policy_logp_BCT)), beta=0.5),
    [0.72912885, 0.44205964, 0.092700288, 2.745325],
  ),
  # The released code weights the reference by its own probabilities.
  "bmc_repo": (
    lambda f: losses.dpo(
      weighted(f, bridged(f, f.policy_logp_BCT), bridged(f, f.ref_logp_BCT)),
      beta=0.5,
    ),
    [0.72912885, 0.44205964, 0.092700288, 2.8323476],
  ),
  # In place of a draw: the last tokens of the longer response.
  "sampo_keep_last": (
    lambda f: losses.dpo(
      weighted(f, f.index_BCT >= (f.length_BC - f.shorter_BC)[..., None]),
      beta=0.5,
    ),
    [1.1753604, 0.31255314, 0.14489529, 1.231726],
  ),
  "seqkl_w": (
    lambda f: f.kl_BC[:, 0],
    [0.18991863, 0.15765945, 1.4795724, 0.83275144],
  ),
  "seqkl_l": (
    lambda f: f.kl_BC[:, 1],
    [0.42520188, 0.3219298, 1.0511658, 0.96280534],
  ),
  "r_dpo_plus": (
    lambda f: losses.r_dpo(f.logratio_BC, f.length_BC, beta=0.5, alpha=0.05),
    [1.1157812, 0.38115611, 0.14489529, 1.3464282],
  ),
  # The sign that some papers print.
  "r_dpo_minus": (
    lambda f: losses.r_dpo(f.logratio_BC, f.length_BC, beta=0.5, alpha=-0.05),
    [1.1841038, 0.29544335, 0.14489529, 1.2734227],
  ),
  "cal_dpo": (
    lambda f: losses.cal_dpo(f.logratio_BC, beta=0.5),
    [8.1315207, 0.20089469, 3.2891937, 11.984991],
  ),
  "dpop": (
    lambda f: losses.dpop(f.logratio_BC, beta=0.5, penalty=5.0),
    [3.391236, 0.33600638, 0.14489529, 1.3444133],
  ),
  # One number for the batch.
  "dr_dpo_scalar": (
    lambda f: losses.dr_dpo(f.logratio_BC, beta=0.5, beta_prime=1.0),
    [0.61323738],
  ),
  "alpha_dpo": (
    standardised_alpha_dpo,
    [0.5442995, 1.2071791, 2.7628446, 2.0679677],
  ),
  "beta_dpo_betascalar": (adapted_beta, [0.62186845]),
  "beta_dpo": (
    lambda f: losses.dpo(f.logratio_BC, beta=adapted_beta(f)),
    [1.2814124, 0.27709415, 0.094513143, 1.4923333],
  ),
  "rainbowpo": (
    lambda f: losses.rainbow_po(
      f.policy_mean_logp_BC,
      f.ref_mean_logp_BC,
      beta=10.0,
      mixing=0.25,
      home_advantage=0.3,
      scale_B=scale(f),
    ),
    [0.23206092, 0.62057931, 6.2393205, 8.3116158],
  ),
  # The chosen response stands in for the gold one.
  "tpo": (
    lambda f: losses.tpo(
      f.policy_logp_BC, f.policy_mean_logp_BC[:, 0], beta=0.1, alpha=0.05
    ),
    [0.75596764, 0.50184472, 1.0735665, 0.78234765],
  ),
  "mrpo": (
    lambda f: losses.mrpo(
      f.policy_logp_BC,
      two_references(f),
      beta=0.5,
      weight=jnp.asarray([0.7, 0.3], f.dtype),
      epsilon_max=None,
    ),
    [1.1631804, 0.34167073, 0.14757657, 1.3241068],
  ),
  # From here on, small inputs of their own.
  "diffusion_dpo": (
    lambda f: losses.diffusion_dpo(
      jnp.asarray([[0.10, 0.15], [0.20, 0.12]], f.dtype),
      jnp.asarray([[0.11, 0.14], [0.18, 0.13]], f.dtype),
      beta=100.0,
    ),
    [0.31326169, 1.7014133],
  ),
  "apa": (
    lambda f: jnp.mean(
      losses.apa(
        jnp.asarray([-1.0, -2.0, -0.5], f.dtype),
        jnp.asarray([-1.1, -1.8, -0.6], f.dtype),
        advantage(f),
        lam=0.1,
      )
    ),
    [9.3533333],
  ),
  "hpo_aux": (
    lambda f: losses.advantage_weighted(
      jnp.asarray([-1.0, -2.0, -0.5], f.dtype), advantage(f), lam=5.0
    ),
    [12.182494, 0.73575888, 0.82436064],
  ),
  "hpo_expectile": (
    lambda f: losses.expectile(advantage(f), tau=0.7),
    [0.175, 0.012, 0.007],
  ),
  "rm_bt": (
    lambda f: losses.bradley_terry(
      jnp.asarray([[1.0, 0.2], [-0.5, 0.3]], f.dtype)
    ),
    [0.37110067, 1.1711007],
  ),
}
ROWS = OFFICIAL | OTHERS | FORMULAS


@functools.cache
def arrays(dtype):
  f = fixture.arrays(dtype)
  f.dtype = dtype
  return f


@pytest.mark.parametrize("row", ROWS)
def test_row_in_float64(row):
  function, want = ROWS[row]
  with jax.enable_x64(True):
    got = function(arrays(jnp.float64))
  assert got.dtype == jnp.float64
  # Half a unit of the last digit.
  np.testing.assert_allclose(got.reshape(-1), want, rtol=5.1e-8, atol=1e-15)


def test_all_rows_compiled_at_once_in_float32():
  given = vars(arrays(jnp.float32)).copy()
  dtype = given.pop("dtype")

  @jax.jit
  def every_row(given):
    f = types.SimpleNamespace(dtype=dtype, **given)
    return {row: function(f) for row, (function, _) in ROWS.items()}

  for row, got in every_row(given).items():
    assert got.dtype == jnp.float32, row
    np.testing.assert_allclose(
      got.reshape(-1), ROWS[row][1], rtol=2e-5, atol=1e-7, err_msg=row
    )


# What the rows above stand on; the same two programs.
LABEL = """
014410 231132 403304 120021
342243 014410 231132 403304
"""
SUMS = {
  "policy_logp_BC": [
    [-9.07703697024, -6.18019345679, -16.1223600103, -3.88888536421],
    [-9.64407226655, -13.3117046383, -11.6885315197, -4.04996739939],
  ],
  "ref_logp_BC": [
    [-8.04175780287, -7.23856236712, -17.0343678417, -3.86997513474],
    [-10.1463755676, -12.5342291899, -8.88369599366, -6.02124969029],
  ],
  "logratio_BC": [
    [-1.03527917, 1.05836891, 0.91200783, -0.01891023],
    [0.5023033, -0.77747545, -2.80483553, 1.97128229],
  ],
  "entropy_BC": [
    [6.021167686, 3.587595026, 7.306208207, 2.32874098],
    [4.94974417, 7.182513887, 7.218785037, 3.783011615],
  ],
}
MARGIN = [-1.53758247, 1.83584436, 3.71684336, -1.99019252]


def test_labels_of_the_fixture():
  rows = fixture.label_BCT.swapaxes(0, 1).reshape(8, 6)
  assert ["".join(map(str, row)) for row in rows] == LABEL.split()


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_the_fixture(name):
  got = getattr(fixture, name)
  np.testing.assert_allclose(got.T, SUMS[name], rtol=1e-11, atol=5e-9)


def test_margins_of_the_fixture():
  got = fixture.logratio_BC[:, 0] - fixture.logratio_BC[:, 1]
  np.testing.assert_allclose(got, MARGIN, atol=1e-8)
