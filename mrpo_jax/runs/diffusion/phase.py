# SPDX-License-Identifier: Apache-2.0
"""Phase of a denoiser's run: steps of one kind, from start to checkpoint."""

import dataclasses
import functools
import itertools
import logging
import pathlib

import jax
import numpy as np

from mrpo_jax import parallel
from mrpo_jax.data.batches import shuffled
from mrpo_jax.diffusion.denoiser import DenoiserConfig, table
from mrpo_jax.progress import stage
from mrpo_jax.runs.workdir import claim
from mrpo_jax.training import checkpoints, optimizer, trackers, train_state
from mrpo_jax.training.log import Log
from mrpo_jax.training.loop import Due, train

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Phase:
  """Steps of one kind on one set of examples."""

  workdir: pathlib.Path
  content: dict  # of config.json
  mesh: jax.sharding.Mesh
  rules: dict  # of the mesh; see `parallel.rules_of`
  denoiser: DenoiserConfig
  due: Due
  batch: int
  count: int  # examples, of which a step takes `batch`
  seed: int
  optimizer: dict  # keywords of `optimizer.make`
  unit: str  # what the examples are called
  keep: dict  # keywords of `checkpoints.manager`
  classes: tuple  # their names
  tracking: dict  # `tracking` and `name` of `trackers.opened`

  @functools.cached_property
  def made(self):
    """(transformation, schedule)."""
    return optimizer.make(steps=self.due.steps, **self.optimizer)

  def shardings(self, method_state):
    """TrainState of NamedSharding."""
    return train_state.shardings(
      *(table(self.denoiser), self.made[0], self.mesh, method_state),
      rules=self.rules,
    )

  def start(self, params, method_state):
    """(TrainState, steps done): restored, or else from `params()`."""
    to = self.shardings(method_state)
    create = functools.partial(
      train_state.create, transformation=self.made[0], seed=self.seed
    )
    shapes = jax.eval_shape(
      create,
      jax.eval_shape(params),
      method_state=method_state,
    )
    restored = checkpoints.restore(self.workdir, parallel.abstract(shapes, to))
    if restored is not None:
      return restored[::-1]
    make = jax.jit(create, out_shardings=to)
    return make(params(), method_state=method_state), 0

  def run(
    self, state, start, step_of, batch_of, *, stop, check, evaluate, look
  ):
    """(steps done, state) at the end.

    Args:
      state: TrainState after the steps done.
      start: those.
      step_of: (state, batch) -> (state, metrics), to be jitted.
      batch_of: (step, places in the examples) -> a batch on the host.
      stop: see `loop.train`.
      check: raises where the workdir is another run's by now; before a save.
      evaluate: see `loop.train`; None where `due` evaluates nothing.
      look: see `loop.train`; None where `due` looks at nothing.
    """
    claim(self.workdir, self.content, step=start)
    rows = parallel.examples_sharding(self.mesh)
    order = shuffled(self.count, self.seed)

    def batch(done):
      """The batch after so many steps, on the devices."""
      first = done * self.batch
      places = [order[i] for i in range(first, first + self.batch)]
      return jax.device_put(batch_of(done + 1, np.array(places)), rows)

    to = jax.tree.map(lambda array: array.sharding, state)
    step = jax.jit(step_of, donate_argnums=0, out_shardings=(to, None))
    with stage("compiling the step"):
      step = step.lower(state, batch(start)).compile()
    numbers = itertools.count(start)

    def next_batch(state):
      done = next(numbers)
      return state, done + 1, batch(done)

    with (
      stop.interrupts(),
      checkpoints.manager(self.workdir, **self.keep) as manager,
      Log(
        self.workdir,
        start=start,
        due=self.due,
        constants={self.unit: self.batch},
        unit=self.unit,
        rate=lambda step: float(self.made[1](step - 1)),
        watch=lambda step, metrics: None,
        trackers=trackers.opened(
          self.workdir, config=self.content, **self.tracking
        ),
      ) as log,
    ):
      if not start and self.due.looks(0):
        log.begin(look(0, state))
      return train(
        *(step, state, next_batch, log),
        due=self.due,
        evaluate=evaluate,
        look=look,
        save=functools.partial(self._save, manager, check),
        stop=stop,
      )

  def _save(self, manager, check, step, state, figures):
    check()
    meta = {
      "step": step,
      "pairs": step * self.batch,
      "config": self.content,
      "denoiser": dataclasses.asdict(self.denoiser),
      "classes": [*self.classes],
    }
    if figures is not None:
      meta["evaluation"] = figures
    checkpoints.save(manager, step, state, meta)
