# SPDX-License-Identifier: Apache-2.0
"""A run: its workdir, its set-up, and what happens besides its steps."""

import contextlib
import dataclasses
import math
import pathlib
import signal
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from mrpo_jax import files, parallel, processes
from mrpo_jax.data.batches import Packing, evaluation_batches, training_batches
from mrpo_jax.errors import StoppedRun
from mrpo_jax.models import lora
from mrpo_jax.models.families.read import config_to_hf
from mrpo_jax.references.warnings import warnings
from mrpo_jax.runs.data import sections_of
from mrpo_jax.runs.models import load_models
from mrpo_jax.runs.program import (
  expected_start,
  frozen_arguments,
  reference_moves,
  start_state,
)
from mrpo_jax.runs.score import plan_of, score_missing
from mrpo_jax.runs.setup import best, set_up
from mrpo_jax.runs.workdir import PAIRS, claim
from mrpo_jax.training import checkpoints, optimizer, train_state
from mrpo_jax.training.held_out import HeldOut
from mrpo_jax.training.log import Metrics
from mrpo_jax.training.loop import fit
from mrpo_jax.training.objective import Objective
from mrpo_jax.training.step import compile_step

WATCHED = 10  # steps, over which warnings judge


def train_run(
  config,
  workdir,
  *,
  store="",
  autoscore=True,
  command="",
  allow_changed=False,
  say=processes.say,
):
  """Trains to `steps`, from the newest checkpoint if there is one.

  Args:
    config: nested dict that `config.read_config` returned.
    workdir: folder of the run; made if it does not exist.
    store: folder of the references' scores; "" is the workdir's own.
    autoscore: score what is missing, or refuse to start?
    command: the flags that `mrpo score` needs, for that refusal.
    allow_changed: go on where the config, the data or a reference is not that
      of the steps before?  What the state was made from stays refused.
    say: receives lines for a person.
  """
  stop = _stop_signal()
  workdir = pathlib.Path(workdir)
  # 1. Everything that can be wrong, before anything is written.
  setup = set_up(config, workdir, say, allow_changed=allow_changed)
  steps = checkpoints.steps(workdir)
  plan = plan_of(setup, store, fresh=not steps)
  refusal = None if autoscore else command
  ended = steps[:1] == [config["steps"]]  # then nothing reads the scores
  if not ended:
    score_missing(setup, plan, refusal, say)
  loaded = load_models(config, setup.described, setup.mesh, say)
  policy = loaded["policy"]
  # 2. State: restored first, else from the start.
  rounds = config["rounds"]["count"]
  transformation, schedule = optimizer.make(
    steps=config["steps"] // rounds, **config["optimizer"]
  )
  moves = reference_moves(config)
  state, start = start_state(setup, policy, transformation, moves, plan, say)
  if start == config["steps"]:
    say(f"finished before: {workdir} stands at step {start}")
    return
  if ended:  # but the newest checkpoint could not be read
    score_missing(setup, plan, refusal, say)
  if start:
    say(f"resuming at step {start}")
  # 3. The workdir is this run's.
  content = {**config, "identity": setup.identity}
  claim(workdir, content, setup.tokenizers.made, step=start, say=say)
  # 4. The loop.
  base, _ = lora.split(policy.params)
  frozen = base, frozen_arguments(setup, loaded, moves)
  expected = None if start else expected_start(setup, policy.adapter)
  run = Run(
    content,
    workdir,
    setup.objective,
    policy.adapter,
    setup.tables,
    {split: plan.known(split) for split in setup.splits},
    setup.packing,
    setup.mesh,
    schedule,
    moves,
    say,
    expected,
  )
  del policy, loaded, setup, plan
  run.go(transformation, state, frozen, start, stop)


def _stop_signal():
  """SIGTERM asks the run to finish its step, save and leave.

  One process of several is enough: jax catches the signal and has all of them
  agree on a step.
  """
  if processes.several():
    return multihost_utils.reached_preemption_sync_point
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  return lambda step: bool(asked)


