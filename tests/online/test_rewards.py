# SPDX-License-Identifier: Apache-2.0
"""Rewards by name: functions, commands, sums, and what is refused."""

import hashlib
import shlex
import sys

import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.online.rewards import Combination, beginning, reward_of
from mrpo_jax.runs.config import read
from mrpo_jax.runs.config.method import chosen_method
from tests.material.config import get_config
from tests.material.pages import python_of

PROMPTS = ["Tell me of tea", "And of milk", "And of sugar"]
ANSWERS = ["a b", "a b c", ""]


def command(text):
  """A reward that runs this Python; `say` prints an object at once."""
  head = "import json, sys, time\n"
  head += "say = lambda one: print(json.dumps(one), flush=True)\n"
  return "command:" + shlex.join([sys.executable, "-c", head + text])


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The current folder, of which modules are imported."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  return tmp_path


@pytest.fixture
def function(here):
  """Writes the body of a function; gives it as a reward."""

  def make(body, keywords="", **given):
    name = f"own_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    (here / f"{name}.py").write_text(
      f"def reward(prompts, responses{keywords}):\n  {body}\n"
    )
    sys.modules.pop(name, None)
    return reward_of(f"{name}:reward", **given)

  return make


def test_a_function_gives_a_float_for_each_response(function):
  reward = function(
    "return [len(p) + len(r) for p, r in zip(prompts, responses)]"
  )
  assert reward(PROMPTS, ANSWERS) == [17.0, 16.0, 12.0]
  assert reward([], []) == []
  assert len(reward.script) == 64


def test_a_function_is_given_128_responses_at_once_and_its_options(function):
  body = "assert len(responses) <= 128; return [scale] * len(responses)"
  reward = function(body, ", *, scale=1", options={"scale": -2})
  assert reward(["p"] * 300, ["r"] * 300) == [-2.0] * 300


def test_a_command_answers_each_request_with_its_place():
  text = "for line in sys.stdin:\n"
  text += "  one = json.loads(line)\n"
  text += "  say({'reward': one['index'] + len(one['response']) / 2})"
  reward = reward_of(command(text))
  messages = [[{"role": "user", "content": "\u00e9"}], "p", "p"]
  assert reward(messages, ANSWERS) == [1.5, 3.5, 2.0]
  assert reward(messages[:1], ANSWERS[:1]) == [1.5]  # started anew


def test_a_command_runs_in_no_shell_and_not_for_nothing(here):
  assert reward_of("command:touch made; true")([], []) == []
  assert not (here / "made").exists()


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("say({'reward': float('nan')})", "prompt 0 .'Tell me of tea'. with"),
    ("say({'reward': 10**400})", "reward is a finite number"),
    ("say({'reward': True})", "reward is a finite number"),
    ("say({'reward': '1'})", "reward is a finite number"),
    ("say({'score': 1})", "reward is a finite number"),
    ("say(1)", "no JSON object: '1'; want one like {\"reward\": 0.5}"),
    (
      "say({'reward': 1}); sys.exit('no memory')",
      "exit code 1 before it answers prompt 1 .'And of milk'.; it says 'no mem",
    ),
    ("for _ in range(4): say({'reward': 1})", "more than 3 answers to 3"),
    (
      "for _ in range(3): say({'reward': 1})\nsys.exit(4)",
      "ends with exit code 4 after its last answer",
    ),
    (
      "say({'reward': 1}); time.sleep(60)",
      "prompt 1 .'And of milk'. within 3 s; online.reward_timeout gives",
    ),
  ],
)
def test_a_command_that_gives_other_than_numbers_is_refused(text, match):
  timeout = 3 if "sleep" in text else 60
  reward = reward_of(command(text), flag="online.reward", timeout=timeout)
  with pytest.raises(InputError, match=match) as caught:
    reward(PROMPTS, ANSWERS)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("body", "match"),
  [
    ("return [1.0, 2.0]", "gives 2 numbers for 1 answers from prompt 0"),
    (
      "return [0.0] * (len(responses) // 3 * 2 or 1)",
      "gives 2 numbers for 3 answers from prompt 0 .'Tell me of tea'. on",
    ),
    (
      "return [1 / len(one) for one in responses]",
      r"fails from prompt 2 .'And of sugar'. on: ZeroDivisionError",
    ),
    (
      "return [float('inf') if 'c' in one else 0 for one in responses]",
      "of an answer to prompt 1 .'And of milk'. is inf; want a finite number",
    ),
  ],
)
def test_a_function_that_gives_other_than_numbers_is_refused(
  function, body, match
):
  with pytest.raises(InputError, match=match) as caught:
    function(body)(PROMPTS, ANSWERS)
  assert "\n" not in str(caught.value)


