# SPDX-License-Identifier: Apache-2.0
"""The attention kernels by name; every one equals `layout.dense`."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mrpo_jax.models.attention.blockwise import blockwise
from mrpo_jax.models.attention.cudnn import cudnn, cudnn_packed
from mrpo_jax.models.attention.layout import dense
from mrpo_jax.models.attention.splash import splash
from mrpo_jax.models.partition import WHOLE

KERNELS = {
  "xla": dense,
  "blockwise": blockwise,
  "cudnn": cudnn,
  "cudnn_packed": cudnn_packed,
  "splash": splash,
}
PLATFORMS = {"cudnn": "gpu", "cudnn_packed": "gpu", "splash": "tpu"}
HOPPER = 9.0  # compute capability


def divided(kernel, partition):
  """The kernel on each device's own rows and heads, without any exchange.

  Where the heads of keys are not split as those of queries are, every device
  has them all and takes those that its queries look at.
  """
  if partition.mesh is None:
    return kernel

  def run(query_RTHE, key_RSGE, value_RSGE, layout, window=None, **numbers):
    H, G = query_RTHE.shape[2], key_RSGE.shape[2]
    together = partition.heads == partition.kv_heads

    def here(query_RTHE, key_RSGE, value_RSGE, layout, window):
      if not together:
        own_G = own_keys(partition, H, G)
        key_RSGE, value_RSGE = key_RSGE[:, :, own_G], value_RSGE[:, :, own_G]
      return kernel(query_RTHE, key_RSGE, value_RSGE, layout, window, **numbers)

    rows = PartitionSpec(partition.rows)
    of_heads = PartitionSpec(partition.rows, None, partition.heads)
    of_keys = of_heads if together else rows
    in_specs = (of_heads, of_keys, of_keys, rows, PartitionSpec())
    return partition.run(here, in_specs, of_heads)(
      query_RTHE, key_RSGE, value_RSGE, layout, window
    )

  return run


def own_keys(partition, H, G):
  """Which of G heads of keys the queries of this device look at, in order.

  Equally many queries in a row look at each; where a device has a part of
  such a group and more, its keys stand there more than once.
  """
  here, group = H // partition.size(partition.heads), H // G
  run = math.gcd(here, group)
  first = partition.place(partition.heads) * here
  return (first + run * jnp.arange(here // run)) // group


def check(name, config, dtype, platform=None, partition=WHOLE):
  """Raises ValueError where that kernel cannot run this model."""
  platform = platform or jax.default_backend()
  if _context(partition) > 1 and name not in ("auto", "xla"):
    raise ValueError(
      f"{name!r} wants whole rows, and the mesh splits them over context="
      f"{_context(partition)}; 'xla' does not"
    )
  needed = PLATFORMS.get(name, platform)
  if platform != needed:
    raise ValueError(f"{name!r} runs on a {needed}, this is a {platform}")
  if needed == "gpu" and name in PLATFORMS:
    _check_cudnn(name, config, dtype, partition)


def _check_cudnn(name, config, dtype, partition):
  if jnp.dtype(dtype).itemsize != 2:
    raise ValueError(f"{name!r} computes in half precision, not in {dtype}")
  if config.attention_softcap is not None:
    raise ValueError(f"{name!r} knows no softcap, and this model has one")
  if name == "cudnn_packed":
    if any(config.layer_windows):
      raise ValueError(
        "'cudnn_packed' knows no windows, and this model has them; 'cudnn' does"
      )
    device = _device(partition)
    if device.platform == "gpu" and not _is_hopper(device):
      raise ValueError(
        "'cudnn_packed' wants a GPU from Hopper on (compute capability "
        f"{HOPPER}), this is a {device.device_kind}; 'cudnn' does not"
      )


def choose(name, config, dtype, partition=WHOLE):
  """The kernel of that name; "auto" is what is fast where this runs.

  A GPU takes cuDNN's in half precision, packed where it can be, a TPU Splash,
  all else `blockwise`; rows that are split, the oracle, which XLA divides by
  itself.
  """
  if name == "auto":
    name = fastest(config, dtype, partition)
  kernel = KERNELS[name]
  if name == "splash":
    windows = tuple(sorted(set(config.layer_windows))) or (0,)
    kernel = functools.partial(splash, windows=windows)
  return kernel if name == "xla" else divided(kernel, partition)


def fastest(config, dtype, partition):
  """The name of the kernel that "auto" is on these devices."""
  if _context(partition) > 1:
    return "xla"
  device = _device(partition)
  platform, half = device.platform, jnp.dtype(dtype).itemsize == 2
  if platform == "gpu" and half and config.attention_softcap is None:
    is_packed = _is_hopper(device) and not any(config.layer_windows)
    return "cudnn_packed" if is_packed else "cudnn"
  # The partitioner cannot look into Splash.
  alone = partition.mesh is not None or jax.device_count() == 1
  return "splash" if platform == "tpu" and alone else "blockwise"


def of_siblings(name, config, dtype, partition=WHOLE):
  """The kernel's name for rows of more than two branches, or of many pairs.

  Splash and packed cuDNN know two branches, and of pairs a few.
  """
  if name == "auto":
    name = fastest(config, dtype, partition)
  return {"splash": "blockwise", "cudnn_packed": "cudnn"}.get(name, name)


def _device(partition):
  """One of those that this runs on, which need not be here."""
  if partition.mesh is not None:
    return partition.mesh.devices.flat[0]
  return jax.local_devices()[0]


def _is_hopper(device):
  return float(device.compute_capability) >= HOPPER


def _context(partition):
  return partition.size(partition.context)
