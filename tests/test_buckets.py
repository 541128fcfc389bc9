# SPDX-License-Identifier: Apache-2.0
"""Paths in buckets, over the protocols of Google and of S3."""

import gzip
import json
import logging
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrpo_jax import buckets, cli, files, hub, snapshots
from mrpo_jax.cli import ends
from mrpo_jax.data import source
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.models import parameters
from mrpo_jax.references.store import COLUMNS, Store
from mrpo_jax.runs import owner
from mrpo_jax.training import checkpoints, train_state
from mrpo_jax.training.log import FILE, Metrics
from tests.material import services
from tests.material.inputs import write_pairs

FAULTS = ("unavailable", "slow", "cut", "lost")


@pytest.fixture(scope="module", params=["gs", "s3"])
def served(request):
  """(URL of a bucket, Faults of its service)."""
  if lacks := services.missing(request.param):
    pytest.skip(f"not installed: {', '.join(lacks)}")
  with (
    services.service(request.param) as (environment, faults),
    pytest.MonkeyPatch.context() as patch,
  ):
    for name, value in environment.items():
      patch.setenv(name, value)
    yield f"{request.param}://{services.BUCKET}", faults


@pytest.fixture
def place(served, request):
  """A folder of its own in the bucket, as a text."""
  return f"{served[0]}/{request.node.name.split('[')[0]}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  snapshots._copied.cache_clear()


def test_what_is_a_bucket():
  yes = ["gs://a/b", "s3://a", "gs://"]
  no = ["a/gs:/b", "http://a/b", "hf://a", "gs:a", "/gs/a", pathlib.Path("a")]
  assert all(map(buckets.is_bucket, yes))
  assert not any(map(buckets.is_bucket, no))
  with pytest.raises(InputError, match="names no bucket"):
    buckets.path_of("gs:///a")


def test_a_client_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setitem(buckets.EXTRAS, "gs", ("no_such_client", "gcs"))
  with pytest.raises(InputError, match=r"pip install 'mrpo-jax\[gcs\]'"):
    files.path_of("gs://a/b")


# Files.


def test_a_path_there_is_one_like_another(place):
  folder = files.path_of(place)
  assert not folder.exists() and not folder.is_dir()
  with pytest.raises(FileNotFoundError):
    files.read_json(folder / "a.json")
  assert files.read_lines(folder / "a.jsonl") == []
  files.write_json(folder / "a.json", {"a": 1})
  files.write_lines(folder / "b" / "c.jsonl", [{"c": 1}, {"c": 2}])
  assert files.read_json(folder / "a.json") == {"a": 1}
  assert files.read_lines(f"{place}/b/c.jsonl") == [{"c": 1}, {"c": 2}]
  assert folder.is_dir() and files.exists(place)
  assert sorted(one.name for one in folder.iterdir()) == ["a.json", "b"]
  found = [str(one) for one in files.below(folder)]
  assert found == [f"{place}/a.json", f"{place}/b/c.jsonl"]
  assert [*map(str, files.matching(f"{place}/*/c*"))] == found[1:]
  assert files.size_of(folder / "b" / "c.jsonl") == 18
  assert files.sha256_of(folder / "a.json").startswith("5e36b656")
  files.remove_folder(folder)
  assert not folder.exists()


def test_what_another_process_writes_is_seen(place):
  folder = files.path_of(place)
  files.write_atomically(folder / "a", "1")
  assert len([*folder.iterdir()]) == 1
  # Behind the back of the client, as another host does.
  system, name = buckets.system_of(place)
  other = type(system)(skip_instance_cache=True)
  other.pipe_file(f"{name}/b", b"2")
  assert len([*folder.iterdir()]) == 2 and (folder / "b").exists()


def test_only_one_creates_a_file(place):
  path = f"{place}/owner"
  files.create(path, "mine")
  files.create(path, "mine")  # as a put that was sent again
  with pytest.raises(FileExistsError):
    files.create(path, "another's")
  assert files.read_stamped(path)[0] == "mine"


def test_a_touch_gives_another_stamp_and_brings_nothing_back(place):
  path = f"{place}/owner"
  files.create(path, "mine")
  text, before = files.read_stamped(path)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(buckets, "read_stamped", lambda path: (b"mine", before))
    files.path_of(path).unlink()
    with pytest.raises(OSError):
      files.touch(path)
  assert not files.exists(path)
  files.create(path, "of another")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(buckets, "read_stamped", lambda path: (b"mine", before))
    with pytest.raises(OSError):
      files.touch(path)
  assert files.read_stamped(path)[0] == "of another"


