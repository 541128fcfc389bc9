# SPDX-License-Identifier: Apache-2.0
"""Owner of a workdir: a lease file, so that one run at a time has it.

<workdir>/owner-<n>.json says which process holds it.  Nothing but the creation
of a new file has to be atomic, which shared disks and buckets give too; no
clock of another host is trusted.

- A lease is alive while its file is touched every BEAT seconds, or while its
  process is there, where this one can look: same kernel, same numbers of
  processes.
- Whoever finds lease n dead creates n + 1, which one can do alone, and removes
  what is older.  The highest number is the owner's.
"""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import re
import socket
import threading
import time
from typing import NamedTuple

from mrpo_jax import files, processes
from mrpo_jax.buckets import is_bucket
from mrpo_jax.errors import InputError, StoppedRun
from mrpo_jax.runs.workdir import CONFIG, written
from mrpo_jax.training import checkpoints

logger = logging.getLogger(__name__)

NAME = re.compile(r"owner-([1-9][0-9]{0,8})\.json")
# Seconds:
BEAT = 5.0  # between signs of life
STALE = 90.0  # without one, until a lease is dead; mounts cache for 60
POLL = 0.5  # between looks at a lease that cannot be judged at once
PROC = pathlib.Path("/proc")
# Of the lines that refuse a workdir, or leave it, because it is another's.
IN_USE = "is in use by another run"
WRITTEN = "another run wrote to it while this one started"
LOST = "is no longer this run's"


class Lease(NamedTuple):
  """A lease file as it was read once; equal ones show no sign of life."""

  number: int = 0  # 0: there is none
  text: str = ""
  touched: object = 0  # `files.read_stamped`: nanoseconds of a disk, say

  @property
  def says(self):
    """What it tells of its process; {} where it cannot be read."""
    try:
      found = json.loads(self.text)
    except ValueError:
      found = None
    return found if isinstance(found, dict) else {}


class Before(NamedTuple):
  """A workdir before a run has it."""

  lease: Lease  # dead, or none
  config: bytes | None  # of config.json
  steps: list  # of its checkpoints


def before(workdir):
  """A Before of a workdir in which no run lives; writes nothing.

  Raises:
    InputError: one does; where it cannot be seen at once, after its next sign
      of life.
  """
  workdir = files.path_of(workdir)
  lease = _dead(workdir) if processes.is_first() else Lease()
  return Before(lease, *_content(workdir))


@contextlib.contextmanager
def owned(workdir, before):
  """Process 0 holds the workdir inside; it is made if it does not exist.

  Where the lease is lost, as a process that was stopped for long may find, the
  run ends: another one has the workdir.

  Args:
    workdir: folder of the run.
    before: Before, on which all that was checked since rests.

  Yields:
    A function that raises StoppedRun where the lease is lost.

  Raises:
    InputError: another run has it, or had it since `before`.
  """
  if not processes.is_first():
    processes.gather(None)  # process 0 has it
    yield lambda: None
    return
  workdir = files.path_of(workdir)
  made = [path for path in _folders(workdir) if not path.exists()]
  with written(workdir):
    files.make_folder(workdir)
    mine = _take(workdir, before.lease)
  left = threading.Event()
  beat = threading.Thread(target=_beat, args=(workdir, mine, left), daemon=True)
  beat.start()
  try:
    if _content(workdir) != before[1:]:
      raise InputError(f"--workdir {workdir}: {WRITTEN}; start again")
    processes.gather(None)
    yield lambda: _check(workdir, mine)
  finally:
    left.set()
    beat.join()
    with contextlib.suppress(Exception):  # as in `_beat`
      if _holds(workdir, mine):
        _path(workdir, mine.number).unlink()
      for path in made:  # where nothing came into it
        path.rmdir()


def _content(workdir):
  """What a run decides by when it starts."""
  try:
    with files.opened(workdir / CONFIG) as file:
      config = file.read()
  except (OSError, InputError):  # `known_run` says what is wrong with it
    config = None
  return config, checkpoints.steps(workdir)


def _folders(workdir):
  """It and those above it; none of a bucket, where nobody makes them."""
  return () if is_bucket(workdir) else (workdir, *workdir.parents)


def _path(workdir, number):
  return workdir / f"owner-{number}.json"


# Who lives.


def _newest(workdir):
  """The Lease that counts."""
  for number in sorted(_numbers(workdir), reverse=True):
    if (lease := _read(workdir, number)) is not None:
      return lease
  return Lease()


