# SPDX-License-Identifier: Apache-2.0
"""Comparison of several runs on the same held-out pairs."""

import dataclasses

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.reports import paired
from mrpo_jax.reports.figures import reference_apart, result
from mrpo_jax.reports.gather import gather, groups_of, repeated
from mrpo_jax.text import aligned, with_interval

RESULTS = "results.json"  # the figures, in the folder of the runs
HEADER = (
  *("run", "accuracy [95 %]", "margin", "x beta", "alone", "per token"),
  *("nll", "pairs/s", "real tokens"),
)
LEGEND = """\
accuracy: share of held-out pairs whose log-ratio against reference 0 is larger
for the chosen response; margin: by how much on average, in nats; x beta: times
the run's own beta.  alone, per token: the same share by the policy's own
log-probability, summed or per token; of a reward model, by its reward.  nll: of
chosen responses, nats per token of the policy's tokenizer."""


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Evaluated runs on the held-out pairs that they share."""

  runs: dict  # name -> gather.Run, also of those that were not evaluated
  series: dict  # label -> evaluated runs, those of one config but the seed
  results: dict  # content of results.json
  notes: list  # sentences that a reader must know

  def text(self):
    """The table, what its columns mean, paired differences and notes."""
    return "\n".join(
      [text(self.results), "", LEGEND, *self.notes, *self._differences()]
    )

  def differences(self):
    """{label of a first: {label: its difference to it}}."""
    found = {}
    for label, one in self.results.items():
      if difference := one.get("difference"):
        found.setdefault(difference["to"], {})[label] = difference
    return found

  def _differences(self):
    for first, found in self.differences().items():
      size = paired.size_text(next(iter(found.values())))
      yield f"\ndifference to {first}, on the same {size}"
      yield aligned([paired.HEADER, *paired.rows_of(found)])
      yield from paired.not_compared(first, found)
    if self.differences():
      yield f"\n{paired.LEGEND}"


def compared(workdir):
  """The Comparison of all runs in a folder; writes nothing.

  The runs are the folder itself, or those at any depth below it; figures are
  on the held-out pairs that all runs of the same data evaluated.

  Raises:
    InputError: no run was evaluated, or runs of the same data share no pair.
  """
  workdir = files.path_of(workdir)
  runs, damage = gather(workdir)
  evaluated = [run for run in runs if run.pairs]
  if not evaluated:
    why = f" ({'; '.join(damage)})" if damage else ""
    raise InputError(
      f"--workdir {workdir} holds no run that was evaluated{why}"
    )
  kept = {run.name: run for run in _on_shared_pairs(workdir, evaluated)}
  results = {
    name: result(
      [run.pairs], beta=run.beta, lines=run.lines, evaluated=run.evaluated
    )
    for name, run in kept.items()
  }
  groups = groups_of(kept.values())
  whole = _with_groups(results, groups, kept)
  labels = [label for label, one in whole.items() if "group" not in one]
  series = {
    label: [kept[name] for name in groups.get(label, [label])]
    for label in labels
  }
  for label, difference in paired.differences(series).items():
    whole[label]["difference"] = difference
  notes = [
    *_not_evaluated(runs),
    *repeated(kept.values()),
    *_other_data(kept),
    *_other_pairs(results),
    *_other_references(kept),
    *damage,
  ]
  return Comparison(
    {run.name: run for run in runs} | kept, series, whole, notes
  )


def _on_shared_pairs(workdir, runs):
  """The runs, each with the pairs that all of the same data evaluated."""
  shared = {}
  for run in runs:
    here = {one["pair"] for one in run.pairs}
    shared[run.data] = shared.get(run.data, here) & here
  if not all(shared.values()):
    raise InputError(f"--workdir {workdir}: its runs share no held-out pair")
  for run in runs:
    pairs = [one for one in run.pairs if one["pair"] in shared[run.data]]
    yield dataclasses.replace(run, pairs=pairs)


def _with_groups(results, groups, runs):
  """The results, those of seeds of one config together after their mean."""
  whole, members = {}, {}
  for label, names in groups.items():
    some = [runs[name] for name in names]
    mean = result([run.pairs for run in some], beta=some[0].beta)
    rates = [results[name]["pairs_per_second"] for name in names]
    shares = [results[name]["real_token_share"] for name in names]
    mean["pairs_per_second"] = _mean(rates)
    mean["real_token_share"] = _mean(shares)
    mean["runs"] = names
    members |= dict.fromkeys(names, (label, mean))
  for name, one in results.items():
    label, mean = members.get(name, (None, None))
    if label is not None and label not in whole:
      whole[label] = mean
      seeds = {n: runs[n].seed for n in mean["runs"]}
      whole |= {
        n: {**results[n], "group": label, "seed": seeds[n]} for n in seeds
      }
    elif label is None:
      whole[name] = one
  return whole


def _mean(values):
  values = [value for value in values if value is not None]
  return sum(values) / len(values) if values else None


# What a reader of the table must know.


def _not_evaluated(runs):
  names = [run.name for run in runs if not run.pairs]
  if names:
    yield f"not evaluated: {', '.join(names)}"


def _other_data(runs):
  kinds = {}
  for name, run in runs.items():
    kinds.setdefault(run.data, []).append(name)
  if len(kinds) > 1:
    sets = "; ".join(", ".join(names) for names in kinds.values())
    yield f"held-out pairs differ, figures are not comparable between: {sets}"


def _other_pairs(results):
  for name, one in results.items():
    left = one["evaluated_pairs"] - one["held_out_pairs"]
    if left:
      yield (
        f"{name}: {left} of {one['evaluated_pairs']} pairs left out, which "
        "another run did not evaluate"
      )


def _other_references(runs):
  """A line for runs whose reference 0 scores otherwise than the first's."""
  first = {}
  for name, run in runs.items():
    if not all(one["references"] for one in run.pairs):
      continue
    other = first.setdefault(run.data, run)
    share = reference_apart(run.pairs, other.pairs)
    if share:
      yield (
        f"{name}: reference 0 scores {share:.0%} of the pairs otherwise than "
        f"in {other.name} (another model, or texts cut elsewhere)"
      )


def text(results):
  """Aligned text, one line per run; runs of a group below their mean."""
  rows = [HEADER]
  for name, one in results.items():
    accuracy, alone = (
      _share(one["accuracy"], one["interval"]),
      _share(one["policy_accuracy"]),
    )
    rows.append(
      (
        f"  {name}" if "group" in one else name,
        accuracy,
        _number(one["margin_nats"], "+.3f"),
        _number(one["margin"], "+.4f"),
        alone,
        _share(one["policy_mean_accuracy"]),
        _number(one["nll"], ".3f"),
        _number(one["pairs_per_second"], ".1f"),
        _number(one["real_token_share"], ".1%"),
      )
    )
  return aligned(rows)


def _number(value, form):
  return "-" if value is None else format(value, form)


def _share(value, interval=None):
  if value is None or interval is None:
    return _number(value, ".3f")
  return with_interval(value, interval, ".3f")
