# SPDX-License-Identifier: Apache-2.0
"""cuDNN's fused attention on packed rows of pairs (GPU)."""

import jax
import jax.numpy as jnp

from mrpo_jax.errors import InputError
from mrpo_jax.models.attention.expansion import expanded, expansion, folded
from mrpo_jax.models.attention.layout import sees
from mrpo_jax.rows import most_pairs

GROUPED = 0, 12  # of jax, from which on packed keys may have fewer heads
# jax's own call of cuDNN, which gives what its backward pass needs, and the
# number of the argument that says where packed sequences start.
CALL, STARTS = "dot_product_attention_fwd_wrapper", 6
PLACES = 2**31  # that a signed integer counts


def cudnn(
  query_RTHE, key_RSGE, value_RSGE, layout, window=None, *, scale, softcap
):
  """cuDNN's attention under the rows' mask, which computes every product.

  In half precision, on GPUs from Ampere on; knows no softcap.
  """
  _refuse_softcap("cudnn", softcap)
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


def cudnn_packed(
  query_RTHE,
  key_RSGE,
  value_RSGE,
  layout,
  window=None,
  *,
  scale,
  softcap,
  attend=None,
):
  """cuDNN's attention of packed sequences, which skips what is hidden.

  In half precision, on GPUs from Hopper on; knows neither softcap nor window.
  Inside it a pair stands as two sequences, [prompt | chosen][prompt |
  rejected], of which cuDNN is given the places and lengths: there is no mask.

  Args:
    attend: f(query_RXHE, key_RXGE, value_RXGE, starts_RM, lengths_RM, scale)
      in cuDNN's place, where there is none.
    Others as `layout.dense`.

  Returns:
    out_RTHE; 0 for padding, and nan in a row of more than
    `rows.most_pairs(T)` pairs, for whose sequences cuDNN has no room.
  """
  _refuse_softcap("cudnn_packed", softcap)
  if window is not None:
    raise ValueError("'cudnn_packed' knows no windows")
  made, starts_RM, lengths_RM, fits_R = layout.prepared or sequences(layout)
  # What cuDNN leaves unwritten past the sequences, gradients too, goes nowhere:
  # no token has its place there.
  given = [
    expanded(array, made) for array in (query_RTHE, key_RSGE, value_RSGE)
  ]
  with jax.named_scope("cudnn_packed"):
    out_RXHE = (attend or _attend)(*given, starts_RM, lengths_RM, scale)
  out_RTHE = folded(out_RXHE, made)
  return jnp.where(fits_R[:, None, None, None], out_RTHE, jnp.nan)


def sequences(layout):
  """The pairs of a RowLayout as sequences, for `cudnn_packed`.

  Returns:
    Expansion, and starts_RM, lengths_RM, fits_R: see `_sequences`.
  """
  made = expansion(layout)
  most = 2 * most_pairs(layout.segments.shape[1])
  return made, *_sequences(made.segments_RX, most)


def is_kept(primitive, avals):
  """Is it worth keeping what this call of cuDNN gave for the backward pass?

  Of packed sequences as many sums of each token as there may be sequences: they
  would take a fifth of a step's memory, and save a hundredth of its time.
  """
  return primitive.name == CALL and avals[STARTS].size == 0


def _refuse_softcap(name, softcap):
  if softcap is not None:
    raise ValueError(f"{name!r} knows no softcap")


def _sequences(segments_RX, most):
  """Where the sequences of expanded rows start, and how long they are.

  Args:
    segments_RX: see `expansion`; padding comes last.
    most: M, sequences of a row.

  Returns:
    starts_RM and lengths_RM, int32, -1 past the last; fits_R: are these all?
  """

  def of_row(segments_X):
    X = segments_X.size
    before_X = jnp.concatenate([jnp.zeros(1, jnp.int32), segments_X[:-1]])
    is_start_X = (segments_X > 0) & (segments_X != before_X)
    (starts_M,) = jnp.nonzero(is_start_X, size=most, fill_value=X)
    total = jnp.sum(segments_X > 0)
    next_M = jnp.minimum(jnp.append(starts_M[1:], X), total)
    is_one_M = starts_M < X
    return (
      jnp.where(is_one_M, starts_M, -1).astype(jnp.int32),
      jnp.where(is_one_M, next_M - starts_M, -1).astype(jnp.int32),
      jnp.sum(is_start_X) <= most,
    )

  return jax.vmap(of_row)(segments_RX)


def _attend(query_RXHE, key_RXGE, value_RXGE, starts_RM, lengths_RM, scale):
  """cuDNN's causal attention of the sequences that start at these places."""
  from jax._src.cudnn import fused_attention_stablehlo as fused

  if query_RXHE.size >= PLACES:
    # jax counts numbers, not tokens, and would wrap around.
    raise InputError(
      "'cudnn_packed' counts places of queries up to 2**31, and a micro-batch "
      f"has {query_RXHE.size:,} on a device; give it fewer config.data.rows"
    )
  H, G = query_RXHE.shape[2], key_RXGE.shape[2]
  if G < H and jax.__version_info__ < GROUPED:
    # An older jax counts the places of keys in heads of queries, and cuDNN
    # would read others' keys (github.com/jax-ml/jax/pull/39521).
    key_RXGE, value_RXGE = (
      jnp.repeat(array, H // G, axis=2) for array in (key_RXGE, value_RXGE)
    )
  starts_RN = jnp.pad(starts_RM, ((0, 0), (0, 1)), constant_values=-1)
  return fused.dot_product_attention(
    query_RXHE,
    key_RXGE,
    value_RXGE,
    q_seqlen=lengths_RM,
    kv_seqlen=lengths_RM,
    q_offsets=starts_RN,
    kv_offsets=starts_RN,
    scale=scale,
    mask_type=fused.MaskType.PADDING_CAUSAL,
  )
