# SPDX-License-Identifier: Apache-2.0
"""What the user gets wrong is one line and exit code 2; nothing is left."""

import errno
import json
import logging
import pathlib
import shlex
import subprocess
import sys

import pytest

import mrpo_jax
from mrpo_jax import cli
from mrpo_jax.cli.commands import COMMANDS
from mrpo_jax.cli.table import FLAGS

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/quickstart.py"
DEBUG = f"--config={CONFIG}:dpo,debug"
BANDIT = f"--config={ROOT}/configs/mallows_bandit.py"
LLAMA = f"{ROOT}/tests/golden/llama_gqa_tied"
ROW = {"prompt": "p ", "chosen": "good", "rejected": "bad"}


def refused(capsys, *argv):
  """The one line of a refusal."""
  assert cli.main([str(a) for a in argv]) == 2
  lines = capsys.readouterr().err.strip().split("\n")
  assert lines[-1].startswith("error: ")
  return lines[-1]


@pytest.mark.parametrize(
  "argv,match",
  [
    (["trian"], "unknown command 'trian'; known: train, score"),
    (["trian"], "prepare, bridge; did you mean train?"),
    (["--workdir=W", "train"], "unknown command '--workdir=W'; known: train"),
    (["train"], "give one --config=FILE"),
    (["train", DEBUG, DEBUG, "--workdir=W"], "give one --config=FILE"),
    (["train", DEBUG], "--workdir is missing"),
    (["train", DEBUG, "--workdir=W", "extra"], f"not {DEBUG[9:]} and extra;"),
    (["train", DEBUG, "--workdir=W", "--fast"], "unknown flag --fast; known"),
    (["train", DEBUG, "--wrokdir=W"], "--wrokdir; did you mean --workdir?"),
    (["train", DEBUG, "--work=W"], "unknown flag --work;"),
    (["train", DEBUG, "--workdir=W", "--fit"], "unknown flag --fit;"),
    (["train", DEBUG, "--workdir"], "--workdir: expected one argument"),
    (["train", DEBUG, "--workdir="], "--workdir is missing"),
    (
      ["train", DEBUG, "--workdir=W", "--allow-changed=true"],
      "--allow-changed: a switch takes no 'true'; give --allow-changed alone",
    ),
    (["export", "--workdir=W"], "--to is missing; see mrpo export --help"),
    (["report", "--workdir=W", "--config.steps=1"], "unknown flag --config."),
    (["train", "--config=none.py", "--workdir=W"], "none.py: no such file"),
    (["train", f"--config={CONFIG}:grpo", "--workdir=W"], "grpo"),
    (["export", "--workdir=W", "--to=X"], "W holds no run"),
    (["export", "--workdir=W", "--to=X", "--public"], "--public is of --push="),
    (["import-gguf", "--to=X"], "give one file: mrpo import-gguf FILE --to="),
    (["import-gguf", "a.gguf"], "--to is missing; see mrpo import-gguf --help"),
    (["import-gguf", "a.gguf", "--to=X"], "a.gguf: No such file or directory"),
    (["inspect"], "give one folder: mrpo inspect FOLDER"),
    (["inspect", "none"], "none: no such folder"),
    (["inspect", LLAMA, "--mesh=rows=2"], "--mesh: 'rows=2'; want like data="),
    (["inspect", LLAMA, "--mesh=fsdp=0"], "--mesh: 'fsdp=0'"),
    (["inspect", LLAMA, "--mesh=fsdp=5"], "does not divide over mesh.fsdp=5"),
    (
      ["inspect", LLAMA, "--mesh=model=4"],
      "mesh.model=4; in a config, an empty mesh.rules.kv_heads keeps it whole",
    ),
    (["report", "--workdir=W"], "no run that was evaluated"),
    (["prepare", "--data=none.jsonl", "--to=X"], "none.jsonl"),
    (["bench"], "give one --config=FILE"),
    (["bench", DEBUG, "--steps=0"], "--steps: '0'; want a number from 1"),
    (["bench", DEBUG, "--warmup=-1"], "--warmup: '-1'; want a number from 0"),
    (["bench", DEBUG, "--json=/tmp"], "/tmp: is a folder; name a file"),
    (["bench", DEBUG, "--trace=/dev/null/x"], "/dev/null/x: cannot be written"),
    (["bench", DEBUG, "--json=none/x.json"], "none/x.json: no such folder"),
    (["bench", DEBUG, "--config.data.train=none.jsonl"], "none.jsonl"),
    (
      ["bench", BANDIT],
      "trains no language model, so there is nothing to time",
    ),
  ],
)
def test_wrong_commands(capsys, tmp_path, monkeypatch, argv, match):
  monkeypatch.chdir(tmp_path)
  assert match in refused(capsys, *argv)
  assert not list(tmp_path.iterdir())


