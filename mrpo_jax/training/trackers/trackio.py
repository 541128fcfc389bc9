# SPDX-License-Identifier: Apache-2.0
"""Trackio: the lines of a run in a local data base, or a space of the hub."""

import contextlib
import sys

from mrpo_jax.training.trackers.samples import SAMPLES, markdown


class Trackio:
  """A run of Trackio.

  Where it is kept is Trackio's own affair: TRACKIO_DIR, TRACKIO_SPACE_ID,
  TRACKIO_SERVER_URL.
  """

  def __init__(self, project, run):
    """Begins a run, or goes on with that of the same name, which has the id.

    Raises:
      ImportError: trackio is not installed.
    """
    import trackio

    self._library = trackio
    with _said():
      self._run = trackio.init(
        project=project,
        name=f"{run.name}-{run.id}",
        config=run.config,
        resume="allow",
        embed=False,
      )

  def write(self, step, values):
    """Logs a line, its samples as Markdown."""
    if SAMPLES in values:
      text = "\n\n---\n\n".join(map(markdown, values[SAMPLES]))
      values = {**values, SAMPLES: self._library.Markdown(text)}
    self._run.log(values, step=step)

  def close(self, failed):
    with _said():
      self._library.finish()


def _said():
  """Puts what Trackio prints where the other lines of a command are."""
  return contextlib.redirect_stdout(sys.stderr)