def test_the_place_of_a_prompt_counts_from_the_first_of_all(function):
  reward = function("return [1 / (one != 'bad') for one in responses]")
  with pytest.raises(InputError, match="from prompt 200 .'p200'. on: ZeroDiv"):
    prompts = [f"p{n}" for n in range(256)]
    reward(prompts, ["bad" if n == 200 else "good" for n in range(256)])


@pytest.mark.parametrize(
  ("text", "options", "match"),
  [
    ("", {}, "reward='' is no reward; give module:name, command:WORDS or a fo"),
    ("no/such/folder", {}, "is no reward"),
    (".", {}, "is a folder, and trained rewards are not read here"),
    ("command:", {}, "reward is empty"),
    ("command:no-such-program x", {}, "'no-such-program' is no command"),
    ("command:cat", {"a": 1}, "options are keywords of a function"),
    ("json:rewards", {}, "json has no function rewards"),
    (
      "mrpo_jax.online.words:length",
      {"units": "words"},
      "argument 'units'; it has unit, cap did you mean unit",
    ),
    (
      "mrpo_jax.online.words:length",
      {"unit": "lines"},
      "is none of words, cha",
    ),
  ],
)
def test_what_is_no_reward_is_refused_before_it_is_asked(text, options, match):
  with pytest.raises(InputError, match=match):
    reward_of(text, options=options)


def test_options_that_a_function_has_are_named(function):
  match = "argument 'scael'; it has scale, cap did you mean scale"
  with pytest.raises(InputError, match=match):
    function("return []", ", scale=1, *, cap=2", options={"scael": 3})


def test_a_folder_is_read_by_the_callers_function(tmp_path):
  def of_folder(path, scale=1):
    assert path == str(tmp_path)

    def sizes(prompts, responses):
      return [scale * len(one) for one in responses]

    sizes.script = "of the folder"
    return sizes

  reward = reward_of(str(tmp_path), options={"scale": 3}, of_folder=of_folder)
  assert reward(PROMPTS, ANSWERS) == [9.0, 15.0, 0.0]
  assert reward.name == str(tmp_path)
  assert reward.script == "of the folder"


def test_a_sum_is_of_weighted_parts_that_are_kept():
  rewards = {
    "length": reward_of("mrpo_jax.online.words:length"),
    "found": reward_of(
      "mrpo_jax.online.words:collected", options={"words": ["C"]}
    ),
  }
  both = Combination(rewards, {"found": 2.0, "length": -0.5})
  parts = both.parts(PROMPTS, ANSWERS)
  assert parts == {"length": [2.0, 3.0, 0.0], "found": [0.0, 1.0, 0.0]}
  assert both.total(parts) == both(PROMPTS, ANSWERS) == [-1.0, 0.5, 0.0]
  assert {*both.script} == {"length", "found"}


@pytest.mark.parametrize(
  ("names", "weights", "match"),
  [
    ((), {}, "at least one"),
    (("a",), {}, "weights are of none"),
    (("a",), {"b": 1.0}, "rewards are a, but weights are of b"),
    (("a",), {"a": float("nan")}, "weight of the reward a: nan is not finite"),
    (("a",), {"a": "1"}, "weight of the reward a: must be real"),
  ],
)
def test_a_sum_without_a_weight_for_each_is_refused(names, weights, match):
  one = reward_of("mrpo_jax.online.words:length")
  with pytest.raises(InputError, match=match):
    Combination(dict.fromkeys(names, one), weights)


def test_a_prompt_is_named_by_its_last_message():
  assert beginning([{"content": "a"}, {"content": "b"}]) == "'b'"
  assert beginning("x" * 50) == repr("x" * 40 + "...")
  assert beginning([]) == "''"


def test_the_examples_of_the_guide_run(here, monkeypatch, capsys):
  use, own, judge, named, quantiles = python_of("docs/guide/rewards.md")
  (here / "own_rewards.py").write_text(own)
  (here / "judge_length.py").write_text(judge)
  polite = reward_of("own_rewards:polite")
  assert polite(PROMPTS[:2], ["Thank you", "no"]) == [1.0, 0.0]
  python = shlex.quote(sys.executable)
  for code in (use.replace("command:python", f"command:{python}"), quantiles):
    exec(code, {})
    assert capsys.readouterr().out.strip() == code.rpartition("# ")[2].strip()
  c = get_config("dpo")
  exec(named, {"c": c})
  assert "aux_reward_BC" in chosen_method(read(c.to_dict())).needs
