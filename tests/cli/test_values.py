# SPDX-License-Identifier: Apache-2.0
"""Values of flags at their ends: what is held, and what is said of the rest."""

import argparse

import pytest

from mrpo_jax import cli
from mrpo_jax.cli import values
from mrpo_jax.cli.table import FLAGS

ENDLESS = "9" * 5000  # more digits than Python turns into a number
NUMBERS = [
  (command, flag)
  for command, one in FLAGS.items()
  for flag in one.flags
  if flag.type is not str
  and flag.value in ("N", "S", "B", "T", "P", "X", "i/n")
]


def given(kind, text):
  """The value of a text, or the sentence that refuses it."""
  try:
    return kind(text)
  except argparse.ArgumentTypeError as error:
    return str(error)


@pytest.mark.parametrize("text", [ENDLESS, "1e20", "-1e20", "nan", "²", "1_0"])
@pytest.mark.parametrize(
  "command,flag", NUMBERS, ids=[f"{c}-{f.name}" for c, f in NUMBERS]
)
def test_a_number_is_held_or_refused_in_a_short_line(command, flag, text):
  found = given(flag.type, text)
  if isinstance(found, str):
    assert "; want " in found and len(found) < 200
  elif isinstance(found, float) and flag.type is not values.number:
    assert values.LEAST <= found <= values.LARGEST


@pytest.mark.parametrize(
  "kind,text,want",
  [
    (values.count_from(1), "2147483647", 2**31 - 1),
    (values.count_from(1), "2147483648", "want a number from 1 to 2147483647"),
    (values.count_from(1), "0", "want a number from 1"),
    (values.seed, "4294967295", 2**32 - 1),
    (values.seed, "4294967296", "want one below 2^32"),
    (values.seed, "x", "want a number from 0"),
    (values.positive, "0.5", 0.5),
    (values.positive, "1e9", 1e9),
    (values.positive, "1e20", "want a number from 1e-09 to 1e+09"),
    (values.positive, "1e-300", "want a number from 1e-09 to 1e+09"),
    (values.positive, "0", "want a positive number"),
    (values.share, f"0/{ENDLESS}", "want like 0/4, from 0 on"),
    (values.share, "3/4", (3, 4)),
    (values.mesh_sizes, f"data={ENDLESS}", "want like data=1"),
  ],
)
def test_values_at_their_ends(kind, text, want):
  found = given(kind, text)
  assert want in found if isinstance(want, str) else found == want


@pytest.mark.parametrize(
  "flags",
  [
    ("compare", "--judge=x", "--prompts=p", "--to=o", "--judge_timeout=1e20"),
    ("sweep", "--config=c.py", "--workdir=w", f"--part=0/{ENDLESS}"),
    ("generate", f"--processes={ENDLESS}", "--coordinator=a:1", "--process=0"),
    ("generate", "--processes=2", f"--coordinator=a:{ENDLESS}", "--process=0"),
  ],
)
def test_a_command_refuses_it_in_one_line(capsys, flags):
  assert cli.main([*flags]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert lines[-1].startswith("error: ") and len(lines) == 1
