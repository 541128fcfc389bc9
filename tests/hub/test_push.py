# SPDX-License-Identifier: Apache-2.0
"""mrpo export --push: one commit on the hub, and what is refused."""

import json
import re
import shutil

import pytest

from mrpo_jax import hub as models
from mrpo_jax.errors import InputError
from mrpo_jax.hub import push
from tests.material.hub_server import TOKEN, Hub
from tests.material.standing import run_of

PUSH = """
import logging, sys
logging.getLogger("mrpo_jax").addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger("mrpo_jax").setLevel("INFO")
from mrpo_jax.errors import InputError
from mrpo_jax.hub import push
from mrpo_jax.snapshots import folder_of
name, folder, public, back = sys.argv[1:]
try:
  if not back:
    push.check(name)
  push.push(folder, name, public=bool(public), message="step 6")
  if back:
    for one in sorted(folder_of(name).iterdir()):
      print(one.name, one.read_bytes())
except InputError as error:
  print("error:", error)
"""
FILES = {
  "config.json": b"{}",
  "model.safetensors": b"weights" * 1000,
  "tokenizer.json": b'{"a": 1}',
  "README.md": b"# card",
}
OLD = {
  "model-00001-of-00002.safetensors": b"old",
  "model-00002-of-00002.safetensors": b"old",
  "model.safetensors.index.json": b"{}",
  "adapter_config.json": b"{}",
  "generation_config.json": b"{}",
  "chat_template.jinja": b"of another",
  "LICENSE": b"kept",
}


@pytest.fixture
def hub():
  with Hub(**{"org/old": OLD}) as server:
    yield server
    server.shutdown()


@pytest.fixture
def folder(tmp_path):
  to = tmp_path / "model"
  to.mkdir()
  for name, content in FILES.items():
    (to / name).write_bytes(content)
  return to


def pushed(hub, folder, name, public="", back="", **settings):
  """Lines that were said."""
  given = name, str(folder), public, back
  done = hub.run(folder.parent, "-c", PUSH, *given, **settings)
  assert not done.returncode, done.stderr
  return done.stdout.strip().split("\n")


def test_a_folder_is_one_commit_and_comes_back_by_its_name(hub, folder):
  first, *found = pushed(hub, folder, "org/new", back="yes")
  assert hub.repositories["org/new"] == FILES
  assert hub.commits == [("org/new", "step 6")]
  commit = hub.commit_of("org/new")
  assert first == f"{folder} is now org/new at commit {commit}"
  said, *files = found
  assert said.startswith(f"org/new: commit {commit}")
  back = {k: v for k, v in FILES.items() if k != "README.md"}
  assert files == [f"{name} {back[name]}" for name in sorted(back)]


def test_it_is_private_unless_it_shall_be_public(hub, folder):
  pushed(hub, folder, "org/new")
  pushed(hub, folder, "org/open", public="yes")
  pushed(hub, folder, "org/old")  # keeps who may read it
  assert hub.private == {"org/new"}


def test_what_another_model_left_goes_with_the_same_commit(hub, folder):
  pushed(hub, folder, "org/old")
  assert hub.repositories["org/old"] == FILES | {"LICENSE": b"kept"}
  assert len(hub.commits) == 1


def test_what_the_hub_does_not_take_is_refused_in_one_line(hub, folder):
  for name in ("name", "org/name@branch", "a/b/c", ""):
    (line,) = pushed(hub, folder, name)
    assert line == f"error: --push={name}: name a repository as ORG/NAME"
  (line,) = pushed(hub, folder, "org/new", HF_TOKEN="hf_of_another")
  assert line.startswith("error: --push=org/new: ") and "HF_TOKEN" in line
  (line,) = pushed(hub, folder, "others/new")
  assert f"{folder} is whole; the same command sends it again" in line
  (line,) = pushed(hub, folder, "org/new", HF_HUB_OFFLINE="1")
  assert line.startswith("error: --push=org/new: ")
  assert hub.repositories == {"org/old": OLD} and not hub.commits


