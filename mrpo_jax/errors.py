# SPDX-License-Identifier: Apache-2.0
"""The one exception that means: the user's input is wrong, exit code 2."""


class InputError(ValueError):
  """Says in one line what is wrong, where it stands and what to do."""
