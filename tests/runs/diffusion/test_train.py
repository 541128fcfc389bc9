# SPDX-License-Identifier: Apache-2.0
"""Runs of denoisers: the same to the bit when stopped, and what they refuse."""

import json
import logging
import shutil
import signal

import jax
import numpy as np
import pytest

from configs import diffusion_digits
from mrpo_jax import processes
from mrpo_jax.cli import main
from mrpo_jax.data.images.pairs import load as load_pairs
from mrpo_jax.diffusion import folder
from mrpo_jax.errors import InputError
from mrpo_jax.references import maintenance
from mrpo_jax.reports.report import report
from mrpo_jax.runs import diffusion
from mrpo_jax.runs.config import read
from mrpo_jax.runs.diffusion.export import export
from mrpo_jax.runs.diffusion.pictures import Pictures
from mrpo_jax.runs.diffusion.setup import drawn_files, set_up
from mrpo_jax.training import checkpoints

pytest.importorskip("sklearn")
SMALL = dict(patch=4, width=16, layers=1, heads=2, mlp_width=32)


def config_of(**changes):
  """A denoiser of a thousand weights, for some steps; dotted keys change it."""
  values = diffusion_digits.get_config("debug").to_dict()
  values |= dict(steps=6, batch=8, eval_draws=2, checkpoint_every=2)
  values["denoiser"] = dict(new=dict(SMALL))
  values["start"] |= dict(steps=4, batch=16)
  values["drawn"] |= dict(pairs=24, held_out=8, steps=3)
  values["samples"] |= dict(each=1, steps=3)
  for key, value in changes.items():
    *parents, name = key.split("__")
    section = values
    for parent in parents:
      section = section.setdefault(parent, {})
    section[name] = value
  return read(values)


def lines(workdir):
  """The lines of metrics.jsonl, without what differs from run to run."""
  text = (workdir / "metrics.jsonl").read_text()
  found = [json.loads(line) for line in text.splitlines()]
  return [
    {k: x for k, x in line.items() if not k.startswith("seconds")}
    for line in found
  ]


