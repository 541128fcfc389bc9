# SPDX-License-Identifier: Apache-2.0
"""Comparisons by a judge: figures by hand, what is kept, what is refused."""

import json
import shlex
import sys

import pytest

from mrpo_jax import cli, files
from mrpo_jax.runs.evaluation.responses import named, names_of
from tests.material.rows import user
from tests.material.standing import run_of

PROMPTS = ["one", "two", "one", "three"]
SHORT = ["x", "xyz", "xy", "x"]
LONG = ["xxxx", "x", "xx", "xxx"]
# It notes what it is asked, and finds the first better for prompt 0, else ties;
# after LEFT answers it fails.
JUDGE = """
import json, os, sys
for number, line in enumerate(sys.stdin):
  one = json.loads(line)
  if number == int(os.environ.get("LEFT", "99")):
    sys.exit(7)
  with open("asked", "a") as file:
    print(one["index"], one["order"], one["first"], one["second"], file=file)
  winner = "first" if one["index"] == 0 else "tie"
  print(json.dumps({"winner": winner}), flush=True)
if "MORE" in os.environ:
  print("{}", flush=True)
"""
COMMAND = f"{shlex.quote(sys.executable)} judge.py"


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with prompts, two files of answers, a judge and a reward."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.delitem(sys.modules, "rewarding", raising=False)
  files.write_lines("p.jsonl", [{"prompt": one} for one in PROMPTS])
  for name, texts in (("a", SHORT), ("b", LONG)):
    files.write_lines(f"{name}.jsonl", [{"response": one} for one in texts])
  (tmp_path / "judge.py").write_text(JUDGE)
  (tmp_path / "rewarding.py").write_text(
    "def length(prompts, responses): return [len(r) for r in responses]\n"
  )
  return tmp_path


def compare(*flags, judge=COMMAND, names="ab"):
  """Exit code of the command."""
  given = [f"--responses={one}.jsonl" for one in names]
  given += ["--prompts=p.jsonl", f"--judge={judge}", "--to=out", *flags]
  return cli.main(["compare", *given])


def results():
  return json.loads(open("out/results.json").read())


def asked(here):
  path = here / "asked"
  return path.read_text().splitlines() if path.exists() else []


def test_a_reward_by_hand(here, capsys):
  assert compare(judge="rewarding:length") == 0
  found = results()
  assert (found["first"], found["second"]) == ("a", "b")
  assert (found["wins"], found["losses"], found["ties"]) == (2, 1, 1)
  assert (found["n"], found["prompts"]) == (4, 3)
  assert found["win_rate"] == 2.5 / 4
  assert found["length_difference"] == (3 - 2 + 0 + 2) / 4
  assert found["order_bias"] == 0.0
  assert found["p"] == 1.0  # of three prompts two are won, one is lost
  kept = files.read_lines("out/judgements.jsonl")
  assert kept[1]["rewards"] == [3.0, 1.0]
  table = capsys.readouterr().out
  assert "b against a" in table and "62.5% [" in table and " n " in table


def test_prompts_with_other_tools_are_others(here):
  tool = {"type": "function", "function": {"name": "f"}}
  rows = [
    {"prompt": [user("Hi")], **more} for more in ({}, {}, {"tools": [tool]})
  ]
  files.write_lines("p.jsonl", rows)
  for name in "ab":
    files.write_lines(f"{name}.jsonl", [{"response": name}] * 3)
  assert compare(judge="rewarding:length") == 0
  assert (results()["n"], results()["prompts"]) == (3, 2)


def test_a_command_is_asked_in_both_orders(here):
  assert compare() == 0
  assert asked(here)[:3] == ["0 0 x xxxx", "0 1 xxxx x", "1 0 xyz x"]
  found = results()
  assert (found["win_rate"], found["ties"]) == (0.5, 4)
  assert (found["order_bias"], found["flips"]) == (0.25, 0.25)


def test_a_judge_that_fails_goes_on_with_what_is_left(
  here, capsys, monkeypatch
):
  monkeypatch.setenv("LEFT", "3")
  assert compare() == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert "exit code 7 before it answers prompt 1 in order 1" in line
  assert not (here / "out/results.json").exists()
  with open("out/judgements.jsonl", "a") as file:
    file.write('{"first": "a", "ind')  # of a command that was killed
  monkeypatch.delenv("LEFT")
  assert compare() == 0
  assert len(asked(here)) == 8 == len({*asked(here)})
  again = (here / "out/results.json").read_bytes()
  assert compare() == 0  # asks nothing
  assert len(asked(here)) == 8
  assert (here / "out/results.json").read_bytes() == again