PAIRS = ("evaluate", "--model=M", "--pairs=P", "--to=X")
EXPORT = ("export", "--workdir=W", "--to=X", "--discriminator")
COMPARE = ("compare", "--responses=A", "--responses=B", "--prompts=P")
COMPARE += ("--judge=J", "--to=T")
BRIDGE = ("bridge", "--pairs=P", "--to=X.jsonl")


@pytest.mark.parametrize(
  "argv,match",
  [
    (["train", BANDIT, "--workdir=W", "--allow-changed"], "--allow-changed: a"),
    (["train", BANDIT, "--workdir=W", "--no-autoscore"], "--no-autoscore: a"),
    (["train", BANDIT, "--workdir=W", "--store=S"], "--store: a bandit's run"),
    (
      ["score", DEBUG, "--workdir=W", "--reward_timeout=9"],
      "--reward_timeout is of --reward; a config has data.reward_timeout",
    ),
    (
      ["score", "--reward=a:b", "--pairs=P", "--store=S", "--allow-changed"],
      "--allow-changed is of a run; --reward has none",
    ),
    (
      ["score", "--reward=a:b", "--pairs=P", "--store=S", "--workdir=W"],
      "--reward writes into --store, or below --workdir; give one",
    ),
    ([*COMPARE, "--temperature=0"], "--temperature is of a model that answers"),
    ([*COMPARE, "--slots=2"], "--slots is of a model that answers"),
    ([*COMPARE, "--step=best"], "--step is of a model that answers"),
    (["store", "ls", "abc", "--store=S"], "mrpo store ls takes no key"),
    (
      ["store", "verify", "--store=S", "--to=F"],
      "--to is of mrpo store export",
    ),
    ([*EXPORT, "--merge-adapters"], "--merge-adapters: a discriminator"),
    ([*BRIDGE, "--command=cat", "--top_k=3"], "--top_k is of a model"),
    ([*BRIDGE, "--command=cat", "--stop=x"], "--stop is of a model"),
    ([*BRIDGE, "--command=cat", "--instructions=F"], "--instructions is of a"),
    (
      [*BRIDGE, "--model=M", "--command_timeout=9"],
      "--command_timeout is of --command; a model has none",
    ),
    ([*PAIRS, "--beta=0.1"], "--beta is of --reference=DIR"),
  ],
)
def test_a_flag_that_would_not_count_is_refused(
  capsys, tmp_path, monkeypatch, argv, match
):
  monkeypatch.chdir(tmp_path)
  assert match in refused(capsys, *argv)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  "override,match",
  [
    ("--config.loss.name=dpoo", "did you mean dpo? known: alpha_dpo, "),
    ("--config.loss.name=sigmoid", "did you mean dpo, which TRL calls 'sigmoi"),
    ("--config.loss.gamma=1.0", "does not take 'gamma'"),
    ("--config.loss.beta=-1.0", "config.loss.beta must be positive"),
    ("--config.loss.beta=nan", "config.loss.beta must be a finite number"),
    ("--config.steps=0", "config.steps must be positive"),
    ("--config.steps=1e3", "config.steps must be of type int, got '1e3'"),
    ("--config.steps ten", "config.steps must be of type int, got 'ten'"),
    ("--config.loss.beta=x", "config.loss.beta must be of type float, got 'x'"),
    ("--config.policy.new={", "new must be a section like {'key': 1}, got '{'"),
    ("--config.no.such=1", "config has no section 'no'; known: checkpoints, "),
    ("--config.polcy.remat=full", "'polcy'; did you mean policy? known: "),
    ("--config.such=1", "config.such is not known"),
    ("--config.loss.name=nll", "'nll' does not take 'beta'"),
    ("--config.references.names=()", "'dpo' needs a reference"),
    ("--config.mesh.data=3", "does not fit 8 devices"),
    ("--config.mesh.rules.embed=rows", "mesh.rules.embed: the mesh has no axi"),
    ("--config.references.base.rules.rows=data", "base.rules.rows is not know"),
    (
      "--config.mesh.context=8 --config.data.row_length=240",
      "row_length=240 and the quarter of it",
    ),
    ("--config.data.rows=3", "config.data.rows=3 does not divide"),
    ("--config.checkpoints.keep=0", "checkpoints.keep must be positive"),
    ("--config.checkpoints.best=loss", "must be one of '', 'eval/loss', "),
    ("--config.data.train=none.jsonl", "none.jsonl"),
    ("--config.policy.path=none", "none"),
    ("--config.policy.new.heads=3", "width=32 is not a multiple of heads=3"),
    ("--config.data.row_length=9", "none of its 428 pairs is left"),
    ("--config.batch=1000000000", "the rows of one step take "),
    ("--config.data.row_length=1000000000", "the rows of one step take "),
    ("--config.data.rows=8000000000", "the rows of one step take "),
    ("--config.policy.new.vocab_size=1000000000000", "training its tokenizer"),
    ("--config.policy.new.layers=1000000000000000000", "layers=1000000000000"),
    (
      "--config.policy.new.mlp_width=999999999",
      "use more devices or a",
    ),
  ],
)
def test_wrong_configs(capsys, tmp_path, monkeypatch, override, match):
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / "run"
  given = [f"--workdir={workdir}", *override.split()]
  line = refused(capsys, "train", DEBUG, *given)
  assert match in line
  assert not workdir.exists()


