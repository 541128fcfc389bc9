# SPDX-License-Identifier: Apache-2.0
"""How processes meet, agree and miss each other; no other one is started."""

import os
import pathlib
import subprocess
import sys
import threading

import jax
import pytest

from mrpo_jax import cli, processes
from mrpo_jax.cli import flags
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.runs.setup import _agree
from mrpo_jax.runs.workdir import claim

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/quickstart.py:mrpo,debug"
MEETING = ("--coordinator=127.0.0.1:9", "--processes=2", "--process=1")
SLURM = {
  "SLURM_JOB_ID": "1",
  "SLURM_STEP_NODELIST": "node[3-4]",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
}
OPEN_MPI = {
  "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "2",
  "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.fixture
def initialized(monkeypatch, tmp_path):
  """What jax.distributed.initialize was given; nothing happens."""
  monkeypatch.chdir(tmp_path)
  given = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda **how: given.append(how)
  )
  monkeypatch.setattr(processes, "_watcher", threading.Timer(0, lambda: None))
  monkeypatch.setattr(processes, "_own_line_of_aborts", lambda: None)
  monkeypatch.setattr(processes.meeting, "meet", lambda *_, **__: None)
  for name in {*SLURM, *OPEN_MPI, *processes.LAUNCHED}:
    monkeypatch.delenv(name, raising=False)
  return given


@pytest.mark.parametrize(
  "flags,match",
  [
    (MEETING[:2], "--coordinator, --processes and --process go together"),
    (MEETING[1:], "--coordinator, --processes and --process go together"),
    (("--processes=2",), "--coordinator, --processes and --process go"),
    (("--coordinator=host", *MEETING[1:]), "'host'; want HOST:PORT"),
    (("--coordinator=:80", *MEETING[1:]), "':80'; want HOST:PORT"),
    (("--coordinator=h:99999", *MEETING[1:]), "'h:99999'; want HOST:PORT"),
    ((*MEETING[:2], "--process=2"), "--process: '2'; want a number from 0 to"),
    ((*MEETING[:2], "--process=-1"), "--process: '-1'; want a number from 0"),
    ((MEETING[0], "--processes=0", "--process=0"), "--processes: '0'; want"),
    ((MEETING[0], "--processes=two", "--process=0"), "--processes: 'two'"),
  ],
)
@pytest.mark.parametrize("command", ["train", "score"])
def test_wrong_flags_are_refused(initialized, capsys, command, flags, match):
  assert cli.main([command, CONFIG, "--workdir=W", *flags]) == 2
  assert match in capsys.readouterr().err
  assert not initialized


@pytest.mark.parametrize("flags", [(), ("--processes=1",)])
def test_one_process_meets_nobody(initialized, capsys, monkeypatch, flags):
  if flags:  # inside an allocation for two
    for name, value in SLURM.items():
      monkeypatch.setenv(name, value)
  assert cli.main(["train", "--config=none.py", "--workdir=W", *flags]) == 2
  assert "none.py: no such file" in capsys.readouterr().err
  assert not initialized


def test_flags_say_where_they_meet(initialized, capsys):
  argv = ["train", "--config.x", "1", *MEETING, "--config=none.py"]
  argv += ["--workdir", "W"]
  assert cli.main(argv) == 2
  (how,) = initialized
  assert how["coordinator_address"] == "127.0.0.1:9"
  assert (how["num_processes"], how["process_id"]) == (2, 1)
  assert how["heartbeat_timeout_seconds"] <= 30
  # The others are the command's own.
  assert "none.py: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
  "name,variables", [("slurm", SLURM), ("ompi", OPEN_MPI)]
)
def test_a_cluster_is_found_out(initialized, monkeypatch, name, variables):
  for variable, value in variables.items():
    monkeypatch.setenv(variable, value)
  processes.start()
  assert [how["cluster_detection_method"] for how in initialized] == [name]
  size = {"slurm": "SLURM_NTASKS", "ompi": "OMPI_COMM_WORLD_SIZE"}[name]
  monkeypatch.setenv(size, "1")
  processes.start()
  assert len(initialized) == 1