@pytest.mark.parametrize(
  "name", ["org/a--b", "org/a..b", "org/a.git", f"org/{'a' * 96}"]
)
def test_a_name_that_no_hub_takes_is_refused_before_it_is_asked(name):
  with pytest.raises(InputError, match=f"^--push={name}: "):
    push.check(name)


@pytest.mark.parametrize("part", ["whoami", "repos/create", "/commit/"])
def test_a_token_that_the_hub_quotes_is_hidden(hub, folder, part):
  quoted = dict(error=f"your token {TOKEN} is none")
  hub.answers = {part: (413, json.dumps(quoted).encode())}
  (line,) = pushed(hub, folder, "org/old")
  assert line.startswith("error: --push=org/old: ")
  assert "your token *** is none" in line
  assert hub.repositories["org/old"] == OLD and not hub.commits


def test_why_a_file_was_not_taken_is_said_without_its_signature(hub, folder):
  hub.answers = {"/object/": (413, b"")}
  (line,) = pushed(hub, folder, "org/old")
  assert "Error while uploading 'model.safetensors'" in line
  # Python 3.13 calls it Content Too Large.
  assert re.search("413 .* Too Large", line) and "?..." in line
  assert hub.repositories["org/old"] == OLD


def test_half_an_upload_leaves_the_repository_as_it_was(hub, folder):
  hub.fails = "/commit/main"
  (line,) = pushed(hub, folder, "org/old")
  assert line.startswith("error: --push=org/old: ")
  assert hub.repositories["org/old"] == OLD


# The whole command.


@pytest.fixture
def workdir(inputs, tmp_path):
  """A run that stands at step 1."""
  shutil.copytree(inputs / "third", tmp_path / "source")
  (tmp_path / "run").mkdir()
  return run_of(tmp_path / "run", tmp_path / "source")


def exported(hub, workdir, *more):
  """The CompletedProcess of the command."""
  words = "-m", "mrpo_jax", "export", f"--workdir={workdir}"
  to = workdir.with_name("model")
  return hub.run(workdir.parent, *words, f"--to={to}", *more)


KILLED = [
  ("org/new", "/object/", "before"),
  ("org/old", "/commit/", "before"),
  ("org/old", "/commit/", "after"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name,part,when", KILLED)
def test_after_a_push_that_was_killed_the_same_command_is_a_whole_one(
  hub, workdir, name, part, when
):
  to, left = workdir.with_name("model"), workdir.with_name(".model.lock")
  hub.kills = part, when
  assert exported(hub, workdir, f"--push={name}").returncode == -9
  whole = {one.name: one.read_bytes() for one in to.iterdir()}
  if (part, when) == ("/commit/", "after"):
    here = hub.repositories[name]
    assert {one: here[one] for one in whole} == whole
  else:
    assert hub.repositories.get(name) in (None, {}, OLD) and not hub.commits
  hub.kills = None
  done = exported(hub, workdir, f"--push={name}")
  assert done.returncode == 0, done.stderr
  assert f"{to} is now {name} at commit" in done.stdout
  here = hub.repositories[name]
  assert {one: here[one] for one in whole} == whole
  assert here.keys() - whole.keys() <= {"LICENSE"}
  assert models.load(to) and not left.exists()
  assert not [*to.parent.glob(".*partial*")]


def test_a_folder_that_is_another_models_is_not_pushed(hub, workdir):
  assert exported(hub, workdir).returncode == 0
  to = workdir.with_name("model")
  weights = to / "model.safetensors"
  *others, last = weights.read_bytes()
  weights.write_bytes(bytes([*others, last ^ 1]))
  done = exported(hub, workdir, "--push=org/new")
  assert done.returncode == 2
  said = done.stderr.strip().split("\n")[-1]
  assert said.startswith(f"error: {to} exists, and is not what this command")
  assert "org/new" not in hub.repositories
  assert not [*to.parent.glob(".*partial*")]
