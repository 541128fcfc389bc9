# SPDX-License-Identifier: Apache-2.0
"""Judges: what commands and functions are asked, and what is refused."""

import contextlib
import json
import os
import shlex
import signal
import sys
import time

import pytest

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.judges import judge_of
from mrpo_jax.external import Withdrawn


def requests(number):
  return [
    dict(prompt=f"p{n}", first="ab", second="abc", index=n, order=0)
    for n in range(number)
  ]


def script(text):
  """A command that runs this Python; `say` prints a line at once."""
  head = "import json, sys, time\n"
  head += "say = lambda text: print(text, flush=True)\n"
  return shlex.join([sys.executable, "-c", head + text])


LONGER = script(
  "for line in sys.stdin:\n"
  "  one = json.loads(line)\n"
  "  longer = len(one['second']) > len(one['first'])\n"
  "  say(json.dumps({'winner': 'second' if longer else 'first'}))\n"
)


def answers(command, number=3, **given):
  return [
    one["preference"] for one in judge_of(command, **given)(requests(number))
  ]


def test_a_command_answers_each_request():
  asked = requests(3)
  asked[1]["second"] = ""
  found = [one["preference"] for one in judge_of(LONGER)(asked)]
  assert found == [2.0, 1.0, 2.0]


def test_a_command_is_given_the_whole_request(tmp_path):
  keep = script(f"open({str(tmp_path / 'got')!r}, 'w').write(sys.stdin.read())")
  asked = [
    {"prompt": [{"role": "user", "content": "\u00e9\n"}], "first": "\ud83d"}
    | {"second": "", "index": 7, "order": 1}
  ]
  with pytest.raises(InputError):
    list(judge_of(keep)(asked))
  assert json.loads((tmp_path / "got").read_text()) == asked[0]


def test_preferences_and_winners_by_hand():
  lines = ['{"preference": 1}', '{"preference": 1.25, "why": "x"}']
  lines += [f'{{"winner": "{one}"}}' for one in ("first", "tie", "second")]
  found = answers(script(f"for one in {lines!r}: say(one)"), 5)
  assert found == [1.0, 1.25, 1.0, 1.5, 2.0]


def test_a_command_may_answer_at_the_end_and_without_a_last_line_break():
  late = "asked = sys.stdin.readlines()\n"
  late += "print('\\n'.join(['{\"preference\": 2}'] * len(asked)), end='')"
  assert answers(script(late), 5000) == [2.0] * 5000


def test_a_command_that_answers_is_heard_before_it_has_read_all():
  judge = judge_of(LONGER)
  found = judge(requests(100_000))
  assert next(found) == {"preference": 2.0}
  found.close()


@pytest.mark.parametrize("how", ["closed", "SIGTERM"])
def test_an_abandoned_command_is_ended(tmp_path, how):
  mark = tmp_path / "alive"
  stays = "say('{\"preference\": 1}')\n"
  stays += f"while True: open({str(mark)!r}, 'a').write('x'); time.sleep(0.01)"
  before = signal.getsignal(signal.SIGTERM)
  found = judge_of(script(stays))(requests(2))
  next(found)
  if how == "SIGTERM":  # which would end this process at once
    with pytest.raises(SystemExit) as info, contextlib.closing(found):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(1)
    assert info.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
  found.close()
  size = mark.stat().st_size if mark.exists() else 0
  time.sleep(0.1)
  assert (mark.stat().st_size if mark.exists() else 0) == size


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("say('{}')", "prompt 0 in order 0 with '{}': want preference or winner"),
    ("say('yes')", "prompt 0 in order 0 with no JSON object: 'yes'; want one"),
    ("say('')", "prompt 0 in order 0 with no JSON object: ''"),
    ("say('[2]')", "no JSON object"),
    ("say('{\"preference\": 1')", "no JSON object"),
    ("say('{\"preference\": 3}')", "preference is from 1"),
    ("say('{\"preference\": NaN}')", "preference is from 1"),
    ("say('{\"preference\": true}')", "preference is from 1"),
    ('say(\'{"preference": "2"}\')', "preference is from 1"),
    ('say(\'{"winner": "A"}\')', "winner is one of first, tie, second"),
    ('say(\'{"winner": ["tie"]}\')', "winner is one of first, tie, second"),
    (
      'say(\'{"winner": "tie", "preference": 1}\')',
      "both a preference and a winner",
    ),
    ("say('x' * 300)", r"'x{80}\.\.\.'"),
    ("sys.exit(3)", "ends with exit code 3 before it answers prompt 0"),
    ("raise KeyError('k')", "it says \"KeyError: 'k'\""),
    (
      "say('{\"preference\": 1}'); sys.exit()",
      "ends with exit code 0 before it answers prompt 1 in order 0",
    ),
    (
      "import os; os.kill(os.getpid(), 9)",
      "is ended by signal 9 before it answers prompt 0",
    ),
    (
      "sys.stdout.close(); import os; os.close(1); time.sleep(60)",
      "closes its output before it answers prompt 0",
    ),
  ],
)
def test_an_answer_that_is_none_is_refused_with_its_request(text, match):
  with pytest.raises(InputError, match=match) as caught:
    answers(script(text))
  assert "\n" not in str(caught.value)


