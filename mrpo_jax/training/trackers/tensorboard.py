# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events of a run: figures as scalars, samples as text."""

import time

from mrpo_jax.buckets import Staged
from mrpo_jax.training.trackers.samples import SAMPLES, markdown


class TensorBoard:
  """The events of a workdir, which TensorBoard shows as one run."""

  def __init__(self, workdir):
    """Opens a file in the workdir.

    Raises:
      ImportError: TensorBoard is not installed.
    """
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer import event_file_writer

    self._scalar, self._text = scalar_pb, text_pb
    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    self._staged = Staged(workdir)
    self._file = event_file_writer.EventFileWriter(str(self._staged.folder))

  def write(self, step, values):
    """The values of a line, all of that step."""
    found = self._summary()
    for tag, value in values.items():
      if tag == SAMPLES:
        for one in value:
          tag = f"{SAMPLES}/{one['index']}"
          found.MergeFrom(self._text(tag, markdown(one)))
      else:
        found.MergeFrom(self._scalar(tag, value))
    event = self._event(step=step, wall_time=time.time(), summary=found)
    self._file.add_event(event)

  def sync(self):
    self._file.flush()
    self._staged.sync()

  def close(self, failed):
    self._file.close()
    self._staged.close()
