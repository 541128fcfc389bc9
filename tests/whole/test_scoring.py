# SPDX-License-Identifier: Apache-2.0
"""References scored once give what online ones give, and are scored once."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mrpo_jax import cli, files, hub, progress
from mrpo_jax.errors import InputError
from mrpo_jax.references import maintenance, store
from mrpo_jax.runs import score
from mrpo_jax.runs.config import read
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.runs.score import ScorePlan
from mrpo_jax.runs.setup import set_up
from tests.material.config import CONFIG, SEVERAL, get_config
from tests.material.runs import lines_of, on_one_device

ROOT = pathlib.Path(__file__).parents[2]
MODES = ("online", "scored")
one_device = pytest.mark.usefixtures("one_device")


def command(name, inputs, workdir, *overrides, loss="mrpo", mode="scored"):
  references = [
    f"--config.references.{key}.mode={mode}" for key in ("base", "second")
  ]
  if loss not in SEVERAL:
    references = references[:1]
  return [
    name,
    f"--config={CONFIG}:{loss},inputs={inputs}",
    f"--workdir={workdir}",
    *references,
    *overrides,
  ]


@pytest.fixture(scope="module")
def scored(inputs, shared):
  """The store of both references, filled by one command."""

  def run(folder):
    with on_one_device():
      assert cli.main(command("score", inputs, folder)) == 0

  return shared("scored", run) / "store"


@one_device
def test_no_model_is_read_where_no_score_can_be_written(
  inputs, tmp_path, monkeypatch, capsys
):
  root, write = tmp_path / "store", files.write_together

  def read_only(contents):
    if any(path.is_relative_to(root) for path in contents):
      raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(root))
    write(contents)

  monkeypatch.setattr(files, "write_together", read_only)
  monkeypatch.setattr(score, "load_reference", None)  # which nobody calls
  given = command("score", inputs, tmp_path / "run", f"--store={root}")
  assert cli.main(given) == 2
  assert f"error: {root}: Read-only file system" in capsys.readouterr().err


def with_three(inputs, mode):
  """Overrides that add a third reference with a third tokenizer."""
  return [
    "--config.references.names=('base','second','third')",
    f"--config.references.third={{'path':'{inputs}/third','mode':'{mode}'}}",
    f"--config.data.eval={inputs}/pairs.jsonl",
    "--config.eval_every=5",
  ]


@pytest.mark.slow
def test_online_and_scored_give_the_same_curve(inputs, tmp_path):
  curves = []
  for name, mode, third in (
    ("online", "online", "online"),
    ("scored", "scored", "scored"),
    ("mixed", "scored", "online"),
  ):
    given = with_three(inputs, third)
    argv = command("train", inputs, tmp_path / name, *given, mode=mode)
    assert cli.main(argv) == 0
    curves.append(lines_of(tmp_path / name))
  assert len(curves[0]) == 5
  for online, *others in zip(*curves, strict=True):
    for other in others:
      assert online.keys() == other.keys()
      for name in online.keys() - {"seconds", "seconds/input"}:
        assert other[name] == pytest.approx(online[name], abs=1e-5, rel=1e-5)
  assert "eval/references/third/margin" in curves[0][-1]
  assert curves[0][0]["loss"] != curves[0][-1]["loss"]


@pytest.mark.slow
def test_tokens_over_devices_give_the_same_curves(inputs, tmp_path):
  """Two references, online and scored, where devices share rows."""
  with on_one_device():
    assert cli.main(command("train", inputs, tmp_path / "one")) == 0
  alone = [line["loss"] for line in lines_of(tmp_path / "one")]
  assert abs(alone[-1] - alone[0]) > 1e-3
  shared = ("--config.mesh.context=2", "--config.policy.kernel=auto")
  for mode in MODES:
    argv = command("train", inputs, tmp_path / mode, *shared, mode=mode)
    assert cli.main(argv) == 0
    curve = [line["loss"] for line in lines_of(tmp_path / mode)]
    np.testing.assert_allclose(curve, alone, atol=1e-5)


@pytest.mark.slow
@one_device
def test_what_methods_need_of_tokens_is_stored(inputs, tmp_path):
  """Entropies of reference 0, and what it gives every single token."""
  given = ("--config.steps=2", "--config.loss.token_weight=down_sample")
  curves = []
  for mode in MODES:
    name, workdir = "mallows_theta", tmp_path / mode
    argv = command("train", inputs, workdir, *given, loss=name, mode=mode)
    assert cli.main(argv) == 0
    curves.append([line["loss"] for line in lines_of(workdir)])
  np.testing.assert_allclose(*curves, atol=1e-5)


def files_of(place):
  return {path: path.stat().st_mtime_ns for path in place.rglob("*.parquet")}


@pytest.mark.quick
@one_device
def test_what_is_scored_is_not_scored_again(
  inputs, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(progress, "SECONDS", 0.0)  # every line is due
  shared = f"--store={tmp_path}/shared"
  assert cli.main(command("score", inputs, tmp_path / "one", shared)) == 0
  before = files_of(tmp_path / "shared")
  assert len(before) == 2
  out = capsys.readouterr().out
  assert "scored 40 pairs of train" in out
  assert "compiling the scoring step of references.base took" in out
  line = (
    r"^scoring train under references.second: (\d+)/40 pairs"
    r"  [\d,]+ tokens/s"
  )
  counts = [int(count) for count in re.findall(line, out, re.MULTILINE)]
  assert counts == [*range(8, 40, 8), 40]
  strict = (shared, "--no-autoscore")
  assert cli.main(command("train", inputs, tmp_path / "two", *strict)) == 0
  assert files_of(tmp_path / "shared") == before
  out = capsys.readouterr().out
  assert ": scored " not in out and "scoring" not in out
  assert not (tmp_path / "one" / "metrics.jsonl").exists()
  # Computed in less precision they say something else: another key.
  narrow = (*strict, "--config.policy.compute=bfloat16")
  assert cli.main(command("train", inputs, tmp_path / "three", *narrow)) == 2
  assert "40 pairs of train are not scored" in capsys.readouterr().err


def test_without_autoscore_the_command_is_named(inputs, tmp_path, capsys):
  argv = command("train", inputs, tmp_path / "w", "--no-autoscore")
  assert cli.main(argv) == 2
  error = capsys.readouterr().err
  assert "40 pairs of train are not scored under reference 'base'" in error
  assert f"mrpo score {argv[1]} --workdir={tmp_path}/w" in error
  assert not (tmp_path / "w").exists()


@one_device
def test_a_missing_row_is_named(inputs, tmp_path):
  config = get_config(f"mrpo,inputs={inputs}").to_dict()
  for name in ("base", "second"):
    config["references"][name]["mode"] = "scored"
  config = read(config)
  setup = set_up(config, tmp_path / "w")
  plan = ScorePlan.of(setup, "", fresh=True)
  plan.fill()
  assert plan.known("train").arrays["ref_logp_BCK"].shape == (40, 2, 2)
  # The third pair becomes another, which nobody has scored.
  setup.tables["train"].fingerprints[2] = 64 * "0"
  with pytest.raises(InputError, match="1 of 40 pairs.*the first is pair 2;"):
    plan.known("train")


@one_device
def test_a_pair_is_not_a_single_response_in_the_store(
  inputs, tmp_path, monkeypatch
):
  def found(self, pairs):
    P = len(pairs)
    token_PC = np.full((P, 2), 3, np.int32)
    token_PC[4:6, 1] = 0
    logp_PC = -1.0 * token_PC
    return store.Scores(logp_PC, token_PC, token_PC, -logp_PC)

  monkeypatch.setattr(store.Store, "read", found)
  config = get_config(f"mrpo,inputs={inputs}").to_dict()
  config["references"]["base"]["mode"] = "scored"
  plan = ScorePlan.of(set_up(read(config), tmp_path / "w"), "", fresh=True)
  match = "2 pairs of train have a response without tokens.* first is pair 4;"
  with pytest.raises(InputError, match=match):
    plan.known("train")


def test_nothing_to_score_is_said(inputs, tmp_path, capsys):
  argv = command("score", inputs, tmp_path / "w", mode="online")
  assert cli.main(argv) == 2
  assert "nothing to score" in capsys.readouterr().err


@one_device
def test_a_changed_row_scores_itself_alone(inputs, tmp_path, capsys):
  data = tmp_path / "pairs.jsonl"
  shutil.copy(inputs / "pairs.jsonl", data)
  shared = (f"--store={tmp_path}/shared", f"--config.data.train={data}")
  assert cli.main(command("score", inputs, tmp_path / "one", *shared)) == 0
  rows = [json.loads(line) for line in data.read_text().splitlines()]
  rows[7]["chosen"] += " And one more thing."
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  capsys.readouterr()
  assert cli.main(command("score", inputs, tmp_path / "two", *shared)) == 0
  said = capsys.readouterr().out
  assert said.count("scored 1 pairs of train") == 2  # under each reference


@one_device
def test_shares_of_several_commands_make_the_whole(inputs, scored, tmp_path):
  """Each of two commands scores every other batch."""
  for part in ("0/2", "1/2"):
    argv = command("score", inputs, tmp_path / "w", f"--part={part}")
    assert cli.main(argv) == 0
  assert contents(tmp_path / "w/store", tmp_path) == contents(scored, tmp_path)


def contents(root, to):
  """{key: rows of its export}, for comparing two stores bit by bit."""
  found = {}
  for entry in maintenance.entries(root):
    rows = to / f"{entry['key']}.jsonl"
    maintenance.export(root, entry["key"], rows)
    found[entry["key"]] = rows.read_text()
    rows.unlink()
  return found


@pytest.mark.slow
@one_device
def test_kills_leave_the_store_of_an_uninterrupted_run(
  inputs, scored, tmp_path
):
  argv = command("score", inputs, tmp_path / "killed")
  # One file per batch, so that a kill can fall between files.
  code = (
    "import sys; from mrpo_jax import cli; "
    "from mrpo_jax.references import score; score.SHARD = 1; "
    "sys.exit(cli.main(sys.argv[1:]))"
  )
  flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
  root = tmp_path / "killed" / "store"
  for count in (1, 3):  # of files at which to kill
    process = subprocess.Popen(
      [sys.executable, "-c", code, *argv],
      env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(files_of(root)) < count:
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert cli.main(argv) == 0
  assert contents(root, tmp_path) == contents(scored, tmp_path)
  assert maintenance.verify(root) == []


@one_device
def test_a_flipped_byte_is_found(inputs, scored, tmp_path, capsys):
  root = shutil.copytree(scored, tmp_path / "w" / "store")
  assert cli.main(["store", "verify", f"--store={root}"]) == 0
  victim = sorted(files_of(root))[0]
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 1
  victim.write_bytes(content)
  capsys.readouterr()
  assert cli.main(["store", "verify", f"--store={root}"]) == 2
  assert victim.name in capsys.readouterr().out
  assert cli.main(["store", "prune", f"--store={root}"]) == 0
  assert not victim.exists()
  assert cli.main(command("score", inputs, tmp_path / "w")) == 0
  assert victim.exists()  # the same bytes have the same name


def test_the_store_is_listed_and_exported(scored, tmp_path, capsys):
  capsys.readouterr()
  assert cli.main(["store", "ls", f"--store={scored}"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 and all(" 40 " in line for line in lines[1:])
  key, to = lines[1].split()[0], tmp_path / "rows.csv"
  argv = ["store", "export", key, f"--store={scored}", f"--to={to}"]
  assert cli.main(argv) == 0
  assert len(to.read_text().splitlines()) == 41
  for wrong in (["store"], ["store", "list", f"--store={scored}"]):
    assert cli.main(wrong) == 2
    assert "ls, verify, prune, export" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["2/2", "x", "0/0", "-1/2"])
def test_a_share_that_is_none_is_refused(inputs, tmp_path, part, capsys):
  argv = command("score", inputs, tmp_path / "w", f"--part={part}")
  assert cli.main(argv) == 2
  assert "want like 0/4" in capsys.readouterr().err


def test_divergences_need_the_reference_itself(inputs, tmp_path, capsys):
  argv = command("train", inputs, tmp_path / "w", loss="tdpo")
  assert cli.main(argv) == 2
  assert "mode must be 'online'" in capsys.readouterr().err
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
@one_device
@pytest.mark.parametrize(
  "mode,scale", [("online", "zscore"), ("scored", "character")]
)
def test_scales_run_whole(inputs, tmp_path, scale, mode):
  given = (f"--config.loss.scale={scale}", *with_three(inputs, mode))
  argv = command("train", inputs, tmp_path / "w", *given, mode=mode)
  assert cli.main([*argv, "--config.steps=1"]) == 0
  last = lines_of(tmp_path / "w")[-1]
  assert np.isfinite(last["eval/loss"])
  sizes = [
    np.hypot(
      last[f"eval/references/{name}/margin"],
      last[f"eval/references/{name}/margin_sd"],
    )
    for name in ("base", "second", "third")
  ]
  # Training and held-out pairs are the same here: so are the spreads.
  if scale == "zscore":
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-4)
  else:
    assert not np.allclose(sizes, sizes[0], rtol=1e-2)


@one_device
def test_weights_are_measured_on_the_validation_split(inputs, tmp_path, capsys):
  given = ("--config.loss.weights=discrimination", "--config.steps=2")
  argv = command("train", inputs, tmp_path / "w", *given)
  assert cli.main(argv) == 2
  assert "config.data.validation" in capsys.readouterr().err
  argv.append(f"--config.data.validation={inputs}/pairs.jsonl")
  assert cli.main(argv) == 0
  lines = lines_of(tmp_path / "w")
  names = ("base", "second")
  first, last = (
    [line[f"references/{name}/weight"] for name in names]
    for line in (lines[0], lines[-1])
  )
  amounts = [amount(tmp_path / "w" / "store", inputs / n) for n in names]
  np.testing.assert_allclose(first, np.divide(amounts, sum(amounts)), rtol=1e-5)
  assert first == last and first[0] != first[1]


def amount(root, model):
  """What a reference's weight is proportional to, from its rows alone."""
  (entry,) = [
    one
    for one in maintenance.entries(root)
    if one["material"]["weights"] == hub.fingerprint(model)
  ]
  to = root / "rows.jsonl"
  maintenance.export(root, entry["key"], to)
  rows = [json.loads(line) for line in to.read_text().splitlines()]
  to.unlink()
  margins = np.array(
    [row["logp_chosen"] - row["logp_rejected"] for row in rows]
  )
  return np.abs(margins).sum()


def test_each_reference_has_its_beta(inputs):
  """Where none is named it is the loss's, and its default where that is not."""
  config = get_config(f"mrpo,inputs={inputs}").to_dict()
  config["references"]["second"]["beta"] = 0.9
  assert chosen_method(read(config)).mixing.betas == (0.1, 0.9)
  config["loss"]["beta"] = 0.2
  assert chosen_method(read(config)).mixing.betas == (0.2, 0.9)
  config["references"]["second"]["beta"] = None
  assert chosen_method(read(config)).mixing.betas is None
  config["references"]["base"]["beta"] = -1.0
  with pytest.raises(InputError, match="must not be negative"):
    read(config)