def params(workdir):
  step = checkpoints.stands_at(workdir)
  return jax.tree.leaves(checkpoints.field(workdir, step, "params")[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nobody stopped."""
  workdir = tmp_path_factory.mktemp("whole") / "w"
  diffusion.train_run(config_of(), workdir)
  return workdir


def test_it_ends_with_all_that_was_promised(whole):
  found = lines(whole)
  assert [line["step"] for line in found] == [*range(7)]
  # Policy and reference are one model under one draw; of the errors, about 1,
  # 6e-8 are rounding, times nats / 2 and beta.
  rounding = 6e-8 * 0.5 * 64_000 * 0.03
  assert found[1]["loss"] == pytest.approx(np.log(2), abs=rounding)
  last = found[-1]
  for name in ("rewards/accuracies", "error_change/chosen", "loss"):
    assert np.isfinite(last[f"eval/{name}"])
  assert 0 < last["samples/reward"] < 1
  assert {path.name for path in (whole / "pictures").iterdir()} == {
    "step-0.png",
    "step-6.png",
  }
  pairs = load_pairs(whole / "pairs" / "train.parquet", classes=())
  ink = [
    side.mean((1, 2, 3)) for side in (pairs.chosen_NHWX, pairs.rejected_NHWX)
  ]
  assert np.all(ink[0] > ink[1])  # the reward's word


STOPS = dict(start=[2], between=[2, 4], pairs=[2, 4, 2])  # after these saves


@pytest.mark.parametrize("where", STOPS)
def test_stopped_anywhere_it_ends_the_same(whole, tmp_path, monkeypatch, where):
  """SIGTERM after a step of either stage; the same command goes on."""
  real, seen = checkpoints.save, []

  def saved(manager, step, state, meta):
    real(manager, step, state, meta)
    seen.append(step)
    if seen == STOPS[where]:
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(checkpoints, "save", saved)
  config, before = config_of(), signal.getsignal(signal.SIGTERM)
  diffusion.train_run(config, tmp_path / "w")
  assert checkpoints.stands_at(tmp_path / "w") < 6
  assert (tmp_path / "w" / "pairs").exists() == (where == "pairs")
  monkeypatch.setattr(checkpoints, "save", real)
  diffusion.train_run(config, tmp_path / "w")
  signal.signal(signal.SIGTERM, before)
  assert lines(tmp_path / "w") == lines(whole)
  for one, other in zip(params(tmp_path / "w"), params(whole), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_finished_run_says_so(whole, caplog):
  with caplog.at_level(logging.INFO, logger="mrpo_jax"):
    diffusion.train_run(config_of(), whole)
  assert "finished before" in caplog.text


def test_report_shows_pictures_before_and_after(whole):
  report(whole)
  page = (whole / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 2
  results = json.loads((whole / "results.json").read_text())
  assert results


def test_export_is_trained_on(whole, tmp_path):
  export(whole, tmp_path / "m")
  config, names, _ = folder.load(tmp_path / "m")
  assert config.image == (8, 8, 1) and names[2] == "two"
  pairs = whole / "pairs"
  again = config_of(
    denoiser=dict(path=str(tmp_path / "m")),
    start=dict(images=""),
    drawn=dict(pairs=0),
    data__train=str(pairs / "train.parquet"),
    data__eval=str(pairs / "held_out.parquet"),
    draws=3,
    loss=dict(name="mrpo", beta=0.03),
    references=dict(
      names=("own", "before"),
      own=dict(path="policy"),
      before=dict(path=str(whole / "start" / "model")),
    ),
  )
  diffusion.train_run(again, tmp_path / "w", store=tmp_path / "store")
  first, *_, last = lines(tmp_path / "w")
  assert first["step"] == 0 and last["step"] == 6
  assert not (tmp_path / "w" / "store").exists()
  stored = maintenance.entries(tmp_path / "store")
  assert len(stored) == 2  # one of each reference
  assert {one["material"]["draws"] for one in stored} == {3}


def test_a_bucket_is_no_workdir_of_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="in a folder of a disk"):
    diffusion.train_run(config_of(), "gs://bucket/run")
  assert not [*tmp_path.iterdir()]  # no folder gs:


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(denoiser={}), "config.denoiser.path is empty"),
    (dict(start=dict(images="")), "config.start.images is empty"),
    (dict(data__train="a.parquet"), "give one of config.data.train"),
    (
      dict(drawn=dict(pairs=0), start=dict(images=""), denoiser__path="m"),
      "config.data.train is empty",
    ),
    (dict(data__eval="a.parquet"), "held-out pairs are drawn, too"),
    (dict(denoiser__new__patch=3), "does not divide images of 8 x 8"),
    (dict(denoiser__new__prediction="noise"), "must be one of 'epsilon'"),
    (dict(drawn__reward="no.such:thing"), "No module named 'no'"),
    (dict(drawn__reward="json:nothing"), "json has no function nothing"),
    (dict(drawn__reward="os:getcwd"), "takes no arguments"),
    (dict(drawn__pairs=2**40), "must be at most 2147483647"),
    (dict(drawn=dict(pairs=0), draws=2), "config.draws=2 is of pairs"),
    (dict(drawn=dict(pairs=0), data__eval="a.parquet"), "is of pairs, but"),
    (dict(samples__guidance=2.0, data__classes=()), "needs classes"),
    (dict(samples__guidance=2.0, start__without_class=0.0), "teaches nothing"),
    (dict(references__start__path=""), "config.references.start.path is empty"),
    (dict(mesh=dict(context=2)), "positions of texts"),
    (dict(mesh=dict(rules=dict(embd="model"))), "rules.embd is not known"),
    (dict(loss=dict(name="dpo", weights=(1.0, 2.0))), "axis K has size 1"),
    (
      dict(data__train=("a.parquet", "b.parquet")),
      "data.train must be of type",
    ),
    (dict(loss=dict(name="r_dpo")), "needs length_BC"),
    (dict(references=dict(names=())), "needs a reference"),
    (dict(loss=dict(name="nll")), "takes no reference"),
    (
      dict(references=dict(names=()), draws=2),
      "config.draws scores references",
    ),
    (dict(checkpoints__best="eval/virtual/rewards/accuracies"), "a denoiser's"),
    (
      dict(
        references=dict(names=()),
        loss=dict(name="nll"),
        checkpoints__best="eval/rewards/accuracies",
      ),
      "need a reference",
    ),
    (dict(data__classes=("zero",)), "classes are numbered from 0 to 0"),
    (
      dict(
        references=dict(
          names=("a", "b"), a=dict(path="policy"), b=dict(path="policy")
        ),
        loss=dict(name="mrpo", beta=0.1),
      ),
      "biased under a single draw",
    ),
  ],
)
def test_refused_before_anything_is_written(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    diffusion.train_run(config_of(**changes), tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_other_drawn_pairs_are_refused(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "w")
  train, held_out = drawn_files(tmp_path / "w").values()
  shutil.copy(held_out, train)
  with pytest.raises(InputError, match="identity.train"):
    diffusion.train_run(config_of(), tmp_path / "w")
  train.unlink()
  with pytest.raises(InputError, match="identity.train"):
    diffusion.train_run(config_of(), tmp_path / "w")


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(start__steps=6), "start.steps: 4 -> 6"),
    (dict(drawn__steps=4), "drawn.steps: 3 -> 4"),
    (dict(seed=1), "seed: 0 -> 1"),
    (dict(start__images="digits:held_out"), "start.images"),
    (dict(denoiser__new__width=32), "denoiser.new.width: 16 -> 32"),
  ],
)
def test_another_start_is_refused_before_there_is_a_run(
  whole, tmp_path, changes, message
):
  """Killed while pairs are drawn, a run has no config.json of its own yet."""
  for name in ("start", "pairs"):
    shutil.copytree(whole / name, tmp_path / "w" / name)
  with pytest.raises(InputError, match=message):
    set_up(config_of(**changes), tmp_path / "w")
  set_up(config_of(loss=dict(name="ipo", beta=0.1)), tmp_path / "w")
  shutil.rmtree(tmp_path / "w" / "pairs")
  set_up(config_of(drawn__steps=4), tmp_path / "w")  # none are drawn yet


def test_another_model_of_the_start_is_refused(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "w")
  model = tmp_path / "w" / "start" / "model"
  shutil.rmtree(model)
  export(whole, model)
  with pytest.raises(InputError, match="identity.start"):
    set_up(config_of(), tmp_path / "w")
  config = tmp_path / "w" / "config.json"
  content = json.loads(config.read_text())
  del content["identity"]["start"]  # as runs of before have it
  config.write_text(json.dumps(content))
  set_up(config_of(), tmp_path / "w")


def test_several_processes_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "several", lambda: True)
  with pytest.raises(InputError, match="in one process, on all its devices"):
    diffusion.train_run(config_of(), tmp_path / "w")


def test_a_reward_is_told_that_there_is_no_class(tmp_path):
  pictures = Pictures(set_up(config_of(data__classes=()), tmp_path / "w"))
  assert pictures._class_N.tolist() == [-1]


def test_another_config_is_refused(whole):
  with pytest.raises(InputError, match="loss.beta: 0.03 -> 0.5"):
    diffusion.train_run(config_of(loss=dict(name="dpo", beta=0.5)), whole)


@pytest.mark.parametrize(
  "command",
  [
    ("generate", "--workdir", "--prompts=x", "--to=y"),
    ("bench", "--config"),
    ("plan", "--config", "--topology=cpu:1"),
  ],
)
def test_commands_of_language_models_refuse_it(whole, command, capsys):
  name, flag, *rest = command
  value = whole if flag == "--workdir" else "configs/diffusion_digits.py"
  assert main([name, f"{flag}={value}", *rest]) == 2
  assert "no language model" in capsys.readouterr().err
