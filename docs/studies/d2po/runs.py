# SPDX-License-Identifier: Apache-2.0
"""Runs of the study of D2PO: gold pairs, reward models, policies, measures."""

from typing import NamedTuple

from docs.studies.d2po import configs
from docs.studies.grid.pair_sets import short_prompts
from docs.studies.grid.runs import mark_of, train
from mrpo_jax import files
from mrpo_jax.configs import HH_HARMLESS
from mrpo_jax.online.rewards import reward_of
from mrpo_jax.progress import Progress
from mrpo_jax.reports.gather import gather
from mrpo_jax.runs.config import read
from mrpo_jax.runs.workdir import known_run

METHODS = ("d2po", "gold_early", "gold_thin", "static", "dpo")
# The methods whose learning rate another one takes.
AS = {"static": "d2po"}
RATES = (3e-4, 1e-3, 3e-3)  # peaks, of which one is taken


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  methods: tuple = METHODS
  seeds: tuple = (0, 1, 2)  # of prompts, samples and the order of pairs
  gold: int = 320  # pairs that the reward labels for each method
  first: int = 160  # half of them: D2PO's discriminator starts from those
  buy: int = 5  # and those that it buys
  every: int = 2  # rounds
  rounds: int = 64  # one step each
  batch: int = 16  # prompts of a round
  rates: tuple = RATES
  start_rounds: int = 48  # with all gold, that made the start of all methods
  start_rate: float = 1e-3
  tuning_seed: int = 100
  prompts: int = 96  # held out, that are answered
  tuning_prompts: int = 48  # others, by which the rates are chosen
  longest_prompt: int = 220  # characters of either
  max_prompt: int = 96  # tokens, of the prompts of the rounds
  max_new_tokens: int = 48
  row_length: int = 384
  reward_epochs: int = 10
  reward_lr: float = 3e-4  # the discriminator's, too
  measured: int = 8  # rounds, of the figures of an end
  reward: str = "mrpo_jax.online.words:collected"
  reward_options: dict = {}
  train: str = str(HH_HARMLESS / "train.jsonl.gz")
  held_out: str = str(HH_HARMLESS / "eval.jsonl.gz")


class Stage(NamedTuple):
  """A run, by the name of its folder."""

  name: str


class Found(NamedTuple):
  """What there is of a method and a seed."""

  run: object  # gather.Run of its policy
  after: object  # of a round that measured its end, where it has none
  gold_before: int  # pairs that were labelled before its first step


class Runs:
  """All runs of the study in a folder."""

  def __init__(self, workdir, grid):
    self._workdir, self._grid = workdir, grid
    self._given = workdir, grid
    prompts = short_prompts(grid.held_out, grid.longest_prompt)
    tuning = prompts[grid.prompts :][: grid.tuning_prompts]
    self._prompts = self._written("held_out", prompts[: grid.prompts])
    self._tuning_prompts = self._written("tuning", tuning or prompts)
    self._reward = reward_of(grid.reward, options=grid.reward_options)

  def _written(self, name, prompts):
    path = self._workdir / "prompts" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, [{"prompt": prompt} for prompt in prompts])
    return path

  def __call__(self):
    """({(method, seed): Found}, {(method, rate): gold reward}), all done.

    The second is of the runs by which the learning rates were chosen.
    """
    grid, found = self._grid, {}
    self._make_start()
    tuned = self._tuned()
    total = len(grid.methods) * len(grid.seeds)
    with Progress("d2po", total, "policies") as progress:
      for (
        seed
      ) in grid.seeds:  # outermost: a study that is stopped has whole ones
        for method in grid.methods:
          rate = best_rate(tuned, AS.get(method, method))
          found[method, seed] = self._found(method, seed, rate)
          progress.update(figures=[f"{method},{seed}"], now=True)
    return found, tuned

  def _make_start(self):
    """`models/start`: so few answers of a supervised policy have gold."""
    grid = self._grid
    about = dict(seed=grid.tuning_seed, rate=grid.start_rate)
    about["held_out"] = self._tuning_prompts
    config = configs.loop(*self._given, "gold_start", **about)
    self._made("start", config, model=True)

  def _tuned(self):
    """{(method, rate): mean gold reward at the end} on the tuning prompts."""
    grid, found = self._grid, {}
    for method in dict.fromkeys(AS.get(one, one) for one in grid.methods):
      for rate in grid.rates:
        name = f"tuning,{method},{rate:g}"
        config = self._config(
          method, grid.tuning_seed, rate, prompts=self._tuning_prompts
        )
        [run], _ = gather(self._made(name, config))
        said = run.samples[-1][1]
        golds = self._reward(*texts(said))
        found[method, rate] = sum(golds) / len(golds)
    return found

  def _found(self, method, seed, rate):
    config = self._config(method, seed, rate, prompts=self._prompts)
    name, after = f"{method},{seed}", None
    is_offline = method == "dpo"
    [run], _ = gather(self._made(name, config, model=is_offline))
    if is_offline:
      config = configs.measure(*self._given, self._model(name), seed=seed)
      [after], _ = gather(self._made(f"after,{name}", config))
    before = {"d2po": self._grid.first, "gold_early": 0, "gold_thin": 0}
    return Found(run, after, before.get(method, self._grid.gold))

  def _config(self, method, seed, rate, *, prompts):
    """ConfigDict of a policy; what it needs first is made."""
    about = dict(seed=seed, rate=rate, held_out=prompts)
    if method == "dpo":
      return configs.offline(*self._given, self._pairs(seed), **about)
    if method in ("d2po", "static"):
      reward = self._reward_model(seed, is_whole=method == "static")
      return configs.loop(*self._given, method, reward=reward, **about)
    return configs.loop(*self._given, method, **about)

  # What a method starts from.

  def _rounds(self, seed):
    """Files of gold pairs of the start's samples, less ties: two halves."""
    config = configs.first(*self._given, self._grid.first, seed=seed, rounds=2)
    folder = self._made(f"first,{seed}", config) / "rounds"
    return [folder / str(number) / "pairs.jsonl" for number in range(2)]

  def _pairs(self, seed):
    """The file of both halves."""
    lines = [
      one for path in self._rounds(seed) for one in files.read_lines(path)
    ]
    path = self._workdir / "pairs" / f"{seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, lines)
    return path

  def _reward_model(self, seed, *, is_whole):
    """The folder of a reward model that was trained on both, or the first."""
    pairs = self._pairs(seed) if is_whole else self._rounds(seed)[0]
    name = f"reward-{'whole' if is_whole else 'half'},{seed}"
    config = configs.reward(*self._given, pairs, seed=seed)
    self._made(name, config, model=True)
    return self._model(name)

  def _model(self, name):
    return self._workdir / "models" / name

  def _made(self, name, values, *, model=False):
    """The folder of a run that was trained, now or before."""
    config, run = read(values.to_dict()), Stage(name)
    folder = self._workdir / "runs" / name
    mark = mark_of(self._workdir, run)
    if mark.exists():  # as it would be trained today
      known_run(folder, config.to_dict())
    else:
      mark.parent.mkdir(parents=True, exist_ok=True)
      train(
        *(self._workdir, run, config),
        model=self._model(name) if model else None,
      )
    return folder


def best_rate(tuned, method):
  """The learning rate with the most gold; of equal ones the lowest."""
  rates = sorted(rate for one, rate in tuned if one == method)
  return max(rates, key=lambda rate: tuned[method, rate])


def texts(samples):
  """(prompts, responses) of samples that a run has said."""
  return [one["prompt"] for one in samples], [
    one["response"] for one in samples
  ]
