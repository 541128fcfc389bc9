# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run: how they meet, agree, and end together.

Each runs the same command and has some of the devices.  What one of them
cannot go on from ends all: it is left with jax's coordination service, in
process 0, where a thread of every other process finds it.
"""

import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import clusters, distributed
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from mrpo_jax import meeting, streams
from mrpo_jax.errors import InputError, StoppedRun, first_line

CLUSTERS = ("ompi", "slurm", "gketpu", "gcetpu")  # that jax finds out about
# How many processes an MPI started that jax may know nothing of.
LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# Seconds:
MEET = 300  # until all have come
AGREE = 1800  # that one waits for the others where they agree
LIFE = 30  # without a heartbeat, after which jax ends the others
PULSE = 1.0  # between looks at the others
SILENT = 7  # looks after which a process without a new sign is named
PAUSE = 4 * PULSE  # in which a process that lives shows it
LEAVE = 60  # for the others to come to the end
ENDED, SEEN, ALIVE = "mrpo/ended", "mrpo/seen", "mrpo/alive"  # keys

# C++ that tells of processes that are gone.
OF_SERVICE = rb"(coordination_\w+|preemption_\w+|client)\.(cc|h)"

_agreements = itertools.count()
_ending = threading.Lock()
_leaving = threading.Event()


def start(coordinator="", processes=1, process=0):
  """Joins the other processes, before jax touches a device.

  Args:
    coordinator: "host:port" at which process 0 waits for the others; "" asks
      jax, which knows TPU pods, Slurm and Open MPI, and does nothing where
      there is one process.
    processes: how many there are.
    process: which one this is.

  Raises:
    InputError: they cannot meet where the coordinator is.
    StoppedRun: they cannot meet where jax says.
  """
  if coordinator:
    if processes > 1:
      host, _, port = coordinator.rpartition(":")
      host = host.strip("[]")
      meeting.meet(host, int(port), processes, process, seconds=MEET)
    how = {"cluster_detection_method": "deactivate"}
    how |= {"coordinator_address": coordinator, "num_processes": processes}
    how["process_id"] = process
    where = f"{processes} processes at {coordinator}"
  else:
    cluster, processes = _cluster()
    how, where = {"cluster_detection_method": cluster}, f"{processes} processes"
  if processes == 1:
    return
  late = threading.Timer(
    MEET,
    _end,
    (1, f"not all of {where} came within {MEET} s: is each one started?"),
  )
  late.daemon = True
  late.start()
  _own_line_of_aborts()
  try:
    jax.distributed.initialize(
      **how,
      initialization_timeout=2 * MEET,  # the timer says it better
      heartbeat_timeout_seconds=LIFE,
      shutdown_timeout_seconds=LEAVE,
    )
  except (OSError, RuntimeError, ValueError) as error:
    # A cluster's own address is no input; another try may find it.
    kind = InputError if coordinator else StoppedRun
    raise kind(f"{where} cannot meet: {first_line(error)}") from error
  finally:
    late.cancel()
  _watcher.start()


def connect(mesh):
  """Connects the CPU devices of every group that a mesh makes.

  Gloo does it at the first use of a group and waits 30 seconds for the others,
  less than one of them may compile longer.
  """
  if not several() or mesh.devices.flat[0].platform != "cpu":
    return
  gather(None)
  axes = [axis for axis, size in mesh.shape.items() if size > 1]
  groups = itertools.chain.from_iterable(
    itertools.combinations(axes, n + 1) for n in range(len(axes))
  )
  splits = [NamedSharding(mesh, PartitionSpec(group)) for group in groups]
  ones = np.ones(mesh.devices.size, np.float32)
  arrays = [
    jax.make_array_from_callback(ones.shape, split, lambda index: ones[index])
    for split in splits
  ]
  sums = jax.jit(
    lambda arrays: [jnp.sum(array) for array in arrays],
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )
  jax.block_until_ready(sums(arrays))


def _cluster():
  """(jax's name, processes) of the cluster that started this one."""
  for kind in clusters.ClusterEnv._cluster_types:
    if kind.name in CLUSTERS and kind.is_env_present():
      return kind.name, kind.get_process_count()
  for name in LAUNCHED:
    if int(os.environ.get(name) or 1) > 1:
      raise InputError(
        f"{name}={os.environ[name]}, but jax cannot tell where the processes "
        "meet: give --coordinator=HOST:PORT --processes=N --process=I, or "
        "--processes=1"
      )
  return None, 1


def several():
  """Are there other processes?"""
  return jax.distributed.is_initialized()


def is_first():
  """Is this the process that writes?"""
  return _me() == 0


def gather(value):
  """[value of each process], JSON, on all of them, when all have come here.

  Raises:
    StoppedRun: they have not, within AGREE seconds.
  """
  if not several():
    return [value]
  key = f"mrpo/agree/{next(_agreements)}"
  client = distributed.global_state.client
  client.key_value_set(f"{key}/{_me()}", json.dumps(value))
  try:
    client.wait_at_barrier(key, AGREE * 1000)
  except RuntimeError as error:
    if "timed out" not in str(error):  # one is gone, and `fault` names it
      raise
    raise StoppedRun(
      f"a process did not come within {AGREE} s: {first_line(error)}"
    ) from error
  found = _values(key)
  return [json.loads(found[process]) for process in range(_count())]


def first(make):
  """What process 0 makes, JSON, on all of them; the others make nothing."""
  return gather(make() if is_first() else None)[0]


def of_first(array):
  """Process 0's NumPy array on all; they have one shape."""
  return multihost_utils.broadcast_one_to_all(array)


def whole(tree):
  """NumPy arrays of global ones, on every process."""
  return multihost_utils.process_allgather(tree, tiled=True)


# The end.


def end(code, message):
  """Ends all processes with this exit code and line; does not return."""
  line = f"{message} (process {_me()} of {_count()})"
  _end(code, line, tell=True)


def fault(error):
  """(exit code, line) of an exception; names the processes that are gone.

  Waits a little: if another process has a reason, that ends this one too.
  """
  try:
    before = _values(ALIVE)
    time.sleep(PAUSE)
    after = _values(ALIVE)
    gone = [n for n in range(_count()) if before.get(n) == after.get(n)]
  except RuntimeError:  # of the service, in process 0
    gone = [0]
  what = f"{type(error).__name__}: {first_line(error)}"
  if gone:
    names = " and ".join(map(str, gone))
    what = f"lost process {names}; the same command resumes ({what})"
  else:
    traceback.print_exception(error)
  return 1, what


def leave():
  """Waits for the others at the end of the work."""
  if several():
    gather(None)
    _leaving.set()
    _watcher.join()
    jax.distributed.shutdown()


def _watch():
  """Beside the work: shows that this process lives, and ends with another."""
  client, key = distributed.global_state.client, f"{ALIVE}/{_me()}"
  alive = {}
  for beat in itertools.count():
    _seen.asked = time.monotonic()
    try:
      client.key_value_set(key, str(beat), allow_overwrite=True)
      ended = _values(ENDED)
      if beat and beat % SILENT == 0:
        alive, before = _values(ALIVE), alive
        _seen.silent = [n for n in alive if alive[n] == before.get(n)]
        _warn(_seen.silent)
    except RuntimeError:  # process 0 is gone, and jax ends this one
      return
    _seen.asked = None
    if ended:
      _end(*json.loads(ended[min(ended)]))
    if _leaving.wait(PULSE):
      return


class _Seen:
  """What `_watch` knows of the others, for `_aborted`."""

  silent = ()  # those that showed no life at the last look
  asked = None  # since when process 0 owes an answer; None: it owes none


_seen = _Seen()
_watcher = threading.Thread(target=_watch, daemon=True)


def _warn(silent):
  """Ends no process: Python may be held up where jax's own heartbeat is not."""
  for process in silent:
    print(
      f"warning: no sign of life from process {process}; if it is gone, jax "
      f"ends this one within {LIFE} s, and the same command resumes",
      file=sys.stderr,
      flush=True,
    )


def _end(code, line, tell=False):
  _ending.acquire()  # for good: one thread ends the process
  sys.stdout.flush()
  print(f"error: {line}", file=sys.stderr, flush=True)
  if several():
    _take_leave(code, line, tell)
  # Python's own way out waits for the others.
  os._exit(code)


def _own_line_of_aborts():
  """Says a lost process in one line where XLA aborts with a C++ stack.

  jax's client of the coordination service aborts the process when another one
  is gone; it has no other way.
  """
  streams.hide_logs(OF_SERVICE)
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, type(_aborted)]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, _aborted)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_):
  if not _ending.acquire(blocking=False):
    time.sleep(PAUSE)  # another thread says why
    os._exit(1)
  gone = [0] if _first_is_gone() else _seen.silent
  names = " and ".join(map(str, gone))
  lost = f"process {names}" if names else "the other processes"
  line = f"lost {lost}; the same command resumes"
  print(
    f"error: {line} (process {_me()} of {_count()})",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _first_is_gone():
  asked = _seen.asked
  if asked is not None and time.monotonic() - asked > PAUSE:
    return True
  host, _, port = distributed.global_state.coordinator_address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), PULSE).close()
  except OSError:
    return True
  return False


def _take_leave(code, line, tell):
  """Leaves the reason for the others; process 0 stays until they have it."""
  client, patience = distributed.global_state.client, time.monotonic() + PAUSE
  try:
    if tell:
      client.key_value_set(f"{ENDED}/{_me()}", json.dumps([code, line]))
    client.key_value_set(f"{SEEN}/{_me()}", "")
    while is_first() and time.monotonic() < patience:
      if len(_values(SEEN)) == _count():
        return
      time.sleep(0.1)
  except RuntimeError:  # process 0 is gone
    return


def _values(key):
  """{process: text} under a key of the coordination service."""
  found = distributed.global_state.client.key_value_dir_get(f"{key}/")
  return {int(name.rpartition("/")[2]): value for name, value in found}


def _me():
  return distributed.global_state.process_id


def _count():
  return distributed.global_state.num_processes