def test_a_command_that_says_nothing_is_given_up():
  with pytest.raises(InputError, match="does not answer prompt 0 in order 0"):
    answers(script("time.sleep(60)"), timeout=0.3)


@pytest.mark.parametrize(
  ("end", "match"),
  [
    ("say('{\"preference\": 2}')", "more than 3 answers to 3 requests"),
    ("sys.exit(4)", "ends with exit code 4 after its last answer"),
    ("time.sleep(60)", "still runs 1 s after its last answer"),
  ],
)
def test_an_end_that_makes_all_answers_doubtful_withdraws_them(end, match):
  text = "for line in sys.stdin: say('{\"preference\": 2}')\n" + end
  with pytest.raises(Withdrawn, match=match):
    answers(script(text), timeout=1)


@pytest.mark.parametrize(
  ("command", "match"),
  [
    ("", "--judge is empty"),
    ("no-such-command --x", "'no-such-command' is no command"),
    ("echo 'a", "No closing quotation"),
    (".", "'.' is no command that can be run"),
    ("no_such_module:reward", "importing no_such_module fails: ModuleNotFound"),
    ("json:reward", "json has no function reward"),
    ("json:__doc__", "json has no function __doc__"),
  ],
)
def test_what_is_no_judge_is_refused(command, match):
  with pytest.raises(InputError, match=match):
    judge_of(command)


@pytest.fixture
def reward(tmp_path, monkeypatch):
  """Writes a module into the current folder; gives its RewardJudge."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])

  def make(text):
    name = f"reward_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    try:
      return judge_of(f"{name}:reward")
    finally:
      sys.modules.pop(name, None)

  return make


def test_a_reward_is_asked_for_both_answers_in_batches(reward):
  judge = reward(
    "SIZES = []\n"
    "def reward(prompts, responses):\n"
    "  SIZES.append(len(prompts))\n"
    "  assert len(responses) == len(prompts) <= 128\n"
    "  return [len(p + r) % 100 for p, r in zip(prompts, responses)]\n"
  )
  asked = requests(100)
  asked[99]["second"] = asked[99]["first"]
  asked[98]["second"] = ""
  found = [*judge(asked)]
  assert judge.orders == (0,)
  assert found[0] == {"preference": 2.0, "rewards": [4.0, 5.0]}
  assert [one["preference"] for one in found[-2:]] == [1.0, 1.5]


@pytest.mark.parametrize(
  ("body", "match"),
  [
    ("return [1.0]", "gives 1 numbers for 4 answers from prompt 0 on"),
    ("return [1, 2, 3, float('nan')]", "of an answer to prompt 1 is nan"),
    ("return None", "fails from prompt 0 on: TypeError"),
    (r"raise ValueError('a\nb')", r"ValueError: a \(reward_\d+.py line 2\)"),
    ("import sys; sys.exit(5)", "fails from prompt 0 on: SystemExit: 5"),
  ],
)
def test_a_reward_that_gives_none_is_refused(reward, body, match):
  judge = reward(f"def reward(prompts, responses):\n  {body}\n")
  with pytest.raises(InputError, match=match) as caught:
    list(judge(requests(2)))
  assert "\n" not in str(caught.value)


def test_a_module_that_fails_is_refused(reward):
  with pytest.raises(InputError, match=r"ZeroDivisionError.*\.py line 2"):
    reward("x = 1\nx / 0\n")


def test_the_script_of_a_command_is_its_first_file_of_text(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  for name in ("judge.py", "notes.txt", "own.sh"):
    (tmp_path / name).write_text(f"# {name}\n")
  (tmp_path / "own.sh").chmod(0o755)
  (tmp_path / "binary").write_bytes(b"\x7fELF\0")
  python = shlex.quote(sys.executable)
  for command, name in (
    (f"{python} judge.py notes.txt", "judge.py"),
    (f"{python} -u binary judge.py", "judge.py"),
    (f"env A=1 {python} judge.py", "judge.py"),
    ("./own.sh judge.py", "own.sh"),
    (f"{python} -m json", None),
    (f"{python} binary none.py .", None),
  ):
    want = name and files.sha256_of(tmp_path / name)
    assert judge_of(command).script == want, command
  assert judge_of("sys:getsizeof").script is None  # a module without a file


def test_a_program_found_by_its_name_hides_no_script(tmp_path, monkeypatch):
  """pyenv's python is a script of the shell, torchrun one of Python."""
  python, judge = tmp_path / "bin" / "python", tmp_path / "judge.py"
  python.parent.mkdir()
  monkeypatch.setenv("PATH", str(python.parent), prepend=os.pathsep)

  def script(command, *texts):
    for path, text in zip((python, judge), texts, strict=True):
      path.write_text(f"#!/bin/sh\n{text}\n")
    python.chmod(0o755)
    return judge_of(command).script

  command = f"python {judge}"
  found = [script(command, *texts) for texts in ("aa", "ab", "ba")]
  assert len({*found}) == 3 and script(command, *"aa") == found[0]
  assert script("python -m judge", *"aa") == files.sha256_of(python)
  assert script(f"{python} {judge}", *"aa") == files.sha256_of(python)
