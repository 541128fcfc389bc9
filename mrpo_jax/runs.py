# SPDX-License-Identifier: Apache-2.0
"""A run: its workdir, its set-up, and what happens besides its steps."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import signal
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from mrpo_jax import (
  adapters,
  card,
  checkpoints,
  evaluate,
  hub,
  inputs,
  loading,
  optimizer,
  parallel,
  processes,
  report,
  scoring,
  setups,
  train,
  workdirs,
  writer,
)
from mrpo_jax.data import loader, vocabulary
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.models import families, leaves
from mrpo_jax.models import spec as specs
from mrpo_jax.objective import Objective
from mrpo_jax.references import watch

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
    config: nested dict that `settings.read` returned.
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
  setup = setups.set_up(config, workdir, say, allow_changed=allow_changed)
  steps = checkpoints.steps(workdir)
  plan = setups.plan(setup, store, fresh=not steps)
  refusal = None if autoscore else command
  ended = steps[:1] == [config["steps"]]  # then nothing reads the scores
  if not ended:
    _score_missing(setup, plan, refusal, say)
  loaded = loading.load_models(config, setup.described, setup.mesh, say)
  policy = loaded["policy"]
  # 2. State: restored first, else from the start.
  rounds = config["rounds"]["count"]
  transformation, schedule = optimizer.make(
    steps=config["steps"] // rounds, **config["optimizer"]
  )
  moves = setups.moves(config)
  state, start = setups.state(setup, policy, transformation, moves, plan, say)
  if start == config["steps"]:
    say(f"finished before: {workdir} stands at step {start}")
    return
  if ended:  # but the newest checkpoint could not be read
    _score_missing(setup, plan, refusal, say)
  if start:
    say(f"resuming at step {start}")
  # 3. The workdir is this run's.
  content = {**config, "identity": setup.identity}
  workdirs.claim(workdir, content, setup.tokenizers.made, step=start, say=say)
  # 4. The loop.
  base, _ = leaves.split(policy.params)
  frozen = base, setups.frozen(setup, loaded, moves)
  expected = None if start else setups.expected(setup, policy.adapter)
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


def _score_missing(setup, plan, refusal, say):
  """Fills the store; or refuses, naming the flags of `mrpo score`."""
  if refusal is not None:
    scoring.refuse_missing(plan.missing(), refusal)
  plan.fill(setup.mesh, setup.packing, say)


def score_run(
  config,
  workdir,
  *,
  store="",
  part=(0, 1),
  allow_changed=False,
  say=processes.say,
):
  """Scores what `train_run` of the same config would, and stops there."""
  if processes.several():  # jax has taken the signal for itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  setup = setups.set_up(
    config, pathlib.Path(workdir), say, allow_changed=allow_changed
  )
  plan = setups.plan(setup, store, fresh=True)
  if not any(plan.splits.values()):
    raise InputError(
      "no reference has config.references.<name>.mode='scored', so there is "
      "nothing to score"
    )
  plan.fill(setup.mesh, setup.packing, say, part=part)
  for name, one in plan.stores.items():
    if plan.splits[name]:
      say(f"references.{name}: {len(one.known())} pairs in {one.folder}")


def export(workdir, to, *, step="newest", merge=False):
  """A checkpoint of a run as a Hugging Face folder; see `checkpoints.find`.

  Of a run that trained an adapter, that adapter as PEFT writes it; with
  `merge` the whole model, the adapter added to its base.
  """
  workdir = pathlib.Path(workdir)
  if not (workdir / workdirs.CONFIG).exists():
    raise InputError(f"--workdir {workdir} holds no run (no {workdirs.CONFIG})")
  config = writer.read_json(workdir / workdirs.CONFIG)
  step = checkpoints.find(workdir, step, setups.best(config))
  params, model, adapter, meta = checkpoints.policy(workdir, step)
  config = meta["config"]  # of that step
  section = config["policy"]
  folder = section["tokenizer"] or section["path"]
  tokenizer = vocabulary.with_template(
    vocabulary.load_tokenizer(folder or workdir / "tokenizer-policy"),
    section["template"],
  )
  metrics = {
    key: value
    for line in writer.read_lines(workdir / "metrics.jsonl")
    if line["step"] <= step
    for key, value in line.items()  # of each figure the newest
  }
  text = functools.partial(card.text, config, step, metrics)
  beside = dict(tokenizer=tokenizer, card=text(library="transformers"))
  if adapter is None:
    hub.save(to, model, params, **beside)
  elif merge:
    base = loading.base_params(config, loading.base_of(config, "policy"), model)
    whole = leaves.merge(leaves.attach(base, params, adapter))
    hub.save(to, model, whole, **beside)
  else:
    adapters.save(
      to,
      specs.table(model),
      adapter,
      params,
      base=os.path.abspath(section["path"]) if section["path"] else None,
      tokenizer=tokenizer,
      card=text(library="peft"),
    )
  print(f"step {step} of {workdir} is now {to}")


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
  adapter: leaves.Adapter | None  # of the policy
  tables: dict
  known: dict  # split -> loader.Known
  packing: loader.Packing
  mesh: jax.sharding.Mesh
  schedule: Callable
  moves: train.Moves | None
  say: Callable
  expected: float | None  # the first loss, where it is known beforehand
  _metrics: writer.Metrics | None = None
  _bar: tqdm.tqdm | None = None
  _line: tuple | None = None  # of a step that an evaluation may still join
  _evaluation: dict | None = None  # figures of this step, if it is judged
  _seen: list = dataclasses.field(
    default_factory=list
  )  # metrics of first steps
  _warned: set = dataclasses.field(default_factory=set)

  def go(self, transformation, state, frozen, start, stop):
    """Steps from `start` to the end, or to the step where `stop()` is True.

    `frozen` is (base, references) of `train.train_step`.
    """
    step_function = train.compile_step(
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
          best=setups.best(self.config),
        )
      )
      if processes.is_first():
        self._metrics = writer.Metrics(self.workdir, step=start, say=self.say)
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

      step, _ = train.fit(
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
      "model": families.config_to_hf(policy, dtype),
    }
    if self.adapter is not None:
      meta["adapter"] = dataclasses.asdict(self.adapter)
    if self._evaluation is not None:
      meta["evaluation"], self._evaluation = self._evaluation, None
    return meta

  def _batches(self, start):
    batches = loader.training(
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
    batches = loader.evaluation(
      self._views("eval"), self.packing, known=self.known["eval"]
    )
    places = self.tables["eval"].places
    return evaluate.HeldOut(list(batches), places, self.objective, self._place)

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
    found = watch.warnings(
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
      writer.write_lines(self.workdir / report.PAIRS, pairs)
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
  dtypes = {section["dtype"] for section in inputs.sections(config).values()}
  dtypes |= {config["policy"]["compute"] or "float32"}
  tolerance = 1e-3 if dtypes == {"float32"} else 5e-2
  if abs(loss - expected) > tolerance * max(1.0, abs(expected)):
    raise StoppedRun(
      f"the first loss is {loss:.6f}, but policy and references are the same "
      f"model, so it must be {expected:.6f}: their log-probabilities disagree"
    )
