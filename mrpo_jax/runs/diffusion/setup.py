# SPDX-License-Identifier: Apache-2.0
"""Setup of a denoiser's run, checked before anything is written."""

import dataclasses
import hashlib
import pathlib

import jax
import numpy as np

from mrpo_jax import losses, parallel
from mrpo_jax.data.images.labelled import Images, load_images
from mrpo_jax.data.images.pairs import ImagePairs
from mrpo_jax.data.images.pairs import load as load_pairs
from mrpo_jax.diffusion import errors, folder
from mrpo_jax.diffusion.denoiser import DenoiserConfig, table
from mrpo_jax.diffusion.step import PairObjective
from mrpo_jax.errors import InputError, blames
from mrpo_jax.files import path_of
from mrpo_jax.hub.folder import fingerprint
from mrpo_jax.runs.config import DiffusionConfig
from mrpo_jax.runs.config.models import POLICY
from mrpo_jax.runs.config.sections import Optimizer
from mrpo_jax.runs.diffusion.reward import ImageReward
from mrpo_jax.runs.setup import mesh_of
from mrpo_jax.runs.workdir import (
  CONFIG,
  check_length,
  known_run,
  recorded,
  refuse_other,
)

START = "start"  # folder of the run before, and of the model that it ends as
NATS = 1000.0  # of each number of an image: T of the papers, omega of 1/2
# What may not change in a run, beside what the text runs have.
FIXED = (
  *("seed", "batch", "start", "drawn", "denoiser", "references.names"),
  *("data.classes", "identity.denoiser", "identity.start"),
)
# What the run before follows from; with `drawn` the pairs that it draws.
STARTED = {
  **dict.fromkeys(("seed", "start", "denoiser")),
  "optimizer": tuple({*Optimizer.model_fields} - {"peak_lr"}),  # it has its own
  "data": ("classes",),
  "identity": ("denoiser", "images"),
}


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
  reward: ImageReward | None  # None: nothing is drawn
  identity: dict

  @property
  def kinds(self):
    """Keywords of what reads its images."""
    return _kinds(self.config, self.denoiser)

  def told(self, class_N):
    """Classes as the denoiser is told them; their number stands for none."""
    known = self.denoiser.classes
    return np.where(class_N < 0, known, class_N).astype(np.int32)

  @property
  def start_model(self):
    """Folder of the policy's start."""
    if self.config.start.images:
      return self.workdir / START / "model"
    return path_of(self.config.denoiser.path)

  def shardings(self, config=None):
    """Of the policy's weights, or of another denoiser's."""
    rules = self.config.mesh.rules
    specs = table(config or self.denoiser)
    return parallel.table_shardings(specs, self.mesh, rules)

  def with_made(self):
    """With what the run made meanwhile, whose identity is the run's."""
    train, held_out = self.train, self.held_out
    if self.reward is not None:
      train, held_out = drawn_before(self.workdir, self.kinds)
    made = _of_start(self.workdir, self.config)
    made |= _of_data(train=train, eval=held_out)
    return dataclasses.replace(
      self, train=train, held_out=held_out, identity={**self.identity, **made}
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
  sizes = {"batch": config.batch}
  if config.start.images:
    sizes["start.batch"] = config.start.batch
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
    reward = _reward(config, denoiser)
    train, held_out = drawn_before(workdir, kinds)
  configs, identity = _references(config, denoiser)
  identity["denoiser"] = _identity(config.denoiser.path)
  identity |= _of_data(images=images, train=train, eval=held_out)
  identity |= _of_start(workdir, config)
  content = {**config.to_dict(), "identity": identity}
  known_run(workdir, content, allow_changed=allow_changed, fixed=FIXED)
  _check_start(workdir, content)
  setup = DenoiserSetup(
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
  with blames("config.mesh", InputError):  # of what does not divide
    for one in (denoiser, *configs):
      setup.shardings(one)
  return setup


def _check_start(workdir, content):
  """Refuses another start than that which a run without a config.json made."""
  start = workdir / START
  if (workdir / CONFIG).exists() or not (start / CONFIG).exists():
    return
  names = dict(STARTED)
  if _are_drawn(workdir):
    names["drawn"] = None
  here, there = (
    _part(one, names) for one in (content, recorded(start / CONFIG))
  )
  refuse_other(workdir, here, there, False, tuple(names))


def _part(content, names):
  """The keys of a config.json in {section: its keys, None for all of them}."""
  found = {}
  for section, keys in names.items():
    part = content.get(section)
    if keys and isinstance(part, dict):
      part = {key: one for key, one in part.items() if key in keys}
    found[section] = part
  return found


def _of_start(workdir, config):
  """{"start": identity} of the model that the run before ended as.

  {} where there is none yet, and where config.json, of an older version, does
  not note it.
  """
  model, noted = workdir / START / "model", workdir / CONFIG
  if not config.start.images or not model.exists():
    return {}
  if noted.exists() and "start" not in recorded(noted).get("identity", {}):
    return {}
  return {"start": fingerprint(model)}


def _reward(config, denoiser):
  """The ImageReward of a run, tried now, not when the start is trained."""
  reward = ImageReward(config.drawn.reward)
  noise = np.random.default_rng(0).uniform(-1, 1, (1, *denoiser.image))
  reward(
    noise.astype(np.float32),
    np.full(1, 0 if denoiser.classes else -1, np.int32),
  )
  return reward


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
  if not _are_drawn(workdir):
    return None, None
  paths = drawn_files(workdir).values()
  return tuple(load_pairs(path, **kinds) for path in paths)


def _are_drawn(workdir):
  return all(path.exists() for path in drawn_files(workdir).values())


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
  with blames("config.loss"):
    return PairObjective(
      denoiser,
      references,
      method,
      nats,
      draws=config.draws,
      seed=config.seed,
    )
