# SPDX-License-Identifier: Apache-2.0
"""MLflow: the lines of a run in an experiment on its tracking server."""

import collections
import re
import time

from mrpo_jax.training.trackers.samples import SAMPLES, markdown

TAG = "mrpo_jax.id"
REFUSED = re.compile(r"[^\w.\- ]")  # in names, on some system; and the slash
PARAMETERS = 100  # in one request, at most
LETTERS = 6_000  # of a parameter, at most
PENDING = 100  # lines on their way, at most; then the run waits for them


class MLflow:
  """A run of MLflow.

  Where the server is, and who asks, is MLflow's own affair:
  MLFLOW_TRACKING_URI and its kin.  Its names have . for /, since its files
  cannot have a metric `seconds` beside one of `seconds/input`, and for what it
  refuses, as the comma of a benchmark's.
  """

  def __init__(self, experiment, run):
    """Begins a run, or goes on with the one that has the id as its tag.

    The config is an artifact, config.json; parameters are those of the run's
    first start, since MLflow lets none be changed.

    Raises:
      ImportError: mlflow is not installed.
    """
    import mlflow
    from mlflow.entities import Metric, Param

    self._client, self._metric = mlflow.MlflowClient(), Metric
    found = self._client.get_experiment_by_name(experiment)
    number = (
      self._client.create_experiment(experiment)
      if found is None
      else found.experiment_id
    )
    known = self._client.search_runs([number], f"tags.`{TAG}` = '{run.id}'")
    if known:
      self._id = known[0].info.run_id
      self._client.update_run(self._id, status="RUNNING")
    else:
      tags = {TAG: run.id}
      made = self._client.create_run(number, run_name=run.name, tags=tags)
      self._id = made.info.run_id
      given = [
        Param(_named(key), str(value)[:LETTERS])
        for key, value in _flat(run.config)
      ]
      for first in range(0, len(given), PARAMETERS):
        some = given[first : first + PARAMETERS]
        self._client.log_batch(self._id, params=some)
    self._client.log_dict(self._id, run.config, "config.json")
    self._pending = collections.deque()

  def write(self, step, values):
    """Logs a line, its samples as an artifact, samples/step-N.md."""
    now = int(time.time() * 1000)
    metrics = [
      self._metric(_named(name), value, now, step)
      for name, value in values.items()
      if name != SAMPLES
    ]
    self._pending.append(
      self._client.log_batch(self._id, metrics=metrics, synchronous=False)
    )
    if SAMPLES in values:
      text = "\n\n---\n\n".join(map(markdown, values[SAMPLES]))
      self._client.log_text(self._id, text, f"{SAMPLES}/step-{step}.md")
    self._await(PENDING)

  def close(self, failed):
    try:
      self._await(0)
    finally:
      status = "FAILED" if failed else "FINISHED"
      self._client.set_terminated(self._id, status)

  def _await(self, left):
    while len(self._pending) > left:
      self._pending.popleft().wait()


def _named(name):
  return REFUSED.sub(".", name)


def _flat(values, where=""):
  for key, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{where}{key}.")
    else:
      yield f"{where}{key}", value
