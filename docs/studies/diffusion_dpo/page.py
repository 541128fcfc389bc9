# SPDX-License-Identifier: Apache-2.0
"""Page of the study of Diffusion-DPO: tables, conclusions by rule, picture."""

import datetime

import numpy as np

from docs.studies.diffusion_dpo.runs import PARTS, START
from docs.studies.grid import text
from mrpo_jax.data.images.encoded import png
from mrpo_jax.data.images.pixels import to_levels
from mrpo_jax.runs.diffusion.pictures import sheet

SHOWN = 2  # images of each class, in the picture
ENLARGED = 3  # beside what a report's pictures are
NONE = "-"


class Seen:
  """Figures of all seeds of a name."""

  def __init__(self, grid, found):
    self._seeds, self._found = grid.seeds, found

  def __call__(self, name, figure, half="whole"):
    """[seeds] of a figure of Found, or of the Measures of a half; or None."""
    values = []
    for seed in self._seeds:
      one = self._found[name, seed]
      one = getattr(one, half) if hasattr(one.whole, figure) else one
      values.append(getattr(one, figure))
    return None if None in values else np.array(values)

  def cell(self, name, figure, form, half="whole"):
    """Mean, and the least to the greatest, over seeds."""
    values = self(name, figure, half)
    if values is None:
      return NONE
    low, high = values.min(), values.max()
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}]"


def alignments(grid, seen):
  rows = [
    (
      *("loss", "ink", "read as asked", "MMD^2 to real"),
      *("implicit accuracy", "error of the chosen", "of the rejected"),
    )
  ]
  names = [START, *(name for name in grid.variants if " low" not in name)]
  for name in (one for one in names if one != "dpo, high"):
    rows.append(
      (
        name,
        *(
          seen.cell(name, figure, form)
          for figure, form in (
            ("ink", ".3f"),
            ("read", ".3f"),
            ("distance", ".3f"),
            ("accuracy", ".3f"),
            ("chosen", "+.3f"),
            ("rejected", "+.3f"),
          )
        ),
      )
    )
  return text.table(rows)


def mixtures(grid, seen):
  rows = [
    (
      *("reference", "ink", "read as asked, 0 to 4", "5 to 9"),
      *("MMD^2 to real, 0 to 4", "5 to 9"),
    )
  ]
  names = [f"dpo, beta {grid.beta:,}", *list(grid.variants)[-4:]]
  for name in [*PARTS, *names]:
    rows.append(
      (
        f"{name} (no step)" if name in PARTS else name,
        seen.cell(name, "ink", ".3f"),
        *(
          seen.cell(name, figure, ".3f", half)
          for figure in ("read", "distance")
          for half in ("low", "high")
        ),
      )
    )
  return text.table(rows)


def conclusions(grid, seen):
  """Sentences, each of which says whether it is so in every seed."""
  dpo = [f"dpo, beta {beta:,}" for beta in grid.betas]
  rising = [name for name in dpo if (seen(name, "chosen") > 0).all()]
  inked = [name for name in dpo if _more(seen, name, START, "ink")]
  lines = [
    f"- More ink than the start, in every seed: {_listed(inked, dpo)}.",
    "- The error of the chosen image, too, rises in every seed: "
    f"{_listed(rising, dpo)}.",
  ]
  most, least = dpo[0], dpo[-1]
  further = _more(seen, most, least, "distance")
  lines.append(
    f"- The smallest beta leads further from real digits than the largest in "
    f"{'every seed' if further else 'some seeds at most, not in all'}."
  )
  for half, other, name in (
    ("high", "5 to 9", "dpo, low"),
    ("low", "0 to 4", "dpo, high"),
  ):
    for mixture in ("geometric", "harmonic"):
      keeps = _more(seen, f"{mixture}, low and high", name, "read", half)
      lines.append(
        f"- Of {other}, which its reference never saw, `{name}` draws "
        f"fewer as asked than the {mixture} mixture in "
        f"{'every seed' if keeps else 'some seeds at most, not in all'}."
      )
  return "\n".join(lines)


def _more(seen, name, other, figure, half="whole"):
  return bool((seen(name, figure, half) > seen(other, figure, half)).all())


def _listed(found, names):
  if len(found) == len(names):
    return "at every beta"
  return ", ".join(found) or "at none"


def picture(grid, runs):
  """PNG of images of the first seed: a row of ends for the same noises."""
  names = [START, f"dpo, beta {grid.betas[0]:,}", f"dpo, beta {grid.beta:,}"]
  names += ["dpo, low", "harmonic, low and high"]
  rows = []
  for name in names:
    image_NHWX, class_N = runs.samples(name, grid.seeds[0])
    order = np.argsort(class_N, kind="stable")
    kept = [n for k in range(10) for n in order[class_N[order] == k][:SHOWN]]
    rows.append(image_NHWX[kept])
  whole = sheet(np.concatenate(rows), 10 * SHOWN)
  whole = whole.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
  return png(to_levels(whole, "picture"))


def page(grid, judge, found):
  """Markdown of the page."""
  seen, config = Seen(grid, found), grid.config
  return TEMPLATE.format(
    date=datetime.date.today(),
    machine=text.machine(),
    config=f":{config}" if config else "",
    seeds=len(grid.seeds),
    samples=f"{grid.samples:,}",
    judge=f"{judge.accuracy:.3f}",
    between=f"{judge.between:.4f}",
    draws=grid.draws,
    beta=f"{grid.beta:,}",
    first=f"{grid.betas[0]:,}",
    conclusions=conclusions(grid, seen),
    alignments=alignments(grid, seen),
    mixtures=mixtures(grid, seen),
  )


TEMPLATE = """\
# Diffusion-DPO

Made by `python -m docs.studies.diffusion_dpo --workdir=DIR` on
{date}
({machine}).

**Claim** (Diffusion-DPO, arXiv:2311.12908): a diffusion model is aligned by DPO
on its denoising errors.  Nobody has published a mixture of references of such a
model: here is what one keeps.

## Conclusion

{conclusions}

![drawn digits](diffusion_dpo.png)

Rows, the same noises in each: the start; `dpo` at beta {first} and at {beta};
at {beta} with the reference that knows 0 to 4; with the harmonic mixture of
both halves' references.

## Setting

`configs/diffusion_digits.py{config}`: a diffusion transformer on the digits of
scikit-learn (8 x 8), which draws pairs of one class; the one with more ink is
preferred.  {seeds} seeds, each with a start, pairs and an order of its own; in
brackets the least and the greatest of them.  An end is measured by {samples}
images, 50 steps of DDIM, always of the same noises: *ink*, mean of the pixels
from 0 to 1; *read as asked*, by a support vector machine that reads {judge} of
held-out real digits; *MMD^2*, squared maximum mean discrepancy to held-out
real digits, Gaussian kernel (real training digits: {between}); *implicit
accuracy* and changes of *error*, of the mean squared error of the noise, on
held-out pairs under the same noises for policy and reference.

Beta is that of the released code, of mean squared errors.

## What beta costs

{alignments}

## References that know half of the classes

Both were trained as the start was, one on 0 to 4 and one on 5 to 9.  The policy
knows all, and is aligned at beta {beta}.  The geometric mixture takes a new
noise in every step; of the harmonic one the references are scored once, under
{draws} noises of each pair.

The harmonic mean of two probabilities is at most twice the smaller one: of each
pair the reference decides that knows its class less, whichever that is.

{mixtures}

Not varied: the model's shape, the reward, the number of pairs and steps, the
learning rate, the solver.  Digits of 64 pixels show how the losses differ, not
what a large model does.
"""
