# SPDX-License-Identifier: Apache-2.0
"""The train step of a run as one program: its state and frozen arguments."""

import dataclasses
import functools

import jax
import numpy as np

from mrpo_jax import parallel
from mrpo_jax.data.batches import Known
from mrpo_jax.losses.methods.token_loss import GIVEN
from mrpo_jax.models import lora, parameters
from mrpo_jax.references.score import known_of
from mrpo_jax.references.store import Scores
from mrpo_jax.runs.ahead import compile_to_fit
from mrpo_jax.runs.models import abstract_models, starts_alike
from mrpo_jax.training import checkpoints, optimizer, train_state, value
from mrpo_jax.training.stacked import stack
from mrpo_jax.training.step import compile_step


class Program:
  """The train step of a run with all that it is called with but the batch.

  Of a run's models, or of their shapes alone where it is only compiled.

  Attributes:
    jitted: (state, base, references, views, given) -> (state, metrics); see
      `step.train_step`.
    frozen: (base, references), the arguments that no step changes.
    state: TrainState of jax.ShapeDtypeStruct with shardings.
    adapter_size: how many weights are trained of an adapter; 0 without one.
  """

  def __init__(self, setup, loaded, ahead=None):
    """The program of a run.

    Args:
      setup: setup.Setup.
      loaded: what load_models or abstract_models gave.
      ahead: the same step as ahead.Ahead; None: the first step compiles.
    """
    config, policy = setup.config, loaded["policy"]
    self._setup = setup
    self._moves = _reference_moves(config)
    in_step, self._between = _moves_at(self._moves, config)
    transformation, self._schedule = optimizer.make(
      steps=config.steps // config.rounds.count, **dict(config.optimizer)
    )
    base, self._trained = lora.split(policy.params)
    self.frozen = base, _references(setup, loaded, self._moves)
    self.state, self._create = _abstract_state(
      setup, policy, transformation, self._moves
    )
    if setup.labels is not None:
      self.state = self.state.replace(online=setup.labels.abstract)
    self.jitted = compile_step(
      setup.objective,
      transformation,
      self._shardings(),
      parallel.rows_sharding(setup.mesh),
      in_step,
    )
    self._transformation = transformation
    sizes = [array.size for array in jax.tree.leaves(self._trained)]
    self._step = ahead or self.jitted
    self.adapter_size = sum(sizes) if policy.adapter is not None else 0
    self._adapter = policy.adapter

  def start(self, scores):
    """(TrainState, steps done): restored, or else made and measured.

    Args:
      scores: score.ScorePlan, of which the method may want to measure.
    """
    setup = self._setup
    trained, self._trained = self._trained, None  # the state has its own
    restored = checkpoints.restore(setup.workdir, self.state)
    if restored is not None:
      step, state = restored
      return state, step
    method = setup.method
    method_state = _method_state(setup, self._transformation)
    if method.measures:
      measured = {split: scores.measured(split) for split in method.measures}
      method_state = method.measure(method_state, **measured)
    made = self._shardings().replace(online={})
    make = jax.jit(self._create, out_shardings=made)
    seed = setup.config.seed
    state = make(trained, method_state=method_state, seed=seed)
    if setup.labels is not None:
      state = state.replace(online=setup.labels.create())
    return state, 0

  def step(self, state, batch):
    """(state, metrics) after one step on (views, given)."""
    return self._step(state, *self.frozen, *batch)

  @functools.cached_property
  def begin_round(self):
    """state -> the state from which a round of an online run samples."""
    if self._between is None:
      return lambda state: state
    moved = functools.partial(
      self._between, transformation=self._transformation
    )
    return jax.jit(moved, donate_argnums=0, out_shardings=self._shardings())

  def expected(self):
    """The first loss, where policy and references agree; else None."""
    policy, *references = self._setup.described.values()
    alike = functools.partial(starts_alike, policy, self._adapter)
    if references and all(map(alike, references)):
      return self._setup.method.start_loss
    return None

  def learning_rate(self, step):
    length = self._moves.round if self._moves else 0
    return float(self._schedule((step - 1) % length if length else step - 1))

  def _shardings(self):
    return jax.tree.map(lambda array: array.sharding, self.state)


