# SPDX-License-Identifier: Apache-2.0
"""A training run, from its config to its last checkpoint."""

import contextlib
import functools
import logging
import math

import numpy as np

from mrpo_jax import files, parallel, processes
from mrpo_jax.data.batches import evaluation_batches, training_batches
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.models import parameters
from mrpo_jax.models.config import VALUED
from mrpo_jax.models.families.read import config_to_hf
from mrpo_jax.references.warnings import warnings
from mrpo_jax.runs import owner
from mrpo_jax.runs.inference.looks import Looks, periods
from mrpo_jax.runs.models import load_models, warn_of_lost_steps
from mrpo_jax.runs.program import Program, compile_ahead
from mrpo_jax.runs.rounds.driver import RoundDriver, with_figures
from mrpo_jax.runs.score import ScorePlan
from mrpo_jax.runs.setup import best, set_up
from mrpo_jax.runs.stop import Stop
from mrpo_jax.runs.streaming import Feed
from mrpo_jax.runs.workdir import (
  PAIRS,
  claim,
  recorded_config,
  write_tokenizers,
)
from mrpo_jax.training import checkpoints, trackers
from mrpo_jax.training.held_out import HeldOut, learned
from mrpo_jax.training.log import Log, finite
from mrpo_jax.training.loop import Due, train

logger = logging.getLogger(__name__)

WATCHED = 10  # steps, over which warnings judge


def train_run(
  config,
  workdir,
  *,
  store="",
  autoscore=True,
  command="",
  allow_changed=False,
):
  """Trains to `steps`, from the newest checkpoint if there is one.

  Args:
    config: Config of the run.
    workdir: folder of the run; made if it does not exist.
    store: folder of the references' scores; "" is the workdir's own.
    autoscore: score what is missing, or refuse to start?
    command: the flags that `mrpo score` needs, for that refusal.
    allow_changed: go on where the config, the data or a reference is not that
      of the steps before?  What the state was made from stays refused.
  """
  stop, workdir = Stop(), files.path_of(workdir)
  # 1. Everything that can be wrong, before anything is written.
  before = owner.before(workdir)
  trackers.check(config.tracking.to_dict())
  setup = set_up(config, workdir, allow_changed=allow_changed)
  looks = Looks(setup)
  rounds = RoundDriver(setup) if setup.labels is not None else None
  refusal = None if autoscore else command
  # 2. The workdir is this run's, and no other's.
  with owner.owned(workdir, before) as check_owner:
    with _says_what_is_kept(workdir):
      _run(setup, looks, rounds, store, refusal, stop, check_owner)


@contextlib.contextmanager
def _says_what_is_kept(workdir):
  """Adds to a StoppedRun which checkpoint there is."""
  try:
    yield
  except StoppedRun as error:
    steps = checkpoints.steps(workdir)
    kept = "there is no checkpoint yet"
    if steps:
      kept = f"the last checkpoint is kept, of step {steps[0]}"
    raise StoppedRun(f"{error}; {kept}") from error


