# SPDX-License-Identifier: Apache-2.0
"""Memory of a step: what is free, and what is refused before it starts."""

import jax
import pytest

from mrpo_jax import parallel
from mrpo_jax.data.batches import Packing
from mrpo_jax.errors import InputError
from mrpo_jax.performance.topology import read_shape
from mrpo_jax.runs import ahead, memory
from mrpo_jax.runs.config import load
from mrpo_jax.runs.memory import argument_bytes, free_bytes, host_bytes
from mrpo_jax.runs.program import abstract_train_step, compile_ahead
from mrpo_jax.runs.setup import abstract_setup, mesh_of, resized
from mrpo_jax.text import sized_bytes
from tests.material.logged import logged
from tests.material.runs import QUICKSTART, train_debug

GIB = 2**30


def machine(root, **files):
  """A root folder with these files; __ stands for / in their names."""
  for name, text in files.items():
    path = root / name.replace("__", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return root


MEMINFO = "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   4194304 kB\n"
SECOND = "sys__fs__cgroup__memory"
FIRST = "sys__fs__cgroup__memory__memory"


@pytest.mark.parametrize(
  "files,want",
  [
    ({}, 4 * GIB),
    ({f"{SECOND}.max": "max", f"{SECOND}.current": "5"}, 4 * GIB),
    (
      {
        f"{SECOND}.max": f"{3 * GIB}\n",
        f"{SECOND}.current": f"{2 * GIB}\n",
        # Half of that are files, which it gives back.
        f"{SECOND}.stat": f"anon {GIB}\nactive_file {GIB // 2}\n"
        f"inactive_file {GIB // 2}\n",
      },
      2 * GIB,
    ),
    (
      {
        f"{FIRST}.limit_in_bytes": f"{3 * GIB}\n",
        f"{FIRST}.usage_in_bytes": f"{GIB}\n",
        f"{FIRST}.stat": "inactive_file 1\nactive_file 2\n"
        f"total_inactive_file {GIB // 2}\ntotal_active_file 0\n",
      },
      int(2.5 * GIB),
    ),
  ],
)
def test_what_is_free_is_the_least_of_machine_and_container(
  tmp_path, files, want
):
  root = machine(tmp_path, proc__meminfo=MEMINFO, **files)
  assert host_bytes(root) == want


def test_devices_of_one_host_share_what_is_free(monkeypatch):
  monkeypatch.setattr(memory, "host_bytes", lambda: 800)
  assert free_bytes(parallel.make_mesh(devices=jax.devices()[:1])) == 800
  assert free_bytes(parallel.make_mesh()) == 800 // len(jax.devices())
  monkeypatch.setattr(memory, "host_bytes", lambda: None)
  assert free_bytes(parallel.make_mesh()) is None


class Step:
  """A step of the quickstart that takes twice the bytes of its arguments."""

  def __init__(self, monkeypatch, free):
    config = load(f"{QUICKSTART}:mrpo,debug")
    self.setup = abstract_setup(config, mesh_of(config), read_shape)
    monkeypatch.setattr(ahead, "_compiled", self.compiled)
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: free)

  def compiled(self, jitted, arguments):
    size, _ = argument_bytes(arguments)
    return object(), {"argument": size, "peak": 2 * size}


def peak_of(setup):
  rows = setup.packing.whole().of([[]] * setup.objective.views, ())
  return 2 * argument_bytes(abstract_train_step(setup, rows)[1])[0]


