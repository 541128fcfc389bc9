# SPDX-License-Identifier: Apache-2.0
"""Samples of the policy: length, repetition, and texts before and after."""

import numpy as np

from mrpo_jax.reports.page.curves import draw_curves
from mrpo_jax.reports.page.markup import breakable, scrolled_table, tag
from mrpo_jax.reports.page.plots import plot

WORDS = 4  # a run of so many that was there before is a repetition
PROMPTS = 8  # of which texts are shown
LETTERS = 1200  # of a text
CAPTION = """
Samples of the policy, means over {n} a run and over seeds; figures describe,
nothing is ranked by them.  Repetition: share of the {words}-word sequences of a
sample that stand in it before; ended: share that wrote its end.
"""


def repetition(text):
  """Share of the word sequences of a text that stand in it before.

  >>> repetition("a b c d a b c d")
  0.2
  """
  words = text.split()
  found = [tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)]
  return 1 - len(set(found)) / len(found) if found else 0.0


def figures_of(samples):
  """{figure: mean} of some samples."""
  lengths = [one.get("tokens") for one in samples]
  ends = [one.get("finish") == "stop" for one in samples if "finish" in one]
  return {
    "tokens": _mean([n for n in lengths if isinstance(n, int)]),
    "characters": _mean([len(one["response"]) for one in samples]),
    "repetition": _mean([repetition(one["response"]) for one in samples]),
    "ended": _mean(ends),
  }


def _mean(values):
  return float(np.mean(values)) if values else None


COLUMNS = (
  ("tokens", "tokens", ".1f"),
  ("characters", "characters", ".0f"),
  ("repetition", "repetition", ".1%"),
  ("ended", "ended", ".0%"),
)


def samples(series):
  """Table, curves and texts of all series that have samples; None of none."""
  sampled = {
    label: runs
    for label, runs in series.items()
    if any(run.samples for run in runs)
  }
  if not sampled:
    return None
  return [
    table_of(sampled),
    tag("div", [*_curves(sampled)], class_="plots"),
    *texts(sampled),
  ]


def table_of(sampled):
  """Two rows for each series: its first samples and its last ones."""
  rows, sizes = [], set()
  for label, runs in sampled.items():
    runs = [run for run in runs if run.samples]
    for place in (0, -1):
      found = [figures_of(run.samples[place][1]) for run in runs]
      sizes |= {len(run.samples[place][1]) for run in runs}
      steps = sorted({run.samples[place][0] for run in runs})
      means = {
        name: _mean([one[name] for one in found if one[name] is not None])
        for name, *_ in COLUMNS
      }
      rows.append([breakable(label), when(steps), *_cells(means)])
  n = " or ".join(map(str, sorted(sizes)))
  caption = CAPTION.format(n=n, words=WORDS)
  header = ["run", "at", *(title for _, title, _ in COLUMNS)]
  return scrolled_table(header, rows, caption=caption, numbers=2)


def _cells(means):
  return [
    "-" if means[name] is None else format(means[name], form)
    for name, _, form in COLUMNS
  ]


def when(steps):
  """ "before training", "step 15, 30": of the steps that a row is of."""
  text = ", ".join(map(str, steps))
  return "before training" if steps == [0] else f"step {text}"


def _curves(sampled):
  """Plots of length and repetition, where there are more than two points."""
  numbers = {label: n for n, label in enumerate(sampled)}
  for name, title in (("tokens", "Length"), ("repetition", "Repetition")):
    curves = {}
    for label, runs in sampled.items():
      found = _by_step(runs, name)
      if len(found) > 1:
        steps = np.array(sorted(found))
        curves[numbers[label]] = (
          steps,
          *(
            np.array([of(found[step]) for step in steps])
            for of in (np.mean, min, max)
          ),
        )
    if curves:
      yield plot(
        f"samples-{name}",
        f"{title} of samples",
        "tokens" if name == "tokens" else "share of word sequences seen before",
        lambda axes, curves=curves: _draw(axes, curves),
      )


def _draw(axes, curves):
  draw_curves(axes, curves)
  axes.set_ylim(bottom=0)


def _by_step(runs, name):
  found = {}
  for run in runs:
    for step, some in run.samples:
      value = figures_of(some)[name]
      if value is not None:
        found.setdefault(step, []).append(value)
  return found


def texts(sampled):
  """What the first seed of each series says, before training and at its end."""
  firsts = {
    label: next(run for run in runs if run.samples)
    for label, runs in sampled.items()
  }
  # Runs may have files of prompts of their own, and change theirs.
  asked = {
    one
    for run in firsts.values()
    for place in (0, -1)
    for one in _by_prompt(run.samples[place][1])
  }
  for place_and_prompt in sorted(asked)[:PROMPTS]:
    parts = [
      tag(
        "p",
        tag("b", "prompt "),
        _cut(place_and_prompt[1]),
        class_="prompt",
        dir="auto",
      )
    ]
    for label, run in firsts.items():
      for place in (0, -1) if len(run.samples) > 1 else (-1,):
        step, some = run.samples[place]
        said = _by_prompt(some).get(place_and_prompt)
        if said is not None:
          parts.append(_said(label, step, said, place == -1))
    yield tag("article", parts, class_="sample")
  left = len(asked) - PROMPTS
  if left > 0:
    yield tag(
      "p", f"{left} more prompts stand in metrics.jsonl.", class_="note"
    )


def _said(label, step, one, is_last):
  return tag(
    "div",
    tag("span", f"{label}, {when([step])}", class_="who"),
    tag("p", _cut(one["response"]) or tag("i", "nothing"), dir="auto"),
    class_="said after" if is_last else "said",
  )


def _by_prompt(samples):
  """{(index, prompt): sample} of the samples of one step."""
  return {
    (_index(one, place), _prompt(one)): one for place, one in enumerate(samples)
  }


def _index(one, place):
  index = one.get("index")
  return index if isinstance(index, int) else place


def _prompt(one):
  """The prompt of a sample as text; of turns, each with its role."""
  prompt = one.get("prompt", "")
  if isinstance(prompt, list):
    turns = [turn for turn in prompt if isinstance(turn, dict)]
    return "\n".join(
      f"{turn.get('role')}: {turn.get('content')}" for turn in turns
    )
  return str(prompt)


def _cut(text):
  text = str(text).strip()
  left = len(text) - LETTERS
  return text if left <= 0 else f"{text[:LETTERS]} [{left:,} more characters]"