def _run(setup, looks, rounds, store, refusal, stop, check_owner):
  """Trains in a workdir that is this run's; see `train_run`.

  Args:
    setup: setup.Setup.
    looks: looks.Looks at the policy.
    rounds: rounds.driver.RoundDriver of an online run, else None.
    store: as given to the command.
    refusal: flags of `mrpo score` to name where scores are missing; None
      scores them.
    stop: stop(step) is True when the run shall end after that step.
    check_owner: raises StoppedRun where the workdir is another run's.
  """
  config, workdir = setup.config, setup.workdir
  done = checkpoints.steps(workdir)
  scores = ScorePlan.of(setup, store, fresh=not done)
  ended = done[:1] == [config.steps]  # then nothing reads the scores
  ahead = None if ended else _prepare(setup, scores, refusal)
  # 3. The program, of models on the mesh.
  models = load_models(setup.described, setup.mesh)
  warn_of_lost_steps(config, models["policy"].params)
  adapter, program = models["policy"].adapter, Program(setup, models, ahead)
  del models  # the policy's start is the state's now
  # 4. The state: restored first, else from the start.
  state, start = program.start(scores)
  if start == config.steps:
    if processes.is_first():
      write_tokenizers(workdir, setup.tokenizers.made)
    logger.info(f"finished before: {workdir} stands at step {start}")
    return
  if ended:  # but the newest checkpoint could not be read
    scores.refuse_missing(refusal)
    scores.fill()
  if start:
    logger.info(f"resuming at step {start}")
  due, feed = _due(config), Feed(setup, start) if setup.stream else None
  next_batch, run_step = _source(setup, scores, program, start, rounds, feed)
  # 5. The workdir says whose it is.
  content = {**config.to_dict(), "identity": setup.identity}
  claim(workdir, content, setup.tokenizers.made, step=start)
  # 6. The loop.
  watch = Watch(setup, None if start else program.expected())
  evaluate = _evaluation(setup, scores, program, watch)
  look, keep = looks.of(program, due), config.checkpoints.keep
  with (
    stop.interrupts(),
    checkpoints.manager(workdir, keep=keep, best=best(config)) as manager,
    Log(
      workdir,
      start=start,
      due=due,
      constants=_constants(setup),
      rate=program.learning_rate,
      watch=watch,
      logged=_logged(workdir, config),
      trackers=trackers.opened(workdir, config.tracking.to_dict(), content),
      counts=feed and feed.figures,
    ) as log,
    feed or contextlib.nullcontext(),
  ):
    policy = setup.objective.policy.config
    place = feed.about if feed else lambda step: {}
    save = _saving(manager, content, policy, adapter, check_owner, place)
    if not start and due.looks(0):
      log.begin(look(0, state))
    step, _ = train(
      *(run_step, state, next_batch, log),
      due=due,
      evaluate=evaluate,
      look=look,
      save=save,
      stop=stop,
    )
  if feed is not None:
    feed.say(step)
  _say_end(setup, step)
  if step < config.steps and stop.interrupted:
    raise KeyboardInterrupt


def _say_end(setup, step):
  if step == setup.config.steps:
    logger.info(f"finished: {setup.workdir} stands at step {step}")
  else:
    logger.info(f"stopped at step {step}; the same command resumes")


def _prepare(setup, scores, refusal):
  """The compiled step, ahead.Ahead, and the store filled; all but weights."""
  scores.refuse_missing(refusal)
  ahead = compile_ahead(setup)
  scores.fill()
  return ahead


def _due(config):
  return Due(
    steps=config.steps,
    log_every=config.log_every,
    eval_every=config.eval_every if config.data.eval else None,
    checkpoint_every=config.checkpoint_every,
    look_every=periods(config),
    round=config.steps // config.online.rounds if config.online.prompts else 0,
  )


def _logged(workdir, config):
  """step -> had it a line?  By the config that the run had then."""
  now, past = _due(config), {}
  for path in workdir.glob("config-*.json"):
    with contextlib.suppress(InputError, ValueError, TypeError, OSError):
      until = int(path.stem.removeprefix("config-"))
      past[until] = None  # of one that cannot be read, nothing is known
      past[until] = _due(recorded_config(path, files.read_json(path)))

  def logged(step):
    until = min((one for one in past if step <= one), default=None)
    due = now if until is None else past[until]
    return due is not None and due.logs(step)

  return logged


def _source(setup, scores, program, start, rounds, feed):
  """(state -> (state, step, batch on the mesh), step) of a run of any kind."""
  if feed is not None:
    return feed.next_batch, program.step
  if rounds is not None:  # which looks for the round that the run stands in
    return rounds.of(program, start), with_figures(program.step)
  return _batches(setup, scores, start), program.step


def _batches(setup, scores, start):
  """state -> (state, step, batch on the mesh) from the one after `start` on."""
  batches = iter(
    training_batches(
      setup.views("train"),
      setup.packing,
      seed=setup.config.seed,
      start=start,
      known=scores.known("train"),
      file_weights=setup.file_weights,
    )
  )

  def next_batch(state):
    step, batch = next(batches)
    return state, step, parallel.global_batch(*batch, setup.mesh)

  return next_batch


