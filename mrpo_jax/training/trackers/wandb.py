# SPDX-License-Identifier: Apache-2.0
"""Weights & Biases: the lines of a run in a project of its user."""

from mrpo_jax.buckets import is_bucket
from mrpo_jax.training.trackers.samples import KEYS, SAMPLES


class Wandb:
  """A run of Weights & Biases.

  Key, host and mode are wandb's own affair: `wandb login`, WANDB_BASE_URL,
  WANDB_MODE=offline.
  """

  def __init__(self, project, run):
    """Begins a run, or goes on with that of the same id.

    Args:
      project: PROJECT or ENTITY/PROJECT.
      run: trackers.Run.

    Raises:
      ImportError: wandb is not installed.
    """
    import wandb

    self._table = wandb.Table
    entity, _, project = project.rpartition("/")
    self._run = wandb.init(
      entity=entity or None,
      project=project,
      name=run.name,
      id=run.id,
      resume="allow",
      config=run.config,
      allow_val_change=True,  # what may change in a run that goes on
      dir=None if is_bucket(run.workdir) else str(run.workdir),
    )
    # An axis of our own: wandb's drops what it has seen, and a run that was
    # killed tells again what came after its last checkpoint.
    self._run.define_metric("*", step_metric="step")

  def write(self, step, values):
    """Logs a line, its samples as a table."""
    values = {"step": step, **values}
    if SAMPLES in values:
      columns = [*KEYS]
      rows = [[one[key] for key in columns] for one in values[SAMPLES]]
      values[SAMPLES] = self._table(columns=columns, data=rows)
    self._run.log(values)

  def close(self, failed):
    self._run.finish(exit_code=int(failed))
