# SPDX-License-Identifier: Apache-2.0
"""Page of the study of D2PO: text, tables and figure."""

import datetime

import numpy as np

from docs.studies.d2po.results import DECAY, ORDER, SMALL, WINDOW, verdict
from docs.studies.d2po.runs import best_rate
from docs.studies.grid import draw as drawing
from docs.studies.grid import text
from mrpo_jax import files
from mrpo_jax.text import with_interval

TITLES = {
  "d2po": "D2PO",
  "gold_early": "all gold, few rounds",
  "gold_thin": "all gold, few prompts",
  "static": "static reward model",
  "dpo": "offline DPO",
}


def page(results, tuned, workdir):
  """Markdown of the page.

  Args:
    results: results.Results.
    tuned: {(method, rate): gold reward}, as runs.Runs gives it.
    workdir: of the study, for what its runs took.
  """
  grid = results.grid
  marks = [files.read_json(path) for path in (workdir / "done").glob("*.json")]
  return TEMPLATE.format(
    date=datetime.date.today(),
    machine=text.machine(),
    runs=len(marks),
    hours=sum(mark["seconds"] for mark in marks) / 3600,
    small=f"{SMALL:g}",
    decay=f"{DECAY:g}",
    window=WINDOW,
    verdict=verdict_table(results),
    table=method_table(results),
    accuracies=accuracy_table(results),
    rates=rate_table(results, tuned),
    seeds=len(grid.seeds),
    bought=grid.gold - grid.first,
    early=grid.gold // grid.batch,
    thin=grid.gold // grid.rounds,
    **{key: getattr(grid, key) for key in USED},
  )


def verdict_table(results):
  rows = [("statement", "lead [95 %]", "verdict")]

  def add(statement, found, small, form):
    value, interval = found
    rows.append(
      (
        statement,
        with_interval(value, interval, form),
        verdict(interval, small),
      )
    )

  for better, worse in ORDER:
    if {better, worse} <= {*results.grid.methods}:
      statement = f"{TITLES[better]} has more gold than {TITLES[worse]}"
      add(statement, results.lead(better, worse), SMALL, "+.2f")
  for method, sign, what in DISCRIMINATED:
    if method in results.grid.methods:
      value, interval = results.change(method)
      found = sign * value, sorted(sign * end for end in interval)
      add(what, found, DECAY, "+.3f")
  return text.table(rows)


def method_table(results):
  rows = [("method", "steps", "gold spent", "gold reward", "of each seed")]
  rows[0] += ("less the start's [95 %]", "KL", "distinct-2", "tokens")
  first = results.grid.methods[0]
  start = results.rewards(first, look=0).mean()
  rows.append(
    (
      *("the start", "0", "0", f"{start:.2f}", "-", "-", "0"),
      f"{results.distinct_2(first, look=0):.2f}",
      f"{results.tokens(first, look=0):.1f}",
    )
  )
  for method in results.grid.methods:
    reward_RN = results.rewards(method)
    gold_R = results.gold(method)[:, -1]
    rows.append(
      (
        TITLES[method],
        str(results.curve(method)[0][-1]),
        f"{gold_R.mean():.0f}",
        f"{reward_RN.mean():.2f}",
        ", ".join(f"{one:.2f}" for one in reward_RN.mean(1)),
        with_interval(*results.gain(method), "+.2f"),
        f"{results.kl(method).mean():.1f}",
        f"{results.distinct_2(method):.2f}",
        f"{results.tokens(method):.1f}",
      )
    )
  return text.table(rows)


def accuracy_table(results):
  rows = [("discriminator of", "first", "last", "of each seed")]
  rows[0] += ("last - first [95 %]",)
  for method, _, _ in DISCRIMINATED:
    if method in results.grid.methods:
      accuracy_RW = results.accuracies(method)
      first_R, last_R = accuracy_RW[:, 0], accuracy_RW[:, -1]
      ends = zip(first_R, last_R, strict=True)
      rows.append(
        (
          TITLES[method],
          f"{first_R.mean():.3f}",
          f"{last_R.mean():.3f}",
          ", ".join(f"{a:.2f} to {b:.2f}" for a, b in ends),
          with_interval(*results.change(method), "+.3f"),
        )
      )
  return text.table(rows)


def rate_table(results, tuned):
  rates = [f"at {rate:g}" for rate in results.grid.rates]
  rows = [("gold reward of", *rates, "taken")]
  for method in dict.fromkeys(method for method, _ in tuned):
    golds = [f"{tuned[method, rate]:.2f}" for rate in results.grid.rates]
    taken = f"{best_rate(tuned, method):g}"
    rows.append((TITLES[method], *golds, taken))
  return text.table(rows)


def draw(results, to):
  """Four panels over steps: gold reward, KL, accuracy, gold spent."""
  titles = (
    *("gold reward, held out", "KL to the start, nats"),
    *("discriminator's accuracy", "gold spent, pairs"),
  )
  with drawing.row(titles, to, width=3.0, height=2.9) as (figure, axes):
    gold, kl, accuracy, spent = axes
    for place, method in enumerate(results.grid.methods):
      look = dict(color=f"C{place}", label=TITLES[method], linewidth=1.3)
      gold.plot(*results.curve(method), marker="o", markersize=3, **look)
      steps = results.curve(method)[0][-1]
      spent.plot(range(steps + 1), results.gold(method).mean(0), **look)
      end = results.kl(method).mean()
      kl.plot([steps], [end], "o", color=f"C{place}", markersize=3)
      if method != "dpo":
        some = smoothed(
          results.rounds(method, "kl").mean(0), results.grid.measured
        )
        kl.plot(range(1, len(some) + 1), some, **look)
      if any(method == one for one, _, _ in DISCRIMINATED):
        window_W = results.accuracies(method).mean(0)
        at = (np.arange(WINDOW) + 0.5) * results.grid.rounds / WINDOW
        accuracy.plot(at, window_W, marker="o", markersize=3, **look)
    for axis in axes:
      axis.set_xlabel("steps")
    handles, labels = gold.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)