BEST = "--config.checkpoints.best=eval/rewards/accuracies"


@pytest.mark.parametrize(
  "override,match",
  [
    (
      [BEST, "--config.eval_every=0"],
      "set config.data.eval and config.eval_ev",
    ),
    ([BEST, "--config.data.eval="], "set config.data.eval and config.eval_ev"),
    (
      [f"--config={CONFIG}:sft-base,debug", BEST, "--config.eval_every=1"],
      "'nll' is judged by 'eval/loss' alone",
    ),
    (
      [
        "--config.checkpoints.best=eval/virtual/rewards/accuracies",
        "--config.loss.name=simpo",
        "--config.references.names=()",
      ],
      "'simpo' takes no reference",
    ),
  ],
)
def test_a_best_checkpoint_must_be_judged(capsys, tmp_path, override, match):
  config = [] if override[0].startswith("--config=") else [DEBUG]
  workdir = tmp_path / "run"
  line = refused(capsys, "train", *config, *override, f"--workdir={workdir}")
  assert match in line
  assert not workdir.exists()


@pytest.mark.parametrize(
  "content,match",
  [
    (b'{"prompt": "p"', "line 1"),
    (json.dumps(ROW).encode() + b"\n\xff\xfe\n", "line 2"),
    (json.dumps({**ROW, "chosen": 3}).encode(), "line 1"),
    (b"", "rows.jsonl"),
    (json.dumps({**ROW, "rejected": "good"}).encode(), "equal responses"),
  ],
)
def test_wrong_data(capsys, tmp_path, content, match):
  data, workdir = tmp_path / "rows.jsonl", tmp_path / "run"
  data.write_bytes(content)
  override = f"--config.data.train={data}"
  line = refused(capsys, "train", DEBUG, f"--workdir={workdir}", override)
  assert "rows.jsonl" in line and match in line
  assert not workdir.exists()


