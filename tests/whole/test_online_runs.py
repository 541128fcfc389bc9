# SPDX-License-Identifier: Apache-2.0
"""Runs of rounds: the policy's own responses, labelled, trained on, resumed."""

import contextlib
import shutil

import numpy as np
import pytest

from mrpo_jax import files, losses
from mrpo_jax.errors import InputError
from mrpo_jax.online.rounds import Rounds
from mrpo_jax.runs.config import load, read
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.runs.inference.reward import RewardModel
from mrpo_jax.runs.inference.sampler import Sampler
from mrpo_jax.runs.rounds.labels import Labels
from mrpo_jax.runs.rounds.rollout_rounds import harmonic_mean
from mrpo_jax.training import checkpoints
from tests.material.runs import (
  ROOT,
  assert_equal_runs,
  lines_of,
  mrpo,
  on_one_device,
  untimed,
)

SIZES = (
  *("--config.steps=6", "--config.online.rounds=3"),
  *("--config.checkpoint_every=1", "--config.online.max_new_tokens=16"),
  "--config.online.min_new_tokens=2",
  # Of random words few are ever collected.
  *("--config.online.reward=mrpo_jax.online.words:length",),
  "--config.online.reward_options={'unit': 'characters'}",
)


def train(workdir, *overrides, name="online_dpo"):
  config = f"--config={ROOT}/configs/{name}.py:debug"
  with on_one_device():
    return mrpo("train", config, f"--workdir={workdir}", *SIZES, *overrides)


@pytest.fixture(scope="module")
def done(shared):
  def run(folder):
    assert train(folder / "run") == 0

  return shared("online", run) / "run"


@pytest.mark.quick
def test_a_round_samples_labels_and_trains(done):
  lines = lines_of(done)
  assert [line["round"] for line in lines] == [0, 0, 1, 1, 2, 2]
  assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
  for name in ("reward/mean", "kl", "length/mean", "distinct_2", "ties"):
    assert name in lines[-1]
  # The policy that samples first is the reference.
  assert abs(lines[0]["kl"]) < 1e-4 < abs(lines[-1]["kl"])
  # 16 prompts with two responses are 16 labelled pairs a round.
  assert [line["gold_spent"] for line in lines] == [16, 16, 32, 32, 48, 48]
  pairs = files.read_lines(done / "rounds" / "1" / "pairs.jsonl")
  trained = sum(line["labelled"] for line in lines if line["round"] == 1)
  assert trained == len(pairs) and {one["round"] for one in pairs} == {1}
  for one in pairs:
    assert one["chosen_reward"] == len(one["chosen"])
    assert one["chosen_reward"] > one["rejected_reward"]


class Killed(BaseException):
  pass


@pytest.fixture
def killed(monkeypatch):
  """A context whose end comes in a call of a function, the number-th."""

  @contextlib.contextmanager
  def dies_at(owner, name, number):
    function, calls = getattr(owner, name), []

    def dies(*args, **given):
      calls.append(None)
      if len(calls) == number + 1:
        raise Killed
      return function(*args, **given)

    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(owner, name, dies)
      yield

  return dies_at


MOMENTS = [
  *((Sampler, "__call__", n) for n in (0, 1)),
  *((Labels, "__call__", n) for n in (0, 2)),
  *((Rounds, "write", n) for n in (0, 1)),
  *((Labels, "learned", n) for n in (1, 2)),
  *((checkpoints, "save", n) for n in (0, 3)),
]


@pytest.mark.parametrize("owner,name,number", MOMENTS)
def test_a_run_that_is_killed_goes_on_bit_for_bit(
  done, tmp_path, killed, owner, name, number
):
  with killed(owner, name, number):
    train(tmp_path / "run")
  assert train(tmp_path / "run") == 0
  assert_equal_runs(done, tmp_path / "run", 6)
  for number in range(3):
    here, there = (
      one / "rounds" / str(number) / "pairs.jsonl"
      for one in (done, tmp_path / "run")
    )
    assert here.read_bytes() == there.read_bytes()


def test_a_run_within_a_round_needs_its_pairs(done, tmp_path, capsys):
  workdir = shutil.copytree(done, tmp_path / "run")
  for step in (4, 6):
    shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
  shutil.rmtree(workdir / "rounds" / "2")
  assert train(workdir) == 1
  said = capsys.readouterr().err
  assert "the run stands at step 5, within round 2, whose pairs.jsonl" in said


