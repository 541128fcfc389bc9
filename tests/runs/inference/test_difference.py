# SPDX-License-Identifier: Apache-2.0
"""The difference of two models' log-probabilities as a reward of responses."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import hub
from mrpo_jax.data.encode import encode
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.prompts import encode_prompts
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.errors import InputError
from mrpo_jax.models import transformer
from mrpo_jax.runs.inference.reward import (
  LikelihoodDifference,
  material_of,
  named_reward,
)
from tests.material.runs import mrpo

PROMPTS = [
  "Is tea good?",
  "Is tea good?",
  "And milk, with much of sugar in it?",
]
RESPONSES = [" Yes.", " It is, and it always was, day by day by day.", " No"]


def logps(folder, prompt, response):
  """The log-probability of each token of a response, end included."""
  config, params = hub.load(folder)
  pair = PreferencePair(prompt, response, None)
  one = encode(load_tokenizer(folder), pair, max_prompt=512, max_response=512)
  ids = jnp.array([[*one.prompt_ids, *one.chosen_ids]])
  logp_1TV = jax.nn.log_softmax(transformer.apply(config, params, ids))
  found_T = np.take_along_axis(
    np.asarray(logp_1TV)[0, :-1], np.asarray(ids)[0, 1:, None], axis=1
  )
  return found_T[len(one.prompt_ids) - 1 :, 0]


@pytest.mark.parametrize(
  ("unit", "count"), [("mean", np.mean), ("sum", np.sum)]
)
def test_each_model_has_its_own_tokens(inputs, unit, count):
  first, second = inputs / "base", inputs / "second"
  text = f"difference:{first},{second}"
  reward = named_reward(text, options={"unit": unit})
  pairs = [*zip(PROMPTS, RESPONSES, strict=True)]
  by_model = [[logps(one, *pair) for pair in pairs] for one in (first, second)]
  assert any(len(a) != len(b) for a, b in zip(*by_model, strict=True))
  want = [count(a) - count(b) for a, b in zip(*by_model, strict=True)]
  got = reward(PROMPTS, RESPONSES)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  # Whatever stands beside it: nothing is divided by a padded length.
  alone = [reward([p], [r])[0] for p, r in pairs]
  np.testing.assert_allclose(alone, want, rtol=1e-4, atol=1e-5)


def test_a_model_less_itself_is_nothing(inputs):
  reward = LikelihoodDifference(inputs / "base", inputs / "base")
  assert reward(PROMPTS, RESPONSES) == [0.0] * 3


def test_the_store_knows_it_by_what_the_folders_hold(inputs):
  one = named_reward(f"difference:{inputs}/base,{inputs}/second")
  other = named_reward(f"difference:{inputs}/second,{inputs}/base")
  found, swapped = material_of(one, {}), material_of(other, {})
  assert str(inputs) not in str(found)
  assert found["script"] != swapped["script"] and len(found["script"]) == 64


def test_mrpo_score_makes_a_column_of_it(inputs, tmp_path, capsys):
  argv = ["score", f"--reward=difference:{inputs}/base,{inputs}/base"]
  argv += [f"--pairs={inputs}/few.jsonl", f"--store={tmp_path / 's'}"]
  assert mrpo(*argv) == 0
  capsys.readouterr()
  assert mrpo("store", "ls", f"--store={tmp_path / 's'}") == 0
  assert "difference of likelihoods" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("text", "options", "match"),
  [
    ("difference:{0}/base", {}, "give two folders of language models"),
    ("difference:{0}/base,{0}/none", {}, "give two folders of language"),
    ("difference:{0}/base,{0}/base", {"unit": "max"}, "known: mean, sum"),
    ("difference:{0}/base,{0}/base", {"units": "sum"}, "mean unit?"),
  ],
)
def test_what_is_no_difference_is_refused(inputs, text, options, match):
  with pytest.raises(InputError, match=match):
    named_reward(text.format(inputs), options=options)


def test_a_reward_model_has_no_such_probabilities(inputs, tmp_path):
  config, params = hub.load(inputs / "base", head="scalar")
  params["score"] = jnp.zeros((1, config.width))
  tokenizer = load_tokenizer(inputs / "base")
  hub.save(tmp_path / "m", config, params, tokenizer=tokenizer)
  with pytest.raises(InputError, match="is a reward model"):
    named_reward(f"difference:{tmp_path / 'm'},{tmp_path / 'm'}")


def test_a_response_that_says_nothing_is_its_end(inputs):
  reward = named_reward(f"difference:{inputs / 'base'},{inputs / 'second'}")
  found = reward([PROMPTS[0]] * 2, ["", " "])
  wants = []
  for name in ("base", "second"):
    config, params = hub.load(inputs / name)
    tokenizer = load_tokenizer(inputs / name)
    pair = PreferencePair(PROMPTS[0], "x", None)
    (prompt,) = encode_prompts(tokenizer, [pair])
    ids = jnp.array([[*prompt.ids, tokenizer.eos_token_id]])
    logp_TV = jax.nn.log_softmax(transformer.apply(config, params, ids))[0]
    wants.append(float(logp_TV[-2, ids[0, -1]]))
  np.testing.assert_allclose(found, [wants[0] - wants[1]] * 2, atol=1e-5)


def test_a_reward_is_the_same_on_every_day(inputs, tmp_path, caplog):
  folder = shutil.copytree(inputs / "base", tmp_path / "base")
  tokenizer = load_tokenizer(folder)
  tokenizer.chat_template = "{{ strftime_now('%F') }}{{ messages }}"
  tokenizer.save_pretrained(folder)
  caplog.set_level("INFO", "mrpo_jax")
  reward = LikelihoodDifference(folder, inputs / "base")
  (scorer, _) = reward._scorers
  said = scorer.tokenizer.apply_chat_template([{}], tokenize=False)
  assert said.startswith("2024-07-26")
  assert "the day; for a model that judges texts it is always" in caplog.text