def test_a_new_folder_comes_whole_and_what_marks_it_last(place, monkeypatch):
  put, order = buckets.put_folder, []

  def killed(folder, path):
    system, name = buckets.system_of(path)
    system.pipe_file(f"{name}/model.safetensors", b"half")
    raise KeyboardInterrupt

  monkeypatch.setattr(buckets, "put_folder", killed)
  with pytest.raises(KeyboardInterrupt), files.new_folder(place) as partial:
    (partial / "config.json").write_text("{}")
  assert not files.exists(f"{place}/config.json")
  monkeypatch.setattr(buckets, "put_folder", put)
  system, _ = buckets.system_of(place)
  one_file = system.put_file
  monkeypatch.setattr(
    system,
    "put_file",
    lambda here, there: (order.append(there), one_file(here, there)),
  )
  with files.new_folder(place) as partial:
    (partial / "config.json").write_text("{}")
    (partial / "z.safetensors").write_bytes(b"z")
    (partial / "tokenizer_config.json").write_text("{}")
  names = [one.rpartition("/")[2] for one in order]
  assert names == ["z.safetensors", "tokenizer_config.json", "config.json"]
  there = [one.name for one in files.below(place)]
  assert there == sorted(names)  # and nothing of the one that was killed
  with pytest.raises(InputError, match="exists; remove it"):
    with files.new_folder(place):
      pass


def test_a_folder_of_which_the_mark_alone_was_left_is_whole(place, monkeypatch):
  path = files.path_of(place)
  mark = path.with_name(f".{path.name}.partial")
  system, _ = buckets.system_of(place)
  with monkeypatch.context() as patch:
    patch.setattr(type(mark), "unlink", _killed)
    with pytest.raises(KeyboardInterrupt), files.new_folder(place) as partial:
      (partial / "config.json").write_text("{}")
      (partial / "z.safetensors").write_bytes(b"z")
  assert mark.exists()
  with pytest.raises(InputError, match="exists; remove it"):
    with files.new_folder(place):
      pass
  assert not mark.exists()
  assert (path / "z.safetensors").read_bytes() == b"z"
  files.write_atomically(mark, "")  # of a version whose mark lists nothing
  with files.new_folder(place) as partial:
    (partial / "config.json").write_text("[]")
  assert [one.name for one in files.below(place)] == ["config.json"]


def _killed(*_, **__):
  raise KeyboardInterrupt


# Models and data.


def test_a_model_is_read_from_a_copy_that_is_made_once(place, caplog):
  caplog.set_level(logging.INFO)
  from mrpo_jax.models.config import ModelConfig

  config = ModelConfig(61, 16, 1, 2, 1, 8, 32, tied=True)
  params = parameters.init(config, jax.random.key(0))
  hub.save(place, config, params)
  found, read = hub.load(place)
  assert found.vocab_size == 61
  jax.tree.map(np.testing.assert_array_equal, params, read)
  copies = [one for one in caplog.messages if "copying" in one]
  assert len(copies) == 1
  # What is put again is copied again, by the next command.
  first = snapshots.folder_of(place)
  files.remove_folder(place)
  params = jax.tree.map(lambda array: array + 1, params)
  hub.save(place, config, params)
  assert snapshots.folder_of(place) == first
  snapshots._copied.cache_clear()
  jax.tree.map(np.testing.assert_array_equal, params, hub.load(place)[1])
  assert snapshots.folder_of(f"{place}/") == snapshots.folder_of(place)
  with pytest.raises(InputError, match="no such folder in the bucket"):
    hub.load(f"{place}-none")


def test_what_leads_out_of_a_folder_is_not_copied(place, tmp_path):
  system, name = buckets.system_of(place)
  for inside in ("../../x.txt", "a/../../../x.txt", "/x.txt"):
    if place.startswith("gs") and ".." in inside:
      continue  # the emulator does not take it
    system.pipe_file(f"{name}/{inside}", b"{}")
    with pytest.raises(InputError, match="leaves the folder"):
      snapshots.folder_of(place)
    with pytest.raises(InputError, match="leaves the folder"):
      buckets.fetch_folder(place, tmp_path / "one" / "two")
    system.rm_file(f"{name}/{inside}")
  assert not list(tmp_path.iterdir())


