# SPDX-License-Identifier: Apache-2.0
"""BMC's bridge: what an editor is asked, what becomes of it, and is refused."""

import json
import re
import shlex
import sys

import pytest

from mrpo_jax import cli, files
from mrpo_jax.data import source
from mrpo_jax.errors import InputError
from mrpo_jax.online import bridge as bridges
from mrpo_jax.online.bridge import bridge
from tests.material.pages import ROOT, python_of

PAGE = "docs/guide/bridge.md"
ROWS = [
  dict(prompt="1 + 1?", chosen=" It is 2.", rejected=" It is 3."),
  dict(prompt="Capital of Peru?", chosen=" Lima.", rejected=" It is Quito."),
  dict(prompt="Hello", chosen=" Hi!", rejected=" Go away."),
]


def command(text):
  """Python that rewrites: `one` is a request, `say` answers it."""
  head = "import json, sys, time\n"
  head += (
    "say = lambda text: print(json.dumps({'rewrite': text}), flush=True)\n"
  )
  head += "for line in sys.stdin:\n  one = json.loads(line)\n"
  return shlex.join([sys.executable, "-c", head + text])


# The rejected answer with the guide's last word.
LAST = command(
  "  say(' '.join([*one['rejected'].split()[:-1], one['chosen'].split()[-1]]))"
)


@pytest.fixture
def pairs(tmp_path):
  files.write_lines(tmp_path / "pairs.jsonl", ROWS)
  return tmp_path / "pairs.jsonl"


def test_the_rewrite_is_chosen_over_the_answer_that_it_was_made_of(pairs):
  to = pairs.with_name("new.jsonl")
  about = bridge(pairs, LAST, to)
  first, second, *_ = files.read_lines(to)
  # "It is 2." is the chosen answer again, so that pair is left out.
  assert (
    first["chosen"] == " It is Lima." and first["rejected"] == " It is Quito."
  )
  assert first["guide"] == " Lima." and first["index"] == 1
  assert second["chosen"] == " Go Hi!"
  assert about["dropped"] == {"the chosen answer again": 1}
  assert [pair.chosen for pair in source.load(to)] == [
    " It is Lima.",
    " Go Hi!",
  ]
  assert not [*to.parent.glob(".*")]


def test_statistics_by_hand(pairs):
  about = bridge(pairs, LAST, pairs.with_name("new.jsonl"))
  assert (about["pairs"], about["kept"]) == (3, 2)
  assert about["words"] == {"chosen": 1.0, "rejected": 2.5, "rewrite": 2.5}
  # 1 of 3 and 1 of 2 words; before none of the words was common.
  assert about["changed"] == {
    side: pytest.approx((1 / 3 + 1 / 2) / 2) for side in ("rewrite", "rejected")
  }
  assert about["changed_before"] == {"chosen": 1.0, "rejected": 1.0}
  assert "2 of 3 pairs are bridged" in bridges.summary(about)
  stored = files.read_json(pairs.with_name("new.jsonl.bridge.json"))
  assert stored["statistics"] == about


def test_conversations_stay_conversations(tmp_path):
  ask = [{"role": "user", "content": "Hello"}]
  answer = [
    [{"role": "assistant", "content": one}] for one in ("Hi!", "Go away.")
  ]
  long = [*answer[0], *ask, *answer[0]]
  rows = [dict(prompt=ask, chosen=answer[0], rejected=answer[1])]
  rows += [dict(prompt=ask, chosen=long, rejected=answer[1])]
  files.write_lines(tmp_path / "pairs.jsonl", rows)
  about = bridge(tmp_path / "pairs.jsonl", LAST, tmp_path / "new.jsonl")
  (row,) = files.read_lines(tmp_path / "new.jsonl")
  assert row["chosen"] == [{"role": "assistant", "content": "Go Hi!"}]
  assert row["prompt"] == ask and row["rejected"] == answer[1]
  assert about["dropped"] == {"more than one turn of text": 1}


def test_pairs_with_tools_are_refused(tmp_path):
  answer = [{"role": "assistant", "content": "Sunny."}]
  row = {"prompt": [{"role": "user", "content": "And in Lima?"}]}
  row |= {"chosen": answer, "rejected": [answer[0] | {"content": "No."}]}
  tool = {"type": "function", "function": {"name": "weather"}}
  files.write_lines(tmp_path / "a.jsonl", [row, row | {"tools": [tool]}])
  match = "a.jsonl: pair 1 has tools, which editors are not told of"
  with pytest.raises(InputError, match=match):
    bridge(tmp_path / "a.jsonl", LAST, tmp_path / "new.jsonl")
  assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("  say(one['rejected'].strip())", "the rejected answer again"),
    ("  say(one['chosen'] + ' ')", "the chosen answer again"),
    ("  say(' ')", "empty"),
  ],
)
def test_a_rewrite_that_makes_no_pair_is_counted(pairs, text, reason):
  with pytest.raises(InputError, match=f"no rewrite is left: .*{reason}': 3"):
    bridge(pairs, command(text), pairs.with_name("new.jsonl"))
  assert not pairs.with_name("new.jsonl").exists()


