# SPDX-License-Identifier: Apache-2.0
"""Stop: SIGTERM or Ctrl-C end a run after its step, when it is saved."""

import contextlib
import os
import signal

from jax.experimental import multihost_utils

from mrpo_jax import processes


class Stop:
  """Asked after every step: shall the run end here?

  SIGTERM asks for it, and within `interrupts` Ctrl-C does; a second Ctrl-C ends
  the run at once.  One process of several is enough: jax catches SIGTERM and
  has all of them agree on a step.

  Attributes:
    interrupted: was it Ctrl-C, in this process?
  """

  def __init__(self):
    self._asked = self.interrupted = False
    if not processes.several():
      signal.signal(signal.SIGTERM, self._ask)

  def __call__(self, step):
    if processes.several():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  @contextlib.contextmanager
  def interrupts(self):
    """A context in which Ctrl-C saves first."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:  # of a command in the background
      yield
      return
    signal.signal(signal.SIGINT, self._interrupt)
    try:
      yield
    finally:
      signal.signal(signal.SIGINT, before)

  def _ask(self, *_):
    self._asked = True

  def _interrupt(self, *_):
    self._asked = self.interrupted = True
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError):  # no print: one may be under way
      os.write(2, b"saving after this step; Ctrl-C again ends at once\n")
    if processes.several():
      os.kill(os.getpid(), signal.SIGTERM)
