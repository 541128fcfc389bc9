# SPDX-License-Identifier: Apache-2.0
"""Comparison of several runs on the same held-out pairs."""

import json
import pathlib

import numpy as np

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.reports.figures import result, same_config
from mrpo_jax.runs.setup import reward_beta
from mrpo_jax.runs.workdir import CONFIG, PAIRS
from mrpo_jax.text import aligned

HEADER = (
  *("run", "accuracy [95 %]", "margin", "x beta", "alone", "per token"),
  *("nll", "pairs/s", "real tokens"),
)
LEGEND = """\
accuracy: share of held-out pairs whose log-ratio against reference 0 is larger
for the chosen response; margin: by how much on average, in nats; x beta: times
the run's own beta.  alone, per token: the same share by the policy's own
log-probability, summed or per token.  nll: of chosen responses, nats per token
of the policy's tokenizer."""
NEAR = 0.01  # nats, and share of a log-probability, which rounding may change


def compare(workdir):
  """Writes <workdir>/results.json of every evaluated run; returns a table.

  The runs are the folder itself, or those at any depth below it; figures are
  on the held-out pairs that all runs of the same data evaluated.

  Raises:
    InputError: no run was evaluated, or runs of the same data share no pair.
  """
  workdir = pathlib.Path(workdir)
  runs = _runs_of(workdir)
  found = {name: files.read_lines(path / PAIRS) for name, path in runs.items()}
  found = {name: pairs for name, pairs in found.items() if pairs}
  if not found:
    raise InputError(f"--workdir {workdir} holds no run that was evaluated")
  configs = {name: files.read_json(runs[name] / CONFIG) for name in found}
  data = {name: _held_out(configs[name]) for name in found}
  shared = {
    one: _shared(workdir, [found[name] for name in found if data[name] == one])
    for one in set(data.values())
  }
  kept = {
    name: [pair for pair in pairs if pair["pair"] in shared[data[name]]]
    for name, pairs in found.items()
  }
  results = {
    name: result(
      [kept[name]],
      beta=reward_beta(configs[name]["loss"]),
      lines=files.read_lines(runs[name] / "metrics.jsonl"),
      evaluated=len(found[name]),
    )
    for name in kept
  }
  groups = _groups(configs, data)
  notes = [
    *_not_evaluated(runs, found),
    *_other_data(data),
    *_other_pairs(results),
    *_other_references(kept, data),
  ]
  whole = _with_groups(results, groups, kept, configs)
  files.write_json(workdir / "results.json", whole)
  return "\n".join([text(whole), "", LEGEND, *notes])


def _runs_of(workdir):
  """{name: folder} of runs: the folder itself, or all below it."""
  if (workdir / PAIRS).exists():
    return {workdir.resolve().name: workdir}
  paths = sorted(path.parent for path in workdir.rglob(CONFIG))
  runs = [
    path
    for path in paths
    if (path / PAIRS).exists() or (path / "metrics.jsonl").exists()
  ]
  return {path.relative_to(workdir).as_posix(): path for path in runs}


def _held_out(config):
  """What says whether two runs have the same held-out pairs."""
  return config.get("identity", {}).get("data.eval", "")


def _shared(workdir, runs):
  """Pairs that all of these runs evaluated."""
  shared = set.intersection(*({one["pair"] for one in pairs} for pairs in runs))
  if not shared:
    raise InputError(f"--workdir {workdir}: its runs share no held-out pair")
  return shared


def _groups(configs, data):
  """{label: names} of runs of one config and data but for the seed."""
  found = {}
  for name, config in configs.items():
    if "seed" in config:
      key = json.dumps([same_config(config), data[name]], sort_keys=True)
      found.setdefault(key, {})[config["seed"]] = name
  return {
    f"{[*names.values()][0]} ({len(names)} seeds)": [*names.values()]
    for names in found.values()
    if len(names) > 1
  }


def _with_groups(results, groups, kept, configs):
  """The results, those of seeds of one config together after their mean."""
  whole, members = {}, {}
  for label, names in groups.items():
    beta = reward_beta(configs[names[0]]["loss"])
    mean = result([kept[name] for name in names], beta=beta)
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
      seeds = {n: configs[n].get("seed") for n in mean["runs"]}
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


def _not_evaluated(runs, found):
  names = [name for name in runs if name not in found]
  if names:
    yield f"not evaluated: {', '.join(names)}"


def _other_data(data):
  kinds = {}
  for name, one in data.items():
    kinds.setdefault(one, []).append(name)
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


def _other_references(kept, data):
  """A line for runs whose reference 0 scores otherwise than the first's."""
  first = {}
  for name, pairs in kept.items():
    if not all(one["references"] for one in pairs):
      continue
    here = {one["pair"]: one["references"][0] for one in pairs}
    other, there = first.setdefault(data[name], (name, here))
    apart = [not np.allclose(here[n], there[n], NEAR, NEAR) for n in here]
    if any(apart):
      yield (
        f"{name}: reference 0 scores {np.mean(apart):.0%} of the pairs "
        f"otherwise than in {other} (another model, or texts cut elsewhere)"
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
  return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
