# SPDX-License-Identifier: Apache-2.0
"""A denoiser's run: images first, pairs that it draws, then preferences."""

import functools
import logging

import jax
import numpy as np

from mrpo_jax import processes
from mrpo_jax.buckets import is_bucket
from mrpo_jax.diffusion import folder
from mrpo_jax.diffusion.denoiser import table
from mrpo_jax.diffusion.step import ImageBatch, denoising_step, preference_step
from mrpo_jax.errors import InputError
from mrpo_jax.hub.folder import fingerprint
from mrpo_jax.models import parameters
from mrpo_jax.runs import owner
from mrpo_jax.runs.config.models import POLICY
from mrpo_jax.runs.diffusion.drawn import draw_pairs
from mrpo_jax.runs.diffusion.held_out import HeldOutPairs, batch_of
from mrpo_jax.runs.diffusion.phase import Phase
from mrpo_jax.runs.diffusion.pictures import Pictures
from mrpo_jax.runs.diffusion.scores import scored_errors
from mrpo_jax.runs.diffusion.setup import START, set_up
from mrpo_jax.runs.setup import best
from mrpo_jax.runs.stop import Stop
from mrpo_jax.training import trackers
from mrpo_jax.training.loop import Due

logger = logging.getLogger(__name__)


def train_run(config, workdir, *, store=None, allow_changed=False):
  """Trains a denoiser to its last step; the same call resumes.

  Args:
    config: DiffusionConfig.
    workdir: folder of the run; made if it does not exist.
    store: folder for the errors of references that are scored; None: its own.
    allow_changed: go on where the config is not that of the steps before?

  Raises:
    InputError: what was given is wrong, or the workdir is in a bucket.
  """
  if processes.several():
    raise InputError("a denoiser is trained in one process, on all its devices")
  if is_bucket(workdir):
    raise InputError(
      f"--workdir {workdir}: a denoiser is trained in a folder of a disk; copy "
      "it to the bucket afterwards"
    )
  trackers.check(config.tracking.to_dict())
  stop = Stop()
  before = owner.before(workdir)
  setup = set_up(config, workdir, allow_changed=allow_changed)
  with owner.owned(setup.workdir, before) as check:
    policy = setup.start_model
    if config.start.images and not policy.exists():
      if not _train_start(setup, policy, stop, check):
        return
    if config.drawn.pairs or config.data.train:
      store = store or setup.workdir / "store"
      _train_on_pairs(setup, store, stop, check)
    else:
      logger.info(f"there are no pairs: the denoiser of the images is {policy}")


def _initial(setup):
  """A function that makes the weights which the run before starts from."""
  path = setup.config.denoiser.path
  if path:
    return lambda: _placed(setup, folder.load(path)[2])
  make = jax.jit(
    functools.partial(parameters.init_table, table(setup.denoiser)),
    out_shardings=setup.shardings(),
  )
  return lambda: make(jax.random.key(setup.config.seed))


def _placed(setup, params, config=None):
  return jax.device_put(params, setup.shardings(config))


def _phase(setup, workdir, due, *, batch, count, unit, keeps=None, **given):
  """The Phase; `keeps` is a checkpoints.Best, `given` changes the optimizer."""
  config = setup.config
  whole = setup.workdir.absolute()
  parts = whole.name, *workdir.absolute().relative_to(whole).parts
  return Phase(
    workdir=workdir,
    # Whoever reads a workdir by itself finds the steps of that phase.
    content={**setup.content, "steps": due.steps, "batch": batch},
    mesh=setup.mesh,
    rules=config.mesh.rules,
    denoiser=setup.denoiser,
    due=due,
    batch=batch,
    count=count,
    seed=config.seed,
    optimizer={**dict(config.optimizer), **given},
    unit=unit,
    keep=dict(keep=config.checkpoints.keep, best=keeps),
    classes=config.data.classes,
    tracking=dict(tracking=config.tracking.to_dict(), name="-".join(parts)),
  )


