# SPDX-License-Identifier: Apache-2.0
"""Runs of the study of Diffusion-DPO: starts, alignments, and their samples."""

import pathlib
from typing import NamedTuple

import numpy as np

from configs import diffusion_digits
from configs.diffusion_digits import DIGITS
from docs.studies.diffusion_dpo.measure import Judge, Measures
from docs.studies.grid.runs import said
from mrpo_jax import files
from mrpo_jax.data.images.labelled import load_images
from mrpo_jax.diffusion import folder
from mrpo_jax.diffusion.sampling import Sampling
from mrpo_jax.progress import Progress
from mrpo_jax.runs import diffusion
from mrpo_jax.runs.config import read
from mrpo_jax.runs.diffusion.drawn import draw
from mrpo_jax.runs.diffusion.export import export
from mrpo_jax.runs.diffusion.setup import NATS
from mrpo_jax.training import checkpoints
from mrpo_jax.training.log import metrics_until

LOW, HIGH = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)  # classes of either reference
START = "start"
PARTS = {START: (*LOW, *HIGH), "low": LOW, "high": HIGH}  # of real images
SAMPLED = 1 << 21  # seed of the images that an end is measured by
FIGURES = {
  "accuracy": "eval/rewards/accuracies",
  "chosen": "eval/error_change/chosen",
  "rejected": "eval/error_change/rejected",
}


class Grid(NamedTuple):
  """What is varied, and what a run is made of."""

  betas: tuple = (20, 200, 2_000, 20_000)  # of means, as the released code's
  beta: int = 2_000  # of the runs with references of half the classes
  seeds: tuple = (0, 1, 2)
  draws: int = 16  # noises of a pair, where references are scored
  samples: int = 1_000  # that an end is measured by
  config: str = ""  # of diffusion_digits
  changes: dict = {}  # of its keys

  @property
  def variants(self):
    """{name: (loss, references, draws)} of the alignments."""
    nats = NATS * 64
    found = {
      f"dpo, beta {beta:,}": (dict(name="dpo", beta=beta / nats), (START,), 0)
      for beta in self.betas
    }
    beta = self.beta / nats
    found["ipo"] = dict(name="ipo", beta=beta), (START,), 0
    found["supervised on winners"] = dict(name="nll"), (), 0
    for half in ("low", "high"):
      found[f"dpo, {half}"] = dict(name="dpo", beta=beta), (half,), 0
    both = dict(name="mrpo", beta=beta, weights="uniform", clip=None)
    found["geometric, low and high"] = (
      {**both, "mixture": "geometric"},
      ("low", "high"),
      0,
    )
    found["harmonic, low and high"] = both, ("low", "high"), self.draws
    return found


class Found(NamedTuple):
  """What there is of an alignment and a seed."""

  whole: Measures
  low: Measures  # of the classes that one reference knows
  high: Measures  # and of the others
  accuracy: float | None  # implicit, on held-out pairs; None of a start
  chosen: float | None  # change of the error of the chosen image
  rejected: float | None


class Runs:
  """All runs of a folder; what is there is not trained again."""

  def __init__(self, workdir, grid):
    self._workdir, self._grid = pathlib.Path(workdir), grid
    self.judge = Judge(DIGITS)

  def __call__(self):
    """{(name, seed): Found} of PARTS and of all variants."""
    grid, found = self._grid, {}
    names = [*PARTS, *grid.variants]
    with Progress(
      "diffusion_dpo", len(grid.seeds) * len(names), "runs"
    ) as progress:
      for seed in grid.seeds:
        for name in names:
          found[name, seed] = self._found(name, seed)
          progress.update(figures=[f"{name}, seed {seed}"], now=True)
    return found

  def _model(self, name, seed):
    """The folder of an end; trained, where it is not there."""
    path = self._workdir / "models" / f"{name}, {seed}"
    workdir = self._run(name, seed)
    if path.exists():
      return path
    config = self._config(name, seed)
    with said(self._workdir / "logs" / f"{name}, {seed}.txt"):
      diffusion.train_run(config, workdir)
    if name in PARTS:
      made = workdir / "start" / "model"
      if not made.exists():
        raise SystemExit("stopped; the same command goes on")
      path.parent.mkdir(parents=True, exist_ok=True)
      made.rename(path)
    else:
      if checkpoints.stands_at(workdir) < config.steps:
        raise SystemExit("stopped; the same command goes on")
      export(workdir, path)
    return path

  def _run(self, name, seed):
    return self._workdir / "runs" / f"{name}, {seed}"

  def _config(self, name, seed):
    """The DiffusionConfig of a run; of PARTS one without pairs."""
    c = diffusion_digits.get_config(self._grid.config).to_dict()
    for key, value in self._grid.changes.items():
      section, _, leaf = key.rpartition(".")
      (c[section] if section else c)[leaf] = value
    c["seed"], c["samples"]["each"] = seed, 0
    if name in PARTS:
      c["drawn"]["pairs"] = 0
      c["start"]["images"] = str(self._images(PARTS[name]))
      return read(c)
    loss, references, draws = self._grid.variants[name]
    c |= dict(loss=loss, draws=draws)
    c["start"]["images"] = ""
    c["denoiser"] = dict(path=str(self._model(START, seed)))
    c["references"] = dict(
      names=references,
      **{one: dict(path=str(self._model(one, seed))) for one in references},
    )
    # All runs of a seed train on the pairs that the first of them drew.
    first = next(iter(self._grid.variants))
    if name != first:
      c["drawn"]["pairs"], pairs = 0, self._run(first, seed) / "pairs"
      self._model(first, seed)
      for key, split in dict(train="train", eval="held_out").items():
        c["data"][key] = str(pairs / f"{split}.parquet")
    return read(c)

  def _images(self, classes):
    """The real training images of these classes, as a source."""
    if len(classes) == len(DIGITS):
      return "digits:train"
    path = self._workdir / f"classes-{classes[0]}-{classes[-1]}.jsonl"
    if not path.exists():
      images = load_images("digits:train", classes=DIGITS)
      rows = [
        {"image": image.tolist(), "class": DIGITS[number]}
        for image, number in zip(images.image_NHWX, images.class_N, strict=True)
        if number in classes
      ]
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_lines(path, rows)
    return path

  def samples(self, name, seed):
    """(image_NHWX, class_N) of an end: of every seed the same noises."""
    config, _, params = folder.load(self._model(name, seed))
    class_N = np.arange(self._grid.samples, dtype=np.int32) % len(DIGITS)
    return draw(config, params, SAMPLED, class_N, Sampling()), class_N

  def _found(self, name, seed):
    path = self._workdir / "done" / f"{name}, {seed}.json"
    if not path.exists():
      image, class_N = self.samples(name, seed)
      found = {
        half: self.judge(image, class_N, among)._asdict()
        for half, among in dict(whole=None, low=LOW, high=HIGH).items()
      }
      found |= self._figures(name, seed)
      path.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(path, found)
    found = files.read_json(path)
    halves = {
      half: Measures(**found.pop(half)) for half in ("whole", "low", "high")
    }
    return Found(**halves, **found)

  def _figures(self, name, seed):
    """The evaluation of a run's end; None of a start, which has none."""
    if name in PARTS:
      return dict.fromkeys(FIGURES)
    workdir = self._run(name, seed)
    last = metrics_until(workdir, checkpoints.stands_at(workdir))[-1]
    return {figure: last.get(key) for figure, key in FIGURES.items()}
