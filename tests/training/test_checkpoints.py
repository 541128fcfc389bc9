# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints stay, which one is read, and on which mesh."""

import errno
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax import parallel
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.training import checkpoints, train_state
from tests.material.logged import logged

LOSS = checkpoints.Best("eval/loss", -1)
ACCURACY = checkpoints.Best("eval/rewards/accuracies", 1)


def state_of(step, mesh=None):
  """A TrainState whose numbers differ from step to step."""
  weight = jnp.arange(64.0).reshape(8, 8) + step
  transformation = optax.adam(1e-3)
  state = train_state.create({"weight": weight}, transformation, {})
  state = state.replace(step=jnp.asarray(step, jnp.int32))
  mesh = parallel.make_mesh() if mesh is None else mesh

  def place(array):
    axes = ("fsdp", "model") if array.ndim == 2 else ()
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

  return jax.tree.map(place, state)


def abstract_of(state):
  shardings = jax.tree.map(lambda array: array.sharding, state)
  return parallel.abstract(state, shardings)


def save(workdir, evaluations, **kept):
  """A checkpoint per step of {step: figures of its evaluation or None}."""
  with checkpoints.manager(workdir, **kept) as manager:
    for step, figures in evaluations.items():
      meta = {"step": step}
      if figures is not None:
        meta["evaluation"] = figures
      checkpoints.save(manager, step, state_of(step), meta)


def losses(*values):
  return {
    step: None if value is None else {"eval/loss": value}
    for step, value in enumerate(values, start=1)
  }


