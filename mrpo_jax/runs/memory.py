# SPDX-License-Identifier: Apache-2.0
"""Memory of a step on each device: what it takes, what is free, what helps."""

import logging
import os
import pathlib
import re

import jax
import numpy as np

from mrpo_jax.errors import InputError
from mrpo_jax.text import sized_bytes

logger = logging.getLogger(__name__)

CGROUPS = (  # folder, limit, in use; of the second version and of the first
  ("/sys/fs/cgroup", "memory.max", "memory.current"),
  (
    "/sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
  ),
)
PER_TOKEN = 64  # bytes that the trainer of a tokenizer reserves, at least


# What is refused before it is made.


def check_rows(config, packing):
  """Raises InputError where this machine cannot hold the rows of one step."""
  _refuse(
    packing.bytes,
    f"config.batch={config.batch}, config.data.rows={config.data.rows} and "
    f"config.data.row_length={config.data.row_length}: the rows of one step "
    "take",
    "make them smaller, and run more steps for it",
  )
  for section in config.models().values():
    new = section.tokenizer.new
    if new is not None and not section.tokenizer.folder:
      _refuse(
        PER_TOKEN * new.vocab_size,
        f"config.{section.key}.new.vocab_size={new.vocab_size}: training its "
        "tokenizer takes",
        "want fewer tokens",
      )


def _refuse(takes, what, advice):
  free = host_bytes()
  if free is not None and takes > free:
    raise InputError(
      f"{what} {sized_bytes(takes)} at least, this machine has "
      f"{sized_bytes(free)} free; {advice}"
    )


# What a step takes.


def argument_bytes(arguments):
  """(bytes of one device, from the shardings; how many are there twice).

  What an adapter's base and a reference share is given twice and is there
  once, which the compiler does not know.
  """

  def size(arrays):
    return sum(
      int(np.prod(array.sharding.shard_shape(array.shape)))
      * array.dtype.itemsize
      for array in arrays
    )

  arrays = jax.tree.leaves(arguments)
  once = size({id(array): array for array in arrays}.values())
  return once, size(arrays) - once


def compiled_bytes(compiled, arguments):
  """{kind: bytes} of one device; `peak` is what is there at once."""
  memory = compiled.memory_analysis()
  sizes = {
    kind: getattr(memory, f"{kind}_size_in_bytes")
    for kind in ("argument", "output", "alias", "temp")
  }
  sizes["argument"] -= argument_bytes(arguments)[1]
  sizes["peak"] = sum(sizes.values()) - 2 * sizes["alias"]
  return sizes


def bytes_of_failure(error, arguments):
  """The same of a compiler that ran out of memory; else raises the error."""
  text = str(error)
  found = re.search(r"Used ([\d.]+)([KMGT]?) of", text)
  if "RESOURCE_EXHAUSTED" not in text or not found:
    raise error
  unit = 1024 ** " KMGT".index(found.group(2) or " ")
  argument, twice = argument_bytes(arguments)
  return {
    "argument": argument,
    "peak": float(found.group(1)) * unit - twice,
  }


# What is free.


def free_bytes(mesh):
  """Bytes that each device of this process can still give; None: not known."""
  devices = mesh.local_devices
  if devices[0].platform == "cpu":
    free = host_bytes()
    return None if free is None else free // len(devices)
  stats = [device.memory_stats() or {} for device in devices]
  free = [
    one["bytes_limit"] - one["bytes_in_use"]
    for one in stats
    if {"bytes_limit", "bytes_in_use"} <= one.keys()
  ]
  return min(free, default=None)


def host_bytes(root="/"):
  """Bytes that this machine, or its container, can still give; or None.

  Linux says what is available without swapping; of other systems it is all
  that the machine has.
  """
  status = pathlib.Path(root, "proc/meminfo")
  if not status.exists():
    known = getattr(os, "sysconf_names", {})  # not on Windows
    if "SC_PHYS_PAGES" not in known:
      return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  found = re.search(r"^MemAvailable: +(\d+) kB", status.read_text(), re.M)
  sizes = [] if found is None else [int(found.group(1)) * 1024]
  for folder, limit, used in CGROUPS:
    place = pathlib.Path(root, folder.lstrip("/"))
    texts = [
      path.read_text().strip() if path.is_file() else ""
      for path in (place / limit, place / used)
    ]
    if all(text.isdecimal() for text in texts):  # "max" is no limit
      most, here = map(int, texts)
      sizes.append(max(0, most - here + _cached(place / "memory.stat")))
  return min(sizes, default=None)


def _cached(path):
  """Bytes of files, which a container gives back where it needs memory."""
  text = path.read_text() if path.is_file() else ""
  found = re.findall(r"^(?:total_)?(?:in)?active_file (\d+)$", text, re.M)
  return sum(map(int, found[-2:]))  # totals stand last


# What helps.


def changes(config, devices, scored=""):
  """Yields (what, {flag: value}) that make a step smaller, cheapest first.

  Each stands beside those before it, but integers in place of scoring.

  Args:
    config: Config of the run.
    devices: how many there are.
    scored: the reference whose scoring step it is; "" is the train step.
  """
  data, mesh = config.data, config.mesh
  references = config.references.items()
  online = [name for name, one in references if one.mode == "online"]
  longest = data.max_prompt + 2 * data.max_response
  fewest = {"data.rows": 0}
  if longest < data.row_length:
    fewest["data.row_length"] = longest
  steps = [("rows", fewest)]
  if not scored:
    steps.append(("remat", {"policy.remat": "full"}))
  if devices > 1 and (mesh.fsdp != -1 or mesh.data != 1):
    steps.append(("mesh", {"mesh.data": 1, "mesh.fsdp": -1}))
  shared = dict(pair for _, flags in steps for pair in flags.items())
  before = {}
  for what, flags in steps:
    before = {**before, **flags}
    yield what, before
  if online and not scored:
    yield (
      "scored references",
      shared | {f"references.{name}.mode": "scored" for name in online},
    )
  large = [scored] if scored else online
  for kind in ("int8", "int4"):
    if large:
      yield (
        f"{kind} references",
        shared | {f"references.{name}.quantize": kind for name in large},
      )


def first_that_fits(config, candidates, judge):
  """(flags, what `judge` found) of the first that fits, or (None, None).

  Args:
    config: Config of the run.
    candidates: as of `changes`.
    judge: Config -> (peak in bytes, does it fit, anything); InputError where
      there is no such run.
  """
  for what, flags in candidates:
    try:
      changed = config.changed(flags)
      if changed == config:
        continue
      peak, fits, found = judge(changed)
    except InputError as error:
      logger.info(f"{what}: {error}")
      continue
    logger.info(f"{what}: {sized_bytes(peak)}, {verdict(fits)}")
    if fits:
      return flags, found
  return None, None


def verdict(fits):
  """The words for a step that fits its devices, or does not."""
  return "fits" if fits else "does not fit"


def as_flags(changes):
  """The flags of a command that change a config so."""
  return " ".join(f"--config.{key}={value}" for key, value in changes.items())
