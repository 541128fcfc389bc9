# SPDX-License-Identifier: Apache-2.0
"""The reader of a command's output may leave; paths are UTF-8 anywhere."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from mrpo_jax import cli, streams

ROOT = pathlib.Path(__file__).parents[1]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def ends(script, tmp_path, **variables):
  """(exit code, output, errors) of a shell script in which `mrpo` is ours."""
  mrpo = f'mrpo() {{ "{sys.executable}" -m mrpo_jax "$@"; }}; set -o pipefail\n'
  done = subprocess.run(
    ["bash", "-c", mrpo + script],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    capture_output=True,
    timeout=120,
    check=False,
  )
  return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def pipe():
  """(a stream of the command, the other end as a file descriptor)."""
  reader, writer = os.pipe()
  output = streams.Output(writer, "w")
  yield io.TextIOWrapper(io.BufferedWriter(output), line_buffering=True), reader
  output.close()


def test_what_nobody_reads_any_more_is_dropped(pipe):
  stream, reader = pipe
  print("step 1", file=stream)
  assert os.read(reader, 99) == b"step 1\n"
  os.close(reader)
  for _ in range(3):
    print("step 2", file=stream)
  assert os.readlink(f"/proc/self/fd/{stream.fileno()}") == os.devnull


def test_help_ends_quietly_where_its_reader_left(tmp_path):
  # `true` has left before Python is up.
  assert ends("mrpo --help | true", tmp_path) == (0, "", "")
  code, output, errors = ends("mrpo --help 2>&1 | head -1", tmp_path)
  assert (code, output, errors) == (0, "usage: mrpo COMMAND [flags]\n", "")


def test_a_line_that_cannot_be_written_is_said_once(tmp_path):
  code, _, errors = ends("mrpo --help > /dev/full", tmp_path)
  assert code == 1 and errors.startswith("error: the disk is full")
  assert errors.count("\n") == 1


def test_no_file_takes_the_place_of_closed_streams(tmp_path):
  code = (
    "from mrpo_jax import streams; streams.take(); import os;"
    "file = open('kept', 'w'); print('said'); os.write(1, b'said');"
    "assert file.fileno() > 2"
  )
  script = f'"{sys.executable}" -c "{code}" <&- >&- 2>&-'
  assert ends(script, tmp_path)[0] == 0
  assert (tmp_path / "kept").read_text() == ""


def test_paths_are_unicode_under_an_ascii_locale(tmp_path):
  script = "mrpo inspect modèle; mrpo report --workdir=größe"
  code, _, errors = ends(script, tmp_path, **ASCII)
  assert code == 2
  first, second = errors.splitlines()
  assert first.startswith("error: modèle: no such folder")
  assert second.startswith("error: --workdir größe holds no run")


def test_an_argument_that_is_no_text_is_refused(capsys):
  word = os.fsdecode(b"--workdir=a\xff")
  assert cli.main(["report", word]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: '--workdir=a\\udcff' is not UTF-8")


@pytest.mark.slow
def test_training_goes_on_where_its_reader_left(tmp_path):
  config = f"--config={ROOT}/configs/quickstart.py:dpo,debug"
  steps = "--config.steps=4 --config.data.eval= --config.log_every=1"
  script = f"mrpo train {config} {steps} --workdir=rün | head -1"
  code, output, _ = ends(script, tmp_path, **ASCII)
  assert code == 0 and output.count("\n") == 1
  lines = (tmp_path / "rün" / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == 4
