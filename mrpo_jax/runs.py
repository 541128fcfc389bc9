# SPDX-License-Identifier: Apache-2.0
"""A run: its workdir, its set-up, and what happens besides its steps."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
from collections.abc import Callable

import jax
import tqdm

from mrpo_jax import (
  adapters,
  card,
  checkpoints,
  evaluate,
  hub,
  inputs,
  losses,
  optimizer,
  parallel,
  report,
  train,
  train_state,
  workdirs,
  writer,
)
from mrpo_jax.data import loader, pack, source, vocabulary
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.models import families, leaves
from mrpo_jax.models import spec as specs
from mrpo_jax.objective import Objective


def train_run(config, workdir, *, say=print):
  """Trains to `steps`, from the newest checkpoint if there is one.

  Args:
    config: nested dict that `settings.read` returned.
    workdir: folder of the run; made if it does not exist.
    say: receives lines for a person.
  """
  stop = _stop_signal()
  workdir = pathlib.Path(workdir)
  known = workdirs.known_run(workdir, config)
  # 1. Everything that can be wrong, before anything is written.
  method = _method(config)
  mesh = parallel.make_mesh(**config["mesh"])
  packing = _packing(config, mesh, method)
  pairs = inputs.load_pairs(config)
  tokenizers = inputs.load_tokenizers(config, workdir, pairs["train"], say)
  tables = {
    split: inputs.encode_table(
      config, split, rows, tokenizers, say, chosen_only=method.supervised
    )
    for split, rows in pairs.items()
  }
  policy, *references = inputs.load_models(config, tokenizers, mesh, say)
  objective = _objective(config, method, policy, references)
  # 2. The workdir is this run's.
  identity = _identity(config, pairs, tokenizers, [policy, *references])
  if known is not None:
    workdirs.refuse_other(workdir, {"identity": identity}, known)
  # 3. State: restored first, else from the start.
  transformation, schedule = optimizer.make(
    steps=config["steps"], **config["optimizer"]
  )
  method_state = method.init(len(references))
  state, start = _state(
    policy, method_state, transformation, mesh, workdir, say
  )
  if start == config["steps"]:
    say(f"finished before: {workdir} stands at step {start}")
    return
  if start:
    say(f"resuming at step {start}")
  workdirs.claim(workdir, {**config, "identity": identity}, tokenizers.made)
  del pairs, tokenizers
  # 4. The loop.
  expected = None
  alike = functools.partial(inputs.starts_alike, policy)
  if start == 0 and references and all(map(alike, references)):
    expected = method.start_loss
  run = Run(
    config,
    workdir,
    objective,
    policy.adapter,
    tables,
    packing,
    mesh,
    schedule,
    say,
    expected,
  )
  base, _ = leaves.split(policy.params)
  frozen = base, tuple(reference.params for reference in references)
  del policy, references
  run.go(transformation, state, frozen, start, stop)


def export(workdir, to, *, merge=False):
  """The newest checkpoint of a run as a Hugging Face folder.

  Of a run that trained an adapter, that adapter as PEFT writes it; with
  `merge` the whole model, the adapter added to its base.
  """
  workdir = pathlib.Path(workdir)
  if not (workdir / workdirs.CONFIG).exists():
    raise InputError(f"--workdir {workdir} holds no run (no {workdirs.CONFIG})")
  config = json.loads((workdir / workdirs.CONFIG).read_text(encoding="utf-8"))
  step, params, model, adapter = checkpoints.newest_policy(workdir)
  section = config["policy"]
  folder = section["tokenizer"] or section["path"]
  tokenizer = vocabulary.load_tokenizer(folder or workdir / "tokenizer-policy")
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
    base = inputs.base_params(config, inputs.base_of(config, "policy"), model)
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


# Set-up.


def _identity(config, pairs, tokenizers, models):
  """Hashes of everything read, so that a resumed run reads the same."""
  data = {f"data.{k}": source.fingerprint(rows) for k, rows in pairs.items()}
  weights = {
    key: loaded.identity
    for key, loaded in zip(inputs.sections(config), models, strict=True)
  }
  return {**data, **tokenizers.identity, **weights}


def _method(config):
  keywords = {k: v for k, v in config["loss"].items() if k != "name"}
  name, references = config["loss"]["name"], config["references"]["names"]
  try:
    method = losses.build(name, **keywords)
  except (TypeError, ValueError) as error:
    raise InputError(f"config.loss: {error}") from None
  evaluates = config["data"]["eval"] and config["eval_every"]
  if method.learns and not evaluates:
    raise InputError(
      "config.loss.weights learns from held-out accuracy: set config.data.eval "
      "and config.eval_every"
    )
  if method.takes_reference and not references:
    problem = "needs a reference"
  elif method.supervised and references:
    problem = "takes no reference"
  else:
    return method
  raise InputError(
    f"config.loss.name={name!r} {problem}, but config.references.names is "
    f"{tuple(references)}"
  )


def _packing(config, mesh, method):
  shards = parallel.row_shards(mesh)
  rows = config["data"]["rows"] or shards
  if rows % shards:
    raise InputError(
      f"config.data.rows={rows} does not divide over the {shards} shards of "
      "mesh.data * mesh.fsdp"
    )
  try:
    return loader.Packing(
      batch=config["batch"],
      length=config["data"]["row_length"],
      rows=rows,
      process=jax.process_index(),
      processes=jax.process_count(),
      mark_differences=method.reads_differences,
    )
  except ValueError as error:
    raise InputError(f"config: {error}") from None


def _objective(config, method, policy, references):
  objective = Objective(
    pairs=config["batch"],
    policy=policy.model,
    references=tuple(reference.model for reference in references),
    names=tuple(config["references"]["names"]),
    method=method,
    seed=config["seed"],
  )
  try:
    objective.check()
  except (TypeError, ValueError) as error:
    raise InputError(f"config.loss: {error}") from None
  return objective


def _state(policy, method_state, transformation, mesh, workdir, say):
  """(state, steps done)."""
  table = specs.table(policy.model.config)
  if policy.adapter is not None:
    table = leaves.adapter_table(table, policy.adapter)
  shardings = train_state.shardings(table, transformation, mesh, method_state)
  _, trained = leaves.split(policy.params)
  create = functools.partial(
    train_state.create, transformation=transformation, method_state=method_state
  )
  shapes = jax.eval_shape(create, trained)
  abstract = checkpoints.abstract(shapes, shardings)
  restored = checkpoints.restore(workdir, abstract, say=say)
  if restored is None:
    return jax.jit(create, out_shardings=shardings)(trained), 0
  step, state = restored
  return state, step


def _stop_signal():
  """SIGTERM asks the run to finish its step, save and leave."""
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
  return lambda: bool(asked)


# The loop.


@dataclasses.dataclass
class Run:
  """What happens at each step besides the step."""

  config: dict
  workdir: pathlib.Path
  objective: Objective
  adapter: leaves.Adapter | None  # of the policy
  tables: dict
  packing: loader.Packing
  mesh: jax.sharding.Mesh
  schedule: Callable
  say: Callable
  expected: float | None  # the first loss, where it is known beforehand
  _metrics: writer.Metrics | None = None
  _bar: tqdm.tqdm | None = None
  _line: tuple | None = None  # of a step that an evaluation may still join
  _counts: dict = dataclasses.field(default_factory=dict)  # step -> tokens

  def go(self, transformation, state, frozen, start, stop):
    """Steps from `start` to the end, or to the step where `stop()` is True.

    `frozen` is (base, references) of `train.train_step`.
    """
    step_function = train.compile_step(
      self.objective,
      transformation,
      jax.tree.map(lambda array: array.sharding, state),
      parallel.rows_sharding(self.mesh),
    )
    held_out = self._held_out()
    steps = self.config["steps"]
    with contextlib.ExitStack() as stack:
      manager = stack.enter_context(checkpoints.manager(self.workdir))
      self._metrics = writer.Metrics(self.workdir, step=start, say=self.say)
      stack.callback(self._metrics.close)
      # None: no bar where the output is no terminal.
      hidden = None if jax.process_index() == 0 else True
      self._bar = tqdm.tqdm(total=steps, initial=start, disable=hidden)
      stack.callback(self._bar.close)

      def visit(step, state):
        if held_out and self._evaluates(step):
          state = self._evaluate(held_out, state, frozen)
        self._write_line()
        checkpoints.save(manager, step, state, self._meta(step))
        return state

      step, _ = train.fit(
        state,
        lambda state, views: step_function(state, *frozen, views),
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
    """What a checkpoint says beside its arrays, so that it can be exported."""
    policy, dtype = self.objective.policy.config, self.config["policy"]["dtype"]
    meta = {"step": step, "model": families.config_to_hf(policy, dtype)}
    if self.adapter is not None:
      meta["adapter"] = dataclasses.asdict(self.adapter)
    return meta

  def _batches(self, start):
    seed, view = self.config["seed"], self.objective.policy.view
    views = self.tables["train"].views
    for step, rows in loader.training(
      views, self.packing, seed=seed, start=start
    ):
      self._counts[step] = pack.token_counts(rows[view])
      yield step, self._place(rows)

  def _place(self, views):
    return tuple(parallel.global_rows(view, self.mesh) for view in views)

  def _held_out(self):
    if "eval" not in self.tables:
      return None
    batches = loader.evaluation(self.tables["eval"].views, self.packing)
    places = self.tables["eval"].places
    return evaluate.HeldOut(list(batches), places, self.objective, self._place)

  def _due(self, step, key):
    every = self.config[key]
    return step == self.config["steps"] or bool(every) and step % every == 0

  def _evaluates(self, step):
    return "eval" in self.tables and self._due(step, "eval_every")

  def _boundary(self, step):
    return self._evaluates(step) or self._due(step, "checkpoint_every")

  def _record(self, step, metrics, seconds):
    """Takes the figures of one step; an evaluation may still join them."""
    if step == 1 and self.expected is not None:
      _check_start(metrics["loss"], self.expected, self.config)
    real, slots = self._counts.pop(step)
    values = {
      **metrics,
      "learning_rate": float(self.schedule(step - 1)),
      "tokens/real": real,
      "tokens/slots": slots,
      "pairs": self.config["batch"],
      "dropped": self.tables["train"].dropped,
      "truncated": self.tables["train"].truncated,
      "seconds": round(seconds, 4),
    }
    self._bar.update()
    self._bar.set_postfix(loss=f"{metrics['loss']:.4f}")
    if step == 1 or self._boundary(step) or self._due(step, "log_every"):
      self._line = step, values
    if not self._boundary(step):
      self._write_line()

  def _write_line(self):
    if self._line is None:
      return
    (step, values), self._line = self._line, None
    self._metrics.write(step, values)
    steps = self.config["steps"]
    if self._bar.disable and (step == 1 or step % max(1, steps // 5) == 0):
      self.say(f"step {step}/{steps}  loss {values['loss']:.4f}")

  def _evaluate(self, held_out, state, frozen):
    """The state, with what its method learns from the held-out pairs."""
    means, pairs = held_out(state, *frozen)
    writer.write_lines(self.workdir / report.PAIRS, pairs)
    figures = {f"eval/{name}": value for name, value in means.items()}
    if self._line is not None:
      self._line[1].update(figures)
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
  tolerance = 1e-3 if dtypes == {"float32"} else 5e-2
  if abs(loss - expected) > tolerance * max(1.0, abs(expected)):
    raise StoppedRun(
      f"the first loss is {loss:.6f}, but policy and references are the same "
      f"model, so it must be {expected:.6f}: their log-probabilities disagree"
    )
