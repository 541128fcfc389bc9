# SPDX-License-Identifier: Apache-2.0
"""Bandit run: losses trained on a table of arms, and compared there.

Every loss of the config is trained at every beta.  The run takes a minute and
has no checkpoint: one that was stopped starts again.
"""

import dataclasses
import functools
import io
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import files, losses
from mrpo_jax.errors import InputError, blames
from mrpo_jax.progress import Progress
from mrpo_jax.runs import owner
from mrpo_jax.runs.workdir import claim, known_run
from mrpo_jax.text import aligned
from mrpo_jax.training import tabular, trackers
from mrpo_jax.training.log import Metrics

logger = logging.getLogger(__name__)

RESULTS = "results.json"
PLOT = "bandit.png"


def train_run(config, workdir):
  """Trains every loss at every beta, and writes results.json and a plot.

  Args:
    config: BanditConfig.
    workdir: folder of the run; made if it does not exist.
  """
  trackers.check(config.tracking.to_dict())
  workdir = files.path_of(workdir)
  with owner.owned(workdir, owner.before(workdir)):
    _train_in(workdir, config)


def _train_in(workdir, config):
  content = config.to_dict()
  known = known_run(workdir, content, fixed=content)
  methods = _methods(config.bandit)
  if (workdir / RESULTS).exists():
    if known is None:
      raise InputError(f"{workdir} holds another {RESULTS}")
    logger.info(f"finished before: {workdir} stands at step {config.steps}")
    return
  claim(workdir, content)
  with jax.enable_x64(True):
    policies = _train(config, methods, workdir)
  results = {
    run: _result(policy_Y, config.bandit.rewards)
    for run, policy_Y in policies.items()
  }
  _draw(results, config.bandit, workdir / PLOT)
  files.write_json(workdir / RESULTS, results)
  logger.info(_table(results))
  logger.info(f"finished: {workdir} stands at step {config.steps}")


def _methods(bandit):
  """{link: Method}, each at the first beta."""
  methods = {}
  for name, link in bandit.links.items():
    keywords = {**link.keywords, "beta": bandit.betas[0]}
    with blames(f"config.bandit.links.{name}", (TypeError, ValueError)):
      method = losses.build(link.name, **keywords)
      pair_BC = jax.ShapeDtypeStruct((len(bandit.winners), 2), jnp.float32)
      ref_BCK = jax.ShapeDtypeStruct((*pair_BC.shape, 1), jnp.float32)
      jax.eval_shape(method, pair_BC, ref_BCK)
      if method.token_weight is not None or jax.tree.leaves(method.init(1)):
        raise ValueError(
          f"loss {method.name!r} weighs tokens or remembers earlier steps; "
          "the bandit knows neither"
        )
    methods[name] = method
  return methods


def _run(link, beta):
  return f"{link}/{beta}"


# Training.


def _train(config, methods, workdir):
  """{run: policy_Y}; metrics.jsonl on the way."""
  bandit, steps = config.bandit, config.steps
  average = min(bandit.average, steps)
  walks = {
    link: _walk(bandit, method, steps - average)
    for link, method in methods.items()
  }
  states = {link: start for link, (start, _) in walks.items()}
  tracked = trackers.opened(
    workdir, config.tracking.to_dict(), config.to_dict()
  )
  ends = sorted({1, *range(0, steps, config.log_every), steps} - {0})
  with (
    Metrics(workdir, step=0, trackers=tracked) as metrics,
    Progress("step", steps) as progress,
  ):
    for first, end in zip([0, *ends], ends, strict=False):
      begin = time.perf_counter()
      for link, (_, walk) in walks.items():
        states[link] = walk(states[link], first, end)
      figures = _figures(states, bandit.betas, end)
      seconds = time.perf_counter() - begin
      metrics.write(end, {**figures, "seconds": round(seconds, 4)})
      loss = f"loss {figures['loss']:.4f}"
      progress.update(end - first, [loss], now=end in (ends[0], steps))
  return {
    _run(link, beta): np.asarray(policy_XY[0] / average)
    for link, state in states.items()
    for beta, policy_XY in zip(bandit.betas, state.policy_XY, strict=True)
  }


