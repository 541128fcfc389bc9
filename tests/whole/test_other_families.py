# SPDX-License-Identifier: Apache-2.0
"""References of other families, with other tokenizers, in one MRPO step."""

import json
import shutil

import jax
import numpy as np
import pytest

from mrpo_jax import cli, files, hub
from mrpo_jax.data import encode, formats, truncate
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.models import transformer
from tests.material.config import CONFIG, LIMITS
from tests.material.families import SMALL, add_model

# Windows shorter than a sequence, and soft-caps that matter.
GEMMA2 = dict(
  SMALL,
  model_type="gemma2",
  sliding_window=16,
  query_pre_attn_scalar=8,
  attn_logit_softcapping=2.0,
  final_logit_softcapping=4.0,
)
QWEN3 = dict(SMALL, model_type="qwen3", tie_word_embeddings=True)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def folder(inputs, shared):
  """`inputs`, and the models of two more families."""

  def add(folder):
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    add_model(folder, "gemma", GEMMA2, load_tokenizer(folder / "third"))
    add_model(folder, "qwen", QWEN3, load_tokenizer(folder / "second"))

  return shared("families", add)


def train(folder, workdir, *overrides):
  return cli.main(
    [
      "train",
      f"--config={CONFIG}:mrpo,inputs={folder}",
      f"--workdir={workdir}",
      f"--config.data.train={folder}/pairs.jsonl",
      f"--config.data.eval={folder}/pairs.jsonl",
      f"--config.references.base.path={folder}/gemma",
      f"--config.references.second.path={folder}/qwen",
      "--config.eval_every=1",
      "--config.steps=2",
      *overrides,
    ]
  )


def logps_alone(folder, pairs, cuts):
  """[pair][choice] by full logits of each sequence, alone in its row."""
  config, params = hub.load(folder)
  assert config.longest is None
  tokenizer = load_tokenizer(folder)
  encoded = encode.encode_all(tokenizer, pairs, cuts=cuts, **LIMITS)

  @jax.jit
  def logps(tokens, segments):
    logits_BTV = transformer.apply(config, params, tokens, None, segments)
    return jax.nn.log_softmax(logits_BTV)

  def one(prompt, response):
    tokens = np.pad(prompt + response, (0, 64 - len(prompt + response)))[None]
    segments = (np.arange(64) < len(prompt + response)).astype(int)[None]
    logp_TV = np.asarray(logps(tokens, segments))[0]
    places = np.arange(len(prompt) - 1, len(prompt) - 1 + len(response))
    return logp_TV[places, np.array(response)].sum()

  return [
    [one(e.prompt_ids, ids) for ids in (e.chosen_ids, e.rejected_ids)]
    for e in encoded
  ]


def test_gemma_2_and_qwen_3_score_the_same_texts(folder, tmp_path):
  workdir = tmp_path / "run"
  assert train(folder, workdir) == 0
  lines = files.read_lines(workdir / "metrics.jsonl")
  assert np.isfinite([line["loss"] for line in lines]).all()
  assert lines[0]["references/base/margin"] != 0
  pairs = list(formats.read(folder / "pairs.jsonl"))
  records = files.read_lines(workdir / "eval_pairs.jsonl")
  assert len(records) >= 3
  pairs = [pairs[record["pair"]] for record in records]
  names = ("base", "gemma", "qwen")  # the policy's cuts too
  tokenizers = [load_tokenizer(folder / name) for name in names]
  cuts = truncate.cut_to_fit(tokenizers, pairs, **LIMITS)
  assert any(cuts)
  for k, name in enumerate(names[1:]):
    got = [record["references"][k] for record in records]
    want = logps_alone(folder / name, pairs, cuts)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_model_that_looks_at_its_batch_is_refused_past_its_length(
  folder, tmp_path, capsys
):
  shutil.copytree(folder / "qwen", tmp_path / "stretched")
  file = tmp_path / "stretched/config.json"
  values = json.loads(file.read_text()) | {
    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 48,
  }
  file.write_text(json.dumps(values))
  path = f"--config.references.second.path={tmp_path / 'stretched'}"
  workdir = tmp_path / "run"
  assert train(folder, workdir, path) == 2
  error = capsys.readouterr().err.strip()
  assert "config.references.second: beyond 48 tokens this qwen3" in error
  assert not workdir.exists()
  values["max_position_embeddings"] = 64
  file.write_text(json.dumps(values))
  assert train(folder, workdir, path, "--config.steps=1") == 0
