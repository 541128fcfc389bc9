# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run, over loopback: one curve, and one end."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from mrpo_jax import cli, files
from mrpo_jax.runs.workdir import PAIRS
from mrpo_jax.training import checkpoints
from tests.material import services
from tests.material.benchmarks import write_benchmarks

pytestmark = pytest.mark.slow
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
from mrpo_jax.training.log import Log
recorded, (number, at), hit = Log._record, map(int, sys.argv[1:3]), False
def record(self, step, *rest):
  global hit
  if step == at:
    hit = True
    os.kill(os.getpid(), number)
  if hit:
    time.sleep(0.5)  # jax looks for the signal once a second
  return recorded(self, step, *rest)
Log._record = record
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


def together(workdir, argv, *, last=(), hit=None, beside=None):
  """`started`, of a run; `hit` is what the last one meets: (signal, step)."""
  argv = ("train", *argv, f"--workdir={workdir}")
  return started(beside or workdir, argv, last=last, hit=hit)


def started(path, argv, *, last=(), hit=None):
  """[(exit code, stdout, stderr, seconds after the first end)] of two.

  Each has four devices.  What they print lies beside `path`; `last` are more
  flags of the last process.
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  env["XLA_FLAGS"] = env["XLA_FLAGS"].replace("count=8", "count=4")
  both = []
  for n in range(2):
    meeting = (f"--coordinator=127.0.0.1:{port}", "--processes=2")
    command = ["-m", "mrpo_jax"]
    if n == 1 and hit:
      command = ["-c", SIGNALLED, *map(str, map(int, hit))]
    flags = (*argv, *(last if n == 1 else ()))
    files = [open(path.with_name(f"{n}.{k}"), "w+") for k in ("out", "err")]
    process = subprocess.Popen(
      [sys.executable, *command, *flags, *meeting, f"--process={n}"],
      env=env,
      cwd=path.parent,
      stdout=files[0],
      stderr=files[1],
    )
    both.append((process, files))
  try:
    ended, deadline = {}, time.monotonic() + 400
    while len(ended) < 2 and time.monotonic() < deadline:
      for n, (process, _) in enumerate(both):
        if n not in ended and process.poll() is not None:
          ended[n] = time.monotonic()
      time.sleep(0.1)
    assert len(ended) == 2, "they hang"
  finally:
    for process, _ in both:
      process.kill()
      process.wait()
  found = []
  for n, (process, files) in enumerate(both):
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
  assert "step 1/24" in kept[1] and "step" not in killed[1]
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


def test_two_processes_in_a_bucket_go_on_where_one_was_killed(
  alone, data, tmp_path, monkeypatch
):
  if lacks := services.missing("gs"):  # of s3:// several are refused
    pytest.skip(f"not installed: {', '.join(lacks)}")
  with services.service("gs") as (environment, _):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    workdir = files.path_of(f"gs://{services.BUCKET}/run")
    given = dict(beside=tmp_path / "run")
    hit = (signal.SIGKILL, STEPS - 2)
    ends = together(workdir, (*TINY, *data), hit=hit, **given)
    assert ends[0][0] != 0 and ends[1][0] == -signal.SIGKILL, ends
    # The one of step 20 is written while training goes on.
    last = checkpoints.steps(workdir)[0]
    assert last in (10, 20)
    ends = together(workdir, (*TINY, *data), **given)
    assert [end[0] for end in ends] == [0, 0], ends
    assert f"resuming at step {last}" in ends[0][1]
    assert_same_curve(workdir, alone, range(1, STEPS + 1))


def test_ctrl_c_in_one_process_saves_and_ends_all(data, tmp_path):
  workdir = tmp_path / "run"
  ends = together(workdir, (*TINY, *data), hit=(signal.SIGINT, 3))
  assert [end[0] for end in ends] == [130, 130], ends
  for end in ends:
    assert end[2].strip().split("\n")[-1] == (
      "error: interrupted (process 1 of 2)"
    )
  (last,) = checkpoints.steps(workdir)
  assert f"stopped at step {last}; the same command resumes" in ends[0][1]
  assert 3 <= last < STEPS


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


def test_two_generate_what_one_does(inputs, tmp_path):
  rows = [{"prompt": f"question {i} of the day"} for i in range(6)]
  files.write_lines(tmp_path / "p.jsonl", rows)
  argv = [
    *("generate", f"--model={inputs}/base", f"--prompts={tmp_path}/p.jsonl"),
    *("--samples=2", "--max_new_tokens=12", "--slots=5"),
  ]
  assert cli.main([*argv, f"--to={tmp_path}/alone.jsonl"]) == 0
  to = tmp_path / "said.jsonl"
  split = [f"--to={to}", "--mesh=data=2,fsdp=2,model=2"]
  for code, _, err, _ in started(to, [*argv, *split]):
    assert code == 0, err
  assert to.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_two_evaluate_what_one_does(inputs, shared, tmp_path):
  data = shared("benchmarks", write_benchmarks)
  argv = [
    *("evaluate", f"--model={inputs}/base", f"--data={data}"),
    *("--tasks=truthfulqa_mc2,gsm8k", "--num_fewshot=1", "--limit=2"),
  ]
  assert cli.main([*argv, f"--to={tmp_path}/alone"]) == 0
  to = tmp_path / "of_two"
  split = [f"--to={to}", "--mesh=data=2,fsdp=2,model=2"]
  for code, _, err, _ in started(to, [*argv, *split]):
    assert code == 0, err
  got, want = (
    files.read_json(folder / "results.json")["results"]
    for folder in (to, tmp_path / "alone")
  )
  assert got["gsm8k"] == want["gsm8k"]
  figures = (one["truthfulqa_mc2"]["acc,none"] for one in (got, want))
  assert next(figures) == pytest.approx(next(figures), abs=1e-5)


def test_two_sample_label_and_train_as_one_does(tmp_path):
  config = f"--config={ROOT}/configs/d2po.py:debug"
  more = (
    *("--config.mesh.fsdp=4", "--config.online.max_new_tokens=8"),
    *("--config.online.min_new_tokens=2", "--config.online.rounds=2"),
    "--config.online.reward=mrpo_jax.online.words:length",
    "--config.online.reward_options={'unit': 'characters'}",
    *("--config.data.rows=8", "--config.online.discriminator.passes=8"),
    "--config.online.discriminator.every=1",
  )
  alone = tmp_path / "alone" / "run"
  argv = (config, *more)
  assert cli.main(["train", *argv, f"--workdir={alone}"]) == 0
  workdir = tmp_path / "run"
  for code, _, err, _ in together(workdir, argv):
    assert code == 0, err
  assert_same_curve(workdir, alone, range(1, 5))
  for n in range(2):
    said, want = (
      files.read_lines(one / "rounds" / str(n) / "pairs.jsonl")
      for one in (workdir, alone)
    )
    assert [one["chosen_ids"] for one in said] == [
      one["chosen_ids"] for one in want
    ]
