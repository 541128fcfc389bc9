# SPDX-License-Identifier: Apache-2.0
"""Models of a study: supervised runs, exported, and what spoils one."""

import signal

import jax

from configs import quickstart
from mrpo_jax import hub
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.runs.config import read
from mrpo_jax.runs.export import export
from mrpo_jax.runs.train import train_run
from mrpo_jax.training import checkpoints

STARTS = ("sft-base", "sft-second")  # of the quickstart: policy, reference


def make_starts(workdir):
  """The quickstart's supervised starts, as folders below `models`."""
  for name in STARTS:
    make_model(workdir, name, quickstart.get_config(name))


def make_model(workdir, name, values):
  """Trains a run of these values to its end; exports it to `models/name`."""
  to = workdir / "models" / name
  if not to.exists():
    train_whole(read(values.to_dict()), workdir / name)
    export(workdir / name, to)


def train_whole(config, folder, **given):
  """Trains a run to its end; where SIGTERM stopped it, the study ends, too."""
  train_run(config, folder, **given)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which only the run took
  if checkpoints.stands_at(folder) != config.steps:
    raise SystemExit("stopped; the same command goes on")


def make_sharp(workdir, name, factor):
  """The second start with its logits times a factor, as `models/name`."""
  _spoil(
    workdir, name, lambda params: {**params, "norm": factor * params["norm"]}
  )


def make_shuffled(workdir, name="shuffled"):
  """The second start, each array's values in random order."""

  def shuffled(params):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
      treedef,
      [
        jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
      ],
    )

  _spoil(workdir, name, shuffled)


def _spoil(workdir, name, change):
  to, second = workdir / "models" / name, workdir / "models" / STARTS[1]
  if not to.exists():
    config, params = hub.load(second)
    hub.save(to, config, change(params), tokenizer=load_tokenizer(second))
