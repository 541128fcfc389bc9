# SPDX-License-Identifier: Apache-2.0
"""The harness's warnings as lines of our own, none of its bars and forks."""

import contextlib
import functools
import logging
import random

import tqdm
from lm_eval import evaluator, utils
from lm_eval.api import metrics
from lm_eval.api import task as of_tasks

logger = logging.getLogger(__name__)

NOISE = ("Custom kwargs can be passed", "Overwriting default num_fewshot")


class _Lines(logging.Handler):
  """Warnings of the harness as lines of our own, each once."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self._said = set()

  def emit(self, record):
    text = record.getMessage().strip().split("\n")[0]
    if text not in self._said and not any(one in text for one in NOISE):
      self._said.add(text)
      logger.warning(f"warning: of the harness: {text}")


def _bootstrap(metric, values, iters):
  """The standard error of a metric: the harness's draws, in this process.

  Its own are made by processes that it forks, beside the threads of jax.
  """
  rng = random.Random(0)  # the harness's seed of its first thousand
  draws = [metric(rng.choices(values, k=len(values))) for _ in range(iters)]
  return metrics.sample_stddev(draws)


@contextlib.contextmanager
def quiet():
  """Without a bar for the prompts of each task, or a complaint of git.

  The harness asks git about the folder where it is started, which need not be
  a repository.  It compiles the templates of a task once for each document:
  here they are kept, which saves minutes of large tasks.  And it forks to
  bootstrap; see `_bootstrap`.
  """
  bar, ask_git = of_tasks.tqdm, evaluator.get_git_commit_hash
  bootstrap = metrics.bootstrap_stderr
  if isinstance(bar, functools.partial):  # within another
    yield
    return
  theirs, lines = logging.getLogger("lm_eval"), _Lines()
  propagate = theirs.propagate
  of_tasks.tqdm = functools.partial(tqdm.tqdm, disable=True)
  evaluator.get_git_commit_hash = lambda: None
  metrics.bootstrap_stderr = _bootstrap
  utils.env.from_string = functools.lru_cache(utils.env.from_string)
  theirs.addHandler(lines)
  theirs.propagate = False
  try:
    yield
  finally:
    del utils.env.from_string  # that of its class is there again
    of_tasks.tqdm, evaluator.get_git_commit_hash = bar, ask_git
    metrics.bootstrap_stderr = bootstrap
    theirs.propagate = propagate
    theirs.removeHandler(lines)
