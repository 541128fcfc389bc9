# SPDX-License-Identifier: Apache-2.0
"""The attention kernels by name; every one equals `layout.dense`."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mrpo_jax.models.attention import ulysses
from mrpo_jax.models.attention.blockwise import blockwise
from mrpo_jax.models.attention.cudnn import cudnn, cudnn_packed, sequences
from mrpo_jax.models.attention.expansion import expansion
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
# f(layout): what a kernel would else work out in every layer where nothing is
# kept for a backward pass, or where that computes again.
PREPARE = {"cudnn_packed": sequences, "splash": expansion}
PLATFORMS = {"cudnn": "gpu", "cudnn_packed": "gpu", "splash": "tpu"}
HOPPER = 9.0  # compute capability


def divided(kernel, partition):
  """The kernel on whole rows, each device with its own rows and heads.

  Nothing is exchanged but where the tokens of a row are split, see `ulysses`.
  Where the heads of keys are not split as those of queries are, every device
  has them all and takes those that its queries look at.
  """
  if partition.mesh is None:
    return kernel

  def run(query_RTHE, key_RSGE, value_RSGE, layout, window=None, **numbers):
    H, G = query_RTHE.shape[2], key_RSGE.shape[2]

    def here(query_RTHE, key_RSGE, value_RSGE, layout, window):
      given = ulysses.to_heads(
        partition, H, G, layout, query_RTHE, key_RSGE, value_RSGE
      )
      out_RTHE = kernel(*given, layout, window, **numbers)
      return ulysses.to_tokens(partition, out_RTHE)

    of_heads, of_keys = ulysses.specs(partition)
    of_layout = PartitionSpec(partition.rows)
    in_specs = (of_heads, of_keys, of_keys, of_layout, PartitionSpec())
    return partition.run(here, in_specs, of_heads)(
      query_RTHE, key_RSGE, value_RSGE, layout, window
    )

  return run


def _by_rows(kernel):
  """The kernel where rows come `Partition.joined`, left to the partitioner."""

  def run(query_RTHE, key_RSGE, value_RSGE, layout, window=None, **numbers):
    given = (query_RTHE, key_RSGE, value_RSGE)
    given = [ulysses.in_rows(layout, array) for array in given]
    out_RTHE = kernel(*given, layout, window, **numbers)
    return out_RTHE.reshape(query_RTHE.shape)

  return run


def own_keys(partition, H, G):
  """Which of G heads of keys the queries of this device look at, in order."""
  place = partition.place(partition.heads)
  return ulysses.keys_of(place, partition.size(partition.heads), H, G)


def check(name, config, dtype, platform=None, partition=WHOLE):
  """Raises ValueError where that kernel cannot run this model."""
  platform = platform or jax.default_backend()
  check_heads(name, config, partition)
  needed = PLATFORMS.get(name, platform)
  if platform != needed:
    raise ValueError(f"{name!r} runs on a {needed}, this is a {platform}")
  if needed == "gpu" and name in PLATFORMS:
    _check_cudnn(name, config, dtype, partition)


def check_heads(name, config, partition):
  """Raises ValueError where devices that share rows cannot share the heads.

  Heads that do not divide over the other axes are the shardings' to refuse.
  """
  context = partition.size(partition.context)
  heads, rest = divmod(config.heads, partition.size(partition.heads))
  if name != "xla" and not rest and heads % context:
    raise ValueError(
      f"attention gives each device that shares a row some of its {heads} "
      f"heads of queries, and mesh.context={context} does not divide them; "
      "choose one that does"
    )


def _check_cudnn(name, config, dtype, partition):
  if jnp.dtype(dtype).itemsize != 2:
    raise ValueError(f"{name!r} computes in half precision, not in {dtype}")
  if config.attention_softcap is not None:
    raise ValueError(f"{name!r} knows no softcap, and this model has one")
  if name == "cudnn_packed":
    if config.layer_windows:
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
  all else `blockwise`.  The oracle XLA divides by itself.
  """
  name = _resolved(name, config, dtype, partition)
  kernel = KERNELS[name]
  if name == "splash":
    windows = tuple(sorted(set(config.layer_windows))) or (0,)
    kernel = functools.partial(splash, windows=windows)
  if name != "xla":
    return divided(kernel, partition)
  return kernel if partition.size(partition.context) == 1 else _by_rows(kernel)


def prepare(name, config, dtype, layout, partition=WHOLE):
  """The RowLayout with what the kernel of that name makes of it."""
  name = _resolved(name, config, dtype, partition)
  if name not in PREPARE:
    return layout
  rows = PartitionSpec(partition.rows)
  made = partition.run(PREPARE[name], (rows,), rows)(layout)
  return layout.replace(prepared=made)


def _resolved(name, config, dtype, partition):
  return fastest(config, dtype, partition) if name == "auto" else name


def fastest(config, dtype, partition):
  """The name of the kernel that "auto" is on these devices."""
  device = _device(partition)
  platform, half = device.platform, jnp.dtype(dtype).itemsize == 2
  if platform == "gpu" and half and config.attention_softcap is None:
    is_packed = _is_hopper(device) and not config.layer_windows
    return "cudnn_packed" if is_packed else "cudnn"
  # The partitioner cannot look into Splash.
  alone = partition.mesh is not None or jax.device_count() == 1
  return "splash" if platform == "tpu" and alone else "blockwise"


def of_siblings(name, config, dtype, partition=WHOLE):
  """The kernel's name for rows of more than two branches, or of many pairs.

  Splash and packed cuDNN know two branches, and of pairs a few.
  """
  name = _resolved(name, config, dtype, partition)
  return {"splash": "blockwise", "cudnn_packed": "cudnn"}.get(name, name)


def _device(partition):
  """One of those that this runs on, which need not be here."""
  if partition.mesh is not None:
    return partition.mesh.devices.flat[0]
  return jax.local_devices()[0]


def _is_hopper(device):
  return float(device.compute_capability) >= HOPPER