def assert_equal_trees(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Checkpoints of the steps 1 and 2."""
  workdir = tmp_path_factory.mktemp("two")
  save(workdir, losses(None, 0.5))
  return workdir


# What stays.


@pytest.mark.parametrize(
  "values,keep,best,left",
  [
    ((None, None, None, None), 2, None, [4, 3]),
    ((None, None, None), 1, None, [3]),
    ((0.1, 0.2, 0.3, 0.4), 2, LOSS, [4, 3, 1]),
    ((0.1, None, 0.1, None, 0.2), 1, LOSS, [5, 1]),  # of equal ones the first
    ((0.4, 0.3, 0.2), 1, LOSS, [3]),
    ((float("nan"), 0.3, float("inf"), None), 1, LOSS, [4, 2]),
  ],
)
def test_the_newest_stay_and_the_best(tmp_path, values, keep, best, left):
  save(tmp_path, losses(*values), keep=keep, best=best)
  assert checkpoints.steps(tmp_path) == left


def test_the_best_of_a_run_that_was_stopped_stays(tmp_path):
  figures = [{"eval/rewards/accuracies": value} for value in (0.5, 0.9, 0.6)]
  save(tmp_path, dict(enumerate(figures, 1)), keep=1, best=ACCURACY)
  assert checkpoints.steps(tmp_path) == [3, 2]
  more = {4: None, 5: {"eval/rewards/accuracies": 0.8}, 6: None}
  save(tmp_path, more, keep=1, best=ACCURACY)
  assert checkpoints.steps(tmp_path) == [6, 2]
  assert checkpoints.find(tmp_path, "best", ACCURACY) == 2
  save(tmp_path, {7: {"eval/rewards/accuracies": 1.0}}, keep=1, best=ACCURACY)
  assert checkpoints.steps(tmp_path) == [7]


def test_what_a_killed_save_left_is_no_checkpoint(two, tmp_path):
  shutil.copytree(two, tmp_path / "run")
  folder = tmp_path / "run" / "checkpoints"
  half = folder / "3.orbax-checkpoint-tmp"
  shutil.copytree(folder / "2", half)
  assert checkpoints.steps(tmp_path / "run") == [2, 1]
  save(tmp_path / "run", {4: None})
  assert checkpoints.steps(tmp_path / "run") == [4, 2]
  assert not half.exists()


def test_a_step_is_found_by_name_or_number(two, tmp_path):
  assert checkpoints.find(two, "newest") == 2
  assert checkpoints.find(two, "1") == 1
  assert checkpoints.find(two, "best", LOSS) == 2
  for which, best, match in (
    ("3", None, "--step 3: no such checkpoint; want newest, best or one of 1,"),
    ("best", None, "checkpoints.best of .* names no figure"),
    ("best", ACCURACY, "no checkpoint has eval/rewards/accuracies yet"),
  ):
    with pytest.raises(InputError, match=match):
      checkpoints.find(two, which, best)
  with pytest.raises(InputError, match="no checkpoint yet"):
    checkpoints.find(tmp_path, "best", LOSS)


# What is read.


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def remove(path):
  path.unlink()


def restored(workdir):
  """(step, state, what was said)."""
  with logged() as said:
    step, state = checkpoints.restore(workdir, abstract_of(state_of(0)))
  return step, state, said


@pytest.mark.parametrize("harm", [cut, flip, remove])
def test_no_harm_to_one_file_gives_another_state(two, tmp_path, harm):
  """Each file in turn: its checkpoint is whole, or the one before is read."""
  newest = two / "checkpoints" / "2"
  files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
  fell_back = set()
  for number, name in enumerate(sorted(files)):
    workdir = tmp_path / str(number)
    shutil.copytree(two, workdir)
    harm(workdir / "checkpoints" / "2" / name)
    step, state, said = restored(workdir)
    assert_equal_trees(state, state_of(step))
    if step == 1:
      fell_back.add(str(name))
      assert f"{workdir}/checkpoints/2 cannot be read" in said[0]
      assert "using step 1" in said[0]
      assert (workdir / "checkpoints" / "broken-2").is_dir()
      assert checkpoints.steps(workdir) == [1]
    else:
      assert said == []
  assert "meta/metadata" in fell_back
  assert any(name.startswith("state/d/") for name in fell_back)


UNREACHED = [
  ConnectionResetError(104, "Connection reset by peer"),
  TimeoutError("timed out"),
  OSError(errno.EIO, "Input/output error"),
  OSError(errno.ENOSPC, "No space left on device"),
  PermissionError(errno.EACCES, "Permission denied"),
  MemoryError("Unable to allocate 8 EiB"),
  ValueError("UNAVAILABLE: CURL error: Couldn't connect to server"),
  ValueError("RESOURCE_EXHAUSTED: Out of memory on device 0"),
]


@pytest.mark.parametrize("error", UNREACHED, ids=repr)
@pytest.mark.parametrize("item", ["state", "meta"])
def test_one_that_is_not_reached_is_left_as_it_is(
  two, monkeypatch, error, item
):
  before = sorted(two.rglob("*"))
  readable = checkpoints.uploaded.readable

  def fails(folder):
    if folder.name == item and folder.parent.name == "2":
      raise RuntimeError("a library's own") from error
    return readable(folder)

  monkeypatch.setattr(checkpoints.uploaded, "readable", fails)
  said = "checkpoints/2: checkpoint cannot be reached"
  with pytest.raises(StoppedRun, match=f"{said} .* left as it is: give"):
    checkpoints.restore(two, abstract_of(state_of(0)))
  if item == "meta":  # the best is not another one, which makes it go
    with pytest.raises(StoppedRun, match=said):
      checkpoints.find(two, "best", LOSS)
    # A run that saves goes on, and keeps what may be the best.
    kept = checkpoints.Kept(two / "checkpoints", 1, LOSS)
    saved = [
      types.SimpleNamespace(step=step, metrics=metrics)
      for step, metrics in ((2, None), (3, {"eval/loss": 1.0}), (4, {}))
    ]
    with logged() as lines:
      assert kept.should_preserve(saved, context=None) == [True, True, True]
    assert any("it may be the best, so it stays" in line for line in lines)
  assert sorted(two.rglob("*")) == before


def test_a_state_that_is_not_what_was_saved_is_not_used(two, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(two, workdir)
  folder = workdir / "checkpoints"
  shutil.rmtree(folder / "2" / "state")
  shutil.copytree(folder / "1" / "state", folder / "2" / "state")
  step, _, said = restored(workdir)
  assert step == 1
  assert "(its step differs from the checksum); using step 1" in said[0]


@pytest.mark.parametrize("name", ["3", "400"])
def test_a_renamed_folder_is_set_aside(two, tmp_path, name):
  workdir = tmp_path / "run"
  folder = shutil.copytree(two, workdir) / "checkpoints"
  shutil.copytree(folder / "1", folder / name)
  assert checkpoints.stands_at(workdir) == 2
  step, state, said = restored(workdir)
  assert step == 2
  assert_equal_trees(state, state_of(2))
  assert f"checkpoints/{name} cannot be read (it is of step 1, under" in said[0]
  assert (folder / f"broken-{name}").is_dir()
  assert checkpoints.steps(workdir) == [2, 1]


def test_so_it_is_below_the_one_that_is_read(two, tmp_path):
  workdir = tmp_path / "run"
  folder = shutil.copytree(two, workdir) / "checkpoints"
  shutil.rmtree(folder / "1")
  shutil.copytree(folder / "2", folder / "1")
  step, _, said = restored(workdir)
  assert step == 2
  assert "checkpoints/1 is of step 2, under another name" in said[0]
  assert checkpoints.steps(workdir) == [2]


def test_the_best_and_exports_know_the_step_too(two, tmp_path):
  workdir = tmp_path / "run"
  folder = shutil.copytree(two, workdir) / "checkpoints"
  (folder / "2").rename(folder / "5")
  with pytest.raises(InputError, match="no checkpoint has eval/loss yet"):
    checkpoints.find(workdir, "best", LOSS)  # step 2 had it
  with pytest.raises(InputError, match=r"/5: .*\(it is of step 2, under"):
    checkpoints.policy(workdir, 5)
  (folder / "1").rename(folder / "2")
  with pytest.raises(InputError, match=r"/5: .*\(it is of step 2, under"):
    checkpoints.restore(workdir, abstract_of(state_of(0)))
  assert checkpoints.steps(workdir) == [5, 2]


def test_only_numbers_as_they_are_written_are_steps(two, tmp_path):
  workdir = tmp_path / "run"
  folder = shutil.copytree(two, workdir) / "checkpoints"
  for name in ("02", "٣", "-4", "5.0", "6 "):
    (folder / name).mkdir()
  assert checkpoints.steps(workdir) == [2, 1]


def poisoned(step, number):
  """A state one of whose 64 weights, of one device, is another number."""
  state = state_of(step)
  weight = state.params["weight"]
  params = {"weight": weight.at[5, 6].set(number)}
  return state.replace(params=jax.device_put(params, weight.sharding))


@pytest.mark.parametrize("number", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, number):
  save(tmp_path, {1: None}, keep=1)
  match = r"state after step 2 has params\['weight'\] not finite"
  with (
    pytest.raises(StoppedRun, match=match),
    checkpoints.manager(tmp_path, keep=1) as manager,
  ):
    checkpoints.save(manager, 2, poisoned(2, number), {})
  assert checkpoints.steps(tmp_path) == [1]
  assert restored(tmp_path)[0] == 1


def test_one_that_was_saved_before_is_neither_used_nor_exported(
  tmp_path, monkeypatch
):
  save(tmp_path, {1: None})
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, "_not_finite", lambda tree: "")
    with checkpoints.manager(tmp_path) as manager:
      meta = {"step": 2, "model": {}}
      checkpoints.save(manager, 2, poisoned(2, jnp.nan), meta)
  with pytest.raises(InputError, match=r"/2: .* have \['weight'\] not finite"):
    checkpoints.policy(tmp_path, 2)
  step, _, said = restored(tmp_path)
  assert step == 1
  assert "(it has params['weight'] not finite); using step 1" in said[0]
  assert checkpoints.steps(tmp_path) == [1]


def test_a_step_that_broke_twice(two, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(two, workdir)
  for _ in range(2):
    remove(workdir / "checkpoints" / "2" / "meta" / "metadata")
    assert restored(workdir)[0] == 1
    save(workdir, {2: None})
  names = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert {"broken-2", "broken-2-2", "1", "2"} <= names
  assert restored(workdir)[0] == 2


@pytest.mark.parametrize(
  "sizes", [dict(data=1, fsdp=8), dict(data=2, fsdp=2, model=2)]
)
def test_a_state_is_read_onto_another_mesh(two, sizes):
  mesh = parallel.make_mesh(**sizes)
  want = state_of(2, mesh)
  step, state = checkpoints.restore(two, abstract_of(want))
  assert step == 2
  assert_equal_trees(state, want)
  assert state.params["weight"].sharding == want.params["weight"].sharding
  shard = state.params["weight"].addressable_shards[0].data.shape
  assert shard == (8 // mesh.shape["fsdp"], 8 // mesh.shape["model"])


def test_other_arrays_are_named_and_nothing_is_set_aside(two):
  wanted = abstract_of(state_of(0))
  narrow = jax.ShapeDtypeStruct((8, 4), jnp.float32)
  match = r"weight.* is float32\[8, 8\] there, float32\[8, 4\] here"
  with pytest.raises(InputError, match=match):
    checkpoints.restore(two, wanted.replace(params={"weight": narrow}))
  assert checkpoints.steps(two) == [2, 1]
