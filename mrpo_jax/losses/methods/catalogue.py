# SPDX-License-Identifier: Apache-2.0
"""The catalogue of losses and published methods by name."""

from mrpo_jax.losses import (
  batch,
  dispersion,
  multi,
  pair,
  rewards,
  token_weights,
  unreferenced,
)
from mrpo_jax.losses.methods.inputs import refuse_unknown

LOSSES = {
  function.__name__: function
  for function in (
    *(pair.dpo, pair.robust_dpo, pair.hinge, pair.ipo, pair.exo),
    *(pair.discopop, pair.focal_dpo, pair.combine),
    *(rewards.nca, rewards.bco, rewards.sppo_hard, rewards.sppo),
    *(rewards.apo_zero, rewards.apo_down, rewards.kto, rewards.f_dpo),
    *(rewards.minor_dpo, rewards.cal_dpo, rewards.r_dpo, rewards.dpop),
    *(batch.aot, batch.aot_unpaired, batch.dr_dpo),
    *(dispersion.mallows_theta, dispersion.mallows_phi, token_weights.tdpo),
    *(multi.hypo, multi.mnpo, multi.forward_kl_dpo),
    *(
      unreferenced.simpo,
      unreferenced.alpha_po,
      unreferenced.cpo,
      unreferenced.slic,
      unreferenced.orpo,
      unreferenced.nll,
    ),
    *(unreferenced.rainbow_po, unreferenced.alpha_dpo, unreferenced.tpo),
  )
}
# All but the maker of losses.
refuse_unknown(loss for loss in LOSSES.values() if loss is not pair.combine)
# A published method is a loss with that paper's choices; each may be changed.
PUBLISHED = {
  # The released 0.29 is 1 / mean: Llama-3-8B-Instruct on UltraFeedback.
  "mallows_theta": dict(loss="mallows_theta", dispersion=1 / 0.29),
  "mrpo": dict(
    loss="dpo",
    mixture="harmonic",
    clip=dict(epsilon_max=0.1, adaptive=True),
    weights="adaptive",
  ),
  "multi_dpo": dict(loss="dpo", mixture="multi"),
  "beta_dpo": dict(loss="dpo", adaptive_beta=0.6, running=0.9),
  "d2po": dict(
    loss="dpo", token_weight=dict(name="temporal_decay", gamma=0.98, offset=1)
  ),
  "ld_dpo": dict(loss="dpo", token_weight="length_desensitized"),
  "sampo": dict(loss="dpo", token_weight="down_sample"),
  "bmc": dict(loss="dpo", token_weight="bridged"),
  "wpo": dict(loss="dpo", token_weight="wpo"),
  "mpo": dict(
    loss="combine", losses=("dpo", "bco"), loss_weights=(0.8, 0.2), nll=1.0
  ),
}
TRL_NAMES = {  # TRL's loss_type -> ours; * on means per token: scale="mean"
  "sigmoid": "dpo",
  "sigmoid_norm": "dpo",  # *
  "robust": "robust_dpo",
  "hinge": "hinge",
  "ipo": "ipo",  # *
  "exo_pair": "exo",
  "nca_pair": "nca",
  "bco_pair": "bco",
  "sppo_hard": "sppo_hard",
  "aot": "aot",
  "aot_unpaired": "aot_unpaired",
  "apo_zero": "apo_zero",
  "apo_down": "apo_down",
  "discopop": "discopop",
  "sft": "nll",  # per response here, over all tokens of the batch there
  "kto": "kto",
  "simpo": "simpo",
  "alphapo": "alpha_po",
}


def names():
  """Every name that `build` knows, sorted.

  >>> names()[:3]
  ['alpha_dpo', 'alpha_po', 'aot']
  """
  return sorted({*LOSSES, *PUBLISHED})