def _constants(setup):
  """Figures that every line of the log has."""
  constants = {"pairs": setup.config.batch}
  if "train" in setup.tables:
    table = setup.tables["train"]
    constants |= {"dropped": table.dropped, "truncated": table.truncated}
  return constants


def _evaluation(setup, scores, program, watch):
  """state -> (state, figures): the held-out pairs, and what is learned."""
  if "eval" not in setup.tables:
    return None
  batches = evaluation_batches(
    setup.views("eval"), setup.packing, known=scores.known("eval")
  )
  held_out = HeldOut(
    list(batches),
    setup.tables["eval"].places,
    setup.objective,
    functools.partial(parallel.global_batch, mesh=setup.mesh),
    setup.tables["eval"].prompts,
  )

  def evaluate(state):
    means, pairs = held_out(state, *program.frozen)
    figures = {f"eval/{name}": value for name, value in means.items()}
    figures = finite(int(state.step), figures)  # before anything is written
    watch.judge(means)
    if processes.is_first():
      files.write_lines(setup.workdir / PAIRS, pairs)
    return learned(setup.objective, state, means), figures

  return evaluate


def _saving(manager, content, policy, adapter, check_owner, place):
  """(step, state, figures of an evaluation or None) -> a checkpoint.

  With the seed of its config, the pairs that are done are the place in the
  data; what else tells it is `place` of a step, a dict.
  """
  plain, _ = parameters.language_model(policy, {})
  about = {
    "config": content,
    "model": config_to_hf(plain, content["policy"]["dtype"]),
  }
  if policy.head == VALUED:  # of which a config.json knows nothing
    about["head"] = policy.head
  if adapter is not None:
    about["adapter"] = adapter.to_json()

  def save(step, state, figures):
    check_owner()
    meta = {"step": step, "pairs": step * content["batch"], **about}
    meta |= place(step)
    if figures is not None:
      meta["evaluation"] = figures
    checkpoints.save(manager, step, state, meta)

  return save


class Watch:
  """Says what looks wrong with the references, each thing once.

  It judges the mean of the first steps that this process sees, and every
  evaluation.
  """

  def __init__(self, setup, expected):
    """`expected` is the first loss, where it is known beforehand, or None."""
    self._setup, self._expected = setup, expected
    self._seen, self._said = [], set()

  def __call__(self, step, metrics):
    config = self._setup.config
    is_empty = metrics.get("labelled") == 0  # a round may hold no pairs
    if step == 1 and self._expected is not None and not is_empty:
      _check_start(metrics["loss"], self._expected, config)
    if len(self._seen) == WATCHED:
      return
    self._seen.append(metrics)
    if len(self._seen) == WATCHED or step == config.steps:
      # Some rounds of an online run have figures that others have not.
      names = set(metrics).intersection(*self._seen)
      self.judge(
        {name: np.mean([one[name] for one in self._seen]) for name in names}
      )

  def judge(self, figures):
    objective = self._setup.objective
    sizes = [math.log(one.config.vocab_size) for one in objective.references]
    names = objective.names
    found = warnings(
      figures, names, log_vocab=dict(zip(names, sizes, strict=True))
    )
    for what, sentence in found:
      if what not in self._said:
        self._said.add(what)
        logger.warning(f"warning: {sentence}")


def _check_start(loss, expected, config):
  dtypes = {section.base.dtype for section in config.models().values()}
  dtypes |= {config.policy.compute or "float32"}
  tolerance = 1e-3 if dtypes == {"float32"} else 5e-2
  if abs(loss - expected) > tolerance * max(1.0, abs(expected)):
    raise StoppedRun(
      f"the first loss is {loss:.6f}, but policy and references are the same "
      f"model, so it must be {expected:.6f}: their log-probabilities disagree"
    )