def compile_ahead(setup):
  """The train step of a Setup as ahead.Ahead; no weights are read.

  Raises:
    InputError: the devices cannot hold it.
  """

  def step_of(setup):
    views = [[]] * setup.objective.views
    rows = setup.packing.whole().of(views, ())  # as large as those of pairs
    return abstract_train_step(setup, rows)[:2]

  return compile_to_fit("the step", step_of, setup)


def abstract_train_step(setup, rows):
  """(jitted train step, its abstract arguments, weights of an adapter).

  `rows` are those of all processes, per view; of any pairs.
  """
  mesh, given = setup.mesh, _given(setup, rows)
  program = Program(setup, abstract_models(setup.described, mesh))
  arguments = (
    program.state,
    *program.frozen,
    parallel.abstract(rows, parallel.rows_sharding(mesh)),
    parallel.abstract(given, parallel.figure_shardings(given, mesh)),
  )
  return program.jitted, arguments, program.adapter_size


def _given(setup, views):
  """Figures of the pairs that the step is given, as zeros."""
  per_token = [] if setup.method.token_weight is not None else None
  none_PC = np.zeros((0, 2), np.float32)
  scores = {
    k: Scores(*[none_PC] * 4, token_logps=per_token)
    for k, model in enumerate(setup.objective.references)
    if model.scored
  }
  weights = [] if setup.method.mixing.by_pair else None
  rewards = [] if setup.objective.needs("aux_reward_BC") else None
  labels = [] if setup.method.unpaired else None
  K = len(setup.objective.references)
  known = known_of([], scores, K, weights, rewards, labels)
  if setup.method.tokens is not None:
    known = Known({}, tokens=dict.fromkeys(GIVEN, []))
  return known.of(setup.packing, np.arange(0), views)


def _reference_moves(config):
  """train_state.ReferenceMoves of reference 0; None where it stays."""
  update, rounds = config.reference_update, config.rounds
  if rounds.count == 1 and not update.every:
    return None
  length = config.steps // rounds.count if rounds.count > 1 else 0
  return train_state.ReferenceMoves(
    **dict(update), round=length, alpha=rounds.alpha
  )


def _moves_at(moves, config):
  """(ReferenceMoves within steps, those between rounds); None of neither.

  An online run's rounds begin with samples of the policy that they train: it
  moves before the first of their steps.
  """
  if moves is None or not config.online.prompts or not moves.round:
    return moves, None
  within = dataclasses.replace(moves, round=0) if moves.every else None
  return within, dataclasses.replace(moves, every=0)


def _references(setup, loaded, moves):
  """Per reference its parameters, None where the step finds it elsewhere.

  Those that differ in their numbers alone are `Stacked`; see `stack`.
  """
  found = [loaded.get(name) for name in setup.config.references.names]
  params = [None if one is None else one.params for one in found]
  if moves is not None:
    params[0] = None
  taken = [loaded["policy"].params]
  if setup.objective.needs("kl_BC"):
    taken.append(params[0])  # which runs beside the policy
  return stack(setup.objective.references, params, taken)


def _method_state(setup, transformation):
  """What the method remembers before the first step."""
  own = setup.method.init(len(setup.objective.references))
  return own | value.start(setup.objective, transformation, setup.config.seed)


def _abstract_state(setup, policy, transformation, moves):
  """(TrainState of ShapeDtypeStruct, the function that makes a real one)."""
  table = parameters.table(setup.described["policy"].model.config)
  if policy.adapter is not None:
    table = lora.adapter_table(table, policy.adapter)
  method_state = _method_state(setup, transformation)
  moving = () if moves is None else moves.names
  shardings = train_state.shardings(
    table,
    transformation,
    setup.mesh,
    method_state,
    rules=dict(setup.described["policy"].section.base.rules),
    moving=moving,
  )
  create = functools.partial(
    train_state.create, transformation=transformation, moving=moving
  )
  _, trained = lora.split(policy.params)
  shapes = jax.eval_shape(create, trained, method_state=method_state)
  return parallel.abstract(shapes, shardings), create
