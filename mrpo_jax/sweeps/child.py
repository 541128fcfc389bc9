# SPDX-License-Identifier: Apache-2.0
"""The process of one run of a sweep: `mrpo train`, which outlives no sweep.

  python -m mrpo_jax.sweeps.child PID train --config=... --workdir=...

PID is the sweep's.  Where the sweep is killed, Linux sends its run SIGTERM: it
saves after its step, and holds no device that the same command then needs.
"""

import contextlib
import ctypes
import os
import signal
import sys

ON_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


def main(parent, *argv):
  """Becomes `mrpo` with these arguments."""
  with contextlib.suppress(OSError, AttributeError):  # another system
    ctypes.CDLL(None).prctl(ON_DEATH, signal.SIGTERM)
  if os.getppid() != int(parent):  # it was killed before that
    sys.exit(1)
  command = [sys.executable, "-m", "mrpo_jax", *argv]
  os.execv(sys.executable, command)


if __name__ == "__main__":
  main(*sys.argv[1:])
