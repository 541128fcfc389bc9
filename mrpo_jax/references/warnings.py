# SPDX-License-Identifier: Apache-2.0
"""Warnings about the references of a run, in sentences."""

import itertools
import math
import statistics

# Of the mixture: the rest no longer matters.
DOMINANT = 0.9
# Share of pairs in which no weight changes the loss.
CANCELLED = 0.9
# Between root mean squares of margins.  In arXiv:2512.10040 the one reference
# that spoilt the runs stood apart by 3 and more.
OUTLIER = 3.0
# Of the logarithm of the vocabulary: guessing gives 1, and any training less.
GUESSING = 0.98
# Between nats per character: much worse than the best is rarely another size.
UNLIKELY = 1.5
# Of the log-probability: float32 against bfloat16 differs by more.
SAME = 1e-4


def warnings(figures, names, *, log_vocab):
  """[(what, sentence)] of all that looks wrong; `what` names it for good.

  Args:
    figures: means over pairs by their names in metrics.jsonl: of each
      reference `references/<name>/` `responsibility`, `margin`, `margin_sd`,
      `token_logp`, `character_logp`, `logp_size`, `distance/<other>`; and
      `weights_cancel`.  What is missing is not judged.
    names: of the references; the first is the base.
    log_vocab: {name: logarithm of its vocabulary's size}.
  """

  def of(figure):
    keys = {name: f"references/{name}/{figure}" for name in names}
    return {name: figures[key] for name, key in keys.items() if key in figures}

  found = {}
  for name, share in of("responsibility").items():
    if share > DOMINANT and len(names) > 1:
      found["dominant", name] = (
        f"reference {name!r} carries {share:.0%} of the mixture: the run is "
        "close to one against it alone; see loss.scale, loss.clip and "
        "loss.weights"
      )
  if len(names) > 1 and figures.get("weights_cancel", 0.0) > CANCELLED:
    found["cancel", ""] = (
      f"in {figures['weights_cancel']:.0%} of the pairs one reference stands "
      "for both responses, so that the weights cancel and change nothing; "
      "they matter with loss.scale='mean', a tighter loss.clip, or "
      "loss.mixture='geometric'"
    )
  return [
    *found.items(),
    *_scales(of("margin"), of("margin_sd")),
    *_guesses(of("token_logp"), log_vocab),
    *_unlikely(of("character_logp")),
    *_same(figures, of("logp_size"), names),
  ]


def _scales(mean, deviation):
  """Margins that spread far more, or far less, than the usual.

  The usual is the median of all, so that one outlier of three is the only one
  named; of two it is the base.
  """
  size = {n: math.hypot(mean[n], deviation[n]) for n in mean if n in deviation}
  if len(size) < 2:
    return
  sizes = list(size.values())
  usual = statistics.median(sizes) if len(sizes) > 2 else sizes[0]
  for name, own in size.items():
    if not usual / OUTLIER <= own <= usual * OUTLIER:
      yield (
        ("scale", name),
        f"the margins of reference {name!r} have a root mean square of "
        f"{own:.3g}, usual here is {usual:.3g}: in a mixture of sums the "
        "larger one decides; see loss.scale='zscore' and loss.clip",
      )


def _guesses(token_logp, log_vocab):
  for name, logp in token_logp.items():
    if logp <= -GUESSING * log_vocab[name]:
      yield (
        ("guessing", name),
        f"reference {name!r} gives a token of the responses {logp:.2f} nats, "
        f"guessing gives {-log_vocab[name]:.2f}: is it the right tokenizer, "
        "are the weights whole?",
      )


def _unlikely(character_logp):
  if not character_logp:
    return
  best = max(character_logp, key=character_logp.get)
  for name, logp in character_logp.items():
    if logp < UNLIKELY * character_logp[best]:
      yield (
        ("unlikely", name),
        f"reference {name!r} gives a character of the responses {logp:.2f} "
        f"nats, {best!r} {character_logp[best]:.2f}: is it the right tokenizer "
        "and chat template?",
      )


def _same(figures, size, names):
  for one, other in itertools.combinations(names, 2):
    distance = figures.get(f"references/{one}/distance/{other}", math.inf)
    if distance < SAME * size.get(one, 0.0):
      yield (
        ("same", f"{one} {other}"),
        f"references {one!r} and {other!r} say the same of every response: "
        "is one of the paths wrong?",
      )
