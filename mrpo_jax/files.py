# SPDX-License-Identifier: Apache-2.0
"""Files written whole or not at all: JSON, JSON lines, new folders.

The door to disks and buckets: whatever has a path goes through here, and a path
in a bucket is one like another.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile

from mrpo_jax import buckets
from mrpo_jax.errors import InputError, StoppedRun

logger = logging.getLogger(__name__)

BLOCK = 2**20  # bytes that are read of an object at once


def at_home(path):
  """A path with the user's home in place of ~; what is no text as it is."""
  return os.path.expanduser(path) if isinstance(path, str) else path


# Paths.


def path_of(path):
  """The pathlib.Path of a text or a path; that of a bucket has its methods."""
  if buckets.is_bucket(path):
    return buckets.path_of(path)
  return pathlib.Path(path)


def absolute(path):
  """`path_of`, from the root or the bucket on."""
  if buckets.is_bucket(path):
    return buckets.path_of(path)
  return pathlib.Path(os.path.abspath(path))


def exists(path):
  """Is something of that name there?  What may not be looked at is not."""
  if buckets.is_bucket(path):
    return buckets.path_of(path).exists()
  return os.path.exists(path)


def is_link(path):
  return not buckets.is_bucket(path) and os.path.islink(path)


def size_of(path):
  """Bytes of a file."""
  if buckets.is_bucket(path):
    return path_of(path).stat().length
  return os.path.getsize(path)


def matching(pattern):
  """The paths that a glob finds, in order; ** stands for any folders."""
  if not buckets.is_bucket(pattern):
    return sorted(map(pathlib.Path, glob.glob(pattern, recursive=True)))
  system, name = buckets.system_of(pattern)
  scheme = str(pattern).partition("://")[0]
  return sorted(path_of(f"{scheme}://{one}") for one in system.glob(name))


def below(folder):
  """All that stands below a folder, at any depth, in order."""
  if not buckets.is_bucket(folder):
    return sorted(pathlib.Path(folder).rglob("*"))
  folder = path_of(folder)
  return [folder / inside for inside, *_ in buckets.marks_of(folder)]


# Folders.


def make_folder(path):
  """Makes a folder, and those above it; a bucket needs none."""
  if not buckets.is_bucket(path):
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)


def remove_folder(path):
  """Removes a folder and all that is in it."""
  if buckets.is_bucket(path):
    buckets.remove_tree(path)
  else:
    shutil.rmtree(path)


def move_folder(path, to):
  """Gives a folder another name; nothing is there under that."""
  if buckets.is_bucket(path):
    buckets.move_tree(path, to)
  else:
    path.rename(to)


def refuse_read_only(path):
  """PermissionError where nothing can be written into a folder.

  Of a bucket the first write tells.
  """
  if not buckets.is_bucket(path) and not os.access(path, os.W_OK):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def new_folder(path):
  """A folder to fill, which gets its name only when all has gone well.

  What commands that were killed here have left of it is removed.  In a bucket
  its files appear one by one, what says that it is whole the last.

  Raises:
    InputError: it exists and is not empty, or another command makes it.
  """
  if buckets.is_bucket(path):
    with _new_folder_of_bucket(path_of(path)) as partial:
      yield partial
    return
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
def _new_folder_of_bucket(path):
  """`new_folder`: filled here, and put there; a mark stands there meanwhile."""
  mark = path.with_name(f".{path.name}.partial")
  if not buckets.is_half_put(path, mark):
    _refuse_taken(path)
  with tempfile.TemporaryDirectory(prefix="mrpo-") as draft:
    partial = pathlib.Path(draft) / path.name
    partial.mkdir()
    yield partial
    if buckets.is_half_put(path, mark):
      logger.info(f"removing {path}, which a killed command left")
      buckets.remove_tree(path)
    else:
      _refuse_taken(path)  # by another command
    buckets.put_marked(partial, path, mark)


@contextlib.contextmanager
def alone(path):
  """One command at a time makes a path; yields whether that is certain.

  In a bucket it never is: nothing there frees the lock of a killed command.

  Raises:
    InputError: another command makes it.
  """
  if buckets.is_bucket(path):
    yield False
    return
  path = pathlib.Path(os.path.abspath(path))
  lock = path.with_name(f".{path.name}.lock")
  held, is_alone = _taken(lock, path)
  try:
    yield is_alone
  finally:
    lock.unlink(missing_ok=True)
    os.close(held)


def _refuse_taken(path):
  if buckets.is_bucket(path):
    taken = path.exists()
  else:
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    taken = os.path.lexists(path) and not empty
  if taken:
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

  In a bucket each is whole or not there.

  Args:
    contents: {path: text or bytes}.
  """
  drafts = {}
  try:
    for path, content in contents.items():
      path = path_of(path)
      if isinstance(content, str):
        content = content.encode("utf-8")
      if buckets.is_bucket(path):
        buckets.write(path, content)
        continue
      draft = path.with_name(f".{path.name}.{os.getpid()}")
      drafts[draft] = path
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


def create(path, content):
  """A new file of a text, whole; FileExistsError where it is there already.

  Whoever creates it is the only one, of all hosts.
  """
  if buckets.is_bucket(path):
    return buckets.create(path, content.encode())
  with open(path, "x", encoding="utf-8") as file:
    try:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    except BaseException:
      os.unlink(path)
      raise


def read_stamped(path):
  """(text, stamp) of a file; `touch` gives it another stamp.

  Opened anew, past what mounts keep.
  """
  if buckets.is_bucket(path):
    content, stamp = buckets.read_stamped(path)
    return content.decode("utf-8", "replace"), stamp
  with opened(path) as file:
    text = file.read().decode("utf-8", "replace")
    return text, os.fstat(file.fileno()).st_mtime_ns


def touch(path):
  """Gives a file that is there another stamp, and no other text."""
  if buckets.is_bucket(path):
    buckets.touch(path, *buckets.read_stamped(path))
  else:
    os.utime(path)


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
  if buckets.is_bucket(path):
    return io.BufferedReader(path_of(path).open("rb"), BLOCK)
  refuse_endless(path)
  return open(path, "rb")


def refuse_endless(path):
  """InputError where a path is neither a file nor a folder.

  A pipe waits for a writer already when it is opened.
  """
  if buckets.is_bucket(path):
    if not path_of(path).exists():
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return
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