def test_after_a_failure_the_same_command_goes_on(pairs, tmp_path):
  log, to = tmp_path / "asked", tmp_path / "new.jsonl"
  text = f"  open({str(log)!r}, 'a').write(str(one['index']))\n"
  text += f"  count = len(open({str(log)!r}).read())\n"
  text += "  if count == 2: sys.exit('no memory')\n"
  text += "  say('It is new ' + str(one['index']))"
  with pytest.raises(
    InputError, match="exit code 1 before it answers pair 1; it"
  ):
    bridge(pairs, command(text), to)
  assert not to.exists()
  bridge(pairs, command(text), to)
  assert log.read_text() == "01" + "12"
  assert [row["index"] for row in files.read_lines(to)] == [0, 1, 2]
  first = to.read_bytes()
  bridge(pairs, command(text), to)  # nothing is asked again
  assert log.read_text() == "0112" and to.read_bytes() == first


def test_answers_of_a_command_that_fails_at_its_end_do_not_count(pairs):
  to = pairs.with_name("new.jsonl")
  with pytest.raises(InputError, match="none of this time is kept"):
    bridge(pairs, command("  say('a')\nsys.exit(3)"), to)
  assert to.with_name("new.jsonl.rewrites.jsonl").read_bytes() == b""
  assert not to.exists()


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("  print('[]')", "answers pair 0 with no JSON object: '\\[\\]'; want one"),
    ("  say(1)", "rewrite is a text"),
    ("  print('{}')", "rewrite is a text"),
    ("  say('a'); say('b')", "more than 3 answers to 3 requests"),
  ],
)
def test_an_answer_that_is_none_is_refused(pairs, text, match):
  with pytest.raises(InputError, match=match):
    bridge(pairs, command(text), pairs.with_name("new.jsonl"))


def test_a_file_of_others_is_refused(pairs):
  to = pairs.with_name("new.jsonl")
  bridge(pairs, LAST, to)
  with pytest.raises(
    InputError, match="is of another command: new.jsonl.bridge"
  ):
    bridge(pairs, command("  say('a')"), to)
  files.write_lines(pairs, ROWS[:2])
  with pytest.raises(InputError, match="is of another pairs"):
    bridge(pairs, LAST, to)
  to.with_name("new.jsonl.bridge.json").unlink()
  with pytest.raises(InputError, match="no new.jsonl.bridge.json says of what"):
    bridge(pairs, LAST, to)


def test_a_command_that_answered_nothing_may_be_another_now(pairs):
  to = pairs.with_name("new.jsonl")
  with pytest.raises(InputError, match="exit code 1 before it answers pair 0"):
    bridge(pairs, command("  sys.exit(1)"), to)
  assert bridge(pairs, LAST, to)["kept"] == 2


def test_a_line_cut_short_is_answered_again(pairs):
  to = pairs.with_name("new.jsonl")
  bridge(pairs, LAST, to)
  whole, answers = to.read_bytes(), to.with_name("new.jsonl.rewrites.jsonl")
  to.unlink()
  answers.write_bytes(answers.read_bytes()[:-9])
  bridge(pairs, LAST, to)
  assert to.read_bytes() == whole


def test_the_command_line_says_what_was_done(pairs, capsys):
  to = pairs.with_name("new.jsonl")
  words = ["bridge", f"--pairs={pairs}", f"--command={LAST}", f"--to={to}"]
  assert cli.main(words) == 0
  assert (
    "2 of 3 pairs are bridged; dropped: 1 the chosen" in capsys.readouterr().out
  )
  assert cli.main([*words[:-1], f"--to={pairs.with_name('new.txt')}"]) == 2
  assert "name a file .jsonl" in capsys.readouterr().err
  assert json.loads(to.read_text().splitlines()[0])["index"] == 1


def test_the_example_of_the_guide_runs(tmp_path):
  (editor,) = python_of(PAGE)
  text = (ROOT / PAGE).read_text(encoding="utf-8")
  asked, answered = map(json.loads, re.findall(r"^\{.*\}$", text, re.M))
  (tmp_path / "editor.py").write_text(editor)
  files.write_lines(tmp_path / "pairs.jsonl", [asked])
  words = [sys.executable, str(tmp_path / "editor.py")]
  bridge(tmp_path / "pairs.jsonl", shlex.join(words), tmp_path / "new.jsonl")
  (row,) = files.read_lines(tmp_path / "new.jsonl")
  assert row["chosen"] == answered["rewrite"]
