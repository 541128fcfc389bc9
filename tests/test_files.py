# SPDX-License-Identifier: Apache-2.0
"""Files of JSON: strict, refused by name where they are not; ~ is home."""

import pytest

from mrpo_jax import files
from mrpo_jax.errors import InputError, StoppedRun

WRONG = {
  b"null": "holds null, not an object",
  b"[1]": "holds a list, not an object",
  b'"x"': "holds a text, not an object",
  b"3": "holds 3, not an object",
  b"{": "is not JSON",
  b"[" * 100_000: "is not JSON",
  b"\xff\xfe{}": "is not UTF-8",
}


@pytest.mark.parametrize("content,match", WRONG.items())
def test_what_holds_no_object_is_refused_by_name(tmp_path, content, match):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  with pytest.raises(InputError, match=f"config.json {match}"):
    files.read_json(path)
  path.write_bytes(b'{"step": 1}\n\n' + content + b"\n")
  with pytest.raises(InputError, match=f"config.json line 3 {match}"):
    files.read_lines(path)


@pytest.mark.parametrize(
  "text", ['{"a": 1, "a": 1}', '{"b": [{"a": 1, "a": 2}]}']
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(InputError, match="config.json: the key 'a' stands there"):
    files.read_json(path)


def test_a_last_line_cut_short_is_left_out(tmp_path):
  path = tmp_path / "lines"
  assert files.read_lines(path) == []
  path.write_bytes(b'{"a": "\xc3\xbc"}\n{"a": \xff')
  assert files.read_lines(path) == [{"a": "ü"}]


def test_home_stands_for_the_tilde(monkeypatch):
  monkeypatch.setenv("HOME", "/h")
  assert [files.at_home(x) for x in ("~", "~/a", "a~", "./~", "", None)] == [
    *("/h", "/h/a", "a~", "./~", "", None)
  ]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_no_json(tmp_path, number):
  path = tmp_path / "figures.json"
  files.write_json(path, {"a": 1.5})
  for write in (files.write_json, files.write_lines):
    with pytest.raises(StoppedRun, match=f"{path} is not written"):
      write(path, [{"a": number}])
  assert files.read_json(path) == {"a": 1.5}