def smoothed(values, most):
  """Means of each value and those before it, `most` of them at most."""
  return [
    np.mean(values[max(n - most, 0) : n]) for n in range(1, len(values) + 1)
  ]


DISCRIMINATED = (
  ("static", -1, "the static model's accuracy decays"),
  ("d2po", 1, "the accuracy of D2PO's discriminator grows"),
)
USED = (
  *("gold", "first", "buy", "every", "rounds", "batch", "prompts"),
  *("tuning_prompts", "longest_prompt", "max_prompt", "max_new_tokens"),
  *("reward_epochs", "reward_lr", "measured", "start_rounds", "start_rate"),
)
TEMPLATE = """\
# D2PO

Made by `python -m docs.studies.d2po --workdir=DIR` on {date}
({machine}):
{runs} runs, {hours:.1f} hours.

**Claim** (D2PO, arXiv:2405.01511): the same number of gold labels trains a
policy better where they keep a discriminator up to date, which labels what the
policy says, than where they label its pairs themselves; better still than with
a reward model that stays as it is, or offline.  Published ends of the word
collector, at 4,000 gold pairs: D2PO 18.6, all gold 16.4, static reward model
6.2, offline DPO 5.9 words of 30, from 4.9.

## Conclusion

By rules from before all runs but those that chose the learning rates.  A
statement *holds* where the 95 % interval of its lead lies above 0; it *does not
hold* where the interval ends below {small} words, or below {decay} of an
accuracy; else it *cannot be told at this size*.  Each is judged by itself: of
nine, one is wrong more often than of one.  The statement of D2PO and offline
DPO joined the others after the runs.

{verdict}

![curves over steps](d2po.svg)

{table}

*gold reward*: how many of the 30 words an answer to a held-out prompt holds,
mean over {prompts} prompts and {seeds} seeds.  *gold spent*: pairs that the
reward labelled, those before the first step and ties among them.  *KL*: nats a
response from the start, of the samples of the last {measured} rounds; offline,
of one round of as many samples.  *distinct-2*: share of different pairs of
neighbouring words among all answers of a seed.  Intervals are bootstraps of
prompts and of seeds, paired where it is a difference.  Curves of KL are means
of {measured} rounds and of the seeds.

How often a discriminator orders the policy's own pairs as gold does, where gold
does not tie, in the first and the last of {window} parts of a run:

{accuracies}

The interval is over seeds alone.  Published: D2PO's .72 to .88, static .58 to
.58 (of unique nouns .79 to .83, and .70 to .54).

## Setting

The start, which is the reference, is the quickstart's supervised policy (1.0 M
parameters) after {start_rounds} rounds of {batch} prompts whose pairs the
reward labelled, learning rate {start_rate:g}: of the supervised policy's own
pairs three in four tie, and its answers hold 0.2 words, where the published
start has 4.9.  The gold that the start has seen is the same for all and not
counted.  Prompts are those of HH-RLHF, harmless, of at most {max_prompt}
tokens; answers have up to {max_new_tokens} tokens, at temperature 1.  The gold
reward is the word collector `mrpo_jax.online.words:collected`.  Each method has
{gold} gold pairs:

- *D2PO*: {first} pairs of the start's own samples train the discriminator;
  every {every} rounds the {buy} pairs of the round that it tells apart least
  are bought, {bought} in all, and it learns from them in 2 passes.  {rounds}
  rounds of {batch} prompts.
- *all gold, few rounds*: the reward labels all pairs of {batch} prompts a
  round; the budget ends after {early} rounds.
- *all gold, few prompts*: the same, {rounds} rounds of {thin} prompts.
- *static reward model*: {gold} pairs of the start's own samples train it;
  {rounds} rounds of {batch} prompts that it alone labels.
- *offline DPO*: the same {gold} pairs, {rounds} steps of {batch}.

Every round is one step of DPO, beta 0.05, all weights, against the start.
Reward models start from the policy and are trained {reward_epochs} epochs on
the pairs that do not tie, learning rate {reward_lr:g}, which is that of D2PO's
discriminator, too.

Decided where the source is silent, or its sizes do not fit: 30 words of our
own; all gold is given in both ways; the share of pairs that are bought is
larger than the published one (5 of 80), as the run is shorter than its 2,000
steps of 32 pairs; a gold tie is paid for and trains nothing; all weights are
trained in the place of an adapter; answers may end at any token.

Learning rates were chosen with another seed, by the mean gold reward at the end
on {tuning_prompts} other held-out prompts:

{rates}

The loop with a static reward model takes that of D2PO and was not tried by
itself.  Where the largest is taken, a larger one may be better yet.

What was in sight: sizes were set after trial runs with that seed, of a loop
with all gold and of D2PO, from the supervised policy; that D2PO, whose
discriminator at its end told pairs apart no better than a coin (.54), gave
reason for the start above.  The learning rate 3e-3 was first tried for all gold
alone; as it was best there, the others were tried with it, too, and their runs
with the reported seeds, which had begun at 1e-3, were thrown away: D2PO had
ended at 1.57, 1.10 and 1.14 words, the static reward model, of two seeds, at
2.41 and 1.78.

Not varied: the gold budget and its division, the reward, the start and its
seed, beta, the discriminator's rate and passes, which pairs are bought.

The policy has a million parameters and trains for minutes: this shows how the
methods differ on this machine's scale, not which is better for a large one.
"""