def test_the_pairs_of_a_round_train_a_run_of_their_own(done, tmp_path):
  pairs = done / "rounds" / "0" / "pairs.jsonl"
  config = f"--config={ROOT}/configs/quickstart.py:dpo,debug"
  with on_one_device():
    assert not mrpo(
      *("train", config, f"--workdir={tmp_path / 'w'}"),
      *(f"--config.data.train={pairs}", "--config.steps=2"),
      "--config.data.eval=",
    )
  assert len(untimed(tmp_path / "w")) == 2


# D2PO: a discriminator labels, and learns.

D2PO = (
  "--config.online.discriminator.every=1",
  "--config.online.discriminator.buy=5",
  "--config.online.discriminator.peak_lr=0.01",
  "--config.online.discriminator.passes=20",
)


@pytest.fixture(scope="module")
def discriminated(shared):
  def run(folder):
    assert train(folder / "run", *D2PO, name="d2po") == 0

  return shared("discriminated", run) / "run"


def test_the_discriminator_is_bought_gold_and_learns(discriminated):
  lines = lines_of(discriminated)
  # Its head is zero at first: all tie but what the reward decides.
  assert lines[0]["labelled"] + lines[1]["labelled"] == 5
  assert [line["gold_spent"] for line in lines[::2]] == [5, 10, 15]
  # It is measured on all pairs that the reward does not tie.
  assert lines[0]["discriminator/accuracy"] == 0.5
  assert lines[-1]["discriminator/judged"] > 10
  assert lines[-1]["discriminator/fitted"] == 1.0
  rounds = [
    files.read_lines(discriminated / "rounds" / str(n) / "pairs.jsonl")
    for n in range(3)
  ]
  labels = [[one["labelled_by"] for one in some] for some in rounds]
  assert {*labels[0]} == {"mrpo_jax.online.words:length"}
  assert labels[2].count("discriminator") > 5


def test_gold_that_is_named_as_the_discriminator_is_refused(tmp_path, capsys):
  """It could not be told from it, so that the discriminator never learned."""
  assert train(tmp_path, "--config.online.reward=discriminator", name="d2po")
  assert "name the folder ./discriminator" in capsys.readouterr().err


def test_the_discriminator_is_exported_as_a_reward_model(
  discriminated, done, tmp_path, capsys
):
  to = tmp_path / "reward"
  argv = ("export", f"--to={to}", "--discriminator")
  assert mrpo(*argv, f"--workdir={discriminated}") == 0
  reward = RewardModel(to)
  pairs = files.read_lines(discriminated / "rounds" / "2" / "pairs.jsonl")
  better, worse = (
    reward([one["prompt"] for one in pairs], [one[side] for one in pairs])
    for side in ("chosen", "rejected")
  )
  # It has learned from those that were bought in the last round.
  bought = [one["labelled_by"] != "discriminator" for one in pairs]
  assert sum(bought) >= 3  # but for those that gold ties
  assert all(np.array(better)[bought] > np.array(worse)[bought])
  assert mrpo(*argv, f"--workdir={done}") == 2
  assert "online.discriminator.path" in capsys.readouterr().err


@pytest.mark.parametrize(
  "owner,name,number",
  [
    (Labels, "learned", 1),
    (Rounds, "note", 1),
    (checkpoints, "save", 2),
  ],
)
def test_a_discriminator_goes_on_bit_for_bit(
  discriminated, tmp_path, killed, owner, name, number
):
  run = tmp_path / "run"
  with killed(owner, name, number):
    train(run, *D2PO, name="d2po")
  assert train(run, *D2PO, name="d2po") == 0
  assert_equal_runs(discriminated, run, 6)


def test_rounds_without_a_purchase_have_figures_of_their_own(tmp_path):
  more = (
    *("--config.steps=12", "--config.online.rounds=12"),
    *("--config.online.discriminator.every=5", "--config.checkpoint_every=0"),
  )
  assert train(tmp_path / "w", *D2PO, *more, name="d2po") == 0
  lines = lines_of(tmp_path / "w")
  bought = [line["step"] for line in lines if "discriminator/loss" in line]
  assert bought == [1, 6, 11]


def test_a_budget_ends_purchases_and_random_pairs_can_be_bought(tmp_path):
  more = (
    "--config.online.gold_budget=7",
    "--config.online.discriminator.choice=random",
  )
  assert train(tmp_path / "w", *D2PO, *more, name="d2po") == 0
  lines = lines_of(tmp_path / "w")
  assert [line["gold_spent"] for line in lines[::2]] == [5, 7, 7]


# Several references, moving ones, other tokenizers.


