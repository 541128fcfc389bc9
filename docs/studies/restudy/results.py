# SPDX-License-Identifier: Apache-2.0
"""Numbers of the re-study: leads by the yardstick of arXiv:2512.10040."""

from mrpo_jax.reports import figures

YARDSTICK = figures.policy_mean_margins  # of the policy alone, per token
SINGLE = "dpo_"  # how the names of single-reference DPO begin
ORIGINAL = "arwc_mrpo"
CLIPPED = "_ctro"
# Means over seeds on PKU-SafeRLHF and UltraFeedback, of the published logs.
PAPER = {
  "dpo_base": ("0.586", "0.678"),
  "dpo_second": ("0.569 to 0.580", "0.677 to 0.685"),
  "dpo_sharp": ("0.534", "0.657"),
  ORIGINAL: ("0.528", "-"),
  "vdw_multi": ("0.547", "0.665"),
  "vdw_mrpo": ("0.540", "0.666"),
  "vaw_multi": ("0.570", "0.699"),
  "vaw_mrpo": ("0.538", "0.664"),
  "window_multi": ("0.550", "-"),
  "thompson": ("0.557", "0.676"),
}


def singles(grid, scale):
  """Variants of single-reference DPO in a scale."""
  return [one for one in grid.variants if is_single(one) and one[0] == scale]


def several(grid):
  """Variants against several references."""
  return [one for one in grid.variants if not is_single(one)]


def is_single(variant):
  return variant[1].startswith(SINGLE)


def right(result, variant, of=YARDSTICK):
  return result.right(*variant, of=of)


def better(grid, result, scale, of=YARDSTICK):
  """The single-reference DPO that ranks most held-out pairs right.

  It is chosen by the pairs that it is judged by, which favours it.
  """
  return max(
    singles(grid, scale), key=lambda one: right(result, one, of).mean()
  )


def single_leads(grid):
  """{text: lead of the better single-reference DPO over that method}."""

  def lead_of(variant):
    return lambda result: (
      right(result, better(grid, result, variant[0])) - right(result, variant)
    )

  return {" ".join(one): lead_of(one) for one in several(grid)}


def leads_over_original(grid):
  """{text: lead of a strategy of the re-study over the original weights}."""
  clipped = CLIPPED, "fixed_multi", ORIGINAL
  return {
    " ".join(one): _lead(one, (one[0], ORIGINAL))
    for one in several(grid)
    if (one[0], ORIGINAL) in grid.variants and not one[1].endswith(clipped)
  }


def leads_of_clipping(grid):
  """{text: lead of a clipped mixture over the same without}."""
  both = {
    one: (one[0], one[1].removesuffix(CLIPPED))
    for one in grid.variants
    if one[1].endswith(CLIPPED)
  }
  return {
    " ".join(one): _lead(one, other)
    for one, other in both.items()
    if other in grid.variants
  }


def _lead(one, other):
  return lambda result: right(result, one) - right(result, other)
