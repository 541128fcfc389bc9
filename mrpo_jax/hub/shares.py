# SPDX-License-Identifier: Apache-2.0
"""Reading a model by several processes: each reads its share of a tensor once.

A tensor is cut along its first axis over all devices, whatever the mesh makes
of it in the end: so a process reads one run of bytes, and the devices exchange
the rest.  Together they read a model once, though each may need all of it.
"""

import math

import jax
import numpy as np
import safetensors
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrpo_jax import processes
from mrpo_jax.errors import InputError


class Shares:
  """Tensors of a folder that the processes of a mesh read together.

  What is wrong with one is seen by a process alone, while the others need it to
  go on: so `check` tells of it, on all.
  """

  def __init__(self, infos, mesh):
    """Reads nothing; `infos` is what folder.tensor_infos gives."""
    self._infos, self._problem = infos, None
    devices = Mesh(mesh.devices.reshape(-1), "all")
    self._count = mesh.devices.size
    self._rows = NamedSharding(devices, PartitionSpec("all"))

  def reader(self, views, shape, dtype, to):
    """name -> [what each view gives of that tensor, on the devices].

    Args:
      views: functions of a tensor, for example a transposition.
      shape: of each tensor that will be read.
      dtype: that its numbers are cast to.
      to: NamedSharding of what each view gives.
    """
    length, rest = shape[0], shape[1:]
    padded = math.ceil(length / self._count) * self._count, *rest
    place = jax.jit(
      lambda array: [view(array[:length]) for view in views], out_shardings=to
    )

    def share(name, index):
      start, stop, _ = index[0].indices(padded[0])
      part = self._read(name, start, stop)
      with np.errstate(over="ignore"):  # told of
        part = part.astype(dtype, copy=False)
      if not np.isfinite(part).all():
        self._problem = (
          f"{self._infos[name].path}: {name} holds numbers that are not finite "
          f"in {dtype}"
        )
      missing = stop - start - len(part)
      return np.pad(part, ((0, missing), *[(0, 0)] * len(rest)))

    def read(name):
      rows = jax.make_array_from_callback(
        padded, self._rows, lambda index: share(name, index)
      )
      return place(rows)

    return read

  def equal(self, one, other):
    """Are two tensors of a shape the same, on every process?"""
    length, count = self._infos[one].shape[0], jax.process_count()
    start, stop = (
      length * number // count
      for number in (jax.process_index(), jax.process_index() + 1)
    )
    mine = np.array_equal(
      self._read(one, start, stop), self._read(other, start, stop)
    )
    return all(processes.gather(bool(mine)))

  def check(self):
    """Raises the InputError of any process on all of them."""
    for problem in filter(None, processes.gather(self._problem)):
      raise InputError(problem)

  def _read(self, name, start, stop):
    info = self._infos[name]
    rows = slice(start, min(stop, info.shape[0]))
    if start >= info.shape[0]:  # of a device for which no row is left
      rows = slice(0, 0)
    with safetensors.safe_open(info.path, framework="np") as file:
      return file.get_slice(name)[rows]