def test_two_references_of_two_tokenizers_read_what_was_said(tmp_path):
  config = f"--config={ROOT}/configs/online_dpo.py:references=2,debug"
  with on_one_device():
    assert mrpo("train", config, f"--workdir={tmp_path / 'w'}", *SIZES) == 0
  lines = lines_of(tmp_path / "w")
  assert lines[-1]["references/second/tokens"] > 0 and "kl" in lines[-1]
  assert len({line["references/second/weight"] for line in lines}) > 1


def test_a_round_begins_from_the_extrapolated_policy(tmp_path):
  moves = "--config.rounds.count=3"
  assert train(tmp_path / "w", moves, name="apo_rounds") == 0
  lines = lines_of(tmp_path / "w")
  # Policy and reference are one where a round begins, and move apart in it.
  assert [abs(line["kl"]) < 1e-4 for line in lines] == [True] * 6
  margins = [line["rewards/margins"] for line in lines]
  assert margins[::2] == [0, 0, 0] and all(margins[1::2])
  # 16 prompts with five responses are 40 pairs of judged responses.
  assert lines[-1]["gold_spent"] == 120


def test_every_device_takes_its_share(done, tmp_path):
  config = f"--config={ROOT}/configs/online_dpo.py:debug"
  workdir = tmp_path / "w"
  more = ("--config.mesh.fsdp=2", "--config.data.rows=8")
  assert mrpo("train", config, f"--workdir={workdir}", *SIZES, *more) == 0
  for one, other in zip(lines_of(done), lines_of(workdir), strict=True):
    for name in ("loss", "kl", "reward/mean"):
      assert one[name] == pytest.approx(other[name], abs=1e-4), name


# Rollouts, token by token.

WHOLE = "--config.online.min_new_tokens=0"  # what is drawn is the policy's own


@pytest.fixture(scope="module")
def rolled(shared):
  def run(folder):
    assert train(folder / "run", WHOLE, name="apa") == 0

  return shared("rolled", run) / "run"


def test_rollouts_are_read_once_and_trained_on_token_by_token(rolled):
  lines = lines_of(rolled)
  assert [line["gold_spent"] for line in lines[::2]] == [4, 8, 12]
  assert all(line["behaviour/apart"] < 1e-5 for line in lines)
  assert lines[0]["reward/scale"] != lines[-1]["reward/scale"]
  rounds = [
    files.read_lines(rolled / "rounds" / str(n) / "rollouts.jsonl")
    for n in range(3)
  ]
  for one in rounds[0]:
    assert len(one["advantage"]) == len(one["ids"]) == len(one["ref_logp"])
    # The policy is the reference, and its value head is of zeros.
    np.testing.assert_allclose(
      one["behaviour_logp"], one["ref_logp"], atol=1e-5
    )
    want = one["reward"] / lines[0]["reward/scale"]
    assert one["returns"][-1] == pytest.approx(want, rel=1e-6)
  assert lines[-1]["value/mean"] != 0 and lines[-1]["kl"] != 0


@pytest.mark.parametrize(
  "owner,name,number", [(Rounds, "write", 1), (checkpoints, "save", 4)]
)
def test_rollouts_go_on_bit_for_bit(
  rolled, tmp_path, killed, owner, name, number
):
  with killed(owner, name, number):
    train(tmp_path / "run", WHOLE, name="apa")
  assert train(tmp_path / "run", WHOLE, name="apa") == 0
  assert_equal_runs(rolled, tmp_path / "run", 6)


@pytest.mark.parametrize("loss", ["awr", "ppo"])
def test_rivals_of_apa_train_on_the_same_rollouts(rolled, tmp_path, loss):
  override = (f"--config.loss.name={loss}", "--config.policy.adapter.rank=2")
  override += ("--config.policy.adapter.alpha=4", WHOLE)
  assert train(tmp_path / "w", *override, name="apa") == 0
  here, there = lines_of(tmp_path / "w"), lines_of(rolled)
  assert here[0]["reward/mean"] == there[0]["reward/mean"]
  assert here[0]["loss"] != there[0]["loss"]
  assert abs(here[0]["kl"]) < 1e-5 < abs(here[-1]["kl"])


def test_the_harmonic_mean_of_references_is_that_of_the_losses():
  logps = np.log([[0.5, 0.1, 0.9], [0.25, 0.4, 0.9]])
  found = harmonic_mean([*logps])
  np.testing.assert_allclose(np.exp(found), [1 / 3, 0.16, 0.9], rtol=1e-12)
  ref_BCK = np.repeat(logps.T[:, None], 2, axis=1)
  want = losses.harmonic(ref_BCK, np.ones(2))[:, 0]
  np.testing.assert_allclose(found, want, rtol=1e-6)
  np.testing.assert_array_equal(harmonic_mean([logps[0]]), logps[0])


# What is refused.