@pytest.mark.parametrize(
  "key",
  [
    "policy.path",
    "references.second.path",
    "references.second.adapter",
    "references.second.tokenizer",
  ],
)
def test_a_model_that_is_not_there_is_said_first(capsys, tmp_path, key):
  given = [f"--config={CONFIG}:mrpo,debug", f"--workdir={tmp_path}/run"]
  assert cli.main(["train", *given, f"--config.{key}={tmp_path}/none"]) == 2
  output, errors = capsys.readouterr()
  assert "none: no such folder" in errors
  assert output == ""  # no tokenizer was trained, nothing encoded


def test_a_workdir_that_is_a_file(capsys, tmp_path):
  path = tmp_path / "file"
  path.write_text("mine")
  assert "is a file" in refused(capsys, "train", DEBUG, f"--workdir={path}")
  assert path.read_text() == "mine"


def test_a_broken_config_file_is_one_line(capsys, tmp_path):
  path = tmp_path / "broken.py"
  for text in ("def get_config(:", "raise KeyError('x')", "import nowhere"):
    path.write_text(text)
    line = refused(capsys, "train", f"--config={path}", "--workdir=W")
    assert "broken.py" in line


@pytest.mark.parametrize(
  "words,match",
  [
    (
      ["--config", "=x.py"],
      "--config =x.py: no space beside =; write --config=",
    ),
    (
      ["--config=", "x.py"],
      "--config= x.py: no space beside =; write --config=",
    ),
    (
      ["--workdir", "=", "W"],
      "--workdir = W: no space beside =; write --workdir",
    ),
    (
      [DEBUG, "--config.steps=", "3"],
      "no space beside =; write --config.steps=3",
    ),
    (
      [DEBUG, "--config.steps", "=3"],
      "no space beside =; write --config.steps=3",
    ),
    ([DEBUG, "--config.steps", "=", "3"], "write --config.steps=3"),
    (
      [DEBUG, "--config.", "steps=3"],
      "--config. steps=3: a key follows the po",
    ),
    ([DEBUG, "--config.data..train=x"], "a key is missing beside a point"),
    ([DEBUG, "--config", "steps=3"], "did you mean --config.steps=3?"),
    (["configs/quickstart.pi"], "configs/quickstart.pi: no such file"),
    (["quickstrat"], "or loss of that name; did you mean quickstart?"),
    (["sipmo"], "did you mean simpo?"),
    (["DPO"], "or loss of that name; did you mean dpo?"),
    (["__init__"], "no such file, and no config or loss of that name"),
    (["dpo", "beta=0.2"], "config.beta is not known; did you mean loss.beta?"),
    (["dpo", "references.b=/b"], "config.references.b is a section; give one"),
    ([DEBUG, "--config.data.eval", "--config.steps=3"], "its value is missing"),
    (["dpo:debug"], "a loss takes no arguments; change keys by key=value"),
    ([DEBUG, "workdir=W"], "workdir=W: --workdir is a flag; write --workdir=W"),
    (["dpo", "data.train=", "a.jsonl"], "NAME, not dpo and a.jsonl; see"),
    (["dpo", "bath=2"], "config.bath is not known; did you mean batch?"),
    ([DEBUG, "config.bath=2"], "config.bath is not known; did you mean batch?"),
    ([DEBUG, "epochs=1"], "config.steps=8 and config.epochs=1 both say how"),
    (
      [DEBUG, "-config.steps=3"],
      "flag -config.steps; did you mean --config.st",
    ),
    (
      [DEBUG, "--steps=3"],
      "unknown flag --steps; did you mean --config.steps?",
    ),
    ([DEBUG, "--config-steps=3"], "did you mean --config.steps?"),
    ([DEBUG, "--config:steps=3"], "did you mean --config.steps?"),
    ([DEBUG, "--peak_lr=3"], "did you mean --config.optimizer.peak_lr?"),
    ([DEBUG, "--pek_lr=3"], "did you mean --config.optimizer.peak_lr?"),
    ([DEBUG, "--data.trian=x"], "did you mean --config.data.train?"),
    ([DEBUG, "--names=a"], "did you mean --config.references.names?"),
    ([DEBUG, "--config.refernces.a.path=x"], "'refernces'; did you mean refer"),
    (
      [DEBUG, "--config.references.bse.path=x"],
      "config.references has no section 'bse'; did you mean base? known: base",
    ),
    ([DEBUG, "--config.steps.x=3"], "config.steps has no keys: it is 8"),
    ([DEBUG, "--config.policy.new.width.x=3"], "policy.new.width has no keys"),
    (
      [DEBUG, "--config.policy=x"],
      "config.policy is a section; give one of it",
    ),
    (
      [DEBUG, "--config.loss=ipo"],
      "config.loss is a section; give one of its ",
    ),
  ],
)
def test_what_was_meant_is_said(capsys, tmp_path, monkeypatch, words, match):
  monkeypatch.chdir(tmp_path)
  assert match in refused(capsys, "train", *words, "--workdir=W")
  assert not list(tmp_path.iterdir())