def test_a_folder_that_changes_while_it_is_copied_is_refused(
  place, tmp_path, monkeypatch
):
  write = buckets.fetch_folder
  files.write_atomically(files.path_of(f"{place}/config.json"), "{}")

  def fetch(url, folder):
    write(url, folder)
    files.write_atomically(files.path_of(f"{place}/config.json"), "{ }")

  monkeypatch.setattr(buckets, "fetch_folder", fetch)
  with pytest.raises(StoppedRun, match="was written while it was copied"):
    snapshots.folder_of(place)
  assert not [one for one in tmp_path.rglob("*") if one.is_file()]


def test_data_are_read_where_they_are(place, tmp_path):
  write_pairs(tmp_path / "a.jsonl", 6)
  lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
  there = files.path_of(place)
  files.write_atomically(there / "d" / "train-0.jsonl", b"".join(lines[:2]))
  files.write_atomically(there / "d" / "train-1.jsonl", b"".join(lines[2:]))
  files.write_atomically(
    there / "z" / "a.jsonl.gz", gzip.compress(b"".join(lines))
  )
  rows = [json.loads(line) for line in lines]
  _write_parquet(tmp_path / "a.parquet", rows)
  whole = (tmp_path / "a.parquet").read_bytes()
  files.write_atomically(there / "p" / "a.parquet", whole)
  wanted = source.load(tmp_path / "a.jsonl")
  for name in (
    *("d", "d:train", "d/*.jsonl", "d/train-0.jsonl,{}/d/train-1.jsonl"),
    *("z/a.jsonl.gz", "p/a.parquet"),
  ):
    assert source.load(f"{place}/{name.format(place)}") == wanted, name
  with pytest.raises(InputError, match="finds no file"):
    source.load(f"{place}/none*.jsonl")
  with pytest.raises(InputError, match="no such file"):
    source.load(f"{place}/none.jsonl")


def _write_parquet(path, rows):
  import pyarrow as pa
  import pyarrow.parquet as pq

  pq.write_table(pa.Table.from_pylist(rows), path)


# What a run leaves.


def test_a_store_is_read_and_verified(place):
  from mrpo_jax.references import maintenance
  from tests.references.test_store import scores

  store = Store(place, {"model": "m"})
  store.write(["a", "b"], scores([0, 1]))
  assert store.known() == {"a", "b"} and COLUMNS
  assert maintenance.verify(place) == []
  (entry,) = maintenance.entries(place)
  assert entry["pairs"] == 2 and entry["bytes"] > 100
  (shard,) = [one for one in files.below(place) if one.suffix == ".parquet"]
  files.write_atomically(shard, b"broken")
  assert len(maintenance.verify(place)) == 1
  assert maintenance.prune(place) == [shard]


def _state(step):
  params = {"a": jnp.arange(8.0) + step}
  state = train_state.create(params, optax.sgd(0.1), {})
  return state.replace(step=jnp.asarray(step, state.step.dtype))


def _save(workdir, *steps, keep=2):
  with checkpoints.manager(workdir, keep=keep) as manager:
    for step in steps:
      checkpoints.save(manager, step, _state(step), {"step": step})


def _abstract():
  to = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), _state(0)
  )


def test_a_checkpoint_counts_when_its_commit_file_is_there(place):
  assert checkpoints.restore(place, _abstract()) is None
  _save(place, 1, 2, 3)
  assert checkpoints.steps(place) == [3, 2]
  step, state = checkpoints.restore(place, _abstract())
  assert step == 3 and (state.params["a"] == jnp.arange(8.0) + 3).all()
  files.path_of(f"{place}/checkpoints/3/commit_success.txt").unlink()
  assert checkpoints.steps(place) == [2]
  assert checkpoints.restore(place, _abstract())[0] == 2
  _save(place, 3, 4)  # what was half there is removed first
  assert checkpoints.steps(place) == [4, 3]
  assert checkpoints.stands_at(place) == 4


def test_a_broken_checkpoint_is_set_aside(place):
  _save(place, 1, 2)
  found = [
    one
    for one in files.below(f"{place}/checkpoints/2/state")
    if "/d/" in str(one)
  ]
  for one in found:
    files.write_atomically(one, b"broken")
  assert checkpoints.restore(place, _abstract())[0] == 1
  assert checkpoints.steps(place) == [1]
  assert files.exists(f"{place}/checkpoints/broken-2/meta/metadata")


