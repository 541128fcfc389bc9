# SPDX-License-Identifier: Apache-2.0
"""The store: whole files or none, in any order, by any number of writers."""

import csv
import errno
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_jax import cli, files
from mrpo_jax.errors import InputError
from mrpo_jax.references import maintenance, store

ROOT = pathlib.Path(__file__).parents[2]
MATERIAL = {"weights": "sha256:ab", "dtype": "float32", "max_prompt": 512}
# Writes pairs first .. last - 1, three a file, as often as told.
WRITER = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from tests.references import test_store as t
from mrpo_jax.references import store
one = store.Store(sys.argv[1], t.MATERIAL)
first, last, times = map(int, sys.argv[3:])
print("ready", flush=True)
for _ in range(times):
  for n in range(first, last, 3):
    numbers = range(n, n + 3)
    one.write(t.names(numbers), t.scores(numbers))
"""


def names(numbers):
  """Fingerprints that do not sort as their numbers do."""
  return [hashlib.sha256(str(n).encode()).hexdigest() for n in numbers]


def scores(numbers, *, tokens=False, **changed):
  """Pair n: 2 tokens of -n - 0.25 nats chosen, 1 of -n - 1 rejected."""
  n = np.array(list(numbers), np.float32)
  token_logps = [
    (np.float32([-x - 0.25] * 2), np.float32([-x - 1.0])) for x in n
  ]
  figures = {
    "logp_PC": np.stack([-2 * n - 0.5, -n - 1.0], axis=1),
    "token_PC": np.tile(np.int32([2, 1]), (len(n), 1)),
    "character_PC": np.stack([n + 7, n + 3], axis=1).astype(np.int32),
    "entropy_PC": np.stack([n + 0.125, n], axis=1),
    "token_logps": token_logps if tokens else None,
  }
  return store.Scores(**{**figures, **changed})


def filled(root, numbers=(3, 1, 2), *, tokens=False, **material):
  one = store.Store(root, {**MATERIAL, **material}, per_token=tokens)
  one.write(names(numbers), scores(numbers, tokens=tokens))
  return one


def same(found, wanted):
  for name in ("logp_PC", "token_PC", "character_PC", "entropy_PC"):
    array, want = getattr(found, name), getattr(wanted, name)
    np.testing.assert_array_equal(array, want)
    assert array.dtype == want.dtype
  if wanted.token_logps is None:
    assert found.token_logps is None
    return
  assert len(found.token_logps) == len(wanted.token_logps)
  for row, wanted_row in zip(
    found.token_logps, wanted.token_logps, strict=True
  ):
    for array, want in zip(row, wanted_row, strict=True):
      np.testing.assert_array_equal(array, want)
      assert array.dtype == np.float32


def shards(one):
  return sorted(one.folder.glob("*.parquet"))


def forged(one, **changed):
  """A file whose name is right and whose columns are changed."""
  (path,) = shards(one)
  table = pq.read_table(path)
  for name, column in changed.items():
    table = table.set_column(table.column_names.index(name), name, column)
  content = pa.BufferOutputStream()
  pq.write_table(table, content)
  content = content.getvalue().to_pybytes()
  path.unlink()
  path = one.folder / f"{hashlib.sha256(content).hexdigest()}.parquet"
  path.write_bytes(content)
  return path


def writer(root, first, last, times=1):
  process = subprocess.Popen(
    [sys.executable, "-c", WRITER, str(root), str(ROOT)]
    + [str(n) for n in (first, last, times)],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


# Keys.


@pytest.mark.parametrize("name", sorted(MATERIAL))
def test_any_entry_of_the_material_changes_the_key(name):
  changed = {**MATERIAL, name: "other"}
  assert store.key_of(changed) != store.key_of(MATERIAL)


def test_the_order_of_the_material_does_not_change_the_key():
  backwards = dict(reversed(MATERIAL.items()))
  assert list(backwards) != list(MATERIAL)
  assert store.key_of(backwards) == store.key_of(MATERIAL)


def test_the_key_is_a_hash_that_anybody_can_redo():
  text = '{"a": 1, "scoring": 1}'  # keys sorted
  want = hashlib.sha256(text.encode()).hexdigest()
  assert store.key_of({"a": 1}) == want


def test_what_is_computed_is_part_of_the_key(monkeypatch):
  before = store.key_of(MATERIAL)
  monkeypatch.setattr(store, "SCORING", store.SCORING + 1)
  assert store.key_of(MATERIAL) != before


# Reading and writing.


@pytest.mark.parametrize("tokens", [False, True])
def test_what_is_written_is_read_in_any_order_and_repeated(tmp_path, tokens):
  one = filled(tmp_path, (3, 1, 2), tokens=tokens)
  one.write(names([5, 4]), scores([5, 4], tokens=tokens))
  order = [4, 1, 4, 3, 5, 2]
  same(one.read(names(order)), scores(order, tokens=tokens))
  # Pair 4: two chosen tokens of -4.25 nats, one rejected of -5.
  assert one.read(names([4])).logp_PC.tolist() == [[-8.5, -5.0]]
  assert one.known() == set(names([1, 2, 3, 4, 5]))


def alone(numbers, **changed):
  """Of single responses: 0 where a pair has its rejected one."""
  given = scores(numbers, tokens=True)
  own = {
    name: getattr(given, name) * np.array([1, 0], getattr(given, name).dtype)
    for name in ("logp_PC", "token_PC", "character_PC", "entropy_PC")
  }
  own["token_logps"] = [
    (chosen, np.float32([])) for chosen, _ in given.token_logps
  ]
  return store.Scores(**{**own, **changed})


@pytest.mark.parametrize("tokens", [False, True])
def test_single_responses_have_nothing_beside_them(tmp_path, tokens):
  none = {} if tokens else dict(token_logps=None)
  one = store.Store(tmp_path, MATERIAL, per_token=tokens)
  one.write(names([1, 2]), alone([1, 2], **none))
  same(one.read(names([2, 1])), alone([2, 1], **none))


@pytest.mark.parametrize(
  "changed",
  [
    dict(logp_PC=np.float32([[-2.5, -1.0]])),  # of a response that is not there
    dict(token_PC=np.int32([[0, 0]]), logp_PC=np.float32([[0.0, 0.0]])),
  ],
)
def test_what_has_no_tokens_has_no_figures(tmp_path, changed):
  one = store.Store(tmp_path, MATERIAL)
  with pytest.raises(ValueError, match="or a response has no tokens"):
    one.write(names([1]), alone([1], token_logps=None, **changed))


@pytest.mark.parametrize("tokens", [False, True])
def test_reading_nothing_gives_nothing(tmp_path, tokens):
  one = filled(tmp_path, tokens=tokens)
  same(one.read([]), scores([], tokens=tokens))


def test_nothing_is_made_before_the_first_write(tmp_path):
  one = store.Store(tmp_path / "root", MATERIAL)
  assert one.known() == set()
  with pytest.raises(store.MissingRows):
    one.read(names([1]))
  one.write([], scores([]))
  assert not (tmp_path / "root").exists()


def test_missing_rows_are_named_by_their_places(tmp_path):
  one = filled(tmp_path, (1, 2))
  with pytest.raises(store.MissingRows, match="3 pairs") as caught:
    one.read(names([9, 1, 8, 2, 9]))
  assert caught.value.indices == [0, 2, 4]
  assert isinstance(caught.value, ValueError)


def test_of_a_repeated_pair_the_first_row_is_written(tmp_path):
  one = store.Store(tmp_path, MATERIAL)
  a, b = names([1, 2])
  one.write([a, b, a], scores([1, 2, 7]))
  same(one.read([a, b]), scores([1, 2]))
  assert pq.read_metadata(shards(one)[0]).num_rows == 2


def test_of_several_files_the_first_by_name_counts(tmp_path):
  one, (pair,) = store.Store(tmp_path, MATERIAL), names([0])
  number_of = {}
  for n in range(8):
    before = set(shards(one))
    one.write([pair], scores([n]))
    (new,) = set(shards(one)) - before
    number_of[new] = n
  first = number_of[min(number_of)]
  same(one.read([pair, pair]), scores([first, first]))


def test_equal_content_gives_an_equal_file(tmp_path):
  one = filled(tmp_path, (3, 1, 2), tokens=True)
  content = shards(one)[0].read_bytes()
  one.write(names([2, 3, 1, 2]), scores([2, 3, 1, 2], tokens=True))
  (path,) = shards(one)
  assert path.read_bytes() == content
  assert path.stem == hashlib.sha256(content).hexdigest()
  pairs = pq.read_table(path)["pair"].to_pylist()
  assert pairs == sorted(names([1, 2, 3]))


def test_rows_without_tokens_are_missing_where_tokens_are_asked(tmp_path):
  plain = filled(tmp_path, (1, 2))
  asked = store.Store(tmp_path, MATERIAL, per_token=True)
  assert asked.key == plain.key
  assert asked.known() == set()
  asked.write(names([2]), scores([2], tokens=True))
  assert asked.known() == set(names([2]))
  assert plain.known() == set(names([1, 2]))
  with pytest.raises(store.MissingRows) as caught:
    asked.read(names([2, 1]))
  assert caught.value.indices == [1]
  same(asked.read(names([2])), scores([2], tokens=True))
  same(plain.read(names([2, 1])), scores([2, 1]))


def test_the_manifest_says_what_the_key_covers_and_the_units(tmp_path):
  one = filled(tmp_path, tokens=True)
  manifest = json.loads((one.folder / store.MANIFEST).read_text())
  assert manifest["key covers"] == MATERIAL
  assert (manifest["scoring"], manifest["schema"]) == (1, 1)
  assert manifest["columns"] == store.COLUMNS
  assert set(store.COLUMNS) == set(pq.read_schema(shards(one)[0]).names)
  assert "nats" in store.COLUMNS["logp_chosen"]


@pytest.mark.parametrize(
  "changed",
  [
    {"logp_PC": np.float32([[-1, -1], [-1, np.nan]])},
    {"logp_PC": np.float32([[-1, -1], [-np.inf, -1]])},
    {"entropy_PC": np.float32([[1, 1], [np.nan, 1]])},
    {
      "token_PC": np.int32([[2, 1], [2, 0]]),
      "token_logps": [(np.ones(2), np.ones(1)), (np.ones(2), np.ones(0))],
    },
    {"token_logps": [(np.ones(2), np.ones(1)), (np.ones(2), np.ones(2))]},
    {"token_logps": [(np.ones(2), np.ones(1)), (np.ones(2), [np.inf])]},
  ],
)
def test_a_bad_row_is_refused_by_its_pair(tmp_path, changed):
  one = store.Store(tmp_path, MATERIAL, per_token=True)
  with pytest.raises(ValueError, match="pair second"):
    one.write(["first", "second"], scores([1, 2], tokens=True, **changed))
  assert not one.folder.exists()


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("logp_PC", np.ones((2, 3), np.float32)),
    ("token_PC", np.ones(2, np.int32)),
    ("character_PC", np.ones((3, 2), np.int32)),
    ("entropy_PC", np.ones((2, 2, 1), np.float32)),
    ("token_logps", None),
    ("token_logps", [(np.ones(2), np.ones(1))]),
  ],
)
def test_arrays_of_other_shapes_are_refused(tmp_path, field, value):
  one = store.Store(tmp_path, MATERIAL, per_token=True)
  what = "tokens" if field == "token_logps" else field
  with pytest.raises(ValueError, match=what):
    one.write(["a", "b"], scores([1, 2], tokens=True, **{field: value}))
  assert not one.folder.exists()


def test_a_full_disk_leaves_no_draft(tmp_path, monkeypatch):
  one = filled(tmp_path)

  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  before = sorted(one.folder.iterdir())
  with pytest.raises(OSError, match="No space left"):
    one.write(names([9]), scores([9]))
  assert sorted(one.folder.iterdir()) == before


def test_a_file_that_vanishes_is_missing_rows(tmp_path, monkeypatch):
  one = filled(tmp_path, (1, 2))
  one.write(names([3]), scores([3]))
  gone, listed = shards(one)[0], shards(one)
  pairs = pq.read_table(gone)["pair"].to_pylist()
  monkeypatch.setattr(store, "shard_paths", lambda _: listed)
  monkeypatch.setattr(maintenance, "shard_paths", lambda _: listed)
  gone.unlink()
  assert one.known() == set(names([1, 2, 3])) - set(pairs)
  with pytest.raises(store.MissingRows):
    one.read(pairs)
  (entry,) = maintenance.entries(tmp_path)
  assert (entry["shards"], entry["pairs"]) == (1, 3 - len(pairs))
  assert maintenance.verify(tmp_path) == []


# Several writers, and killed ones.


@pytest.mark.slow
def test_kills_leave_whole_files_and_lose_nothing_else(tmp_path):
  numbers, chance = range(300), random.Random(0)
  whole = store.Store(tmp_path / "whole", MATERIAL)
  killed = store.Store(tmp_path / "killed", MATERIAL)
  for n in range(0, 300, 3):
    whole.write(names(range(n, n + 3)), scores(range(n, n + 3)))
  for first in (0, 90, 180):
    before = len(shards(killed))
    process = writer(tmp_path / "killed", first, first + 90, times=1000)
    while len(shards(killed)) == before:
      assert process.poll() is None
    time.sleep(chance.uniform(0.0, 0.03))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert maintenance.verify(tmp_path / "killed") == []
    known = killed.known()
    assert len(known) % 3 == 0
    present = [n for n in numbers if names([n])[0] in known]
    same(killed.read(names(present)), scores(present))
  missing = [n for n in numbers if names([n])[0] not in killed.known()]
  killed.write(names(missing), scores(missing))
  contents = []
  for one in (whole, killed):
    to = tmp_path / f"{one.root.name}.parquet"
    maintenance.export(one.root, one.key, to)
    contents.append(to.read_bytes())
  assert contents[0] == contents[1]
  assert maintenance.verify(tmp_path / "killed") == []
  maintenance.prune(tmp_path / "killed")
  assert not list(killed.folder.glob(".*"))


def test_writers_at_once_give_every_row_once(tmp_path):
  ranges = [(0, 60), (0, 60), (60, 120)]
  writers = [writer(tmp_path, *ends, times=2) for ends in ranges]
  one = store.Store(tmp_path, MATERIAL)
  while any(process.poll() is None for process in writers):
    one.known()  # only whole files are seen
  assert [process.returncode for process in writers] == [0, 0, 0]
  same(one.read(names(range(120))), scores(range(120)))
  assert len(shards(one)) == 40  # three pairs a file; equal ones coincide
  assert maintenance.verify(tmp_path) == []
  assert not list(one.folder.glob(".*"))


# Commands.


def test_a_flipped_byte_is_found_and_removed_alone(tmp_path):
  one = filled(tmp_path, (1, 2))
  one.write(names([3]), scores([3]))
  assert maintenance.verify(tmp_path) == []
  victim, other = shards(one)
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 1
  victim.write_bytes(content)
  (problem,) = maintenance.verify(tmp_path)
  assert problem.startswith(f"{victim}: its bytes")
  assert maintenance.prune(tmp_path) == [victim]
  assert shards(one) == [other]
  assert maintenance.verify(tmp_path) == []


def test_a_truncated_file_is_an_error_that_says_what_to_do(tmp_path):
  one = filled(tmp_path)
  (path,) = shards(one)
  path.write_bytes(path.read_bytes()[:-9])
  for read in (one.known, lambda: one.read(names([1]))):
    with pytest.raises(InputError) as caught:
      read()
    for part in (str(path), "mrpo store verify", "mrpo store prune"):
      assert part in str(caught.value)
  assert len(maintenance.verify(tmp_path)) == 1
  assert maintenance.prune(tmp_path) == [path]
  assert one.known() == set()


def test_no_flipped_bit_is_read_as_another_number(tmp_path):
  """Parquet itself notices few of them: each bit in turn, of every byte."""
  one = filled(tmp_path, (1, 2), tokens=True)
  (path,) = shards(one)
  content = path.read_bytes()
  for place in range(len(content)):
    changed = bytearray(content)
    changed[place] ^= 1 << place % 8
    path.write_bytes(changed)
    for read in (one.known, lambda: one.read(names([1]))):
      with pytest.raises(InputError, match="not those that it is named after"):
        read()
  with pytest.raises(InputError, match="not those that it is named after"):
    maintenance.export(tmp_path, one.key, tmp_path / "rows.csv")
  path.write_bytes(content)
  same(one.read(names([2, 1])), scores([2, 1], tokens=True))


def test_a_file_under_another_name_is_not_read(tmp_path):
  one = filled(tmp_path)
  (path,) = shards(one)
  path.rename(path.with_name(f"{'0' * 64}.parquet"))
  with pytest.raises(InputError, match="not those that it is named after"):
    one.read(names([1]))


@pytest.mark.parametrize(
  ("name", "column", "what"),
  [
    ("logp_chosen", pa.array([-1.0, np.nan, -1.0], pa.float32()), "finite"),
    ("entropy_rejected", pa.array([1.0, 1.0, np.inf], pa.float32()), "finite"),
    ("tokens_chosen", pa.array([2, None, 2], pa.int32()), "missing"),
    ("tokens_chosen", pa.array([2, 2, 2], pa.int64()), "columns are"),
    (
      "token_logps_rejected",
      pa.array([[1.0], [1.0], [np.nan]], pa.list_(pa.float32())),
      "finite",
    ),
  ],
)
def test_wrong_columns_under_a_right_name_are_found(
  tmp_path, name, column, what
):
  one = filled(tmp_path, tokens=True)
  path = forged(one, **{name: column})
  (problem,) = maintenance.verify(tmp_path)
  assert problem.startswith(f"{path}: ") and what in problem
  assert maintenance.prune(tmp_path) == [path]


def test_a_table_of_other_columns_is_not_read(tmp_path):
  one = filled(tmp_path)
  path = forged(one, logp_chosen=pa.array(["a", "b", "c"]))
  with pytest.raises(InputError, match=path.name):
    one.read(names([1]))


@pytest.mark.parametrize(
  "text",
  [
    None,
    "{",
    "[]",
    '{"key covers": [1]}',
    json.dumps({"key covers": {**MATERIAL, "dtype": "bfloat16"}}),
  ],
)
def test_a_changed_manifest_is_found(tmp_path, text):
  one = filled(tmp_path)
  path = one.folder / store.MANIFEST
  path.unlink()
  if text is not None:
    path.write_text(text)
  (problem,) = maintenance.verify(tmp_path)
  assert problem.startswith(f"{path}: missing, or not of this key")
  (entry,) = maintenance.entries(tmp_path)
  assert isinstance(entry["material"], dict)


@pytest.mark.parametrize("name", [store.MANIFEST, "shard"])
def test_a_disk_that_fails_is_no_broken_store(tmp_path, monkeypatch, name):
  one = filled(tmp_path)
  (shard,) = shards(one)
  failing = shard if name == "shard" else one.folder / name
  read, opened = type(shard).read_bytes, files.opened

  def fails(path, do):
    if path == failing:
      raise ConnectionResetError(errno.ECONNRESET, "reset", str(path))
    return do(path)

  path_type = type(shard)
  monkeypatch.setattr(path_type, "read_bytes", lambda path: fails(path, read))
  monkeypatch.setattr(files, "opened", lambda path: fails(path, opened))
  with pytest.raises(ConnectionResetError):
    maintenance.verify(tmp_path)
  if name == "shard":
    with pytest.raises(ConnectionResetError):
      one.read(names([1]))
    with pytest.raises(ConnectionResetError):
      maintenance.prune(tmp_path)
    assert shard.exists()


def test_entries_count_a_pair_once(tmp_path):
  one = filled(tmp_path, (1, 2, 3))
  one.write(names([3, 4]), scores([3, 4]))
  two = filled(tmp_path, (1,), dtype="bfloat16")
  (tmp_path / "notes").mkdir()
  found = {entry["key"]: entry for entry in maintenance.entries(tmp_path)}
  assert list(found) == sorted([one.key, two.key])
  size = sum(path.stat().st_size for path in shards(one))
  assert found[one.key] == {
    "key": one.key,
    "material": MATERIAL,
    "pairs": 4,
    "shards": 2,
    "bytes": size,
  }


def test_a_store_with_nothing_to_prune_says_so(tmp_path, capsys):
  filled(tmp_path)
  assert cli.main(["store", "prune", f"--store={tmp_path}"]) == 0
  assert capsys.readouterr().out == "nothing to prune\n"


def test_no_store_is_an_error(tmp_path):
  for command in (maintenance.entries, maintenance.verify, maintenance.prune):
    with pytest.raises(InputError, match="no store here"):
      command(tmp_path / "nowhere")


@pytest.mark.parametrize("start", [10, 64])
def test_keys_are_removed_by_the_start_of_their_names(tmp_path, start):
  stores = [filled(tmp_path, seed=seed) for seed in range(3)]
  ends = [stores[0].key[:start], stores[2].key[:start], stores[0].key]
  removed = maintenance.prune(tmp_path, ends)
  assert len(removed) == 4  # a manifest and a file of rows each
  assert [entry["key"] for entry in maintenance.entries(tmp_path)] == [
    stores[1].key
  ]
  assert not stores[0].folder.exists()


def test_an_ambiguous_or_unknown_start_removes_nothing(tmp_path):
  stores = [filled(tmp_path, seed=seed) for seed in range(17)]
  firsts = [one.key[0] for one in stores]
  twice = next(c for c in firsts if firsts.count(c) > 1)  # 17 keys, 16 digits
  what = f"is the start of {firsts.count(twice)} keys"
  for start, message in ((twice, what), ("x", "no key"), ("", "no key")):
    for command in (maintenance.prune, maintenance.verify):
      with pytest.raises(InputError, match=message) as caught:
        command(tmp_path, [stores[0].key, start])
      assert stores[5].key[:16] in str(caught.value)
    with pytest.raises(InputError, match=message):
      maintenance.export(tmp_path, start, tmp_path / "rows.csv")
  assert len(maintenance.entries(tmp_path)) == 17


def test_verify_looks_at_the_named_keys_only(tmp_path):
  one, two = (filled(tmp_path, seed=seed) for seed in range(2))
  shards(one)[0].write_bytes(b"")
  assert maintenance.verify(tmp_path, [two.key[:12]]) == []
  assert len(maintenance.verify(tmp_path, [one.key[:12]])) == 1


def test_prune_removes_drafts_of_writers_that_are_gone(tmp_path):
  one = filled(tmp_path)
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  drafts = [
    one.folder / f".{'a' * 64}.parquet.{process.pid}",
    one.folder / f".manifest.json.{process.pid}",
    one.folder / f".{'b' * 64}.parquet.{os.getpid()}",
    one.folder / f".{'c' * 64}.parquet.{os.getpid()}",
  ]
  for path in drafts:
    path.write_bytes(b"half")
  long_ago = time.time() - 2 * maintenance.DAY
  os.utime(drafts[3], (long_ago, long_ago))
  assert maintenance.verify(tmp_path) == []
  want = sorted([drafts[0], drafts[1], drafts[3]])
  assert sorted(maintenance.prune(tmp_path)) == want
  assert drafts[2].exists()  # its writer lives


def test_prune_leaves_what_the_store_did_not_write(tmp_path):
  one = filled(tmp_path)
  notes = [one.folder / "rows.parquet", one.folder / ".hidden.12"]
  for path in notes:
    path.write_text("mine")
  (one.folder / "folder").mkdir()
  assert maintenance.prune(tmp_path) == []
  same(one.read(names([1])), scores([1]))
  maintenance.prune(tmp_path, [one.key])
  assert sorted(one.folder.iterdir()) == sorted([*notes, one.folder / "folder"])


def test_links_out_of_the_root_are_not_followed(tmp_path):
  outside = filled(tmp_path / "elsewhere", (9,))
  broken = shards(outside)[0]
  broken.write_bytes(b"broken")
  root = tmp_path / "root"
  one = filled(root, seed=1)
  (root / outside.key).symlink_to(outside.folder)
  link = one.folder / broken.name
  link.symlink_to(broken)
  with pytest.raises(InputError, match="no key"):
    maintenance.prune(root, [outside.key])
  assert maintenance.prune(root) == [link]
  assert [entry["key"] for entry in maintenance.entries(root)] == [one.key]
  assert broken.read_bytes() == b"broken"
  assert (outside.folder / store.MANIFEST).exists()


@pytest.fixture
def exported(tmp_path):
  """Pairs 1 and 2 in two files, pair 2 in both, with tokens in one."""
  one = filled(tmp_path, (1, 2))
  tokens = store.Store(tmp_path, MATERIAL, per_token=True)
  tokens.write(names([2]), scores([2], tokens=True))

  def export(suffix):
    to = tmp_path / f"rows{suffix}"
    maintenance.export(tmp_path, one.key[:12], to)
    return to

  return export


def test_lines_hold_each_pair_once_and_its_tokens(exported):
  lines = exported(".jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row["pair"] for row in rows] == sorted(names([1, 2]))
  row = {row["pair"]: row for row in rows}[names([2])[0]]
  assert row["token_logps_chosen"] == [-2.25, -2.25]
  assert (row["logp_chosen"], row["characters_rejected"]) == (-4.5, 5)


def test_csv_holds_no_tokens_and_says_so(exported, caplog):
  with open(exported(".csv"), newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["pair"] for row in rows] == sorted(names([1, 2]))
  lists = {f"token_logps_{choice}" for choice in store.CHOICES}
  assert set(rows[0]) == set(store.COLUMNS) - lists
  assert {row["entropy_chosen"] for row in rows} == {"1.125", "2.125"}
  assert "no log-probabilities of single tokens" in caplog.text


def test_parquet_holds_the_columns_and_types_of_the_store(exported):
  table = pq.read_table(exported(".parquet"))
  assert table.schema.equals(store._schema(True))
  assert table["pair"].to_pylist() == sorted(names([1, 2]))


def test_export_refuses(tmp_path):
  one = filled(tmp_path)
  taken = tmp_path / "taken.csv"
  taken.write_text("mine")
  for to, what in (
    (taken, "exists already"),
    (tmp_path / "rows.xlsx", ".parquet, .jsonl, .csv"),
    (tmp_path / "nowhere" / "rows.csv", "no such folder"),
  ):
    with pytest.raises(InputError, match=what):
      maintenance.export(tmp_path, one.key, to)
  assert taken.read_text() == "mine"
  maintenance.prune(tmp_path)
  shards(one)[0].unlink()
  with pytest.raises(InputError, match="holds no pairs"):
    maintenance.export(tmp_path, one.key, tmp_path / "rows.csv")