HEAVY = ("jax", "pydantic", "ml_collections", "absl")


@pytest.mark.parametrize(
  "argv", [["--help"], ["train", "--help"], ["--version"]]
)
def test_help_needs_no_jax(argv):
  code = (
    f"import sys; from mrpo_jax import cli; code = cli.main({argv});"
    f"print(code, any(name in sys.modules for name in {HEAVY}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split()[-2:] == ["0", "False"]
  assert "mrpo train" in done.stdout or argv == ["--version"]


def test_help_lists_every_command_in_one_line_and_what_codes_mean(capsys):
  for argv in (["--help"], ["-h"], ["help"]):
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.split("\n")
    for command in COMMANDS:
      (line,) = (one for one in lines if one.split()[:1] == [command])
      assert len(line.split()) > 4 and len(line) <= 80
  said = "\n".join(lines)
  assert "--coordinator=HOST:PORT --processes=N --process=I" in said
  assert "Exit codes: 0 done; 2 the input is wrong" in said
  assert cli.main([]) == 2
  assert capsys.readouterr().out == said


def test_the_version_is_said_and_is_the_one_that_is_installed(capsys):
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"mrpo_jax {mrpo_jax.__version__}\n"
  setup = [sys.executable, "setup.py", "--version"]
  done = subprocess.run(setup, cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.split()[-1:] == [mrpo_jax.__version__], done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_flag_of_a_command_in_one_line(capsys, command):
  assert cli.main([command, "--help"]) == 0
  said = capsys.readouterr().out
  lines = [line.split("  ") for line in said.split("\n")]
  lines = [[part.strip() for part in line if part] for line in lines]
  for flag in FLAGS[command].flags:
    name = f"--{flag.name} {flag.value}".strip()
    (meaning,) = (line[1] for line in lines if line[0:1] == [name])
    assert meaning.startswith(flag.about)
    if flag.default:
      assert f"(default: {flag.default})" in meaning
    assert ("(required)" in meaning) == flag.required
  assert all(len(line) <= 80 for line in said.split("\n"))


@pytest.mark.parametrize(
  "argv,match",
  [
    (["help", "trian"], "no help on 'trian'; known: train, "),
    (["help", "loss"], "'loss'; did you mean mrpo help config loss? known: "),
    (["help", "loss", "beta"], "did you mean mrpo help config loss.beta?"),
    (["help", "config.seed"], "did you mean mrpo help config seed?"),
    (["help", "train", "all"], "no help on 'train all'; known: train, "),
    (
      ["help", "config", "optimizer.peek_lr"],
      "config.optimizer.peek_lr is not known; did you mean optimizer.peak_lr?",
    ),
  ],
)
def test_help_on_what_is_not_known(capsys, argv, match):
  assert match in refused(capsys, *argv)


def test_help_on_the_config_is_had_in_three_ways(capsys):
  said = []
  for argv in (
    ["help", "config", "optimizer.peak_lr"],
    ["help", "config", "config.optimizer.peak_lr"],
    ["help", "config"],
    ["train", "--help=config"],
  ):
    assert cli.main(argv) == 0
    said.append(capsys.readouterr().out)
  assert said[0].startswith("optimizer.peak_lr: float, positive, required\n")
  assert said[0] == said[1] and said[0] in said[2] and said[2] == said[3]


def test_a_value_is_joined_to_its_flag_or_stands_after_it(capsys, tmp_path):
  data = tmp_path / "rows.jsonl"
  given = {"--config": f"{CONFIG}:dpo,debug", "--workdir": str(tmp_path / "w")}
  given["--config.data.train"] = str(data)
  for argv in (
    [f"{name}={value}" for name, value in given.items()],
    [word for one in given.items() for word in one],
  ):
    assert f"{data}: no such file" in refused(capsys, "train", *argv)
  root = tmp_path / "store"
  for argv in (["ls", "--store", root], [f"--store={root}", "ls"]):
    assert f"{root}" in refused(capsys, "store", *argv)


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: writing x: No space left on device [28]"),
  ],
)
def test_a_full_disk_is_said_and_is_no_input_error(capsys, monkeypatch, error):
  def fail(given):
    """Fails."""
    raise RuntimeError("saving failed") from error

  monkeypatch.setitem(COMMANDS, "report", fail)
  assert cli.main(["report", "--workdir=W"]) == 1
  assert capsys.readouterr().err.startswith("error: the disk is full")