# The loop.


@dataclasses.dataclass
class Run:
  """What happens at each step besides the step."""

  config: dict
  workdir: pathlib.Path
  objective: Objective
  adapter: lora.Adapter | None  # of the policy
  tables: dict
  known: dict  # split -> batches.Known
  packing: Packing
  mesh: jax.sharding.Mesh
  schedule: Callable
  moves: train_state.ReferenceMoves | None
  say: Callable
  expected: float | None  # the first loss, where it is known beforehand
  _metrics: Metrics | None = None
  _bar: tqdm.tqdm | None = None
  _line: tuple | None = None  # of a step that an evaluation may still join
  _evaluation: dict | None = None  # figures of this step, if it is judged
  _seen: list = dataclasses.field(
    default_factory=list
  )  # metrics of first steps
  _warned: set = dataclasses.field(default_factory=set)

  def go(self, transformation, state, frozen, start, stop):
    """Steps from `start` to the end, or to the step where `stop()` is True.

    `frozen` is (base, references) of `step.train_step`.
    """
    step_function = compile_step(
      self.objective,
      transformation,
      jax.tree.map(lambda array: array.sharding, state),
      parallel.rows_sharding(self.mesh),
      self.moves,
    )
    held_out = self._held_out()
    steps = self.config["steps"]
    with contextlib.ExitStack() as stack:
      manager = stack.enter_context(
        checkpoints.manager(
          self.workdir,
          keep=self.config["checkpoints"]["keep"],
          best=best(self.config),
        )
      )
      if processes.is_first():
        self._metrics = Metrics(self.workdir, step=start, say=self.say)
        stack.callback(self._metrics.close)
      self._bar = processes.bar(total=steps, initial=start)
      stack.callback(self._bar.close)

      def visit(step, state):
        if held_out and self._evaluates(step):
          state = self._evaluate(held_out, state, frozen)
        self._write_line()
        if self._metrics is not None:
          self._metrics.sync()  # no line of a step that is saved may be lost
        checkpoints.save(manager, step, state, self._meta(step))
        return state

      step, _ = fit(
        state,
        lambda state, batch: step_function(state, *frozen, *batch),
        self._batches(start),
        steps=steps,
        record=self._record,
        boundary=self._boundary,
        visit=visit,
        stop=stop,
      )
    if step < steps:
      self.say(f"stopped at step {step}; the same command resumes")
    else:
      self.say(f"finished: {self.workdir} stands at step {step}")

  def _meta(self, step):
    """What a checkpoint says beside its arrays: whose it is, what is in it.

    With the seed of its config, the pairs that are done are the place in the
    data.
    """
    policy, dtype = self.objective.policy.config, self.config["policy"]["dtype"]
    meta = {
      "step": step,
      "pairs": step * self.config["batch"],
      "config": self.config,
      "model": config_to_hf(policy, dtype),
    }
    if self.adapter is not None:
      meta["adapter"] = dataclasses.asdict(self.adapter)
    if self._evaluation is not None:
      meta["evaluation"], self._evaluation = self._evaluation, None
    return meta

  def _batches(self, start):
    batches = training_batches(
      self._views("train"),
      self.packing,
      seed=self.config["seed"],
      start=start,
      known=self.known["train"],
    )
    for step, batch in batches:
      yield step, self._place(*batch)

  def _views(self, split):
    """Of the tokenizers that the step reads."""
    return self.tables[split].views[: self.objective.views]

  def _place(self, views, given):
    rows = tuple(parallel.global_rows(view, self.mesh) for view in views)
    return rows, parallel.global_figures(given, self.mesh)

  def _held_out(self):
    if "eval" not in self.tables:
      return None
    batches = evaluation_batches(
      self._views("eval"), self.packing, known=self.known["eval"]
    )
    places = self.tables["eval"].places
    return HeldOut(list(batches), places, self.objective, self._place)

  def _due(self, step, key):
    every = self.config[key]
    return step == self.config["steps"] or bool(every) and step % every == 0

  def _evaluates(self, step):
    return "eval" in self.tables and self._due(step, "eval_every")

  def _boundary(self, step):
    return self._evaluates(step) or self._due(step, "checkpoint_every")

  def _record(self, step, metrics, seconds, waited):
    """Takes the figures of one step; an evaluation may still join them."""
    if step == 1 and self.expected is not None:
      _check_start(metrics["loss"], self.expected, self.config)
    tokens = {k: int(metrics.pop(k)) for k in ("tokens/real", "tokens/slots")}
    values = {
      **metrics,
      "learning_rate": self._learning_rate(step),
      **tokens,
      "pairs": self.config["batch"],
      "dropped": self.tables["train"].dropped,
      "truncated": self.tables["train"].truncated,
      "seconds": round(seconds, 4),
      "seconds/input": round(waited, 4),
    }
    self._watch(step, metrics)
    self._bar.update()
    self._bar.set_postfix(loss=f"{metrics['loss']:.4f}")
    if step == 1 or self._boundary(step) or self._due(step, "log_every"):
      self._line = step, values
    if not self._boundary(step):
      self._write_line()

  def _learning_rate(self, step):
    length = self.moves.round if self.moves else 0
    return float(self.schedule((step - 1) % length if length else step - 1))

  def _write_line(self):
    if self._line is None:
      return
    (step, values), self._line = self._line, None
    if self._metrics is not None:
      self._metrics.write(step, values)
    steps = self.config["steps"]
    if self._bar.disable and (step == 1 or step % max(1, steps // 5) == 0):
      self.say(f"step {step}/{steps}  loss {values['loss']:.4f}")

  def _watch(self, step, metrics):
    """Judges the mean of the first steps that this process sees."""
    if len(self._seen) == WATCHED:
      return
    self._seen.append(metrics)
    if len(self._seen) == WATCHED or step == self.config["steps"]:
      self._warn(
        {name: np.mean([one[name] for one in self._seen]) for name in metrics}
      )

  def _warn(self, figures):
    """Says what looks wrong with the references, each thing once."""
    names, references = self.objective.names, self.objective.references
    sizes = [math.log(model.config.vocab_size) for model in references]
    found = warnings(
      figures, names, log_vocab=dict(zip(names, sizes, strict=True))
    )
    for what, sentence in found:
      if what not in self._warned:
        self._warned.add(what)
        self.say(f"warning: {sentence}")

  def _evaluate(self, held_out, state, frozen):
    """The state, with what its method learns from the held-out pairs."""
    means, pairs = held_out(state, *frozen)
    self._warn(means)
    if processes.is_first():
      files.write_lines(self.workdir / PAIRS, pairs)
    figures = {f"eval/{name}": value for name, value in means.items()}
    if self._line is not None:
      self._line[1].update(figures)
    self._evaluation = figures
    method, K = self.objective.method, len(self.objective.references)
    if not method.learns:
      return state
    # Of the policy alone and per token, so that no weight enters it.
    accuracy = means["policy_mean/rewards/accuracies"]
    judge = jax.jit(method.judge, static_argnames="K")
    method_state = judge(state.method_state, accuracy, K=K)
    return state.replace(method_state=method_state)


def _check_start(loss, expected, config):
  dtypes = {section["dtype"] for section in sections_of(config).values()}
  dtypes |= {config["policy"]["compute"] or "float32"}
  tolerance = 1e-3 if dtypes == {"float32"} else 5e-2
  if abs(loss - expected) > tolerance * max(1.0, abs(expected)):
    raise StoppedRun(
      f"the first loss is {loss:.6f}, but policy and references are the same "
      f"model, so it must be {expected:.6f}: their log-probabilities disagree"
    )
