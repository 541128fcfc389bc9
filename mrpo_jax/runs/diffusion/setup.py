# SPDX-License-Identifier: Apache-2.0
"""What a denoiser's run is made of, checked before anything is written."""

import dataclasses
import hashlib
import importlib
import pathlib

import jax
import numpy as np

from mrpo_jax import losses, parallel
from mrpo_jax.data.images.labelled import Images, load_images
from mrpo_jax.data.images.pairs import ImagePairs
from mrpo_jax.data.images.pairs import load as load_pairs
from mrpo_jax.diffusion import errors, folder, rewards
from mrpo_jax.diffusion.denoiser import DenoiserConfig
from mrpo_jax.diffusion.step import PairObjective
from mrpo_jax.errors import InputError, blames
from mrpo_jax.hub.folder import fingerprint
from mrpo_jax.runs.config import DiffusionConfig
from mrpo_jax.runs.config.models import POLICY
from mrpo_jax.runs.setup import mesh_of
from mrpo_jax.runs.workdir import check_length, known_run

NATS = 1000.0  # of each number of an image: as many as times in the papers
# What may not change in a run, beside what the text runs have.
FIXED = (
  *("seed", "batch", "start", "drawn", "denoiser", "references.names"),
  *("data.classes", "identity.denoiser"),
)


@dataclasses.dataclass(frozen=True)
class DenoiserSetup:
  """All of a run that is checked before weights are read."""

  config: DiffusionConfig
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  denoiser: DenoiserConfig
  objective: PairObjective
  images: Images | None  # of the run before
  train: ImagePairs | None  # None: drawn by the start
  held_out: ImagePairs | None
  reward: object  # (image_NHWX, class_N) -> reward_N; None: nothing is drawn
  identity: dict

  @property
  def kinds(self):
    """Keywords of what reads its images."""
    return _kinds(self.config, self.denoiser)

  def told(self, class_N):
    """Classes as the denoiser is told them; their number stands for none."""
    known = self.denoiser.classes
    return np.where(class_N < 0, known, class_N).astype(np.int32)

  def with_drawn(self):
    """With the pairs that were drawn meanwhile, whose identity is the run's."""
    train, held_out = drawn_before(self.workdir, self.kinds)
    found = _of_data(train=train, eval=held_out)
    return dataclasses.replace(
      self,
      train=train,
      held_out=held_out,
      identity={**self.identity, **found},
    )

  @property
  def content(self):
    """Of config.json."""
    return {**self.config.to_dict(), "identity": self.identity}


def set_up(config, workdir, *, allow_changed=False):
  """The DenoiserSetup of a run, or InputError; writes nothing."""
  workdir = pathlib.Path(workdir)
  known_run(workdir, config.to_dict(), allow_changed=allow_changed, fixed=FIXED)
  check_length(workdir, config)
  mesh = mesh_of(config)
  shards = parallel.row_shards(mesh)
  sizes = {"batch": config.batch, "start.batch": config.start.batch}
  for name, size in sizes.items():
    if size % shards:
      raise InputError(
        f"config.{name}={size} does not divide over the {shards} shards of the "
        "mesh"
      )
  given = config.data
  images = train = held_out = None
  if config.start.images:
    images = load_images(config.start.images, classes=given.classes)
  denoiser = _denoiser(config, images)
  kinds = _kinds(config, denoiser)
  if given.train:
    train = load_pairs(given.train, **kinds)
  if given.eval:
    held_out = load_pairs(given.eval, **kinds)
  reward = None
  if config.drawn.pairs:
    reward = reward_of(config.drawn.reward)
    train, held_out = drawn_before(workdir, kinds)
  configs, identity = _references(config, denoiser)
  identity["denoiser"] = _identity(config.denoiser.path)
  identity |= _of_data(images=images, train=train, eval=held_out)
  known_run(
    workdir,
    {**config.to_dict(), "identity": identity},
    allow_changed=allow_changed,
    fixed=FIXED,
  )
  return DenoiserSetup(
    config,
    workdir,
    mesh,
    denoiser,
    _objective(config, denoiser, configs),
    images,
    train,
    held_out,
    reward,
    identity,
  )


def _references(config, denoiser):
  """(DenoiserConfig of each reference, {name: identity} of their folders)."""
  configs, identity = [], {}
  for name, one in config.references.items():
    if one.path == POLICY:
      configs.append(denoiser)
      continue
    found, names = folder.read_config(one.path)
    errors.check_reference(denoiser, found, f"config.references.{name}")
    if names and names != config.data.classes:
      raise InputError(
        f"config.references.{name}: its classes are {', '.join(names)}, those "
        f"of config.data.classes {', '.join(config.data.classes)}"
      )
    configs.append(found)
    identity[f"references.{name}"] = _identity(one.path)
  return tuple(configs), identity


def _kinds(config, denoiser):
  height, width, channels = denoiser.image
  size, classes = (height, width), config.data.classes
  return dict(classes=classes, size=size, channels=channels)


def drawn_files(workdir):
  """{split: path} of the pairs that a run draws."""
  return {
    split: workdir / "pairs" / f"{split}.parquet"
    for split in ("train", "held_out")
  }


def drawn_before(workdir, kinds):
  """(train, held_out) ImagePairs that the run has drawn; (None, None)."""
  paths = drawn_files(workdir).values()
  if not all(path.exists() for path in paths):
    return None, None
  return tuple(load_pairs(path, **kinds) for path in paths)


def _of_data(**data):
  """{name: SHA-256 of the ids} of what is there."""
  return {
    name: hashlib.sha256("".join(one.ids).encode()).hexdigest()
    for name, one in data.items()
    if one is not None
  }


def _identity(path):
  return fingerprint(path) if path else "new"


def _denoiser(config, images):
  """The DenoiserConfig of the policy, which its images and classes fit."""
  classes, given = config.data.classes, config.denoiser
  if not given.path:
    shape = tuple(images.image_NHWX.shape[1:])
    with blames("config.denoiser.new", InputError):
      return DenoiserConfig(shape, len(classes), **dict(given.new))
  found, names = folder.read_config(given.path)
  if names != classes:
    raise InputError(
      f"config.data.classes is {[*classes]}, but {given.path} knows {[*names]}"
    )
  if images is not None and images.image_NHWX.shape[1:] != found.image:
    raise InputError(
      f"config.start.images are of {images.image_NHWX.shape[1:]}, but "
      f"{given.path} is of {found.image}"
    )
  return found


def _objective(config, denoiser, references):
  nats = config.nats or NATS * float(np.prod(denoiser.image))
  with blames("config.loss", (TypeError, ValueError)):
    method = losses.build(config.loss.name, **config.loss.keywords)
  if method.takes_reference != bool(references):
    problem = "needs a" if method.takes_reference else "takes no"
    raise InputError(
      f"config.loss.name={config.loss.name!r} {problem} reference, but "
      f"config.references.names is {config.references.names}"
    )
  with blames("config.loss", InputError):
    return PairObjective(
      denoiser,
      references,
      method,
      nats,
      draws=config.draws,
      seed=config.seed,
    )


def reward_of(name):
  """The function (image_NHWX, class_N) -> reward_N of a name.

  Raises:
    InputError: there is none.
  """
  if name in rewards.REWARDS:
    return rewards.REWARDS[name]
  module, _, attribute = name.partition(":")
  try:
    found = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise InputError(
      f"config.drawn.reward={name!r}: {error}; name one of "
      f"{', '.join(rewards.REWARDS)}, or module:name of a function"
    ) from None
  if not callable(found):
    raise InputError(f"config.drawn.reward={name!r} is no function")
  return found
