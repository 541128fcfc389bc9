# SPDX-License-Identifier: Apache-2.0
"""Files of JSON: what is written is JSON, whatever the number."""

import pytest

from mrpo_jax import files
from mrpo_jax.errors import StoppedRun


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_no_json(tmp_path, number):
  path = tmp_path / "figures.json"
  files.write_json(path, {"a": 1.5})
  for write in (files.write_json, files.write_lines):
    with pytest.raises(StoppedRun, match=f"{path} is not written"):
      write(path, [{"a": number}])
  assert files.read_json(path) == {"a": 1.5}
