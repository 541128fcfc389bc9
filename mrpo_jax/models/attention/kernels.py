# SPDX-License-Identifier: Apache-2.0
"""The attention kernels by name; every one equals `layout.dense`."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mrpo_jax.models.attention.blockwise import blockwise
from mrpo_jax.models.attention.layout import dense, sees
from mrpo_jax.models.attention.splash import splash
from mrpo_jax.models.partition import WHOLE


def cudnn(
  query_RTHE, key_RSGE, value_RSGE, layout, window=None, *, scale, softcap
):
  """cuDNN's fused attention, on GPUs, in half precision; knows no softcap."""
  if softcap is not None:
    raise ValueError("'cudnn' knows no softcap")
  place_T = jnp.arange(query_RTHE.shape[1])
  mask_RTS = sees(layout, layout, place_T, place_T, window)
  return jax.nn.dot_product_attention(
    query_RTHE,
    key_RSGE,
    value_RSGE,
    mask=mask_RTS[:, None],
    scale=scale,
    implementation="cudnn",
  )


KERNELS = {
  "xla": dense,
  "blockwise": blockwise,
  "cudnn": cudnn,
  "splash": splash,
}


def divided(kernel, split):
  """The kernel on each device's own rows and heads, without any exchange.

  Where the heads of keys are not split as those of queries are, every device
  has them all and takes those that its queries look at.
  """
  if split.mesh is None:
    return kernel

  def run(query_RTHE, key_RSGE, value_RSGE, layout, window=None, **numbers):
    H, G = query_RTHE.shape[2], key_RSGE.shape[2]
    together = split.heads == split.kv_heads

    def here(query_RTHE, key_RSGE, value_RSGE, layout, window):
      if not together:
        own_G = _own_keys(split, H, G)
        key_RSGE, value_RSGE = key_RSGE[:, :, own_G], value_RSGE[:, :, own_G]
      return kernel(query_RTHE, key_RSGE, value_RSGE, layout, window, **numbers)

    rows = PartitionSpec(split.rows)
    of_heads = PartitionSpec(split.rows, None, split.heads)
    of_keys = of_heads if together else rows
    in_specs = (of_heads, of_keys, of_keys, rows, PartitionSpec())
    return split.run(here, in_specs, of_heads)(
      query_RTHE, key_RSGE, value_RSGE, layout, window
    )

  return run


def _own_keys(split, H, G):
  """Which of G heads of keys the queries of this device look at, in order.

  Equally many queries in a row look at each; where a device has a part of
  such a group and more, its keys stand there more than once.
  """
  here, group = H // split.size(split.heads), H // G
  run = math.gcd(here, group)
  first = split.place(split.heads) * here
  return (first + run * jnp.arange(here // run)) // group


def check(name, config, dtype, platform=None, split=WHOLE):
  """Raises ValueError where that kernel cannot run this model."""
  platform = platform or jax.default_backend()
  if _context(split) > 1 and name not in ("auto", "xla"):
    raise ValueError(
      f"{name!r} wants whole rows, and the mesh splits them over context="
      f"{_context(split)}; 'xla' does not"
    )
  needed = {"cudnn": "gpu", "splash": "tpu"}.get(name, platform)
  if platform != needed:
    raise ValueError(f"{name!r} runs on a {needed}, this is a {platform}")
  if name == "cudnn" and jnp.dtype(dtype).itemsize != 2:
    raise ValueError(f"'cudnn' computes in half precision, not in {dtype}")
  if name == "cudnn" and config.attention_softcap is not None:
    raise ValueError("'cudnn' knows no softcap, and this model has one")


def choose(name, config, dtype, split=WHOLE):
  """The kernel of that name; "auto" is what is fast where this runs.

  A GPU takes cuDNN's in half precision, a TPU Splash, all else `blockwise`;
  rows that are split, the oracle, which XLA divides by itself.
  """
  if name == "auto":
    name = fastest(config, dtype, split)
  kernel = KERNELS[name]
  if name == "splash":
    windows = tuple(sorted(set(config.layer_windows))) or (0,)
    kernel = functools.partial(splash, windows=windows)
  return kernel if name == "xla" else divided(kernel, split)


def fastest(config, dtype, split):
  """The name of the kernel that "auto" is on these devices."""
  if _context(split) > 1:
    return "xla"
  platform = jax.default_backend()
  if split.mesh is not None:  # whose devices need not be here
    platform = split.mesh.devices.flat[0].platform
  half = jnp.dtype(dtype).itemsize == 2
  if platform == "gpu" and half and config.attention_softcap is None:
    return "cudnn"
  # The partitioner cannot look into Splash.
  alone = split.mesh is not None or jax.device_count() == 1
  return "splash" if platform == "tpu" and alone else "blockwise"


def _context(split):
  return split.size(split.context)
