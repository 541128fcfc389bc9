# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events of a run: figures as scalars, samples as text."""

import logging
import textwrap
import time

logger = logging.getLogger(__name__)

SAMPLES = "samples"  # in a line of metrics.jsonl: what the policy answered
KEYS = {"index": int, "prompt": str, "response": str, "tokens": int}
KEYS |= {"finish": str}


def are_samples(value):
  """Is it a list of samples, as lines of metrics.jsonl have them?"""
  return isinstance(value, list) and all(
    isinstance(one, dict)
    and all(type(one.get(key)) is kind for key, kind in KEYS.items())
    for one in value
  )


class Events:
  """The events of a folder, which TensorBoard shows as one run."""

  def __init__(self, workdir):
    """Opens a file in the folder.

    Raises:
      ImportError: TensorBoard is not installed.
    """
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer import event_file_writer

    self._scalar, self._text = scalar_pb, text_pb
    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    self._file = event_file_writer.EventFileWriter(str(workdir))

  def write(self, step, values):
    """The values of a line, all of that step."""
    found = self._summary()
    for tag, value in values.items():
      if tag == SAMPLES:
        for one in value:
          tag = f"{SAMPLES}/{one['index']}"
          found.MergeFrom(self._text(tag, _markdown(one)))
      else:
        found.MergeFrom(self._scalar(tag, value))
    event = self._event(step=step, wall_time=time.time(), summary=found)
    self._file.add_event(event)

  def flush(self):
    self._file.flush()

  def close(self):
    self._file.close()


def open_events(workdir):
  """Events of a run; None, which is said, where TensorBoard is not there."""
  try:
    return Events(workdir)
  except ImportError:
    logger.info("no TensorBoard events: pip install mrpo-jax[tensorboard]")
    return None


def _markdown(sample):
  """A sample as Markdown, its texts as they are."""
  prompt, response = (
    textwrap.indent(sample[key], "    ", lambda line: True)
    for key in ("prompt", "response")
  )
  about = f"{sample['tokens']} tokens, {sample['finish']}"
  return f"{prompt}\n\n**answer** ({about})\n\n{response}"
