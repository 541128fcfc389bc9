# SPDX-License-Identifier: Apache-2.0
"""The config of a denoiser: images or pairs of them, references, samples."""

from typing import Annotated, Literal

from annotated_types import Ge, Lt
from pydantic import Field

from mrpo_jax.diffusion.sampling import SOLVERS
from mrpo_jax.diffusion.schedule import PREDICTIONS, SCHEDULES
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config.models import POLICY
from mrpo_jax.runs.config.section import (
  Count,
  Count32,
  Named,
  NotNegative,
  Place,
  Positive,
  Section,
  Whole,
  Whole32,
  key,
)
from mrpo_jax.runs.config.sections import (
  Checkpoints,
  Loss,
  Mesh,
  Names,
  Optimizer,
  Tracking,
  tracking_key,
)

# Figures that can say which checkpoint is the best; rewards need a reference.
JUDGED = ("eval/loss", "eval/rewards/accuracies", "eval/rewards/margins")
Share = Annotated[float, Ge(0), Lt(1)]


class NewDenoiser(Section):
  """A denoiser that is made here; used where `path` is empty."""

  patch: Count = key("pixels along a side of a patch")
  width: Count = key("size of a hidden state, a multiple of heads and of 4")
  layers: Count = key("number of blocks")
  heads: Count = key("heads of attention")
  mlp_width: Count = key("size of the MLP's hidden layer")
  prediction: Literal[tuple(PREDICTIONS)] = key(
    "what it predicts of a noisy image", "epsilon"
  )
  schedule: Literal[tuple(SCHEDULES)] = key("how images are noised", "cosine")


class ImageData(Section):
  """Pairs of images: a file, a glob or a folder of Parquet or JSON; TFDS."""

  train: Place = key("pairs to train on; empty with `drawn`", "")
  eval: Place = key("held-out pairs to evaluate on", "")
  classes: Names = key("names of the classes, in order; empty: none", ())


class Start(Section):
  """The supervised run before, on images; its workdir is WORKDIR/start."""

  images: Place = key(
    "files of images to denoise, or digits:train; empty: no such run", ""
  )
  steps: Count32 = key("optimizer steps", 4000)
  batch: Count = key("images in one step", 128)
  peak_lr: Positive = key("learning rate after the warm-up", 1e-3)
  without_class: Share = key(
    "share of the images whose class is not told, for guidance", 0.1
  )


class Drawn(Section):
  """Pairs that the policy's start draws, and a reward labels."""

  pairs: Whole32 = key("to train on; 0: data.train names them", 0)
  held_out: Count32 = key("pairs to evaluate on, beside them", 256)
  reward: Place = key(
    "module:name of a function (image_NHWX, class_N) -> rewards", "ink"
  )
  steps: Count = key("steps of DDIM that draw an image", 50)


class ImageSamples(Section):
  """Images that the policy draws, before training, on the way, at its end."""

  each: Whole32 = key("images of each class, in the picture; 0: none", 8)
  every: Whole = key("steps between them; 0: at the start and the end", 0)
  solver: Literal[SOLVERS] = key("how they are drawn", "ddim")
  steps: Count = key("steps of the solver", 50)
  guidance: NotNegative = key(
    "1: the class as it is; more: away from none", 1.0
  )


class Denoiser(Section):
  """The denoiser that is trained."""

  path: Place = key("its folder; empty: one as in `new`", "")
  new: NewDenoiser | None = Field(None, description="")


class ImageReference(Section):
  """One of them; path "policy": the policy's start."""

  path: Place = key("folder of a denoiser")


class ImageReferences(Named):
  """Frozen denoisers by name, what the policy is compared with."""

  each = ImageReference
  __pydantic_extra__: dict[str, ImageReference]
  names: Names = key("their order; the first is the base", ())


