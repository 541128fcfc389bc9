# SPDX-License-Identifier: Apache-2.0
"""mrpo evaluate as it is typed."""

import json

from mrpo_jax import cli, files


def test_the_command_prints_and_writes(inputs, tmp_path, capsys, one_device):
  pairs = [
    dict(prompt="What?", chosen=" yes", rejected=" no, no"),
    dict(prompt="Where?", chosen=" there and there", rejected=" no"),
  ]
  files.write_lines(tmp_path / "p.jsonl", pairs)
  flags = [f"--model={inputs / 'base'}", f"--reference={inputs / 'second'}"]
  flags += [f"--pairs={tmp_path / 'p.jsonl'}"]
  assert cli.main(["evaluate", *flags, f"--to={tmp_path / 'a'}"]) == 0
  said = capsys.readouterr().out
  assert "chosen longer" in said and "no calibration: give --beta" in said
  flags.append("--beta=0.1")
  flags.append(f"--against={tmp_path / 'a'}")
  assert cli.main(["evaluate", *flags, f"--to={tmp_path / 'b'}"]) == 0
  said = capsys.readouterr().out
  assert "sign test by prompt p = 1" in said
  assert "calibration error of sigmoid(0.1 x margin): " in said
  found = json.loads((tmp_path / "b/results.json").read_text())
  assert found["pairs"] == 2 and found["against"]["accuracy"] == 0.0


def test_a_wrong_flag_is_one_line(inputs, tmp_path, capsys):
  flags = [f"--model={inputs / 'base'}", "--pairs=none.jsonl"]
  assert cli.main(["evaluate", *flags, f"--to={tmp_path / 'a'}"]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("error: ") and "none.jsonl: no such file" in line
  assert not (tmp_path / "a").exists()
