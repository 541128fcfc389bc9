# SPDX-License-Identifier: Apache-2.0
"""Lines made of exceptions: the first of one, and one that says where."""

import pytest

from mrpo_jax.errors import InputError, blames, first_line


def test_the_first_line_of_an_exception_is_never_empty():
  assert first_line(ValueError("\n  bad row\nat line 3")) == "bad row"
  assert first_line(TimeoutError()) == "TimeoutError()"


def test_what_is_wrong_inside_is_blamed_on_a_key():
  with pytest.raises(InputError, match="^config.loss: no such loss$") as caught:
    with blames("config.loss"):
      raise ValueError("no such loss")
  assert caught.value.__suppress_context__


def test_exceptions_of_other_kinds_pass_as_they_are():
  with pytest.raises(TypeError, match="^a bug$"):
    with blames("config.loss"):
      raise TypeError("a bug")
  with pytest.raises(ValueError, match="^a bug$") as caught:
    with blames("config.loss", InputError):
      raise ValueError("a bug")
  assert not isinstance(caught.value, InputError)
