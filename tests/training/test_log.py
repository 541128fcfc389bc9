# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl when a run goes on: what is left of it, and what is said."""

import json

import pytest

from mrpo_jax import files
from mrpo_jax.training.log import Metrics, metrics_until
from tests.material.logged import logged

LINES = [json.dumps({"step": n, "loss": 1 / n}) for n in range(1, 9)]


def reopened(path, *lines, step=8, every=1):
  """(steps of the lines that are left, what was said)."""
  content = [x if isinstance(x, bytes) else x.encode() for x in lines]
  path.write_bytes(b"".join(line + b"\n" for line in content))
  with logged() as said:
    due = lambda n: n == 1 or n % every == 0  # noqa: E731
    with Metrics(path.parent, step=step, logged=due):
      pass
  kept = [line for line in path.read_text().split("\n") if line]
  # Strict JSON.
  values = [json.loads(x, parse_constant=pytest.fail) for x in kept]
  return [value["step"] for value in values], said


@pytest.fixture
def path(tmp_path):
  return tmp_path / "metrics.jsonl"


def test_what_is_whole_stays_without_a_word(path):
  assert reopened(path, *LINES) == ([*range(1, 9)], [])
  assert path.read_text().split("\n")[:-1] == LINES
  assert reopened(path, *LINES, step=5) == ([1, 2, 3, 4, 5], [])
  assert reopened(path, *LINES[:1], *LINES[3::4], every=4) == ([1, 4, 8], [])


def test_what_a_kill_cut_short_past_the_checkpoint_is_nothing_lost(path):
  path.write_text("\n".join(LINES)[:-4])
  with logged() as said:
    with Metrics(path.parent, step=7, logged=lambda step: True):
      pass
  assert len(files.read_lines(path)) == 7
  assert not said


@pytest.mark.parametrize(
  "left,lost",
  [
    (LINES[:5], "6 to 8"),
    (LINES[:1] + LINES[4:6] + LINES[7:], "2 to 4, 7"),
    ([], "1 to 8"),
    (LINES[::2], "2, 4, 6, 8"),
  ],
)
def test_lines_that_are_gone_are_named(path, left, lost):
  steps, said = reopened(path, *left)
  assert steps == [json.loads(line)["step"] for line in left]
  assert said == [f"{path} has lost the lines of the steps {lost}"]


def test_so_is_a_file_that_is_gone(path):
  with logged() as said:
    with Metrics(path.parent, step=8, logged=lambda step: step % 4 == 0):
      pass
  assert f"{path} has lost the lines of the steps 4 to 8" in said


def test_of_many_gaps_some_are_named(path):
  given = [json.dumps({"step": n}) for n in range(2, 40, 2)]
  _, (said,) = reopened(path, *given, step=39)
  assert said.endswith("of the steps 1, 3, 5, 7, 9 and 15 more gaps")


STRANGE = [
  *("", "garbage", "{", "null", "[1]", "3", '"step"', "{}", '{"step": null}'),
  *('{"step": "5"}', '{"step": true}', '{"step": 5.5}', '{"step": NaN}'),
  *(b"\xff\xfe", b"\x00\x00", "[" * 10**5, '{"step": ' + "1" * 5000 + "}"),
]


@pytest.mark.parametrize("line", STRANGE)
def test_a_line_of_garbage_is_left_out_and_the_others_stay(path, line):
  steps, said = reopened(path, *LINES[:4], line, *LINES[5:])
  assert steps == [1, 2, 3, 4, 6, 7, 8]
  gap = f"{path} has lost the lines of the steps 5"
  strange = f"{path}: 1 lines are no metrics and are left out"
  assert said == ([strange, gap] if line else [gap])


def test_figures_that_are_not_finite_are_left_out_of_their_line(path):
  line = '{"step": 5, "loss": NaN, "eval/loss": 1e999, "grad_norm": 2.0}'
  steps, said = reopened(path, *LINES[:4], line, *LINES[5:])
  assert steps == [*range(1, 9)]
  assert said == [f"{path}: 2 figures are no finite numbers and are left out"]
  assert files.read_lines(path)[4] == {"step": 5, "grad_norm": 2.0}


def test_samples_stay_and_what_only_looks_like_some_is_left_out(path):
  sample = {"index": 0, "prompt": "a", "response": "b", "tokens": 1}
  whole = [sample | {"finish": "stop"}]
  lines = [
    json.dumps({"step": 5, "samples": one})
    for one in (whole, [sample], "b", {}, [sample | {"finish": None}])
  ]
  for line, kept in zip(lines, (True, *[False] * 4), strict=True):
    _, said = reopened(path, *LINES[:4], line, *LINES[5:])
    assert ("samples" in files.read_lines(path)[4]) == kept
    assert bool(said) != kept


def test_an_export_reads_it_as_the_run_does(path):
  path.write_text("\n".join([*LINES[:2], "garbage", *LINES[3:]]) + "\n")
  with logged() as said:
    lines = metrics_until(path.parent, 5)
  assert [line["step"] for line in lines] == [1, 2, 4, 5]
  assert len(said) == 1
