# SPDX-License-Identifier: Apache-2.0
"""The attention kernels by name; every one equals `attention.dense`."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mrpo_jax.models.attention import dense, sees
from mrpo_jax.models.blockwise import blockwise
from mrpo_jax.models.split import WHOLE

LANES = 128  # of a TPU: Splash wants head dims and rows in multiples


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


def splash(
  query_RTHE,
  key_RSGE,
  value_RSGE,
  layout,
  window=None,
  *,
  scale,
  softcap,
  windows=(0,),
  interpret=False,
):
  """Splash attention of jax's Pallas kernels, on TPUs.

  It knows segments, not branches: inside it a pair stands as two sequences,
  [prompt | chosen][prompt | rejected].

  Args:
    windows: static, the values that `window` takes; each is a kernel.
    interpret: run the kernel's Python, where there is no TPU.
    Others as `attention.dense`.
  """
  T, H, E = query_RTHE.shape[1:]
  G = key_RSGE.shape[2]
  source_RX, target_RT, segments_RX = expansion(layout)
  X = source_RX.shape[1]

  def expand(array_RTHE):
    array_RXHE = jnp.take_along_axis(
      array_RTHE, source_RX[:, :, None, None], axis=1
    )
    wide = ((0, 0), (0, 0), (0, 0), (0, -E % LANES))
    return jnp.pad(array_RXHE, wide).swapaxes(1, 2)

  query_RHXE = expand(query_RTHE * jnp.asarray(scale, query_RTHE.dtype))
  query_RGMXE = query_RHXE.reshape(-1, G, H // G, X, query_RHXE.shape[-1])
  key_RGXE, value_RGXE = expand(key_RSGE), expand(value_RSGE)

  def of_window(size, query_RGMXE, key_RGXE, value_RGXE):
    kernel = _splash(H // G, X, size, softcap, interpret)
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    return jax.vmap(heads)(query_RGMXE, key_RGXE, value_RGXE, segments_RX)

  given = query_RGMXE, key_RGXE, value_RGXE
  if len(windows) == 1:
    out_RGMXE = of_window(windows[0], *given)
  else:
    which = jnp.searchsorted(jnp.asarray(windows), window)
    of_windows = [functools.partial(of_window, size) for size in windows]
    out_RGMXE = jax.lax.switch(which, of_windows, *given)
  out_RXHE = out_RGMXE.reshape(-1, H, X, out_RGMXE.shape[-1]).swapaxes(1, 2)
  return jnp.take_along_axis(
    out_RXHE[..., :E], target_RT[:, :, None, None], axis=1
  )


def expansion(layout):
  """Rows in which each response follows a copy of its prompt.

  Args:
    layout: Layout of R rows of T; segments count from 1 within a row.

  Returns:
    source_RX: where each of X = 2 T places (up to a multiple of LANES) stands
      in the row; target_RT: the place of each token, of prompts the first;
    segments_RX: equal for one sequence, 0 for padding.
  """
  T = layout.segments.shape[1]
  X = 2 * T + -2 * T % LANES
  return jax.vmap(functools.partial(_expansion, X))(
    layout.segments, layout.branches
  )


def _expansion(X, segments_T, branches_T):
  T = segments_T.size
  place_T = jnp.arange(T)

  def count(of_T):
    """Tokens of each of S = T + 1 segments; no row holds more."""
    return jax.ops.segment_sum(of_T.astype(jnp.int32), segments_T, T + 1)

  is_prompt_T = (branches_T == 0) & (segments_T > 0)
  prompts_S = count(is_prompt_T)
  chosen_S = count(branches_T == 1)
  # Prompts of the segments before are there twice.
  before_S = jnp.cumsum(prompts_S) - prompts_S
  first_T = place_T + before_S[segments_T]
  second_T = first_T + jnp.where(
    is_prompt_T, (prompts_S + chosen_S)[segments_T], 0
  )
  is_rejected_T = branches_T == 2
  target_T = first_T + jnp.where(is_rejected_T, prompts_S[segments_T], 0)
  # Padding comes last in a row and after all that is real.
  target_T = jnp.where(
    segments_T > 0, target_T, place_T + before_S[-1] + prompts_S[-1]
  )
  source_X = jnp.zeros(X, jnp.int32)
  segments_X = jnp.zeros(X, jnp.int32)
  number_T = jnp.where(segments_T > 0, 2 * segments_T, 0)
  for to_T, of_T in (
    (target_T, number_T - ((segments_T > 0) & ~is_rejected_T)),
    (jnp.where(is_prompt_T, second_T, X), number_T),
  ):
    source_X = source_X.at[to_T].set(place_T, mode="drop")
    segments_X = segments_X.at[to_T].set(of_T, mode="drop")
  return source_X, target_T, segments_X


def _splash(heads, X, window, softcap, interpret):
  """f(query_MXE, key_XE, value_XE, segments_X) of the heads of one key."""
  # Pallas takes a while to import, and only TPUs need it.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  shape = (X, X)
  mask = masks.CausalMask(shape)
  if window:
    mask = masks.LocalMask(shape, (window - 1, 0), 0)
  block = next(size for size in (512, 256, LANES) if X % size == 0)
  names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv")
  names += ("block_kv_dkv", "block_kv_dkv_compute", "block_q_dq")
  sizes = kernel.BlockSizes(**dict.fromkeys((*names, "block_kv_dq"), block))
  made = kernel.make_splash_mqa_single_device(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    attn_logits_soft_cap=softcap,
    interpret=interpret,
  )

  def attend(query_MXE, key_XE, value_XE, segments_X):
    ids = kernel.SegmentIds(segments_X, segments_X)
    return made(query_MXE, key_XE, value_XE, ids)

  return attend


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