def test_what_is_logged_is_a_line_of_a_command_and_of_no_library(
  capfd, monkeypatch
):
  code = (
    "import logging, mrpo_jax;"
    "logging.getLogger('mrpo_jax.runs').warning('quiet')"
  )
  subprocess.run([sys.executable, "-c", code], check=True)

  def report(given):
    """Logs."""
    logging.getLogger("mrpo_jax.runs.train").info("step 1/2  loss 0.5000")
    logging.getLogger("mrpo_jax.runs.train").debug("unseen")

  monkeypatch.setitem(COMMANDS, "report", report)
  for _ in range(2):  # the second command prints it once, too
    assert cli.main(["report", "--workdir=W"]) == 0
  assert capfd.readouterr() == (2 * "step 1/2  loss 0.5000\n", "")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
  def fail(given):
    """Fails."""
    raise RuntimeError("a bug")

  monkeypatch.setitem(COMMANDS, "report", fail)
  with pytest.raises(RuntimeError, match="a bug"):
    cli.main(["report", "--workdir=W"])


def test_the_command_that_scores_can_be_typed(monkeypatch, tmp_path):
  found = {}
  monkeypatch.setattr(
    "mrpo_jax.runs.train.train_run", lambda *_, **given: found.update(given)
  )
  words = [DEBUG, f"--workdir={tmp_path}/a run", f"--store={tmp_path}/a store"]
  words.append("--config.loss.weights=(0.2, 0.8)")
  assert cli.main(["train", *words]) == 0
  assert shlex.split(found["command"]) == words


def test_a_workdir_without_permission(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr("os.access", lambda *_: False)
  workdir = tmp_path / "run"
  line = refused(capsys, "train", DEBUG, f"--workdir={workdir}")
  assert "cannot be written: Permission denied" in line
  assert not workdir.exists()


def test_preparing_prints_the_directory_alone(tmp_path, capsys):
  path = tmp_path / "a.jsonl"
  text = '{"prompt": "p", "chosen": "a", "rejected": "b"}'
  path.write_text(text + "\n" + text.replace("prompt", "question"))
  assert cli.main(["prepare", f"--data={path}", f"--to={tmp_path}"]) == 0
  out, err = capsys.readouterr()
  assert out == f"{tmp_path}/preference_pairs/1.0.0\n"
  assert "1 of 2 pairs are plain text" in err
