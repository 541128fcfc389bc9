# SPDX-License-Identifier: Apache-2.0
"""Lines that the package logs, where a fixture cannot have caplog."""

import contextlib
import logging


@contextlib.contextmanager
def logged():
  """A list that gets each line that is logged inside."""
  logger, lines, handler = logging.getLogger("mrpo_jax"), [], logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage())
  level = logger.level
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  try:
    yield lines
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