def _numbers(workdir):
  try:
    names = [path.name for path in workdir.iterdir()]
  except (FileNotFoundError, NotADirectoryError):
    return []
  return [int(found[1]) for name in names if (found := NAME.fullmatch(name))]


def _read(workdir, number):
  """The Lease of that number, or None."""
  try:
    return Lease(number, *files.read_stamped(_path(workdir, number)))
  except FileNotFoundError:
    return None


def _dead(workdir):
  """The Lease that counts when it is dead, or none; InputError if it lives."""
  lease = _newest(workdir)
  while lease.number:
    lives = _lives(lease.says)
    later = _watched(workdir, lease) if lives is None else lease
    if lives or later != lease and later.number == lease.number:
      raise InputError(_in_use(workdir, later))
    if later == lease:
      return lease
    lease = later  # given back, or taken over
  return lease


def _watched(workdir, lease):
  """The Lease that counts after STALE seconds, or as soon as it is another."""
  later, end = _newest(workdir), time.monotonic() + STALE
  if later == lease:
    logger.info(
      f"--workdir {workdir} was last had by {_process(lease.says)}; it is this "
      f"run's unless that shows life within {STALE:.0f} s"
    )
  while later == lease and time.monotonic() < end:
    time.sleep(POLL)
    later = _newest(workdir)
  return later


def _lives(says):
  """Does the process of a lease live?  None where it cannot be looked at."""
  kernel, pid = _kernel(), says.get("pid")
  if not kernel or says.get("kernel") != kernel:
    return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # somebody else's, or a stranger's
    pass
  except (TypeError, OverflowError):
    return None
  born = _born(pid)
  return None if born is None else born == says.get("born")


def is_held(workdir):
  """Does a run hold the workdir?  None where that cannot be seen at once."""
  lease = _newest(files.path_of(workdir))
  return bool(lease.number) and _lives(lease.says)


def is_anothers(error):
  """Does this line of an error say that another run has, or had, the workdir?

  Exit codes do not tell: these lines share theirs with all wrong input.
  """
  return any(why in error for why in (IN_USE, WRITTEN, LOST))


def _in_use(workdir, lease):
  return (
    f"--workdir {workdir} {IN_USE}: "
    f"{_process(lease.says)}; wait for its end, or use another --workdir"
  )


def _process(says):
  if not says:
    return "a process that is not named"
  return (
    f"process {says.get('pid')} on {says.get('host')}, since "
    f"{says.get('since')}"
  )


def _me():
  """What a lease says of this process."""
  return {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "kernel": _kernel(),
    "born": _born(os.getpid()),
  }


def _kernel():
  """What numbers the processes here; "" where that is not known."""
  try:
    # Containers number their own.
    names = os.readlink(PROC / "self" / "ns" / "pid")
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return ""
  return f"{boot} {names}"


def _born(pid):
  """When a process started, in ticks of its kernel; "" of one that ended.

  None where that cannot be read.
  """
  try:
    text = (PROC / str(pid) / "stat").read_text(errors="replace")
  except OSError:
    return None
  # After the name, which may hold anything: state, then 18 more, then start.
  fields = text.rpartition(")")[2].split()
  return "" if fields[0] in "ZX" else fields[19]


# Who has it.


def _take(workdir, dead):
  """The Lease of this process, in the place of a dead one or of none."""
  while True:
    if _newest(workdir) != dead:
      dead = _dead(workdir)
    mine = dead.number + 1
    try:
      files.create(_path(workdir, mine), json.dumps(_me()) + "\n")
    except FileExistsError:  # another was faster
      continue
    lease = _newest(workdir)
    if lease.number == mine and _read(workdir, dead.number) in (dead, None):
      break
    # That other one came and went, and a third has it.
    _path(workdir, mine).unlink(missing_ok=True)
  for number in _numbers(workdir):
    if number < mine:
      _path(workdir, number).unlink(missing_ok=True)
  return lease


def _holds(workdir, mine):
  return _newest(workdir)[:2] == mine[:2]


def _check(workdir, mine):
  if not _holds(workdir, mine):
    raise StoppedRun(_lost(workdir))


def _lost(workdir):
  return (
    f"--workdir {workdir} {LOST}: another has taken it after "
    f"{STALE:.0f} s without a sign of life, or it was removed"
  )


def _beat(workdir, mine, left):
  """Beside the run: shows that it lives, and ends it where it has lost."""
  while not left.wait(BEAT):
    try:
      lost = not _holds(workdir, mine)
      if not lost:
        files.touch(_path(workdir, mine.number))
    except Exception:  # what does not answer now; clients raise many kinds
      continue
    if lost:
      processes.end(1, _lost(workdir))