def test_a_step_that_fits_says_its_bytes(monkeypatch):
  step = Step(monkeypatch, free=GIB)
  with logged() as lines:
    compile_ahead(step.setup)
  assert lines[0] == "compiling the step"
  peak, half = (sized_bytes(peak_of(step.setup) // n) for n in (1, 2))
  assert lines[2:] == [
    f"the step takes {peak} of each device ({half} of weights, state and "
    f"rows, {half} beside them); 1 GiB are free"
  ]


def test_where_the_compiler_gives_up_that_is_a_refusal(monkeypatch):
  step = Step(monkeypatch, free=None)
  sizes = {"argument": GIB, "peak": 90 * GIB}
  monkeypatch.setattr(ahead, "_compiled", lambda *_: (None, sizes))
  with pytest.raises(InputError, match="the step takes 90 GiB of each device"):
    compile_ahead(step.setup)


def test_where_nobody_knows_what_is_free_nothing_is_refused(monkeypatch):
  step = Step(monkeypatch, free=None)
  with logged() as lines:
    compile_ahead(step.setup)
  assert "free" not in lines[-1]


@pytest.mark.parametrize("share", [0.9, 0.45])
def test_what_does_not_fit_is_refused_with_the_flags_that_do(
  monkeypatch, share
):
  """Too large once compiled, or before that, by its arguments alone."""
  setup = Step(monkeypatch, free=GIB).setup
  step = Step(monkeypatch, free=int(share * peak_of(setup)))
  with logged() as lines, pytest.raises(InputError) as refused:
    compile_ahead(step.setup)
  assert (lines[0] == "compiling the step") == (share > 0.5)
  told = str(refused.value)
  assert (
    told.startswith("the step takes ") and " are free; it fits with " in told
  )
  words = told.partition("it fits with ")[2].replace("--config.", "").split()
  flags = dict(word.split("=") for word in words)
  assert flags["mesh.fsdp"] == "-1"
  typed = {
    k: int(v) if v.lstrip("-").isdigit() else v for k, v in flags.items()
  }
  smaller = resized(setup, setup.config.changed(typed))
  assert peak_of(smaller) <= share * peak_of(setup)


def test_where_nothing_helps_that_is_said_and_nothing_is_written(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(memory, "free_bytes", lambda mesh: 1024)
  assert train_debug(tmp_path / "w") == 2
  out, error = capsys.readouterr()
  assert "the step takes at least" in error and "1 KiB are free" in error
  assert "use more devices or a smaller model" in error
  assert "remat: " in out and "compiling" not in out
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_scored_reference_that_does_not_fit_is_refused_before_it_is_read(
  tmp_path, monkeypatch, capsys
):
  free = iter([GIB, 1024])
  monkeypatch.setattr(memory, "free_bytes", lambda mesh: next(free))
  mode = "--config.references.second.mode=scored"
  assert train_debug(tmp_path / "w", mode) == 2
  error = capsys.readouterr().err
  assert "the scoring step of references.second takes at least" in error
  assert not (tmp_path / "w").exists()


# What is refused before it is made.


def test_rows_of_a_step_are_counted_as_they_are_packed():
  for given in (
    dict(batch=12, length=64, rows=4),
    dict(batch=12, length=64, rows=4, mark_differences=True),
    dict(batch=10, length=64, rows=4, processes=2),
    dict(batch=1, length=64, rows=8),
  ):
    packing = Packing(**given)
    ((long, _),) = packing.of([[]], [])
    assert packing.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(long))


def test_rows_that_fit_exactly_are_not_refused(monkeypatch):
  config = load(f"{QUICKSTART}:mrpo,debug")
  packing, size = Packing(batch=4, length=1024, rows=2), 7 * 4 * 2 * 2 * 1024
  monkeypatch.setattr(memory, "host_bytes", lambda: size)
  memory.check_rows(config, packing)
  monkeypatch.setattr(memory, "host_bytes", lambda: size - 1)
  with pytest.raises(InputError, match="of one step take 112 KiB at least, th"):
    memory.check_rows(config, packing)


def test_a_vocabulary_that_its_trainer_cannot_hold_is_refused(monkeypatch):
  config = load(f"{QUICKSTART}:mrpo,debug")
  config = config.changed({"policy.new.vocab_size": 2**20})
  packing = Packing(batch=4, length=64, rows=2)
  monkeypatch.setattr(memory, "host_bytes", lambda: 64 * 2**20)
  memory.check_rows(config, packing)
  monkeypatch.setattr(memory, "host_bytes", lambda: 64 * 2**20 - 1)
  with pytest.raises(InputError, match="policy.new.vocab_size=1048576: train"):
    memory.check_rows(config, packing)
