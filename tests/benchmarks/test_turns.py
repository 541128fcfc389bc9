# SPDX-License-Identifier: Apache-2.0
"""Workers of benchmarks/turns.py take turns, and what they say arrives."""

import json
import sys

import pytest

from benchmarks import turns

WORKER = """
import os
from benchmarks import turns

given = turns.worker_arguments("counts", step=1)
print("a library says hello")
os.system("echo and so does a child")

def turn(number):
  if given.step == 0:
    raise ValueError("out of step")
  pairs = given.job["pairs"]
  return {"seconds": pairs / given.step / (1 + number), "pairs": pairs}

turns.serve(given.channel, {"step": given.step}, turn)
"""


def process(tmp_path, name, step):
  (tmp_path / "worker_of_a_test.py").write_text(WORKER)
  job = tmp_path / "job.json"
  job.write_text(json.dumps({"pairs": 8}))
  path = {"PYTHONPATH": f"{turns.ROOT}:{tmp_path}"}
  arguments = (f"--step={step}",)
  module = "worker_of_a_test"
  return turns.Process(
    name, sys.executable, module, job, arguments, variables=path
  )


def test_rounds_and_the_table(tmp_path):
  calls = []

  def here(number):
    calls.append(number)
    return {"seconds": 4.0, "pairs": 8, "flops": 6e9, "peak": 3e9}

  players = [
    process(tmp_path, "one", 1),
    process(tmp_path, "two", 3),
    turns.Local("here", lambda: ({"mrpo": 1}, here)),
  ]
  players[0].work_of = "here"
  replies = turns.play(players, 3, warmup=1, say=lambda _: None)
  assert calls == [0, 1, 2]
  assert [turns.speed(one) for one in replies["one"]] == [2.0, 3.0]
  assert [turns.speed(one) for one in replies["two"]] == [6.0, 9.0]
  _, _, one, two, local = turns.markdown(players, replies).split("\n")
  # 6 GFLOP in 8/2 and 8/3 seconds, of 3 GFLOP/s: 50 and 75 %.
  assert one == (
    "| one | 2.50 | 2.25 to 2.75 | 1.00 | 1.00 to 1.00 | 62% | - |"
  )
  assert two.startswith("| two | 7.50 | 6.75 to 8.25 | 3.00 | 3.00 to 3.00 | -")
  assert "| 50% |" in local
  lines = turns.circumstances(players, replies, shape="tiny").split("\n")
  assert "rounds 2, shape tiny, matmul GFLOP/s 3" in lines[0]
  assert lines[1:] == ["- one: step 1", "- two: step 3", "- here: mrpo 1"]


def test_a_worker_that_fails_is_named_with_its_last_words(tmp_path):
  with pytest.raises(SystemExit, match="lame ended(.|\n)*out of step"):
    turns.play([process(tmp_path, "lame", 0)], 1, say=lambda _: None)
