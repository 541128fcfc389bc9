# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run, over loopback: one curve, and one end."""

import collections
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from mrpo_jax import cli, files, parallel, processes
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.runs.setup import _agree
from mrpo_jax.runs.workdir import PAIRS, claim
from mrpo_jax.training import checkpoints

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 24
TINY = (
  f"--config={ROOT}/configs/quickstart.py:mrpo,debug",
  f"--config.steps={STEPS}",
  "--config.eval_every=10",
  "--config.checkpoint_every=10",
  "--config.checkpoints.keep=3",
  "--config.data.row_length=64",
  "--config.data.max_prompt=16",
  "--config.data.max_response=16",
  "--config.mesh.fsdp=2",
  "--config.mesh.model=2",
  "--config.policy.new.layers=1",
  "--config.policy.new.kv_heads=2",
  "--config.policy.new.vocab_size=300",
  "--config.policy.adapter.rank=2",
  "--config.policy.adapter.alpha=4",
  "--config.references.second.new.layers=1",
  "--config.references.second.new.kv_heads=2",
  "--config.references.second.tokenizer=policy",
  "--config.references.second.mode=scored",
)
# The command, one process of which meets a signal when it records a step.
SIGNALLED = """
import os, sys, time
from mrpo_jax import cli
from mrpo_jax.runs import train
recorded, (number, at), hit = train.Run._record, map(int, sys.argv[1:3]), False
def record(self, step, *rest):
  global hit
  if step == at:
    hit = True
    os.kill(os.getpid(), number)
  if hit:
    time.sleep(0.5)  # jax looks for the signal once a second
  return recorded(self, step, *rest)
train.Run._record = record
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  rows = [
    {
      "prompt": f"question {i} of the day ",
      "chosen": f"a good answer {i * 7 % 11} " + "yes " * (i % 4),
      "rejected": f"bad {i * 5 % 13}" + " no" * (i % 3),
    }
    for i in range(40)
  ]
  path = tmp_path_factory.mktemp("data") / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return f"--config.data.train={path}", f"--config.data.eval={path}"


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
  """The run of one process with eight devices."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  assert cli.main(["train", *TINY, *data, f"--workdir={workdir}"]) == 0
  return workdir