def test_a_model_that_is_added_is_judged_beside_the_others(here):
  assert compare() == 0
  files.write_lines("c.jsonl", [{"response": "c"}] * 4)
  assert compare(names="abc") == 0
  assert len(asked(here)) == 3 * 8 == len({*asked(here)})
  found = results()["comparisons"]
  assert [(one["first"], one["second"]) for one in found] == [
    *(("a", "b"), ("a", "c"), ("b", "c"))
  ]


def test_answers_that_make_all_doubtful_are_not_kept(here, capsys, monkeypatch):
  monkeypatch.setenv("MORE", "1")
  assert compare() == 2
  assert "more than 8 answers to 8 requests" in capsys.readouterr().err
  assert not (here / "out").exists()


def test_a_model_that_was_never_judged_may_say_something_else(
  here, capsys, monkeypatch
):
  assert compare() == 0
  monkeypatch.setenv("MORE", "1")
  files.write_lines("c.jsonl", [{"response": "c"}] * 4)
  assert compare(names="abc") == 2
  monkeypatch.delenv("MORE")
  files.write_lines("c.jsonl", [{"response": "d"}] * 4)
  assert compare(names="abc") == 0
  files.write_lines("c.jsonl", [{"response": "e"}] * 4)
  assert compare(names="abc") == 2
  assert "holds judgements of others: " in capsys.readouterr().err


def test_a_judge_that_never_answered_leaves_nothing(here, capsys):
  assert compare(judge=f"{shlex.quote(sys.executable)} no.py") == 2
  assert "before it answers prompt 0 in order 0" in capsys.readouterr().err
  assert not (here / "out").exists()
  (here / "out").mkdir()
  assert compare(judge=f"{shlex.quote(sys.executable)} no.py") == 2
  assert (here / "out").is_dir()  # it was there before
  assert compare() == 0


def test_a_folder_in_folders_that_were_made_goes_with_them(here):
  (here / "kept").mkdir()
  no = f"{shlex.quote(sys.executable)} no.py"
  assert compare("--to=kept/a/b", judge=no) == 2
  assert not [*(here / "kept").iterdir()]


@pytest.mark.parametrize(
  ("judge", "path"),
  [(COMMAND, "judge.py"), ("rewarding:length", "rewarding.py")],
)
def test_judgements_of_another_script_are_refused(here, capsys, judge, path):
  assert compare(judge=judge) == 0
  beside = here / "out/judgements.jsonl.run.json"
  record = files.read_json(beside)
  assert record["judge_script"] == files.sha256_of(path)
  with open(path, "a") as file:
    file.write("\n# Another one.\n")
  assert compare(judge=judge) == 2
  assert "judgements of others: judge_script: '" in capsys.readouterr().err
  del record["judge_script"]  # of before it was recorded
  files.write_json(beside, record)
  assert compare(judge=judge) == 0


def test_what_a_judge_writes_is_no_script_of_it(here):
  command = f"{COMMAND} asked"  # which the judge adds to
  (here / "asked").write_text("")
  assert compare(judge=command) == 0
  assert compare(judge=command) == 0


@pytest.mark.parametrize(
  ("name", "rows", "match"),
  [
    ("a.jsonl", [{"response": "y"}] * 4, "answers.a: '"),
    ("p.jsonl", [{"prompt": "other"}] * 4, "prompts: '"),
  ],
)
def test_judgements_of_other_texts_are_refused(here, capsys, name, rows, match):
  assert compare() == 0
  before = (here / "out/results.json").read_bytes()
  files.write_lines(name, rows)
  assert compare() == 2
  line = capsys.readouterr().err
  assert "holds judgements of others: " in line and match in line
  assert (here / "out/results.json").read_bytes() == before


def test_judgements_of_another_judge_are_refused(here, capsys):
  assert compare() == 0
  assert compare(judge="rewarding:length") == 2
  assert "-> 'rewarding:length'" in capsys.readouterr().err


def test_judgements_without_a_record_are_refused(here, capsys):
  (here / "out").mkdir()
  (here / "out/judgements.jsonl").write_text("{}\n")
  assert compare() == 2
  assert "says of what it is" in capsys.readouterr().err