def _walk(bandit, method, average_from):
  """(start, compiled descent) of a loss, over the axis I: one per beta."""
  arms, pairs = len(bandit.rewards), len(bandit.winners)
  ref_logp_XYK = jnp.asarray(np.full((1, arms, 1), -np.log(arms)))
  response_BC = jnp.array([bandit.winners, bandit.losers]).T - 1
  beta_I = jnp.array(bandit.betas)

  def task(beta):
    hyper = {**method.hyper, "beta": beta}
    return tabular.Task(
      loss=dataclasses.replace(method, beta=beta, hyper=hyper),
      ref_logp_XYK=ref_logp_XYK,
      prompt_B=jnp.zeros(pairs, int),
      response_BC=response_BC,
      weight_B=jnp.full(pairs, 1.0 / pairs),
    )

  def descend(beta, state, first, end):
    return tabular.descend(
      task(beta),
      state,
      first,
      end,
      lr=bandit.lr,
      average_from=average_from,
    )

  walk = jax.jit(jax.vmap(descend, in_axes=(0, 0, None, None)))
  start = jax.vmap(lambda beta: tabular.start(task(beta)))(beta_I)
  return start, functools.partial(walk, beta_I)


def _figures(states, betas, step):
  """The loss of every run at its last step, and their mean."""
  each = {
    f"loss/{_run(link, beta)}": float(loss)
    for link, state in states.items()
    for beta, loss in zip(betas, np.asarray(state.loss), strict=True)
  }
  for name, loss in each.items():
    if not np.isfinite(loss):
      raise InputError(
        f"config.bandit.lr is too large: {name} is {loss} at step {step}"
      )
  return {"loss": float(np.mean([*each.values()])), **each}


# What came out.


def _result(policy_Y, reward_Y):
  """Expected reward and KL from the uniform reference, in nats."""
  log_ratio_Y = np.log(np.where(policy_Y > 0, policy_Y, 1.0) * len(policy_Y))
  return {
    "policy": policy_Y.tolist(),
    "reward": float(policy_Y @ reward_Y),
    "kl": float(policy_Y @ log_ratio_Y),
  }


def _table(results):
  rows = [("loss/beta", "policy", "reward", "KL")]
  for run, r in results.items():
    policy = " ".join(f"{p:.3f}" for p in r["policy"])
    rows.append((run, policy, f"{r['reward']:.3f}", f"{r['kl']:.3f}"))
  return aligned(rows)


def _draw(results, bandit, path):
  """The policies as bars: a row for each loss, a column for each beta."""
  try:
    from matplotlib import figure
  except ImportError:
    logger.info(f"no {path.name}: pip install 'mrpo-jax[plot]'")
    return
  links, betas = bandit.links.names, bandit.betas
  sheet = figure.Figure(
    figsize=(1 + 2.1 * len(betas), 1 + 1.4 * len(links)), layout="constrained"
  )
  sheet.suptitle("Probability of each arm, with expected reward and KL")
  axes = sheet.subplots(
    len(links), len(betas), sharex=True, sharey=True, squeeze=False
  )
  for row, link in zip(axes, links, strict=True):
    row[0].set_ylabel(link)
    for ax, beta in zip(row, betas, strict=True):
      r = results[_run(link, beta)]
      ax.bar(range(1, 1 + len(r["policy"])), r["policy"])
      ax.text(
        0.97,
        0.93,
        f"reward {r['reward']:.3f}\nKL {r['kl']:.3f} nats",
        fontsize="small",
        ha="right",
        va="top",
        transform=ax.transAxes,
      )
  for ax, beta in zip(axes[0], betas, strict=True):
    ax.set_title(f"beta = {beta}")
  for ax in axes[-1]:
    ax.set(xlabel="arm", xticks=range(1, 1 + len(bandit.rewards)))
  axes[0, 0].set_ylim(0, 1)
  image = io.BytesIO()
  sheet.savefig(image, format="png", dpi=120)
  files.write_atomically(path, image.getvalue())
