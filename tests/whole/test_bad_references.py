# SPDX-License-Identifier: Apache-2.0
"""A reference that is wrong is called so, in words, by the run itself."""

import jax
import pytest

from mrpo_jax import hub
from mrpo_jax.data.tokenizer import load_tokenizer, train_tokenizer
from tests.material.runs import mrpo, train_debug

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A small model that learnt which tokens are frequent, and three spoilt."""
  folder = tmp_path_factory.mktemp("models")
  given = ("steps=60", "batch=16", "eval_every=0", "checkpoint_every=0")
  given += ("optimizer.peak_lr=0.02", "data.eval=")
  overrides = [f"--config.{one}" for one in given]
  run = folder / "run"
  assert train_debug(run, *overrides, run="sft-base") == 0
  good = folder / "good"
  assert mrpo("export", f"--workdir={run}", f"--to={good}") == 0
  tokenizer = load_tokenizer(good)
  config, params = hub.load(good)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  mixed = [
    jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  shuffled = jax.tree.unflatten(treedef, mixed)
  tenfold = {**params, "norm": 10 * params["norm"]}
  for name, bad in (("shuffled", shuffled), ("tenfold", tenfold)):
    hub.save(folder / name, config, bad, tokenizer=tokenizer)
  # The same letters, but ids of another order.
  other = train_tokenizer(
    ["numbers like 0123456789 and QWERTY"], vocab_size=300
  )
  hub.save(folder / "mistokenised", config, params, tokenizer=other)
  return folder


@pytest.mark.parametrize(
  "bad,sentences",
  [
    (
      ("mistokenised", "shuffled"),
      (
        "'mistokenised' gives a character of the responses",
        "'shuffled' gives a token of the responses",
      ),
    ),
    (
      ("tenfold",),
      (
        "the margins of reference 'tenfold' have a root mean square",
        "reference 'tenfold' carries",
      ),
    ),
  ],
)
def test_a_bad_reference_is_called_so(models, tmp_path, capsys, bad, sentences):
  """And the base, which is fine, is left alone."""
  given = {
    "policy.path": models / "good",
    "references.names": ("base", *bad),
    "steps": 2,
    "data.eval": "",
    "loss.clip.epsilon_max": 10.0,  # no clip to speak of
  }
  for name in bad:
    given[f"references.{name}"] = {
      "path": str(models / name),
      "mode": "scored",
    }
  capsys.readouterr()
  argv = [f"--config.{key}={value}" for key, value in given.items()]
  assert train_debug(tmp_path / "run", *argv) == 0
  lines = capsys.readouterr().out.splitlines()
  found = "\n".join(line for line in lines if line.startswith("warning: "))
  for said in sentences:
    assert said in found
  assert "reference 'base'" not in found