@pytest.mark.parametrize(
  "changes",
  [
    {"first": 1},
    {"second": None},
    {"index": "0"},
    {"index": [0]},
    {"sample": True},
    {"preference": 1},
    {"preference": 2.5},
    {"preference": float("nan")},
    {"preference": "1.5"},
  ],
)
def test_a_judgement_that_was_changed_is_refused_by_its_key(
  here, capsys, changes
):
  assert compare(judge="rewarding:length") == 0
  path = here / "out/judgements.jsonl"
  lines = files.read_lines(path)
  lines[1] |= changes
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert compare(judge="rewarding:length") == 2
  (key,) = changes
  line = capsys.readouterr().err.splitlines()[-1]
  assert f"judgements.jsonl line 2: {key!r} is not as it was written" in line


@pytest.mark.parametrize("answers", [[], "a", 1, {"a": 1}])
def test_a_record_of_answers_that_was_changed_is_refused(here, capsys, answers):
  assert compare(judge="rewarding:length") == 0
  path = here / "out/judgements.jsonl.run.json"
  files.write_json(path, files.read_json(path) | {"answers": answers})
  assert compare(judge="rewarding:length") == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("error: ") and "answers" in line


def test_samples_of_a_prompt_are_paired(here):
  for name, texts in (("a", "pq"), ("b", "xyz"[:2])):
    rows = [
      {"response": f"{text}{index}", "index": index, "sample": sample}
      for index in range(4)
      for sample, text in enumerate(texts)
    ]
    files.write_lines(f"{name}.jsonl", rows)
  assert compare() == 0
  assert asked(here)[:3] == ["0 0 p0 x0", "0 1 x0 p0", "0 0 q0 y0"]
  assert (results()["n"], results()["prompts"]) == (8, 3)


