# SPDX-License-Identifier: Apache-2.0
"""Keywords of losses in words: what each may be, means, and who takes it."""

import collections
import numbers

from mrpo_jax.losses.methods.build import taken
from mrpo_jax.losses.methods.catalogue import names
from mrpo_jax.losses.methods.choices import (
  MIXTURES,
  RULES,
  SCALES,
  TOKEN_WEIGHTS,
)

ABOUT = {  # of keywords that many losses take
  "auxiliary": "hpo, or dict(name='hpo', ...): terms that follow data.rewards",
  "adaptive_beta": "strength of beta-DPO's beta for each batch",
  "beta": "per nat; a smaller one lets the policy move further",
  "betas": "one beta per reference",
  "clip": "dict(epsilon_max=0.1, adaptive=True): around reference 0",
  "dispersion": "mean of -log dispersion: MallowsPO's factor on a margin",
  "loss_weights": "weights of the losses that `combine` adds",
  "losses": "the losses that `combine` adds, by name",
  "mixture": f"how references become one: {', '.join(MIXTURES)}, the power p "
  "of a mean, or multi: a loss for each",
  "nll": "weight of an added likelihood of the chosen response",
  "official_weights": "weights as released, not as published",
  "phi": "dispersion, for all pairs",
  "running": "momentum of a running margin; adaptive_beta brings it too",
  "scale": "unit of log-probabilities",
  "token_weight": f"weights of a response's tokens: {', '.join(TOKEN_WEIGHTS)}",
  "value_weight": "of the value's loss beside the policy's",
  "weights": f"trust in each reference: numbers, or a rule: {', '.join(RULES)}",
  "win_rate": "of the chosen response, for all pairs",
}
KINDS = {  # of those whose default does not tell
  "adaptive_beta": "number",
  "auxiliary": "str or dict",
  "betas": "tuple of numbers",
  "clip": "dict",
  "dispersion": "number or dict",
  "loss_weights": "tuple of numbers",
  "losses": "tuple of str",
  "mixture": "str or number",
  "running": "number",
  "scale": f"str, one of {', '.join(map(repr, SCALES))}",
  "token_weight": "str or dict",
  "weights": "str, dict or tuple of numbers",
}


def keywords():
  """{keyword of a loss: (what it may be, its meaning and who takes it)}."""
  found = {}
  for name in names():
    for key, default in taken(name).items():
      found.setdefault(key, {})[name] = default
  return {
    key: (
      KINDS.get(key) or _kind(next(iter(found[key].values()))),
      "; ".join(filter(None, (ABOUT.get(key), _takers(found[key])))),
    )
    for key in sorted(found)
  }


def _kind(default):
  if isinstance(default, bool):
    return "bool"
  return "number" if isinstance(default, numbers.Real) else "str"


def _takers(defaults):
  """ "of ipo (0.1), dpo (0.1)" of {name: default}, or all but the others."""
  others = [name for name in names() if name not in defaults]
  if len(others) >= len(defaults):
    each = [f"{name} ({_shown(value)})" for name, value in defaults.items()]
    return f"of {', '.join(each)}"
  shown = {name: _shown(value) for name, value in defaults.items()}
  ((usual, _),) = collections.Counter(shown.values()).most_common(1)
  own = [f", {name} {it}" for name, it in shown.items() if it != usual]
  of = f"of all but {', '.join(others)}" if others else "of all"
  return f"{of}; default {usual}{''.join(own)}"


def _shown(default):
  return f"{default:.4g}" if isinstance(default, float) else repr(default)