@pytest.mark.parametrize(
  "override,match",
  [
    ("--config.policy.head=tokens", "whose head is 'tokens+value'"),
    ("--config.references.names=()", "compares with the initial policy"),
    ("--config.online.discriminator.path=policy", "a discriminator orders"),
    ("--config.online.samples=3", "does not divide the 8 rollouts"),
    (
      "--config.references.base.tokenizer="
      f"{ROOT}/configs/tokenizers/unigram-1536",
      "needs the policy's tokenizer",
    ),
  ],
)
def test_what_rollouts_cannot_do_is_refused(tmp_path, capsys, override, match):
  assert train(tmp_path / "w", override, name="apa") == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and match in said


@pytest.mark.parametrize(
  "override,match",
  [
    ("--config.online.reward=", "config.online.reward is empty"),
    ("--config.online.reward=nowhere:f", "config.online.reward=nowhere:f"),
    ("--config.online.rounds=4", "rounds=4 does not divide config.steps=6"),
    ("--config.online.passes=3", "passes=3 does not divide the 2 steps"),
    ("--config.data.train=a.jsonl", "config.data.train is of given pairs"),
    ("--config.data.weights=1,2", "config.data.weights is of given pairs"),
    ("--config.data.unpair=True", "config.data.unpair is of given pairs"),
    ("--config.references.base.mode=scored", "has no scores; set it to"),
    ("--config.data.max_prompt=2", "none of its 428 prompts has at most"),
    ("--config.data.row_length=64", "are more than a row of"),
    ("--config.online.min_new_tokens=99", "is more than max_new_tokens=16"),
    ("--config.online.gold_budget=9", "labels 48 pairs in 3 rounds"),
    ("--config.online.discriminator.path=no", "no"),
    ("--config.online.samples=1", "a pair takes two responses"),
    ("--config.policy.tokenizer=", "has no text to train a tokenizer on"),
    ("--config.loss.scale=zscore", "measures its references on given pairs"),
    ("--config.online.rollouts.lam=0.5", "is of losses of tokens, apa, awr"),
    ("--config.online.prompts=", "so nothing would read the other keys of"),
  ],
)
def test_what_cannot_be_done_is_refused(tmp_path, capsys, override, match):
  assert train(tmp_path / "w", override) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and match in said
  assert not (tmp_path / "w").exists()


def test_a_supervised_loss_has_no_rounds(tmp_path):
  config = load(f"{ROOT}/configs/online_dpo.py:debug").to_dict()
  config |= {"loss": {"name": "nll"}, "references": {"names": ()}}
  with pytest.raises(InputError, match="trains on no pairs of a policy's own"):
    chosen_method(read(config))


COUNTING = """
def reward(prompts, responses):
  with open("asked.txt", "a") as file:
    file.write(f"{len(responses)}\\n")
  return [float(len(text)) for text in responses]
"""


@pytest.mark.parametrize("measure,asked", [(False, [6, 6]), (True, [16, 16])])
def test_a_reward_is_asked_once_for_each_response(
  tmp_path, monkeypatch, killed, measure, asked
):
  (tmp_path / "counting_reward.py").write_text(COUNTING)
  monkeypatch.chdir(tmp_path)
  more = (
    *D2PO,
    *("--config.online.reward=counting_reward:reward", "--config.steps=2"),
    *("--config.online.reward_options={}", "--config.online.rounds=2"),
    f"--config.online.measure={measure}",
    "--config.online.discriminator.buy=3",
  )
  # Of a round that stands in its file nothing is asked again.
  with killed(Labels, "learned", 1):
    train("w", *more, name="d2po")
  assert train("w", *more, name="d2po") == 0
  found = (tmp_path / "asked.txt").read_text().split()
  assert [*map(int, found)] == asked


BAD = """
def none(prompts, responses):
  return [float("nan")] * len(responses)

def few(prompts, responses):
  return [1.0] * (len(responses) - 1)

def dies(prompts, responses):
  raise ValueError("out of paper")
"""


@pytest.mark.parametrize("name", ["none", "few", "dies"])
def test_a_reward_that_fails_names_the_prompt_and_nothing_is_lost(
  tmp_path, monkeypatch, capsys, name
):
  (tmp_path / "bad_reward.py").write_text(BAD)
  monkeypatch.chdir(tmp_path)
  reward = f"--config.online.reward=bad_reward:{name}"
  assert train("w", reward, "--config.online.reward_options={}") == 2
  said = capsys.readouterr().err
  assert f"bad_reward:{name}" in said and "prompt 0 (" in said
  assert not (tmp_path / "w" / "rounds" / "0").exists()
