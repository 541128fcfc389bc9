# SPDX-License-Identifier: Apache-2.0
"""Writes docs/losses.md from the docstrings of `mrpo_jax.losses`.

python docs/make_losses.py
"""

import importlib
import inspect
import pathlib
import re

from mrpo_jax import losses
from mrpo_jax.losses.methods.catalogue import PUBLISHED
from mrpo_jax.losses.methods.inputs import FIGURES, INPUTS, keywords_of
from mrpo_jax.losses.methods.method import Method

PAGE = pathlib.Path(__file__).with_name("losses.md")
MODULES = {
  "methods.catalogue": "Names in a config",
  "methods.build": "From names in a config",
  "methods.method": "What a name becomes",
  "pair": "Of the margin of a pair",
  "rewards": "Of each response's reward",
  "batch": "Across the batch",
  "unreferenced": "Of the policy alone",
  "dispersion": "Dispersion: MallowsPO",
  "token_weights": "Token weights",
  "mixture": "Several references become one",
  "weighting": "Trust in each reference",
  "multi": "Against several references",
  "metrics": "What to watch",
  "related": "From around preference optimization",
}
HEAD = """\
# Losses

Every loss, what it computes, what it needs and where it is from.  This page is
made from the docstrings: `python docs/make_losses.py`.

Axes: `B` pairs, `C` choice (0 chosen, 1 rejected), `K` references (0 is the
base), `N` pairs of a data set.  `logp` is a natural logarithm in nats, summed
over response tokens; `mean_logp` is the same per response token; `logratio` is
policy minus reference.

## Names in a config

`config.loss.name` is one of these, and the other keys of `config.loss` are
keywords of `losses.build`.  Values after `=` are the defaults.  Every name but
`nll` also takes `nll` (weight of an added likelihood term) and, but for
`tdpo`, `token_weight`; what does not read means takes `scale`; what takes a
reference takes several of them with `mixture`, `clip` and `weights` (`mnpo`:
`weights`), and, where it has one `beta` and looks at each pair alone, `betas`.

"""


def page():
  """The whole text."""
  parts = [HEAD, table(), "\n"]
  for name, title in MODULES.items():
    module = importlib.import_module(f"mrpo_jax.losses.{name}")
    parts += [f"## {title}\n\n", inspect.getdoc(module), "\n\n"]
    parts += [entry(function) for function in public(module)]
  return "".join(parts).rstrip() + "\n"


def public(module):
  """Functions and classes that the module adds to `losses`, as written."""
  found = [getattr(losses, name) for name in losses.__all__]
  found = [
    f for f in found if getattr(f, "__module__", None) == module.__name__
  ]
  return sorted(found, key=lambda f: inspect.getsourcelines(f)[1])


# The table.


def table():
  rows = [("name", "reference", "needs besides", "keywords", "source")]
  rows.append(tuple("---" for _ in rows[0]))
  for name in losses.names():
    method = built(name)
    rows.append(
      (
        f"`{name}`",
        "yes" if method.takes_reference else "no",
        needs(method),
        keywords(name, method),
        source(name, method),
      )
    )
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


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
  if method.coupled:
    found.append("all pairs of a batch")
  if method.memory.running is not None:
    found.append("a memory")
  return "; ".join(found) or "-"


def keywords(name, method):
  """Defaults of the loss, and the choices of a published method."""
  hidden = {*INPUTS, *(["weight"] if name == "mnpo" else [])}
  own = {k: v for k, v in keywords_of(method.loss).items() if k not in hidden}
  own |= method.numbers
  choices = PUBLISHED.get(name, {})
  own |= {k: v for k, v in choices.items() if k != "loss"}
  if name == "combine":
    own |= dict(losses=("...",), loss_weights=("...",))
  return ", ".join(f"`{k}={shown(v)}`" for k, v in own.items()) or "-"


def shown(value):
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value) if isinstance(value, dict | tuple) else repr(value)


def source(name, method):
  """arXiv numbers of the docstring that describes the name."""
  function = getattr(losses, name, None) or DESCRIBED.get(name, method.loss)
  found = re.findall(r"arXiv:\s*(\d{4}\.\d{5})", inspect.getdoc(function))
  links = [f"[{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(found)]
  return ", ".join(links) or "-"


DESCRIBED = {  # where a published name has a function under another one
  "beta_dpo": losses.adaptive_beta,
  "d2po": losses.temporal_decay,
  "ld_dpo": losses.length_desensitized,
  "sampo": losses.down_sample,
  "bmc": losses.bridged,
  "wpo": losses.wpo_weight,
  "mpo": losses.combine,
}


# One function.


def entry(function, prefix=""):
  """A function, or a class with what it says of its members."""
  name = prefix + function.__name__
  text = [f"### `{name}`\n"]
  if inspect.isfunction(function):
    signature = f"{name}{inspect.signature(function)}"
    signature = re.sub(r"<function (\w+) at \w+>", r"\1", signature)
    text.append(f"\n```python\n{signature}\n```\n")
  text += [f"\n{block}\n" for block in blocks(inspect.getdoc(function))]
  text.append("\n")
  if function is Method:
    text += [entry(member, f"{name}.") for member in members(function)]
  return "".join(text)


def members(kind):
  """Documented functions of a class, properties among them, as written."""
  found = [
    getattr(member, "fget", member)
    for name, member in vars(kind).items()
    if name == "__call__" or not name.startswith("_")
  ]
  return [f for f in found if inspect.isfunction(f) and f.__doc__]


def blocks(doc):
  """The paragraphs of a docstring as Markdown."""
  for paragraph in re.split(r"\n\n+", doc):
    first, _, rest = paragraph.partition("\n")
    if first.startswith(">>>"):
      yield f"```python\n{paragraph}\n```"
    elif first in ("Args:", "Returns:", "Raises:"):
      yield f"*{first}*\n\n{items(rest)}"
    elif first.startswith(("Source:", "Numerics:")):
      word, _, said = paragraph.partition(":")
      yield f"*{word}:*{said}"
    elif first.startswith("    "):
      yield f"```\n{inspect.cleandoc(paragraph)}\n```"
    else:
      yield paragraph


def items(text):
  """`name: what it is` lines as a list; prose stays prose."""
  text = inspect.cleandoc(text)
  item = re.compile(r"^(\*{0,2}[\w]+): ", re.MULTILINE)
  if not item.match(text):
    return text
  return item.sub(r"- `\1`: ", text)


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
  print(f"wrote {PAGE}")
