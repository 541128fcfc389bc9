# SPDX-License-Identifier: Apache-2.0
"""The catalogue of losses and published methods by name."""

import difflib

from mrpo_jax.losses import (
  batch,
  dispersion,
  multi,
  pair,
  regression,
  related,
  rewards,
  token_weights,
  unreferenced,
)
from mrpo_jax.losses.methods.inputs import refuse_unknown

LOSSES = {
  function.__name__: function
  for function in (
    *(pair.dpo, pair.robust_dpo, pair.hinge, pair.ipo, pair.exo),
    *(pair.discopop, pair.focal_dpo, pair.bpo, pair.combine),
    *(regression.sppo_hard, regression.sppo, regression.qrpo),
    *(rewards.nca, rewards.bco, rewards.bdpo),
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
      unreferenced.simper,
      unreferenced.nll,
    ),
    *(unreferenced.rainbow_po, unreferenced.alpha_dpo, unreferenced.tpo),
    related.bradley_terry,
    *(related.kto_unpaired, related.apo_zero_unpaired, related.bco_unpaired),
  )
}
# All but the maker of losses.
refuse_unknown(loss for loss in LOSSES.values() if loss is not pair.combine)
# Of the tokens of rollouts; a batch's loss is their mean.
OF_TOKENS = {
  "apa": related.apa,
  "awr": related.awr,
  "ppo": related.ppo_clip,
}
refuse_unknown([related.token_mean])
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
  "chi_po": dict(loss="f_dpo", divergence="chi_squared_kl"),
  "squared_po": dict(loss="f_dpo", divergence="log_squared"),
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
  "hpo": dict(loss="kto", auxiliary="hpo"),
}
# What a loss by its name is without, and its paper has: a keyword of `build`,
# its value there, and what it does.
_ADDED = "adds the likelihood of chosen responses"
LEFT_OUT = {
  "orpo": ("nll", 1.0, _ADDED),
  "cpo": ("nll", 1.0, _ADDED),
  "slic": ("nll", 0.1, _ADDED),
  "alpha_dpo": ("running", 0.9, "standardises M by its running moments"),
}
# TRL's loss_type, and what LLaMA-Factory and Axolotl make of it -> ours; * on
# means per token: scale="mean".
TRL_NAMES = {
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
  "kto": "kto",  # of pairs; of its KTO trainer's rows kto_unpaired
  "kto_pair": "kto",
  "simpo": "simpo",
  "alphapo": "alpha_po",
}


PER_TOKEN = {"sigmoid_norm"}  # of those with *, what is not a name of ours too


def unknown(name):
  """The sentence that refuses a name: the nearest one, and all known.

  >>> unknown("sigmoid").partition(";")[2][:47]
  " did you mean dpo, which TRL calls 'sigmoid'? k"
  """
  known = {**TRL_NAMES, **{one: one for one in names()}}
  near = ""
  for found in difflib.get_close_matches(str(name).lower(), known, 1, 0.7):
    ours = known[found]
    near = f" did you mean {ours}"
    near += " with scale='mean'" if found in PER_TOKEN else ""
    near += "?" if found == ours else f", which TRL calls {found!r}?"
  return f"unknown loss {name!r};{near} known: {', '.join(names())}"


def names() -> list[str]:
  """Every name that `build` knows, sorted.

  >>> names()[:3]
  ['alpha_dpo', 'alpha_po', 'aot']
  """
  return sorted({*LOSSES, *PUBLISHED, *OF_TOKENS})