class DiffusionConfig(Section):
  """A run that trains a denoiser."""

  seed: Whole32 = key("of new weights, the order of pairs, and draws", 0)
  steps: Count32 = key("optimizer steps of the whole run")
  batch: Count = key("pairs in one optimizer step")
  log_every: Count = key("steps between lines of metrics.jsonl", 1)
  eval_every: Whole = key("steps between evaluations; 0: at the end", 0)
  checkpoint_every: Whole = key("steps between checkpoints; 0: at the end", 0)
  checkpoints: Checkpoints
  tracking: Tracking = tracking_key()
  data: ImageData
  start: Start
  drawn: Drawn
  samples: ImageSamples
  mesh: Mesh
  optimizer: Optimizer
  denoiser: Denoiser
  references: ImageReferences
  loss: Loss
  nats: NotNegative = key(
    "of denoisers: nats of a unit of mean squared error; 0: 1000 for each "
    "number of an image",
    0.0,
  )
  draws: Whole32 = key(
    "of denoisers: noises of each pair under which references are scored once; "
    "0: new ones in every step",
    0,
  )
  eval_draws: Count32 = key("of denoisers: noises of each held-out pair", 16)

  def checked(self):
    """Itself, where its keys agree."""
    denoiser, drawn, data = self.denoiser, self.drawn.pairs, self.data
    if not denoiser.path and denoiser.new is None:
      raise InputError(
        "config.denoiser.path is empty: name the folder of a denoiser, or "
        "describe a new one in config.denoiser.new"
      )
    if not denoiser.path and not self.start.images:
      raise InputError(
        "config.start.images is empty: a new denoiser is first trained on "
        "images"
      )
    if drawn and data.train:
      raise InputError(
        "give one of config.data.train, files of pairs, and "
        "config.drawn.pairs, how many to draw"
      )
    if not drawn and not data.train:
      self._check_without_pairs()
    if drawn and data.eval:
      raise InputError(
        "config.data.eval: the held-out pairs are drawn, too; see "
        "config.drawn.held_out"
      )
    self._check_references()
    best, evaluates = self.checkpoints.best, bool(data.eval or drawn)
    judged = JUDGED if self.references.names else JUDGED[:1]
    if best and (best not in judged or not evaluates):
      raise InputError(
        f"config.checkpoints.best={best!r}: a denoiser's is one of "
        f"{', '.join(JUDGED)}, of held-out pairs; the last two need a reference"
      )
    self._check_guidance()
    if self.mesh.context != 1:
      raise InputError(
        f"config.mesh.context={self.mesh.context} splits the positions of "
        "texts, which images do not have"
      )
    self.loss.check("config.loss")
    return self

  def _check_without_pairs(self):
    """Refuses what a run without pairs would pass over."""
    if not self.start.images:
      raise InputError(
        "config.data.train is empty: name files of pairs, or have "
        "config.drawn.pairs drawn"
      )
    for name, given in {
      "data.eval": self.data.eval,
      "draws": self.draws,
    }.items():
      if given:
        raise InputError(
          f"config.{name}={given!r} is of pairs, but there are none to train "
          "on: see config.data.train and config.drawn.pairs"
        )

  def _check_references(self):
    names = self.references.names
    if self.draws and not names:
      raise InputError(
        "config.draws scores references, but config.references.names is empty"
      )
    if POLICY in names:
      raise InputError(
        "config.references.names: 'policy' is the policy; name the reference "
        "otherwise"
      )
    for name, one in self.references.items():
      if not one.path:
        raise InputError(
          f"config.references.{name}.path is empty: name the folder of a "
          "denoiser, or 'policy'"
        )

  def _check_guidance(self):
    """Guidance goes away from no class, which has to have been learnt."""
    if self.samples.guidance == 1:
      return
    where = f"config.samples.guidance={self.samples.guidance:g}"
    if not self.data.classes:
      raise InputError(f"{where} needs classes: see config.data.classes")
    if self.start.images and not self.start.without_class:
      raise InputError(
        f"{where} asks what images without a class look like, of which "
        "config.start.without_class=0 teaches nothing"
      )
