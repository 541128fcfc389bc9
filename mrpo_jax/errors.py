# SPDX-License-Identifier: Apache-2.0
"""The two exceptions that end a command with one line."""


class InputError(ValueError):
  """The user's input is wrong: what, where, and what to do.  Exit code 2."""


class StoppedRun(RuntimeError):
  """A run that must not go on, and why.  Exit code 1."""