def together(workdir, argv, *, last=(), hit=None):
  """[(exit code, stdout, stderr, seconds after the first end)] of two.

  Each has four devices.  `last` are more flags of the last process, `hit` is
  what it meets: (signal, step).
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  env["XLA_FLAGS"] = env["XLA_FLAGS"].replace("count=8", "count=4")
  started = []
  for n in range(2):
    meeting = (f"--coordinator=127.0.0.1:{port}", "--processes=2")
    command = ["-m", "mrpo_jax"]
    if n == 1 and hit:
      command = ["-c", SIGNALLED, *map(str, map(int, hit))]
    flags = (*argv, *(last if n == 1 else ()), f"--workdir={workdir}")
    files = [open(workdir.with_name(f"{n}.{k}"), "w+") for k in ("out", "err")]
    process = subprocess.Popen(
      [sys.executable, *command, "train", *flags, *meeting, f"--process={n}"],
      env=env,
      cwd=workdir.parent,
      stdout=files[0],
      stderr=files[1],
    )
    started.append((process, files))
  try:
    ended, deadline = {}, time.monotonic() + 400
    while len(ended) < 2 and time.monotonic() < deadline:
      for n, (process, _) in enumerate(started):
        if n not in ended and process.poll() is not None:
          ended[n] = time.monotonic()
      time.sleep(0.1)
    assert len(ended) == 2, "they hang"
  finally:
    for process, _ in started:
      process.kill()
      process.wait()
  found = []
  for n, (process, files) in enumerate(started):
    texts = []
    for file in files:
      with file:
        file.seek(0)
        texts.append(file.read())
    after = ended[n] - min(ended.values())
    found.append((process.returncode, *texts, after))
  return found


def assert_same_curve(workdir, alone, steps):
  want = {x["step"]: x for x in files.read_lines(alone / "metrics.jsonl")}
  found = {x["step"]: x for x in files.read_lines(workdir / "metrics.jsonl")}
  for step in steps:
    assert found[step].keys() == want[step].keys()
    for name, value in want[step].items():
      if not name.startswith("seconds"):
        assert found[step][name] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_two_processes_are_one_run_and_end_when_one_is_killed(
  alone, data, tmp_path
):
  workdir = tmp_path / "run"
  (kept, killed) = together(
    workdir, (*TINY, *data), hit=(signal.SIGKILL, STEPS - 2)
  )
  assert killed[0] == -signal.SIGKILL
  assert_same_curve(workdir, alone, range(1, 21))
  # With a message, in less than a minute.
  assert kept[0] not in (0, -signal.SIGKILL) and kept[3] < 60
  assert "lost process 1" in kept[2] or "another task died" in kept[2]
  # Once, by process 0.
  assert "step 4/24" in kept[1] and "step" not in killed[1]
  pairs = [json.dumps(x) for x in files.read_lines(workdir / PAIRS)]
  assert len(pairs) == len(set(pairs)) == 40


def test_a_checkpoint_of_one_process_resumes_in_two_that_stop_together(
  alone, data, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(alone, workdir)
  for step in checkpoints.steps(workdir):
    if step > 10:
      shutil.rmtree(workdir / "checkpoints" / str(step))
  ends = together(workdir, (*TINY, *data), hit=(signal.SIGTERM, 11))
  assert [end[0] for end in ends] == [0, 0], ends
  assert "resuming at step 10" in ends[0][1]
  assert "the same command resumes" in ends[0][1]
  last = checkpoints.steps(workdir)[0]
  assert 10 < last < STEPS
  assert_same_curve(workdir, alone, range(11, last + 1))


def test_what_one_process_cannot_read_ends_all(data, tmp_path):
  missing = "--config.data.eval=none.jsonl"
  workdir = tmp_path / "run"
  ends = together(workdir, (*TINY, *data), last=(missing,))
  assert [end[0] for end in ends] == [2, 2]
  errors = [end[2].strip().split("\n")[-1] for end in ends]
  assert errors[0] == errors[1]
  assert errors[0].startswith("error: none.jsonl")
  assert errors[0].endswith("(process 1 of 2)")
  assert not workdir.exists()


# How they meet.

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
  assert cli.main([command, *TINY, "--workdir=W", *flags]) == 2
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
    "cli.main(sys.argv[1:])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, "train", *TINY, "--workdir=W", *MEETING],
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
  assert "RuntimeError: connection reset" in capsys.readouterr().err


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


Device = collections.namedtuple("Device", "id process_index")


class Rows:
  """Stands for the sharding of rows over devices of several processes."""

  def __init__(self, owners):  # process of each shard's devices
    self.owners = owners

  def devices_indices_map(self, shape):
    of = {}
    for shard, owners in enumerate(self.owners):
      rows = slice(shard, shard + 1) if len(self.owners) > 1 else slice(None)
      for process in owners:
        of[Device(len(of), process)] = (None, rows, None)
    return of


@pytest.mark.parametrize(
  "owners,want",
  [
    ([[0], [0], [1], [1]], (0, 2)),
    ([[1], [0], [1], [0]], (1, 2)),  # a torus in another order
    ([[0, 1]], (0, 1)),  # `model` over both
    ([[0, 1], [2, 3]], (0, 2)),
    ([[2, 3], [0, 1]], (1, 2)),
  ],
)
def test_processes_read_equal_shares_of_the_rows(monkeypatch, owners, want):
  sharding = Rows(owners)
  monkeypatch.setattr(parallel, "rows_sharding", lambda mesh: sharding)
  monkeypatch.setattr(parallel, "row_shards", lambda mesh: len(owners))
  assert parallel.row_share(parallel.make_mesh()) == want


@pytest.mark.parametrize("owners", [[[0], [0], [1]], [[0, 1], [1, 2], [2, 0]]])
def test_rows_that_do_not_divide_are_refused(monkeypatch, owners):
  sharding = Rows(owners)
  monkeypatch.setattr(parallel, "rows_sharding", lambda mesh: sharding)
  monkeypatch.setattr(parallel, "row_shards", lambda mesh: len(owners))
  with pytest.raises(InputError, match="the rows do not divide over"):
    parallel.row_share(parallel.make_mesh())


# launch/local.sh


def local(tmp_path, **variables):
  """The script's end, with a stand-in for Python: process 1 fails."""
  stand_in = tmp_path / "python"
  stand_in.write_text(
    '#!/bin/sh\necho $$ >> "$0.pids"\n'
    'case "$*" in *--process=1*) exit 7;; *) exec sleep 100;; esac\n'
  )
  stand_in.chmod(0o755)
  given = {"CONFIG": "c.py:x,y", "WORKDIR": "/tmp/a b", "PROCESSES": "3"}
  given |= {"PORT": "1234", "PYTHON": str(stand_in), "GRACE": "1"}
  return subprocess.run(
    ["bash", ROOT / "launch" / "local.sh", "--config.steps=3"],
    env={**os.environ, **given, **variables},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def test_local_prints_every_command(tmp_path):
  done = local(tmp_path, DRY_RUN="1", DEVICES="4", XLA_FLAGS="--other")
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  assert done.returncode == 0 and len(lines) == 3
  for n, line in enumerate(lines):
    assert "XLA_FLAGS=--other --xla_force_host_platform_device_count=4" in line
    assert line[-8:-6] == ["mrpo_jax", "train"]
    assert line[-6:-4] == ["--config=c.py:x,y", "--workdir=/tmp/a b"]
    meeting = ["--coordinator=127.0.0.1:1234", "--processes=3"]
    assert line[-4:] == [*meeting, f"--process={n}", "--config.steps=3"]
  assert not (tmp_path / "python.pids").exists()


def test_local_ends_as_the_first_that_fails_and_leaves_none(tmp_path):
  done = local(tmp_path)
  assert done.returncode == 7
  assert "process 1 ended with exit code 7" in done.stderr
  for pid in (tmp_path / "python.pids").read_text().split():
    with pytest.raises(ProcessLookupError):
      os.kill(int(pid), 0)
