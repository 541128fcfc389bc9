# SPDX-License-Identifier: Apache-2.0
"""Files written whole or not at all: JSON, JSON lines, new folders."""

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import stat
import sys

from mrpo_jax.errors import InputError, StoppedRun

logger = logging.getLogger(__name__)


def at_home(path):
  """A path with the user's home in place of ~; what is no text as it is."""
  return os.path.expanduser(path) if isinstance(path, str) else path


@contextlib.contextmanager
def new_folder(path):
  """A folder to fill, which gets its name only when all has gone well.

  What commands that were killed here have left of it is removed.

  Raises:
    InputError: it exists and is not empty, or another command makes it.
  """
  path = pathlib.Path(os.path.abspath(path))
  _refuse_taken(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = f".{path.name}.partial-"
  partial = path.with_name(f"{draft}{os.getpid()}")
  with alone(path) as is_alone:
    try:
      _refuse_taken(path)  # by the command before
      for left in (
        path.parent.glob(f"{glob.escape(draft)}*") if is_alone else ()
      ):
        if left.is_dir() and not left.is_symlink():
          logger.info(f"removing {left}, which a killed command left")
          shutil.rmtree(left)
      partial.mkdir()
      yield partial
      partial.rename(path)
    finally:
      shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def alone(path):
  """One command at a time makes a path; yields whether that is certain.

  Raises:
    InputError: another command makes it.
  """
  path = pathlib.Path(os.path.abspath(path))
  lock = path.with_name(f".{path.name}.lock")
  held, is_alone = _taken(lock, path)
  try:
    yield is_alone
  finally:
    lock.unlink(missing_ok=True)
    os.close(held)


def _refuse_taken(path):
  empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
  if os.path.lexists(path) and not empty:
    raise InputError(f"{path} exists; remove it or name another folder")


def _taken(lock, path):
  """(lock file, is it locked?): one command makes a path, and its end frees it.

  Raises:
    InputError: another command has it.
  """
  while True:
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(held)
      raise InputError(
        f"another command is writing {path}; wait for its end, or name another"
      ) from None
    except OSError:  # some disks of clusters have no locks
      return held, False
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.stat(lock), os.fstat(held)):
        return held, True
    os.close(held)  # of one that ended, and removed it, since it was opened


@contextlib.contextmanager
def of_rust(path):
  """Makes an OSError of what a library in Rust only quotes of the system."""
  try:
    yield
  except Exception as error:
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    if quoted is None:
      raise
    number = int(quoted[1])
    raise OSError(number, os.strerror(number), os.fspath(path)) from None


def write_atomically(path, content):
  """The whole file or none of it, also when the machine stops midway."""
  write_together({path: content})


def write_together(contents):
  """All of some files or none: none is replaced before there is room for all.

  Args:
    contents: {path: text or bytes}.
  """
  drafts = {}
  try:
    for path, content in contents.items():
      path = pathlib.Path(path)
      draft = path.with_name(f".{path.name}.{os.getpid()}")
      drafts[draft] = path
      if isinstance(content, str):
        content = content.encode("utf-8")
      with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for draft, path in drafts.items():
      draft.replace(path)
  except BaseException:
    for draft in drafts:
      draft.unlink(missing_ok=True)
    raise


def as_json(value, where, **given):
  """JSON text, a strict one; StoppedRun where a number is not finite."""
  try:
    return json.dumps(value, allow_nan=False, **given)
  except ValueError as error:
    raise StoppedRun(f"{where} is not written: {error}") from None


def write_json(path, value, *, sort_keys=True):
  write_atomically(path, json_text(value, path, sort_keys=sort_keys))


def json_text(value, where, *, sort_keys=True):
  """The text of a JSON file; see `as_json`."""
  return as_json(value, where, indent=2, sort_keys=sort_keys) + "\n"


def opened(path):
  """A file, open to read bytes; InputError where reading might never end."""
  refuse_endless(path)
  return open(path, "rb")


def refuse_endless(path):
  """InputError where a path is neither a file nor a folder.

  A pipe waits for a writer already when it is opened.
  """
  kind = os.stat(path).st_mode
  if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
    raise InputError(
      f"{path}: is a pipe, a socket or a device; write it to a file"
    )


def read_json(path):
  """The object in a JSON file; InputError where it holds no such thing."""
  with opened(path) as file:
    return parsed(file.read(), path)


def parsed(text, where):
  """The object in JSON as bytes; `where` is said if it is none."""
  try:
    value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=once)
  except UnicodeDecodeError:
    raise InputError(f"{where} is not UTF-8") from None
  except InputError as error:
    raise InputError(f"{where}: {error}") from None
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where} is not JSON ({error})") from None
  if not isinstance(value, dict):
    kind = {list: "a list", str: "a text", type(None): "null"}.get(type(value))
    raise InputError(f"{where} holds {kind or repr(value)[:20]}, not an object")
  return value


def is_figure(value):
  """Is a value of JSON a finite number, and no truth value?"""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  # Of integers, too, which may have hundreds of digits.
  return is_number and abs(value) <= sys.float_info.max


def once(pairs):
  """The dict of an object in JSON; InputError where a key stands twice.

  Readers disagree on which of them counts.
  """
  value = dict(pairs)
  if len(value) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise InputError(f"the key {twice!r} stands there twice")
  return value


def write_lines(path, values):
  text = "".join(as_json(value, path) + "\n" for value in values)
  write_atomically(path, text)


def read_lines(path):
  """Complete JSON lines of a file, an object each.

  A last line cut short is left out.

  Raises:
    InputError: a line is no object; names it.
  """
  try:
    with opened(path) as file:
      lines = file.read().split(b"\n")[:-1]
  except FileNotFoundError:
    return []
  return [
    parsed(line, f"{path} line {number}")
    for number, line in enumerate(lines, 1)
    if line
  ]


def cut_half_line(path):
  """Cuts off a last line that a killed command left, and says so."""
  if not os.path.exists(path):
    return
  with open(path, "rb+") as file:
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
      logger.info(f"{path}: its last line is cut short, and made again")
      file.truncate(whole)


def readable_lines(path):
  """(objects, how many other lines) of a file of JSON lines.

  A last line cut short counts as neither, and a file that is missing has none.
  """
  try:
    with opened(path) as file:
      lines = file.read().split(b"\n")[:-1]
  except FileNotFoundError:
    return [], 0
  found = []
  for line in filter(None, lines):
    with contextlib.suppress(ValueError, RecursionError):  # no UTF-8, too
      found.append(json.loads(line.decode("utf-8")))
  objects = [one for one in found if isinstance(one, dict)]
  return objects, sum(map(bool, lines)) - len(objects)


def sha256_of(path):
  """SHA-256, in hex, of a file's bytes."""
  with opened(path) as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
