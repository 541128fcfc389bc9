# SPDX-License-Identifier: Apache-2.0
"""Models by name, by the hub's protocol: what is fetched, kept, refused."""

import pathlib

import pytest

from mrpo_jax.snapshots import folder_of, is_name, wherever
from tests.material.hub_server import TOKEN, Hub

FILES = {  # of the repository
  "config.json": b"{}",
  "model.safetensors": b"weights",
  "tokenizer.json": b"{}",
  "chat_template.jinja": b"",
  "pytorch_model.bin": b"pickle",
  "modeling_own.py": b"code",
}
SAY = """
import logging, sys
logging.getLogger("mrpo_jax").addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger("mrpo_jax").setLevel("INFO")
from mrpo_jax.errors import InputError
from mrpo_jax.snapshots import folder_of
for name in sys.argv[1:]:
  try:
    print(*sorted(one.name for one in folder_of(name).iterdir()))
  except InputError as error:
    print("error:", error)
"""


@pytest.fixture(scope="module")
def hub():
  with Hub(**{"org/name": FILES, "org/empty": {}}) as server:
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def said(hub, tmp_path_factory):
  """(names, settings) -> lines of what is said of each, one cache for all."""
  home = tmp_path_factory.mktemp("home")

  def said(*names, **settings):
    done = hub.run(home, "-c", SAY, *names, **settings)
    assert not done.returncode, done.stderr
    return done.stdout.strip().split("\n")

  return said


def test_a_name_is_a_snapshot_without_pickles_and_code(said, hub):
  commit = hub.commit_of("org/name")
  wanted = "chat_template.jinja config.json model.safetensors tokenizer.json"
  first = f"org/name: commit {commit} of the Hugging Face hub"
  assert said("org/name", "org/name") == [first, wanted, wanted]
  fetched = [path for path in hub.asked if "/resolve/" in path]
  assert fetched and not [one for one in fetched if one.endswith(("bin", "py"))]
  assert f"Bearer {TOKEN}" in hub.tokens
  # Then the cache has it, by any of its names.
  _, found = said("org/name", HF_HUB_OFFLINE="1")
  assert found == wanted
  _, found = said(f"org/name@{commit}", HF_HUB_OFFLINE="1")
  assert found == wanted


def test_what_cannot_be_had_is_refused_in_one_line(said):
  names = ("org/none", "org/gated", "org/name@none", "org/empty")
  found = said(*names)
  assert [line.split(":")[1].strip() for line in found] == [*names]
  assert all("no such folder, and not to be had from" in one for one in found)
  assert "it is gated; ask for access there, and set HF_TOKEN" in found[1]
  assert found[3].endswith("it holds no file that is read here")
  (line,) = said("org/other", HF_HUB_OFFLINE="1")
  assert line.startswith("error: org/other: no such folder") and len(line) < 500
  (line,) = said("org/other", HF_ENDPOINT="http://127.0.0.1:9")
  assert line.startswith("error: org/other: no such folder") and len(line) < 500


def test_a_folder_that_is_here_goes_before_a_name(tmp_path, monkeypatch):
  (tmp_path / "org/name").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert folder_of("org/name") == pathlib.Path("org/name")
  assert wherever("org/name") == f"{tmp_path}/org/name"
  assert wherever("org/none") == "org/none"
  (tmp_path / "org/none").mkdir()  # made since
  assert folder_of("org/none") == pathlib.Path("org/none")
  assert is_name(f"org/{'b' * 300}")  # longer than a file's name may be
  for path in ("./org/none", "/org/none", "org", "a/b/c", "../org/none"):
    assert folder_of(path) == pathlib.Path(path)