def test_metrics_are_put_whole_at_every_sync(place):
  with Metrics(place, step=0) as log:
    log.write(1, {"loss": 1.0})
    assert not files.exists(f"{place}/{FILE}")
    log.sync()
    log.write(2, {"loss": 2.0})
    assert [one["step"] for one in files.read_lines(f"{place}/{FILE}")] == [1]
    # It was killed here; another goes on at step 1.
    with Metrics(place, step=1) as again:
      again.write(2, {"loss": 3.0})
    lines = files.read_lines(f"{place}/{FILE}")
    found = [(one["step"], one["loss"]) for one in lines]
    assert found == [(1, 1.0), (2, 3.0)]


def test_one_run_has_a_workdir(place, monkeypatch):
  monkeypatch.setattr(owner, "BEAT", 0.2)
  with owner.owned(place, owner.before(place)) as check:
    with pytest.raises(InputError, match=owner.IN_USE):
      owner.before(place)
    check()
    path = files.path_of(f"{place}/owner-1.json")
    first = files.read_stamped(path)[1]
    import time

    time.sleep(2.5)  # S3 tells whole seconds
    assert files.read_stamped(path)[1] != first
    # As another host would that has seen no sign of life.
    ended = []
    monkeypatch.setattr(owner.processes, "end", lambda *say: ended.append(say))
    files.create(f"{place}/owner-2.json", "{}")
    with pytest.raises(Exception, match=owner.LOST):
      check()
  assert files.exists(f"{place}/owner-2.json")


def test_the_hub_is_given_no_folder_of_a_bucket(place, capsys):
  words = ["export", "--workdir=W", f"--to={place}", "--push=org/name"]
  assert cli.main(words) == 2
  said = f"--push=org/name uploads a folder of a disk, and --to={place} is none"
  assert said in capsys.readouterr().err


# Faults.


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_the_service_are_waited_out(served, place, kind):
  url, faults = served
  content = os.urandom(300_000)
  with faults.of(kind, every=4) as done:
    for number in range(3):
      path = f"{place}/{kind}/{number}"
      files.write_atomically(path, content)
      files.create(f"{path}-new", str(number))
      assert files.path_of(path).read_bytes() == content
      assert files.read_stamped(f"{path}-new")[0] == str(number)
    assert len(files.below(f"{place}/{kind}")) == 6
  assert kind in done


def test_checkpoints_survive_faults(served, place):
  with served[1].of("unavailable", "slow", "cut", every=9) as done:
    _save(place, 1, 2)
    step, state = checkpoints.restore(place, _abstract())
  assert step == 2 and (state.params["a"] == jnp.arange(8.0) + 2).all()
  assert {"unavailable", "cut"} <= {*done}


def test_a_service_that_is_gone_sets_no_checkpoint_aside(
  served, place, monkeypatch
):
  _save(place, 1, 2)
  before = [str(one) for one in files.below(place)]
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, "steps", lambda workdir: [2, 1])
    with served[1].of("unavailable", every=1):
      with pytest.raises(StoppedRun, match="2: checkpoint cannot be reached"):
        checkpoints.restore(place, _abstract())
  assert [str(one) for one in files.below(place)] == before
  assert checkpoints.restore(place, _abstract())[0] == 2


@pytest.mark.parametrize("code", ["403", "507"])
def test_a_service_that_takes_nothing_ends_a_command_with_one_line(
  served, place, code
):
  place = f"{place}/{code}"
  _save(place, 1)
  before = [str(one) for one in files.below(place)]

  def export():
    with files.new_folder(f"{place}/export") as partial:
      (partial / "config.json").write_text("{}")
      (partial / "z.safetensors").write_bytes(b"z")

  for write in (
    lambda: files.write_atomically(f"{place}/a", b"a"),
    lambda: _save(place, 2),
    export,
  ):
    with pytest.raises(Exception) as caught, served[1].of(code, every=1):
      write()
    assert ends.said(caught.value) is not None, repr(caught.value)
  found = [str(one) for one in files.below(place)]
  assert [one for one in found if ".partial" not in one] == before
  assert checkpoints.restore(place, _abstract())[0] == 1
  _save(place, 2)
  export()
  assert checkpoints.steps(place) == [2, 1]


def test_no_secret_is_said(served, place, capfd):
  with served[1].of("unavailable", every=1):
    code = cli.main(["store", "ls", f"--store={served[0]}/none"])
  assert code
  said = "".join(capfd.readouterr())
  assert said.count("error:") == 1 and services.SECRET not in said