def test_an_mpi_that_jax_does_not_know_is_refused(initialized, monkeypatch):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  with pytest.raises(InputError, match="OMPI_COMM_WORLD_SIZE=2.*--coordinator"):
    processes.start()
  assert not initialized


def test_whoever_waits_in_vain_says_for_whom(tmp_path):
  # In its own process, which this ends.
  code = (
    "import sys; from mrpo_jax import cli, processes; processes.MEET = 1; "
    "sys.exit(cli.main(sys.argv[1:]))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, "train", CONFIG, "--workdir=W", *MEETING],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == 1
  assert "not all of 2 processes at 127.0.0.1:9 came" in done.stderr


class Service:
  """Stands for jax's coordination service; nobody else comes."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value, allow_overwrite=False):
    self.values[key] = value

  def key_value_dir_get(self, start):
    return [(k, v) for k, v in self.values.items() if k.startswith(start)]

  def wait_at_barrier(self, name, timeout):
    raise RuntimeError(f"{name} timed out after {timeout}\nand more")


@pytest.fixture
def service(monkeypatch):
  service, state = Service(), processes.distributed.global_state
  monkeypatch.setattr(state, "client", service)
  monkeypatch.setattr(state, "num_processes", 3)
  return service


def test_who_waits_in_vain_where_they_agree_stops(service):
  with pytest.raises(StoppedRun, match=r"within 1800 s: .* after 1800000$"):
    processes.gather("here")


def test_a_fault_names_those_that_show_no_life(service, monkeypatch, capsys):
  service.values |= {"mrpo/alive/0": "1", "mrpo/alive/1": "4"}
  later = {"mrpo/alive/0": "2"}
  monkeypatch.setattr(
    processes.time, "sleep", lambda _: service.values.update(later)
  )
  code, line = processes.fault(RuntimeError("connection reset"))
  assert code == 1
  assert line.startswith("lost process 1 and 2; the same command resumes")
  assert "connection reset" in line
  assert "RuntimeError: connection reset" in line
  assert capsys.readouterr().err == ""  # a line is enough


def test_a_fault_of_one_process_keeps_its_traceback(
  service, monkeypatch, capsys
):
  monkeypatch.setattr(
    processes.time,
    "sleep",
    lambda _: service.values.update({f"mrpo/alive/{n}": "9" for n in range(3)}),
  )
  assert processes.fault(ValueError("a bug")) == (1, "ValueError: a bug")
  assert "ValueError: a bug" in capsys.readouterr().err


# What each of them reads.


def test_processes_that_were_given_other_things_are_refused(monkeypatch):
  here = {"config": {"steps": 2}, "identity": {"data.train": "a"}}
  there = {"config": {"steps": 3}, "identity": {"data.train": "a"}}
  asked = iter([["one", "one", "two"], [here, here, there]])
  monkeypatch.setattr(processes, "gather", lambda value: next(asked))
  with pytest.raises(
    InputError, match="config.steps is 3 in process 2, 2 in process 0"
  ):
    _agree(here)


def test_a_workdir_that_others_do_not_see_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(processes, "is_first", lambda: False)
  with pytest.raises(InputError, match="is not the folder that process 0"):
    claim(tmp_path, {})
  assert not list(tmp_path.iterdir())


def test_a_wrong_flag_of_one_process_ends_all(monkeypatch):
  met, ended = [], []
  monkeypatch.setattr(flags, "meet", lambda *given: met.append(given))
  monkeypatch.setattr(processes, "several", lambda: bool(met))
  monkeypatch.setattr(processes, "end", lambda *said: ended.append(said))
  meeting = ["--coordinator=host:1", "--processes=2", "--process=1"]
  assert cli.main(["train", *meeting, "--workdr=/tmp/w"]) == 2
  assert met == [("host:1", "2", "1")]
  ((code, line),) = ended
  assert code == 2 and line.startswith("unknown flag --workdr; did you mean")
