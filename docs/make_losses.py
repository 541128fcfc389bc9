# SPDX-License-Identifier: Apache-2.0
"""Writes the table of docs/guide/losses.md from docstrings and INPUTS.

python docs/make_losses.py
"""

import inspect
import pathlib
import re
import textwrap

from mrpo_jax import losses
from mrpo_jax.losses.arguments import arrays_of, keywords_of
from mrpo_jax.losses.methods.auxiliary import Auxiliary
from mrpo_jax.losses.methods.build import FOUND
from mrpo_jax.losses.methods.catalogue import (
  LEFT_OUT,
  PER_TOKEN,
  PUBLISHED,
  TRL_NAMES,
)
from mrpo_jax.losses.methods.inputs import FIGURES, INPUTS
from mrpo_jax.losses.methods.token_loss import VALUE_WEIGHT

PAGE = pathlib.Path(__file__).parent / "guide" / "losses.md"
HEAD = """\
# Losses

Every loss by its name in a config: what it is, asks for, needs and is from.
Formulas, numerics and examples are in the [reference](../reference/losses.md);
a loss of your own is [one function and one line](../learn/add_a_loss.md).  This
page is made by `python docs/make_losses.py`.

Axes: `B` pairs, `C` choice (0 chosen, 1 rejected), `K` references (0 is the
base), `N` pairs of a data set.  `logp` is a natural logarithm in nats, summed
over response tokens; `mean_logp` is the same per response token; `logratio` is
policy minus reference.

`config.loss.name` is one of these, and the other keys of `config.loss` are
keywords of `losses.build`.  Values after `=` are the defaults.  `apa`, `awr`
and `ppo` learn from single tokens of [rollouts](rollouts.md), are means over
all tokens of a batch, and take what stands in their line.  `kto_unpaired`,
`apo_zero_unpaired` and `bco_unpaired` learn from [single responses with
labels](feedback.md), and take `mixture`, `weights` and `scale` besides.  Every
other name but `nll` and `bradley_terry` also takes `nll` (weight of an added
likelihood term) and, but for `tdpo`, `token_weight`; what of these does not ask
for `mean_logp_BC` takes `scale`; what takes a reference takes several of them
with `mixture`, `clip` and `weights` (`mnpo`: `weights`), and, where it has one
`beta` and looks at each pair alone, `betas`.  `mrpo help config loss` has every
keyword, with the losses that take it.

"""


def page():
  """The whole text."""
  return HEAD + table() + left_out() + theirs()


def public():
  """{name: value} of what `losses` offers, modules left out."""
  return {
    name: value
    for name, value in vars(losses).items()
    if not name.startswith("_") and not inspect.ismodule(value)
  }


def table():
  rows = [("name", "is", "asks for", "needs besides", "keywords", "source")]
  rows.append(tuple("---" for _ in rows[0]))
  for name in losses.names():
    method = built(name)
    rows.append(
      (
        f"`{name}`",
        first_line(name, method),
        ", ".join(f"`{array}`" for array in arrays_of(function(method))),
        needs(method),
        keywords(name, method),
        source(name, method),
      )
    )
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def left_out():
  """What papers have that losses by their name are without."""
  papers = "; that ".join(
    f"of `{name}` {what} (`{keyword}={value:g}`)"
    for name, (keyword, value, what) in LEFT_OUT.items()
  )
  text = (
    "Some losses by their name are without what their papers have.  That "
    f"{papers}.  A run that does not mention the keyword is warned."
  )
  return f"\n{textwrap.fill(text, 80, break_on_hyphens=False)}\n"


def theirs():
  """Names of TRL that are others here, and the unit that goes with them."""
  others = {name: ours for name, ours in TRL_NAMES.items() if name != ours}
  names = ", ".join(f"`{name}` (`{ours}`)" for name, ours in others.items())
  means = " and ".join(f"`{name}`" for name in ("ipo", *PER_TOKEN))
  text = (
    "What TRL, LLaMA-Factory and Axolotl call otherwise, with its name here: "
    f"{names}.  Their {means} take log-probabilities per token, as "
    '`scale="mean"` does here.  `losses.TRL_NAMES` is the whole table.'
  )
  text = textwrap.fill(text, 80, break_on_hyphens=False)
  return f"\n## Names of TRL\n\n{text}\n"


def function(method):
  """The function of arrays that a name stands for."""
  return method.loss if method.tokens is None else method.tokens.policy


def built(name):
  if name == "combine":
    return losses.build(name, losses=("dpo",), loss_weights=(1.0,))
  return losses.build(name)


def needs(method):
  found = [FIGURES[figure] for figure in FIGURES if figure in method.needs]
  if method.token_weight is not None:
    found.append("single tokens (the policy's tokenizer)")
  if method.reads_differences:
    found.append("which tokens differ")
  if method.mismatched:
    found.append("responses of other prompts")
  if method.coupled:
    found.append("all pairs of a batch")
  if method.memory.running is not None or method.memory.of_rewards:
    found.append("a memory")
  return "; ".join(found) or "-"


def keywords(name, method):
  """Defaults of the loss, and the choices of a published method."""
  hidden = {*INPUTS, *(["weight"] if name == "mnpo" else [])}
  hidden |= FOUND if method.unpaired else set()
  taken = keywords_of(function(method))
  own = {k: v for k, v in taken.items() if k not in hidden}
  own |= method.numbers
  if method.tokens is not None:
    own["value_weight"] = VALUE_WEIGHT
  choices = PUBLISHED.get(name, {})
  own |= {k: v for k, v in choices.items() if k != "loss"}
  if name == "combine":
    own |= dict(losses=("...",), loss_weights=("...",))
  return ", ".join(f"`{k}={shown(v)}`" for k, v in own.items()) or "-"


def shown(value):
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value) if isinstance(value, dict | tuple) else repr(value)


def described(name, method):
  """The docstring that describes the name."""
  found = getattr(losses, name, None) or DESCRIBED.get(name, function(method))
  return inspect.getdoc(found)


def first_line(name, method):
  return described(name, method).split("\n")[0].replace("|", "\\|")


def source(name, method):
  """Links to the arXiv numbers of that docstring."""
  found = re.findall(r"arXiv:\s*(\d{4}\.\d{5})", described(name, method))
  links = [f"[{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(found)]
  return ", ".join(links) or "-"


DESCRIBED = {  # where a published name has a function under another one
  "beta_dpo": losses.adaptive_beta,
  "d2po": losses.temporal_decay,
  "ld_dpo": losses.length_desensitized,
  "sampo": losses.down_sample,
  "bmc": losses.bridged,
  "hpo": Auxiliary,
  "wpo": losses.wpo_weight,
  "mpo": losses.combine,
}


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
  print(f"wrote {PAGE}")
