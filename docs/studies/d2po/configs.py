# SPDX-License-Identifier: Apache-2.0
"""Configs of the study of D2PO: what `mrpo train` has, at the study's sizes."""

from configs import d2po, online_dpo, quickstart, reward_model
from mrpo_jax import files

STILL = 1e-12  # learning rate of a run whose round alone is wanted


def loop(workdir, grid, kind, *, seed, rate, held_out, reward=""):
  """ConfigDict of an online run.

  Args:
    workdir: of the study.
    grid: runs.Grid.
    kind: "d2po"; "static"; "gold_early", whose budget ends after a few rounds;
      "gold_thin", whose rounds have a few prompts; or "gold_start", which makes
      of the quickstart's policy the start of all others.
    seed: of the run.
    rate: its peak learning rate.
    held_out: file of the prompts that it answers on the way.
    reward: folder of the reward model that labels.
  """
  models = workdir / "models"
  form = "gold" if kind.startswith("gold") else kind
  c = d2po.get_config(f"models={models},loop={form}")
  if form != "gold":
    c.online.discriminator.path = str(reward)
  c.steps, c.batch = grid.rounds, grid.batch
  if kind == "gold_start":
    c.steps = grid.start_rounds
  else:
    c.policy.path = str(start_of(workdir))
  if kind == "gold_early":
    c.steps = grid.gold // grid.batch
  if kind == "gold_thin":
    c.batch = grid.gold // grid.rounds
  if form == "d2po":
    c.online.discriminator.buy = grid.buy
    c.online.discriminator.every = grid.every
    c.online.discriminator.peak_lr = grid.reward_lr
    c.online.gold_budget = grid.gold - grid.first
  _rounds(c, grid, c.steps)
  return _policy(c, grid, seed, rate, held_out)


def offline(workdir, grid, pairs, *, seed, rate, held_out):
  """ConfigDict of DPO on given pairs, with as many steps as the loop."""
  c = quickstart.get_config(f"dpo,models={workdir / 'models'}")
  c.steps, c.batch = grid.rounds, grid.batch
  c.policy.path = str(start_of(workdir))
  _given(c, grid, pairs)
  c.loss = dict(name="dpo", beta=0.05)  # of the loop
  c.optimizer.warmup = 0.05
  return _policy(c, grid, seed, rate, held_out)


def reward(workdir, grid, pairs, *, seed):
  """ConfigDict of a reward model of given pairs."""
  c = reward_model.get_config(f"models={workdir / 'models'}")
  c.seed, c.batch = seed, grid.batch
  epoch = len(files.read_lines(pairs)) / grid.batch
  c.steps = max(round(grid.reward_epochs * epoch), 1)
  c.policy.path = str(start_of(workdir))
  c.optimizer.peak_lr = grid.reward_lr
  _given(c, grid, pairs)
  return c


def first(workdir, grid, gold, *, seed, rounds):
  """ConfigDict of rounds of the start, of so many gold pairs each."""
  c = online_dpo.get_config(f"models={workdir / 'models'}")
  c.seed, c.steps, c.batch, c.checkpoint_every = seed, rounds, gold, 0
  c.policy.path = str(start_of(workdir))
  _rounds(c, grid, rounds)
  c.optimizer.peak_lr = STILL
  return c


def measure(workdir, grid, model, *, seed):
  """ConfigDict of one round of a trained policy, against the start."""
  c = first(workdir, grid, grid.measured * grid.batch, seed=seed, rounds=1)
  c.policy.path = str(model)
  c.references.base.path = str(start_of(workdir))
  return c


def start_of(workdir):
  """The folder of the policy that all methods start from."""
  return workdir / "models" / "start"


def _policy(c, grid, seed, rate, held_out):
  """What is alike in all that train a policy."""
  c.seed, c.optimizer.peak_lr, c.log_every = seed, rate, 1
  c.checkpoint_every = max(c.steps // 4, 1)
  c.samples = dict(
    prompts=str(held_out),
    every=max(c.steps // 4, 1),
    max_new_tokens=grid.max_new_tokens,
    temperature=1.0,  # drawn by seed, prompt and position alone
  )
  return c


def _rounds(c, grid, rounds):
  c.online.prompts, c.online.rounds = grid.train, rounds
  c.online.reward = grid.reward
  c.online.reward_options = dict(grid.reward_options)
  c.online.max_new_tokens, c.online.min_new_tokens = grid.max_new_tokens, 0
  c.data.max_prompt, c.data.row_length = grid.max_prompt, grid.row_length


def _given(c, grid, pairs):
  """Pairs that a round has left; their responses are whole."""
  c.data.train, c.data.eval, c.eval_every = str(pairs), "", 0
  c.data.max_prompt, c.data.row_length = grid.max_prompt, grid.row_length
  c.data.max_response = 2 * grid.max_new_tokens
