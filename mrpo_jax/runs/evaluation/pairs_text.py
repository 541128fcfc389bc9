# SPDX-License-Identifier: Apache-2.0
"""The table of an evaluation on preference pairs, as text."""

from mrpo_jax.text import aligned, with_interval

HEADER = (
  *("", "pairs", "accuracy [95 %]", "length-normalised [95 %]"),
  "margin, nats [95 %]",
)
LEGEND = """\
accuracy: share of pairs whose margin is above 0; margin: log-probability{ratio}
of the chosen response less that of the rejected one; length-normalised: the
accuracy of each response's mean over its tokens.  Intervals: bootstrap over
prompts; [all agree]: each has the same mean, of which no interval follows."""


def text(results):
  """The table of results.json, and what its columns mean."""
  rows = [("all", results), *results["by_length"].items()]
  lines = [
    aligned([HEADER, *(_row(name, one) for name, one in rows)]),
    "",
    LEGEND.format(ratio=" ratio" if results["reference"] else ""),
    "",
    *_calibration_lines(results),
  ]
  if results["ties"]:
    lines.append(f"{results['ties']} margins are 0: counted as not right")
  if "against" in results:
    lines += ["", *_against_lines(results["against"])]
  return "\n".join(lines)


def _row(name, one):
  return [
    *(name, str(one["pairs"])),
    with_interval(one["accuracy"], one["interval"], ".3f"),
    with_interval(
      one["length_normalised"], one["length_normalised_interval"], ".3f"
    ),
    with_interval(one["margin"], one["margin_interval"], "+.2f"),
  ]


def _calibration_lines(results):
  found = results["calibration"]
  if found is None:
    if results["reference"]:
      yield "no calibration: give --beta, that of the loss it was trained with"
    return
  error, beta = found["expected_error"], results["beta"]
  yield f"calibration error of sigmoid({beta:g} x margin): {error:.3f}"
  rows = [
    [name, *(format(one[name], form) for one in found["bins"])]
    for name, form in (
      ("confidence", ".2f"),
      ("accuracy", ".2f"),
      ("pairs", ""),
    )
  ]
  yield aligned(rows)


def _against_lines(found):
  yield (
    f"less {found['folder']}, on the {found['pairs']} pairs of both: accuracy "
    + with_interval(found["accuracy"], found["interval"], "+.3f")
    + f", sign test by prompt p = {found['p']:.2g} ({found['gained']} gained, "
    f"{found['lost']} lost); margin "
    + with_interval(found["margin"], found["margin_interval"], "+.2f")
  )
  if found["only_here"] or found["only_there"]:
    yield (
      f"{found['only_here']} pairs are here alone, {found['only_there']} there "
      "alone; they do not count"
    )
