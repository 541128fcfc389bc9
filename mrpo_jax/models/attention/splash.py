# SPDX-License-Identifier: Apache-2.0
"""Splash attention on packed rows of pairs (TPU)."""

import functools

import jax
import jax.numpy as jnp

from mrpo_jax.models.attention.expansion import (
  LANES,
  expanded,
  expansion,
  folded,
)
from mrpo_jax.models.attention.layout import SAVED
from mrpo_jax.models.weights import scaled


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
    Others as `layout.dense`.
  """
  T, H, E = query_RTHE.shape[1:]
  G = key_RSGE.shape[2]
  made = layout.prepared or expansion(layout)
  X = made.source_RX.shape[1]

  def expand(array_RTHE):
    wide = ((0, 0), (0, 0), (0, 0), (0, -E % LANES))
    return jnp.pad(expanded(array_RTHE, made), wide).swapaxes(1, 2)

  query_RHXE = expand(scaled(query_RTHE, scale))
  query_RGMXE = query_RHXE.reshape(-1, G, H // G, X, query_RHXE.shape[-1])
  key_RGXE, value_RGXE = expand(key_RSGE), expand(value_RSGE)

  def of_window(size, query_RGMXE, key_RGXE, value_RGXE):
    kernel = _splash(H // G, X, size, softcap, interpret)
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    return jax.vmap(heads)(query_RGMXE, key_RGXE, value_RGXE, made.segments_RX)

  given = query_RGMXE, key_RGXE, value_RGXE
  if len(windows) == 1:
    out_RGMXE = of_window(windows[0], *given)
  else:
    which = jnp.searchsorted(jnp.asarray(windows), window)
    of_windows = [functools.partial(of_window, size) for size in windows]
    out_RGMXE = jax.lax.switch(which, of_windows, *given)
  out_RXHE = out_RGMXE.reshape(-1, H, X, out_RGMXE.shape[-1]).swapaxes(1, 2)
  return folded(out_RXHE[..., :E], made)


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
    residual_checkpoint_name=SAVED,
    interpret=interpret,
  )

  def attend(query_MXE, key_XE, value_XE, segments_X):
    ids = kernel.SegmentIds(segments_X, segments_X)
    return made(query_MXE, key_XE, value_XE, ids)

  return attend
