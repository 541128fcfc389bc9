# SPDX-License-Identifier: Apache-2.0
"""Errors of denoisers in the store: whole, in any order, and looked after."""

import json

import numpy as np
import pytest

from mrpo_jax import cli
from mrpo_jax.references import maintenance
from mrpo_jax.references.errors import ErrorColumn
from mrpo_jax.references.store import MissingRows

MATERIAL = {"weights": "sha256:ab", "dtype": "float32", "draws": 3}
# 3 noises, 5 pairs, chosen and rejected.
ERROR_MNC = np.arange(30, dtype=np.float32).reshape(3, 5, 2) / 7


@pytest.fixture
def column(tmp_path):
  return ErrorColumn(tmp_path / "store", MATERIAL)


def test_what_is_written_in_parts_is_read_in_order(column):
  column.write([3, 4], ERROR_MNC[:, 3:])
  assert column.known() == {3, 4}
  with pytest.raises(MissingRows) as found:
    column.read(5)
  assert found.value.indices == [0, 1, 2]
  column.write([2, 0, 1], ERROR_MNC[:, [2, 0, 1]])
  np.testing.assert_array_equal(column.read(5), ERROR_MNC)
  np.testing.assert_array_equal(column.read(2), ERROR_MNC[:, :2])


def test_what_is_no_error_is_refused(column):
  spoiled = ERROR_MNC.copy()
  spoiled[1, 2, 0] = np.nan
  with pytest.raises(ValueError, match="not finite"):
    column.write(range(5), spoiled)
  with pytest.raises(ValueError, match="4 pairs, errors"):
    column.write(range(4), ERROR_MNC)
  assert not column.folder.exists()


def test_mrpo_store_looks_after_them(column, tmp_path, capsys):
  column.write(range(5), ERROR_MNC)
  store = f"--store={column.root}"
  assert cli.main(["store", "ls", store]) == 0
  line = capsys.readouterr().out.splitlines()[1].split()
  assert line[:3] == [column.folder.name[:16], "5", "1"]
  assert line[-1] == MATERIAL["weights"]
  assert cli.main(["store", "verify", store]) == 0
  key = column.folder.name[:8]
  to = tmp_path / "rows.jsonl"
  assert cli.main(["store", "export", key, store, f"--to={to}"]) == 0
  rows = [json.loads(text) for text in to.read_text().splitlines()]
  assert [row["pair"] for row in rows] == [f"{n:010d}" for n in range(5)]
  np.testing.assert_array_equal(
    np.float32([row["errors_rejected"] for row in rows]).T, ERROR_MNC[..., 1]
  )


def test_a_flipped_byte_is_found_and_pruned(column, capsys):
  column.write(range(5), ERROR_MNC)
  (path,) = column.folder.glob("*.parquet")
  content = bytearray(path.read_bytes())
  content[60] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match="mrpo store verify lists broken files"):
    column.read(5)
  assert cli.main(["store", "verify", f"--store={column.root}"]) == 2
  assert maintenance.prune(column.root) == [path]
  assert column.known() == set()