def _train_start(setup, to, stop, check):
  """The supervised run; True where it came to its end, as the folder `to`."""
  given, images = setup.config.start, setup.images
  due = Due(
    steps=given.steps,
    log_every=setup.config.log_every,
    checkpoint_every=setup.config.checkpoint_every,
  )
  phase = _phase(
    setup,
    setup.workdir / START,
    due,
    batch=given.batch,
    count=len(images.ids),
    peak_lr=given.peak_lr,
    unit="images",
  )
  told_N = setup.told(images.class_N)

  def batch(step, place_B):
    return ImageBatch(images.image_NHWX[place_B], told_N[place_B])

  state, done = phase.start(_initial(setup), {})
  if done < given.steps:
    logger.info(f"images first: {given.steps} steps in {phase.workdir}")
    step = functools.partial(
      denoising_step,
      config=setup.denoiser,
      transformation=phase.made[0],
      without_class=given.without_class,
    )
    done, state = phase.run(
      *(state, done, step, batch),
      **dict(stop=stop, check=check, evaluate=None, look=None),
    )
  if done < given.steps:
    _say_end(setup.workdir / START, done, given.steps, stop)
    return False
  folder.save(
    to, setup.denoiser, state.params, classes=setup.config.data.classes
  )
  return True


def _train_on_pairs(setup, store, stop, check):
  config, objective = setup.config, setup.objective
  if _is_stopped(stop, "pairs"):
    return
  params = _placed(setup, folder.load(setup.start_model)[2])
  if setup.train is None:
    draw_pairs(setup, params)
  setup = setup.with_made()
  train, held_out = setup.train, setup.held_out
  references = _references(setup, params)
  kept = [found for _, _, found in references.values()]
  due = Due(
    steps=config.steps,
    log_every=config.log_every,
    eval_every=None if held_out is None else config.eval_every,
    checkpoint_every=config.checkpoint_every,
    look_every=(config.samples.every,) if config.samples.each else (),
  )
  phase = _phase(
    setup,
    setup.workdir,
    due,
    batch=config.batch,
    count=len(train.ids),
    unit="pairs",
    keeps=best(config),
  )
  method_state = objective.method.init(len(objective.references))
  state, done = phase.start(
    functools.partial(jax.tree.map, lambda array: array.copy(), params),
    method_state,
  )
  if done == config.steps:
    logger.info(f"finished before: {setup.workdir} stands at step {done}")
    return
  if done:
    logger.info(f"resuming at step {done}")
  error_MNCK = None
  if objective.draws:
    error_MNCK = scored_errors(setup, train, references, store)
  if _is_stopped(stop, f"step {done + 1} on pairs"):
    return
  step = _step_of(objective, phase.made[0], kept)
  done, _ = phase.run(
    *(state, done, step, _batches(setup, train, error_MNCK)),
    **dict(stop=stop, check=check),
    evaluate=None if held_out is None else HeldOutPairs(setup, held_out, kept),
    look=Pictures(setup) if config.samples.each else None,
  )
  _say_end(setup.workdir, done, config.steps, stop)


def _is_stopped(stop, what):
  """Was the run asked to end between its steps?  Then it is said."""
  if not stop(0):
    return False
  logger.info(f"stopped before {what}; the same command resumes")
  if stop.interrupted:
    raise KeyboardInterrupt
  return True


def _say_end(workdir, step, steps, stop):
  if step == steps:
    logger.info(f"finished: {workdir} stands at step {step}")
    return
  logger.info(f"stopped at step {step}; the same command resumes")
  if stop.interrupted:
    raise KeyboardInterrupt


def _references(setup, params):
  """{name: (identity, DenoiserConfig, parameters)}."""
  found = {}
  for name, one in setup.config.references.items():
    if one.path == POLICY:
      identity = fingerprint(setup.start_model)
      found[name] = identity, setup.denoiser, params
      continue
    config, _, read = folder.load(one.path)
    identity = setup.identity[f"references.{name}"]
    found[name] = identity, config, _placed(setup, read, config)
  return found


def _step_of(objective, transformation, references):
  """(state, batch) -> (state, metrics)."""
  fixed = tuple(references) if not objective.draws else ()

  def step(state, batch):
    return preference_step(
      *(state, fixed, batch),
      objective=objective,
      transformation=transformation,
    )

  return step


def _batches(setup, pairs, error_MNCK):
  """(step, places) -> step.PairBatch."""
  if error_MNCK is None:
    return lambda step, place_B: batch_of(setup, pairs, place_B)
  mean_NCK = error_MNCK.mean(axis=0)

  def batch(step, place_B):
    rng = np.random.default_rng([setup.config.seed, step])
    draw_B = rng.integers(len(error_MNCK), size=len(place_B)).astype(np.int32)
    return batch_of(
      setup,
      pairs,
      place_B,
      draw_B=draw_B,
      ref_error_BCK=error_MNCK[draw_B, place_B],
      mean_ref_error_BCK=mean_NCK[place_B],
    )

  return batch
