# SPDX-License-Identifier: Apache-2.0
"""mrpo generate and mrpo chat as they are typed: killed, refused, piped."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mrpo_jax import cli, files, parallel
from mrpo_jax.cli import values
from tests.material.rows import user
from tests.material.standing import run_of

MRPO = [sys.executable, "-m", "mrpo_jax"]


def refused(capsys, *argv):
  """The one line of a refusal."""
  assert cli.main([str(a) for a in argv]) == 2
  lines = capsys.readouterr().err.strip().split("\n")
  assert lines[-1].startswith("error: ")
  return lines[-1]


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
  """A folder with prompts and, under the name M, a model."""
  (tmp_path / "M").symlink_to(inputs / "base")
  files.write_lines(tmp_path / "p.jsonl", [{"prompt": "Hi"}])
  (tmp_path / "p.txt").write_text("Hi\nHo\n")
  monkeypatch.chdir(tmp_path)
  return tmp_path


GENERATE = ["generate", "--model=M", "--prompts=p.jsonl", "--to=o.jsonl"]


@pytest.mark.parametrize(
  "flags,match",
  [
    (["--workdir=W"], "give one of --model=FOLDER and --workdir=DIR"),
    (["--model="], "give one of --model=FOLDER and --workdir=DIR"),
    (["--step=3"], "--step is of a run: give it with --workdir=DIR"),
    (["--model=", "--workdir=W"], "--workdir W holds no run"),
    (["--model=none"], "none: no such folder"),
    (["--prompts="], "--prompts is missing"),
    (["--prompts=none.jsonl"], "none.jsonl: no such file"),
    (["--prompts=none.txt"], "none.txt: no such file"),
    (["--prompts=folder.txt"], "folder.txt: is a directory; name a file in"),
    (["--prompts=pipe.txt"], "pipe.txt: is a pipe, a socket or a device"),
    (["--prompts=p.csv"], "p.csv: unknown file type; prompts are .jsonl"),
    (["--to="], "--to is missing"),
    (["--to=no/o.jsonl"], "--to: no/o.jsonl: no such folder"),
    (["--to=gs://o.jsonl"], "--to"),
    (["--temperature=nan"], "--temperature=nan is out of range"),
    (["--temperature=-1"], "--temperature=-1.0 is out of range"),
    (["--temperature=hot"], "--temperature: 'hot'; want a number"),
    (["--top_p=0"], "--top_p=0.0 is out of range"),
    (["--min_p=2"], "--min_p=2.0 is out of range"),
    (["--top_k=-1"], "--top_k: '-1'; want a number from 0"),
    (["--repetition_penalty=inf"], "--repetition_penalty=inf is out of range"),
    (["--max_new_tokens=0"], "--max_new_tokens: '0'; want a number from 1"),
    (["--min_new_tokens=300"], "--min_new_tokens=300 is out of range"),
    (["--samples=0"], "--samples: '0'; want a number from 1"),
    (["--slots=0"], "--slots: '0'; want a number from 1"),
    (["--seed=4294967296"], "--seed: '4294967296'; want one below 2^32"),
    (["--stop="], "--stop is empty; give the text"),
    (["--template=chatlm"], "--template: chat template 'chatlm': no such"),
    (["--dtype=int8"], "--dtype: 'int8'; want float32, bfloat16, float16"),
    (["--cache_dtype=int8"], "--cache_dtype: 'int8'; want float32"),
    (["--quantize=int2"], "--quantize: 'int2'; want int8, int4"),
    (["--mesh=rows=2"], "--mesh: 'rows=2'; want like data=1,fsdp=1"),
    (["--mesh=data=64"], "--mesh: takes 64 devices; there are 8"),
    (["--max-new-tokens=3"], "did you mean --max_new_tokens?"),
  ],
)
def test_wrong_flags(here, capsys, flags, match):
  os.mkdir("folder.txt")
  os.mkfifo("pipe.txt")
  names = [flag.partition("=")[0] for flag in flags]
  rest = [one for one in GENERATE if one.partition("=")[0] not in names]
  assert match in refused(capsys, *rest, *flags)
  there = ["M", "folder.txt", "p.jsonl", "p.txt", "pipe.txt"]
  assert sorted(os.listdir(here)) == there


@pytest.mark.parametrize(
  "name,content,match",
  [
    (
      "p.jsonl",
      '{"prompt": "a"}\n{"prompt": \n',
      "p.jsonl line 2: is not JSON",
    ),
    (
      "p.jsonl",
      '{"prompt": "a"}\n[1]\n',
      "p.jsonl line 2: is a list, want one",
    ),
    ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}', "line 2: there is no prompt"),
    (
      "p.jsonl",
      '{"prompt": "a"}\n{"prompt": ""}',
      "line 2: the prompt is empt",
    ),
    ("p.jsonl", '{"prompt": []}', "line 1: the prompt is empty"),
    (
      "p.jsonl",
      '{"prompt": "a", "ids": 1}',
      "line 1: its key 'ids' is one that",
    ),
    ("p.jsonl", '{"prompt": "a", "x": NaN}', "line 1: holds NaN"),
    ("p.jsonl", '{"prompt": "a", "tools": [{}]}', "line 1: tools beside plain"),
    (
      "p.jsonl",
      '{"prompt": [{"role": "x", "content": "a"}]}',
      "line 1: prompt[0].role: unknown role 'x'",
    ),
    ("p.jsonl", "", "p.jsonl: has no rows"),
    ("p.txt", "a\n\nb\n", "p.txt line 2: the prompt is empty"),
    ("p.txt", "a\nb \udcff\n", "p.txt line 2: is not UTF-8"),
    ("p.txt", "a\n" + "word " * 3000, "p.txt line 2: "),
  ],
)
def test_wrong_prompts(here, capsys, name, content, match):
  """The line is named, nothing is generated, and what was there stays."""
  (here / name).write_bytes(content.encode("utf-8", "surrogateescape"))
  (here / "o.jsonl.run.json").write_text("{}\n")
  (here / "o.jsonl").write_text('{"index": 0, "sample": 0}\n')
  argv = [*GENERATE[:2], f"--prompts={name}", "--to=o.jsonl"]
  assert match in refused(capsys, *argv)
  assert (here / "o.jsonl").read_text() == '{"index": 0, "sample": 0}\n'


def test_a_prompt_beyond_what_the_model_takes(here, capsys):
  """Before anything is generated; its line is named."""
  rows = [{"prompt": "a"}, {"prompt": "b " * 2100}]
  files.write_lines(here / "p.jsonl", rows)
  line = refused(capsys, *GENERATE)
  assert "p.jsonl line 2: " in line and "are more than the 2048 that M" in line
  assert not (here / "o.jsonl").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(here, inputs):
  rows = [{"prompt": f"Number {i} of"} for i in range(40)]
  files.write_lines(here / "p.jsonl", rows)
  given = [f"--model={inputs}/base", "--prompts=p.jsonl", "--slots=2"]
  given += ["--samples=2", "--max_new_tokens=40", "--temperature=0.9"]

  def start(to):
    return subprocess.Popen(
      [*MRPO, "generate", *given, f"--to={to}"], stdout=subprocess.DEVNULL
    )

  killed, end = start("o.jsonl"), time.monotonic() + 120
  while time.monotonic() < end:
    there = (here / "o.jsonl").exists() and (here / "o.jsonl").read_bytes()
    if there and there.count(b"\n") >= 5:
      break
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  assert killed.wait() == -signal.SIGKILL
  before = (here / "o.jsonl").read_bytes()
  assert 5 <= before.count(b"\n") < 80
  for to in ("o.jsonl", "whole.jsonl"):
    assert cli.main(["generate", *given, f"--to={to}"]) == 0
  after = (here / "o.jsonl").read_bytes()
  assert after == (here / "whole.jsonl").read_bytes()
  assert after.startswith(before) and after.count(b"\n") == 80
  assert not [*here.glob(".*")]


def test_lines_of_a_text_file_are_prompts(here, capsys):
  argv = ["generate", "--model=M", "--prompts=p.txt", "--to=o.jsonl"]
  argv += ["--max_new_tokens=3", "--temperature=0", "--stop=\n"]
  assert cli.main(argv) == 0
  said = capsys.readouterr().out
  assert "2 prompts, 0 of them conversations" in said
  assert re.search(r"a sample ends with <eos> \(.*\), '\\n'\n", said)
  assert "o.jsonl holds all 2 samples" in said
  lines = files.read_lines(here / "o.jsonl")
  assert [line["prompt"] for line in lines] == ["Hi", "Ho"]
  assert all(line["behaviour_logp"] == 0 > line["logp"] for line in lines)
  assert cli.main(argv) == 0
  assert "o.jsonl is done" in capsys.readouterr().out


def test_a_run_and_its_merged_export_say_the_same(here, inputs, capsys):
  workdir = run_of(here, inputs / "base", moved=0.2, adapter=ADAPTER)
  merged = f"--to={here}/merged"
  assert cli.main(["export", f"--workdir={workdir}", merged, MERGE]) == 0
  found = []
  for source in (f"--workdir={workdir}", f"--model={here}/merged"):
    to = here / f"{len(found)}.jsonl"
    argv = ["generate", source, "--prompts=p.jsonl", f"--to={to}"]
    assert cli.main([*argv, "--max_new_tokens=8", "--temperature=0"]) == 0
    found += files.read_lines(to)
  assert found[0]["ids"] == found[1]["ids"]
  assert abs(found[0]["logp"] - found[1]["logp"]) < 1e-3


ADAPTER, MERGE = dict(rank=2, alpha=4.0), "--merge-adapters"


def test_the_axes_of_a_flag_are_those_of_a_mesh():
  assert values.AXES == parallel.AXES


# mrpo chat.


def chat(monkeypatch, *lines, more=()):
  """Types lines into a chat whose input is no terminal."""
  monkeypatch.setattr(
    sys, "stdin", io.StringIO("".join(f"{x}\n" for x in lines))
  )
  argv = ["chat", "--model=M", "--max_length=128", "--max_new_tokens=5"]
  return cli.main([*argv, "--temperature=0", *more])


def test_a_chat_answers_every_line(here, monkeypatch, capsys):
  """As the file of samples has it, with what was said before."""
  assert chat(monkeypatch, "How?", "", "And?") == 0
  said = capsys.readouterr()
  assert "M has no chat template: the chat is given as 'transcript'" in said.err
  turns, answers = [], []
  for message in ("How?", "And?"):
    turns.append(user(message))
    files.write_lines(here / "p.jsonl", [{"prompt": turns}])
    argv = ["--temperature=0", "--max_new_tokens=5", "--slots=1"]
    to = f"--to=o{len(turns)}.jsonl"
    assert cli.main([*GENERATE[:3], to, *argv]) == 0
    (line,) = files.read_lines(here / f"o{len(turns)}.jsonl")
    answers.append(line["response"])
    # The transcript writes a space before an answer.
    answer = line["response"].removeprefix(" ")
    turns.append({"role": "assistant", "content": answer})
  assert said.out == "".join(f"{answer}\n" for answer in answers)


def test_a_chat_shows_no_end_token_that_has_a_text(here, monkeypatch, capsys):
  """generation_config.json may end answers with one that is not special."""
  files.write_lines(here / "p.jsonl", [{"prompt": [user("One")]}])
  argv = [*GENERATE[:3], "--temperature=0", "--max_new_tokens=5"]
  assert cli.main([*argv, "--to=whole.jsonl"]) == 0
  (whole,) = files.read_lines(here / "whole.jsonl")
  base = (here / "M").resolve()
  (here / "M").unlink()
  shutil.copytree(base, here / "M")
  end = {"eos_token_id": whole["ids"][2]}
  files.write_json(here / "M" / "generation_config.json", end)
  assert cli.main([*argv, "--to=o.jsonl"]) == 0
  (line,) = files.read_lines(here / "o.jsonl")
  assert line["finish"] == "stop" and line["response"]
  capsys.readouterr()
  assert chat(monkeypatch, "One") == 0
  assert capsys.readouterr().out == f"{line['response']}\n"


def test_a_chat_has_commands(here, monkeypatch, capsys):
  lines = ["/retry", "One", "/reset", "One", "/nothing", "/system S", "One"]
  more = ["--temperature=1"]
  assert chat(monkeypatch, *lines, "/exit", "One", more=more) == 0
  said = capsys.readouterr()
  one, again, other = said.out.split("\n")[:-1]
  assert one == again != other
  assert "error: nothing was said yet" in said.err
  assert "error: /nothing: no such command; /help lists them" in said.err
  assert chat(monkeypatch, "/help", "One", "/retry", more=more) == 0
  *commands, one, other = capsys.readouterr().out.split("\n")[:-1]
  assert [line.split()[0] for line in commands[:-1]] == [
    *("/help", "/reset", "/system", "/retry", "/exit")
  ]
  assert one != other


def test_a_chat_that_is_too_long_says_what_to_do(here, monkeypatch, capsys):
  assert chat(monkeypatch, "word " * 200, "One") == 0
  said = capsys.readouterr()
  assert "more than 128 together: /reset forgets it" in said.err
  assert said.out.count("\n") == 1  # the chat goes on


@pytest.mark.parametrize(
  "flags,match",
  [
    (["--max_length=4096"], "--max_length=4096: M takes 2048 tokens"),
    (["--max_new_tokens=128"], "--max_new_tokens=128 leaves no room"),
    (["--stop="], "--stop is empty"),
    (["--workdir=W"], "give one of --model=FOLDER and --workdir=DIR"),
  ],
)
def test_wrong_chats(here, monkeypatch, capsys, flags, match):
  assert chat(monkeypatch, "One", more=flags) == 2
  assert match in capsys.readouterr().err


def test_a_chat_has_no_answer_of_more_than_a_quarter(here, capsys):
  chat = ["chat", "--model=M", "--max_length=64", "--min_new_tokens=17"]
  said = refused(capsys, *chat)
  assert "--min_new_tokens=17 is more than an answer has, 16 tokens" in said
  assert "leaves no room" in refused(capsys, *chat, "--max_new_tokens=64")


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(here, monkeypatch, capsys):
  from mrpo_jax.runs.inference import chat as module

  whole, calls = module.samples, []

  def interrupted(*given):
    calls.append(given)
    if len(calls) == 1:
      raise KeyboardInterrupt
    return whole(*given)

  monkeypatch.setattr(module, "samples", interrupted)
  assert chat(monkeypatch, "One", "Two") == 0
  ended, answer = capsys.readouterr().out.split("\n")[:-1]
  assert ended == " [ended]" and answer
  requests = [given[2] for given in calls]
  assert requests[0] != requests[1]  # each turn draws for itself


def test_ctrl_c_interrupts_no_compilation(here, monkeypatch, capsys):
  """It would break caches of jax; the answer ends after its first block."""
  from mrpo_jax.generation.decoder import Decoder

  whole, blocks = Decoder.decode, []

  def decode(self, slots):
    if not blocks:
      signal.raise_signal(signal.SIGINT)
    blocks.append(whole(self, slots))
    return blocks[-1]

  monkeypatch.setattr(Decoder, "decode", decode)
  more = ["--max_new_tokens=40"]
  before = signal.getsignal(signal.SIGINT)
  assert chat(monkeypatch, "One", "/exit", more=more) == 0
  assert capsys.readouterr().out == " [ended]\n" and len(blocks) == 1
  assert signal.getsignal(signal.SIGINT) == before


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Said:
  """A chat whose answers are the pieces that it is given, or raised."""

  def __init__(self, *answers):
    self._answers = iter(answers)

  def answer(self, message, show):
    for piece in next(self._answers):
      if isinstance(piece, BaseException):
        raise piece
      show(piece)


def test_a_terminal_obeys_no_answer_and_errors_stand_on_their_own_line(
  monkeypatch, capsys
):
  from mrpo_jax.cli.chat import talk
  from mrpo_jax.errors import InputError

  said = Terminal()
  monkeypatch.setattr(sys, "stdin", Terminal("a\nb\nc\n"))
  monkeypatch.setattr(sys, "stdout", said)
  talk(Said(["\x1b[2Jé\n\t", "\x9b\r"], [InputError("too long")], ["x"]))
  assert said.getvalue().split("\n")[1:] == [
    *("you> model> \\x1b[2Jé", "\t\\x9b\\x0d", "you> model> "),
    *("you> model> x", "you> ", ""),
  ]
  assert capsys.readouterr().err == "error: too long\n"


def test_ctrl_c_twice_leaves_no_chat(monkeypatch):
  """The second one comes while the end of the answer is shown."""
  from mrpo_jax.cli import chat as module

  asked = []

  def interrupted(*given):
    asked.append(given)
    raise KeyboardInterrupt

  monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
  monkeypatch.setattr(module, "_answer", interrupted)
  module.talk(None)
  assert len(asked) == 2


def test_a_piped_chat_prints_answers_alone(inputs):
  argv = [*MRPO, "chat", f"--model={inputs}/base", "--max_length=128"]
  done = subprocess.run(argv, input=b"One\nTwo\n", capture_output=True)
  assert done.returncode == 0
  assert done.stdout.count(b"\n") >= 2 and b"> " not in done.stdout[:4]
  assert b"a sample ends with" in done.stderr
  json.dumps(done.stdout.decode())  # whole characters


def test_pieces_of_an_answer_hold_no_half_and_no_beginning_of_a_stop():
  from mrpo_jax.runs.inference.chat import Stream

  pieces = []
  stream = Stream(("\n\n", "<end>"), pieces.append)
  for text in (
    "a\ufffd",
    "a\u00e9",
    "a\u00e9\n",
    "a\u00e9\nb<e",
    "a\u00e9\nb<ex",
  ):
    stream.take(text)
  assert pieces == ["a", "\u00e9", "\nb", "<ex"]
  stream.take("a\u00e9\nb<ex\n")
  stream.end("a\u00e9\nb<ex\n")
  assert "".join(pieces) == stream.shown == "a\u00e9\nb<ex\n"