@pytest.mark.parametrize(
  ("rows", "match"),
  [
    ([{"response": "x"}] * 3, "has no response to prompt 3, sample 0"),
    ([{"response": "x"}] * 5, "line 5: is of prompt 4, and there are 4"),
    ([{"response": 1}] * 4, "line 1: has no response, a text"),
    ([{"text": "x"}] * 4, "line 1: has no response, a text"),
    (
      [{"response": "x", "prompt": "two"}],
      "line 1: its prompt is not that of p.jsonl line 1",
    ),
    ([{"response": "x", "index": 0}] * 2, "a second response to prompt 0"),
    ([{"response": "x", "index": True}], "is of prompt True"),
    ([{"response": "x", "sample": -1}], "sample is -1"),
    (
      [{"response": "x", "index": n // 2, "sample": n % 2} for n in range(8)],
      "samples of a prompt have to be equally many: a 1, b 2",
    ),
  ],
)
def test_responses_of_something_else_are_refused(here, capsys, rows, match):
  files.write_lines("b.jsonl", rows)
  assert compare() == 2
  assert match in capsys.readouterr().err
  assert not asked(here)


@pytest.mark.parametrize(
  ("flags", "match"),
  [
    (["--responses=a.jsonl"], "give at least two of --model"),
    (["--responses=a.jsonl", "--responses=./a.jsonl"], "is given twice"),
    (["--responses=a.jsonl", "--responses=no.jsonl"], "no.jsonl: no such file"),
    (["--responses=a.jsonl", "--model=none"], "none: no such folder"),
    (["--judge="], "--judge is missing"),
    (["--judge=no-such-command"], "'no-such-command' is no command"),
    (["--judge=."], "there is no config.json"),
    (["--judge_timeout=0"], "--judge_timeout: '0'; want a positive number"),
    (["--prompts=none.jsonl"], "none.jsonl: no such file"),
  ],
)
def test_wrong_flags_write_nothing(here, capsys, flags, match):
  names = {flag.partition("=")[0] for flag in flags}
  rest = [
    *("--responses=a.jsonl", "--responses=b.jsonl", "--prompts=p.jsonl"),
    *(f"--judge={COMMAND}", "--to=out"),
  ]
  rest = [one for one in rest if one.partition("=")[0] not in names]
  assert cli.main(["compare", *rest, *flags]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("error: ") and match in line
  assert not (here / "out").exists()


def test_models_answer_and_are_judged(here, inputs, one_device):
  files.write_lines("p.jsonl", [{"prompt": "Hello there"}, {"prompt": "Hi"}])
  flags = [f"--model={inputs / 'base'}", f"--model={inputs / 'second'}"]
  flags += ["--max_new_tokens=4", "--slots=2", "--samples=2"]
  assert compare(*flags, judge="rewarding:length", names="") == 0
  found = results()
  assert found["models"] == ["base", "second"]
  assert (found["n"], found["prompts"]) == (4, 2)
  said = {
    name: files.read_lines(f"out/{name}.jsonl") for name in found["models"]
  }
  gaps = [
    len(b["response"]) - len(a["response"])
    for a, b in zip(said["base"], said["second"], strict=True)
  ]
  assert found["length_difference"] == sum(gaps) / 4
  assert found["wins"] == sum(gap > 0 for gap in gaps)


def test_runs_are_compared_by_name_and_step(here, inputs, one_device, capsys):
  files.write_lines("p.jsonl", [{"prompt": "Hello there"}, {"prompt": "Hi"}])
  for name, moved in (("loss.beta=1,seed=0", 0.0), ("moved", 0.2)):
    (here / name).mkdir()
    run_of(here / name, inputs / "base", moved=moved)
  flags = [f"--model=sft={inputs / 'base'}", "--workdir=loss.beta=1,seed=0"]
  flags += ["--workdir=far=moved", "--max_new_tokens=4", "--temperature=0"]
  assert compare(*flags, judge="rewarding:length", names="") == 0
  found = results()
  assert found["models"] == ["sft", "loss.beta_1_seed_0", "far"]
  said = {
    name: [
      one["response"] for one in files.read_lines(here / f"out/{name}.jsonl")
    ]
    for name in found["models"]
  }
  # A run that stands at its start says what its start says.
  assert said["sft"] == said["loss.beta_1_seed_0"] != said["far"]
  for more, match in (
    (["--step=7"], "--step 7: no such checkpoint; want newest, best or one"),
    (["--workdir=sft"], "--workdir sft holds no run"),
    (["--workdir=no=where"], "--workdir no=where holds no run"),
    (["--workdir=other=moved"], "moved is given twice"),
    (["--workdir=sft=."], "the name 'sft' is taken"),
    (["--responses=far=a.jsonl"], "the name 'far' is taken"),
    (["--responses=results=a.jsonl"], "the name 'results' is taken"),
  ):
    assert compare(*flags, *more, judge="rewarding:length", names="") == 2
    assert match in capsys.readouterr().err
  models = [f"--model={inputs / one}" for one in ("base", "second")]
  assert compare(*models, "--step=1", judge="rewarding:length", names="") == 2
  assert "--step is of runs: give it with --workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("texts", "names"),
  [
    (["b=m/a", "m/b"], ["b", "m-b"]),
    (["x=m/a", "y=m/b"], ["x", "y"]),
    (["k=1,s=0", "k=2,s=0"], ["k_1_s_0", "k_2_s_0"]),
    (["a/x=m", "a/y=m"], ["x_m", "y_m"]),
  ],
)
def test_a_name_may_be_given_before_a_path(tmp_path, monkeypatch, texts, names):
  monkeypatch.chdir(tmp_path)
  for path in ("m/a", "m/b", "k=1,s=0", "k=2,s=0", "a/x=m", "a/y=m"):
    (tmp_path / path).mkdir(parents=True)
  found = named(texts, ["results"])
  assert [one.name for one in found] == names
  assert all((tmp_path / one.path).is_dir() for one in found)


def test_a_name_goes_before_a_model_of_the_hub_too(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = named(["base=org/model-7b", "org/other@main"], ["results"])
  assert [(one.name, one.path) for one in found] == [
    ("base", "org/model-7b"),
    ("other_main", "org/other@main"),
  ]


@pytest.mark.parametrize(
  ("paths", "names"),
  [
    (["m/a", "m/b"], ["a", "b"]),
    (["runs/dpo/export", "runs/mrpo/export/"], ["dpo-export", "mrpo-export"]),
    (["a.jsonl", "b.json.gz"], ["a", "b"]),
    (["m/a.b v1", "m/.c"], ["a.b_v1", "c"]),
    (["m/results", "m/b"], ["m-results", "m-b"]),
  ],
)
def test_names_of_models_are_short_and_distinct(paths, names):
  assert names_of(paths, ["results"]) == names
