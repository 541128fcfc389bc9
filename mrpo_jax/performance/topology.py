# SPDX-License-Identifier: Apache-2.0
"""Topologies: devices, and shapes of models, that need not be here."""

import dataclasses
import importlib.metadata
import os
import pathlib
import re

import jax
import numpy as np

from mrpo_jax import hub
from mrpo_jax.errors import InputError
from mrpo_jax.models.families.read import config_from_hf
from mrpo_jax.performance import chips, nvidia
from mrpo_jax.performance.model_shapes import MODELS

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
TOPOLOGY = re.compile(r"([\w.]+):(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True)
class Target:
  """The devices that a run is meant for, and what each of them can do."""

  topology: str
  devices: list
  chip: str | None  # a key of chips.CHIPS
  share: float  # of a chip that one device is
  memory: float | None  # bytes of one device

  @property
  def peak(self):
    """chips.Chip of one device, or None."""
    if self.chip is None:
      return None
    whole = dataclasses.asdict(chips.CHIPS[self.chip])
    return chips.Chip(**{key: n and self.share * n for key, n in whole.items()})


def find_target(topology, hbm=None):
  """The Target that a topology names.

  "v5p:4x4x4", a slice of TPUs; "h100:8", a node of GPUs, "h100:2x8", two of
  them; "cpu:8" or "local".

  Args:
    topology: as on the command line.
    hbm: bytes of a device, in place of the chip's own.

  Raises:
    InputError: nobody knows it, or its compiler is not installed.
  """
  name, chip, share = topology, None, 1.0
  found = TOPOLOGY.fullmatch(topology)
  kind = found.group(1) if found else None
  sizes = [int(n) for n in found.group(2).split("x")] if found else []
  if 0 in sizes and kind not in nvidia.DESCRIPTIONS:
    # jax does not start with no device, and libtpu ends the process.
    raise InputError(f"--topology={topology}: want no size of 0")
  if topology == "local":
    devices = jax.devices()
    chip = chips.of_kind(devices[0].device_kind)
    if devices[0].platform == "tpu":  # of a tpu7x each of the two cores
      share = 1.0 / (1 + max(one.core_on_chip for one in devices))
  elif topology.startswith("cpu:") and topology[4:].isdecimal():
    devices = _cpu_devices(int(topology[4:]))
  elif kind in TPUS:
    chip, devices = kind, _tpu_devices(topology)
    share = int(np.prod(sizes)) / len(devices)
  elif kind in nvidia.DESCRIPTIONS and len(sizes) < 3:
    chip = kind.upper()
    devices = nvidia.devices(topology, kind, *[1, *sizes][-2:])
  else:
    raise InputError(
      f"--topology={topology}: not known; want local, cpu:8, a TPU slice like "
      f"v5p:4x4x4 of {', '.join(TPUS)}, or GPUs like h100:8 or, of several "
      f"nodes, h100:2x8 of {', '.join(nvidia.DESCRIPTIONS)}"
    )
  memory = hbm
  if hbm is None and chip is not None:
    memory = chips.CHIPS[chip].memory * share
    if devices[0].platform == "gpu":
      memory = nvidia.usable_bytes(memory)
  return Target(name, devices, chip, share, memory)


def _cpu_devices(count):
  try:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # jax has started, with what it was told
    pass
  devices = jax.devices("cpu")
  if not 0 < count <= len(devices):
    raise InputError(
      f"--topology=cpu:{count}: this process has {len(devices)} CPU devices"
    )
  return devices[:count]


def _tpu_devices(topology):
  try:
    importlib.metadata.version("libtpu")
  except ImportError:
    raise InputError(
      f"--topology={topology} needs the TPU's compiler, which runs without a "
      "TPU: pip install 'mrpo-jax[plan]'"
    ) from None
  # There is no TPU here to ask, nor one that two programs could both take.
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  # libtpu ends the process at a flag of another backend, when it compiles too:
  # the CPU's is to read them now, and libtpu to see none.
  jax.config.update("jax_platforms", "cpu")
  jax.devices("cpu")
  os.environ.pop("XLA_FLAGS", None)
  from jax.experimental import topologies

  # Both cores of a v4 are one device, as on its machines.
  more = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
  try:
    return topologies.get_topology_desc(topology, "tpu", **more).devices
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"--topology={topology}: {reason}") from None


def read_shape(path):
  """The ModelConfig of a folder, or of a published model by its hub name."""
  if pathlib.Path(path).is_dir():
    return hub.read_config(path)
  if path not in MODELS:
    raise InputError(
      f"{path}: no such folder, and no published model whose shape is known "
      f"here; known: {', '.join(MODELS)}; of others a folder that "
      "holds config.json will do"
    )
  return config_from_hf(MODELS[path])
