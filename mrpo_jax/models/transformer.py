# SPDX-License-Identifier: Apache-2.0
"""The decoder as functions of plain arrays: tokens in, hidden states out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mrpo_jax.errors import InputError
from mrpo_jax.models import experts
from mrpo_jax.models.attention import cudnn, kernels
from mrpo_jax.models.attention.layout import SAVED, RowLayout, capped
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.models.rope import rotary, rotate
from mrpo_jax.models.weights import Summed, dense, project, rows_of, scaled
from mrpo_jax.shapes import check, widen


def _products_and_attention(primitive, *avals, **params):
  policies = jax.checkpoint_policies
  return (
    cudnn.is_kept(primitive, avals)
    or policies.dots_with_no_batch_dims_saveable(primitive, *avals, **params)
    or policies.save_only_these_names(SAVED)(primitive, *avals, **params)
  )


REMAT = {
  "none": None,  # keep every activation
  # Keep the products and what attention gave, compute the rest again.
  "dots": _products_and_attention,
  "full": jax.checkpoint_policies.nothing_saveable,
}
ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}


def norm(config, x, weights, name, axes=(-1,)):
  """The norm of that name over the last axes; x where the model has none."""
  if name not in weights:
    return x
  # Without an axis of one: over it XLA's CPU backend sums gradients slowly.
  wide = widen(x[0] if x.shape[0] == 1 else x)
  if config.norm == "layer":
    wide = wide - jnp.mean(wide, axis=axes, keepdims=True)
  square = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
  wide = wide * jax.lax.rsqrt(square + config.norm_epsilon)
  wide = wide * (config.norm_shift + _wide_like(weights[name], wide))
  if f"{name}_bias" in weights:
    wide = wide + _wide_like(weights[f"{name}_bias"], wide)
  return wide.astype(x.dtype).reshape(x.shape)


def _wide_like(weight, x):
  """In the dtype and the shape of x."""
  return jnp.broadcast_to(weight.astype(x.dtype), x.shape)


def affine(x, weights, name, einsum):
  """`project`, and the bias of that name where there is one."""
  y = project(x, weights[name], einsum)
  if f"{name}_bias" in weights:
    y = y + _wide_like(weights[f"{name}_bias"], y)
  return y


def attend(config, kernel, x_RTD, weights, cos_RT1E, sin_RT1E, *of_whom):
  """Attention of one layer: y_RTD."""
  query_RTHE = affine(x_RTD, weights, "query", "RTD,DHE->RTHE")
  key_RSGE = affine(x_RTD, weights, "key", "RTD,DGE->RTGE")
  value_RSGE = affine(x_RTD, weights, "value", "RTD,DGE->RTGE")
  axes = (-2, -1) if config.qk_norm == "all" else (-1,)
  query_RTHE = norm(config, query_RTHE, weights, "query_norm", axes)
  key_RSGE = norm(config, key_RSGE, weights, "key_norm", axes)
  query_RTHE = rotate(query_RTHE, cos_RT1E, sin_RT1E)
  key_RSGE = rotate(key_RSGE, cos_RT1E, sin_RT1E)
  seen_RTHE = kernel(
    query_RTHE,
    key_RSGE,
    value_RSGE,
    *of_whom,
    scale=config.attention_scale or config.head_dim**-0.5,
    softcap=config.attention_softcap,
  )
  return affine(seen_RTHE, weights, "out", "RTHE,HED->RTD")


def mlp(config, x_RTD, weights, layout, partition):
  """The feed-forward branch of one layer: y_RTD."""
  activation = ACTIVATIONS[config.activation]
  if config.experts:
    is_real_RT = partition.joined(layout.segments > 0)
    return experts.mlp(
      *(config, activation, x_RTD, weights, is_real_RT, partition)
    )
  y_RTF = affine(x_RTD, weights, "up", "RTD,DF->RTF")
  if config.gated:
    y_RTF *= activation(affine(x_RTD, weights, "gate", "RTD,DF->RTF"))
  else:
    y_RTF = activation(y_RTF)
  return affine(y_RTF, weights, "down", "RTF,FD->RTD")


def block(
  config,
  kernel,
  partition,
  x_RTD,
  weights,
  cos_RT1E,
  sin_RT1E,
  layout,
  window,
):
  """One layer: attention and MLP, each a branch that is added to x."""

  def add(x_RTD, y_RTD):
    return x_RTD + scaled(y_RTD, config.residual_scale)

  with jax.named_scope("attention"):
    y_RTD = norm(config, x_RTD, weights, "attention_norm")
    seen_RTD = attend(
      config, kernel, y_RTD, weights, cos_RT1E, sin_RT1E, layout, window
    )
    seen_RTD = norm(config, seen_RTD, weights, "attention_out_norm")
    middle_RTD = add(x_RTD, seen_RTD)
  with jax.named_scope("mlp"):
    if config.parallel != "one":  # which shares the norm of the attention
      from_RTD = x_RTD if config.parallel else middle_RTD
      y_RTD = norm(config, from_RTD, weights, "mlp_norm")
    y_RTD = mlp(config, y_RTD, weights, layout, partition)
    return add(middle_RTD, norm(config, y_RTD, weights, "mlp_out_norm"))


def hidden(
  config,
  params,
  tokens_RT,
  layout,
  *,
  kernel="auto",
  remat="none",
  dtype=None,
  partition=WHOLE,
):
  """Final hidden states, normed: what the head projects.

  Args:
    config: ModelConfig.
    params: tree of leaves in the shape of `parameters.table(config)`; see
      `weights.apart` for another shape of its blocks.
    tokens_RT: token ids; padding may hold any valid id.
    layout: `layout.RowLayout` of the rows.
    kernel: a key of `kernels.KERNELS`, or "auto"; or a function from the number
      of a layer to its kernel, which may keep keys and values.
    remat: a key of REMAT: what the backward pass keeps of each layer.
    dtype: of the activations; None means that of the parameters.
    partition: Partition of the activations over a mesh.

  Returns:
    hidden_RTD.
  """
  positions_RT = layout.positions
  check(
    tokens_RT=tokens_RT, positions_RT=positions_RT, segments_RT=layout.segments
  )
  tokens_RT, positions_RT = map(partition.joined, (tokens_RT, positions_RT))
  dtype = jnp.dtype(dtype or params["norm"].dtype)
  wide = jnp.promote_types(dtype, jnp.float32)
  cos_KRT1E, sin_KRT1E = rotary(
    config.ropes, config.head_dim, positions_RT, wide
  )
  numbers, of_layer = range(config.layers), kernel
  if not callable(kernel):
    numbers, chosen = (), kernels.choose(kernel, config, dtype, partition)
    layout = kernels.prepare(kernel, config, dtype, layout, partition)

    def of_layer(_):
      return chosen

  def layer(x_RTD, xs):
    weights, number, rope, window = xs
    step = functools.partial(block, config, of_layer(number), partition)
    if remat != "none":
      # prevent_cse is needless under scan and would cost fusions.
      step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=False)
    x_RTD = step(
      x_RTD,
      weights,
      cos_KRT1E[0 if rope is None else rope],
      sin_KRT1E[0 if rope is None else rope],
      layout,
      window,
    )
    return partition.kept(x_RTD), None

  x_RTD = embed(config, params, tokens_RT, positions_RT, dtype, partition)
  x_RTD = partition.kept(x_RTD)
  per_layer = numbers, config.layer_ropes, config.layer_windows
  if isinstance(params["blocks"], tuple):
    for i, weights in enumerate(params["blocks"]):
      own = [values[i] if values else None for values in per_layer]
      x_RTD, _ = layer(x_RTD, (weights, *own))
  else:
    per_layer = [
      jnp.asarray(values, jnp.int32) if values else None for values in per_layer
    ]
    x_RTD, _ = jax.lax.scan(layer, x_RTD, (params["blocks"], *per_layer))
  x_RTD = norm(config, x_RTD, params, "norm")
  x_RTD = scaled(x_RTD, config.logits_scale)
  return partition.apart(x_RTD, layout.positions.shape)


def embed(config, params, tokens_RT, positions_RT, dtype, partition):
  """The input of the first layer: x_RTD."""
  x_RTD = looked_up(
    params["embed"], tokens_RT, dtype, partition, partition.vocab
  )
  x_RTD *= jnp.asarray(config.embedding_scale, dtype)
  if config.learned_positions:
    x_RTD += looked_up(params["positions"], positions_RT, dtype, partition, ())
  return x_RTD


def looked_up(leaf_ND, places_RT, dtype, partition, axes):
  """x_RTD: the rows at these places of an embedding, split over those axes.

  Each device looks up, in what it has, the tokens of all devices that have
  other widths of the same rows; then these exchange widths for tokens.  Where
  others have more of N, tokens are summed; where these share rows, they look
  all of them up, and each keeps the sums of its own tokens.
  """
  shared = tuple(axis for axis in axes if axis in partition.context)
  summed = tuple(axis for axis in axes if axis not in shared)

  def here(leaf_ND, places_RT):
    if partition.embed:
      places_RT = jax.lax.all_gather(places_RT, partition.embed, tiled=True)
    if axes:
      N = leaf_ND.shape[0]
      places_RT = places_RT - partition.place(axes) * N
      is_here_RT = (places_RT >= 0) & (places_RT < N)
      places_RT = jnp.where(is_here_RT, places_RT, 0)
    x_RTD = rows_of(leaf_ND, places_RT, dtype)
    if axes:
      x_RTD = jnp.where(is_here_RT[:, :, None], x_RTD, 0)
    if shared:
      x_RTD = jax.lax.psum_scatter(
        x_RTD, shared, scatter_dimension=1, tiled=True
      )
    if summed:
      x_RTD = jax.lax.psum(x_RTD, summed)
    if partition.embed:
      x_RTD = jax.lax.all_to_all(x_RTD, partition.embed, 0, 2, tiled=True)
    return x_RTD

  if partition.mesh is not None and isinstance(leaf_ND, Summed):
    leaf_ND = leaf_ND.array  # its gradient is summed over devices before
  own = PartitionSpec(partition.rows, partition.context)
  looked = PartitionSpec(partition.rows) if shared else own
  specs = partition.of_weights(leaf_ND, axes)
  return partition.run(here, (specs, looked), own)(leaf_ND, places_RT)


def head(params):
  """head_VD: the vocabulary projection; the embedding where it is tied."""
  if "score" in params:
    raise InputError("a reward model has no probabilities of tokens")
  return params.get("head", params["embed"])


def apply(config, params, tokens_BT, positions_BT=None, segments_BT=None):
  """Logits of ordinary causal sequences: for checks and generation.

  Args:
    config: ModelConfig.
    params: tree of arrays in the shape of `parameters.table(config)`.
    tokens_BT: token ids.
    positions_BT: places within each sequence; None counts from the start of
      each run of equal segments.
    segments_BT: equal numbers see each other, 0 is padding; None means that
      every row is one sequence.

  Returns:
    logits_BTV: float32 or better.

  Raises:
    InputError: packed or padded rows beyond `config.longest`, where a sequence
      has other logits than alone; or a sequence beyond learned positions.
      Under jit, where lengths are not known, a row counts as a sequence.
  """
  check(tokens_BT=tokens_BT)
  alone = positions_BT is None and segments_BT is None
  if segments_BT is None:
    segments_BT = jnp.ones_like(tokens_BT)
  if positions_BT is None:
    positions_BT = _positions(segments_BT)
  check(tokens_BT=tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
  positions_BT = jnp.where(segments_BT != 0, positions_BT, 0)  # else they count
  _check_lengths(config, positions_BT, segments_BT, alone)
  layout = RowLayout(positions_BT, segments_BT, jnp.zeros_like(segments_BT))
  hidden_BTD = hidden(config, params, tokens_BT, layout, kernel="xla")
  logits_BTV = jnp.einsum(
    "BTD,VD->BTV",
    hidden_BTD,
    dense(head(params), hidden_BTD.dtype),
    preferred_element_type=jnp.promote_types(hidden_BTD.dtype, jnp.float32),
  )
  return capped(logits_BTV, config.logits_softcap)


def _check_lengths(config, positions_BT, segments_BT, alone):
  """Raises InputError where sequences look at what stands beside them."""
  longest, is_whole = positions_BT.shape[1], alone
  if not alone:
    try:
      positions_BT, segments_BT = map(np.asarray, (positions_BT, segments_BT))
    except jax.errors.TracerArrayConversionError:
      if config.learned_positions:
        return  # the end of which is not a number
    else:
      counted_1T = np.arange(longest)[None]
      is_whole = np.all(segments_BT != 0) and np.all(positions_BT == counted_1T)
      longest = np.max(positions_BT) + 1
  if is_whole and not config.learned_positions:
    return  # all of a batch have one length
  if config.longest and longest > config.longest:
    raise InputError(
      f"beyond {config.longest} tokens this {config.family} looks at the "
      f"longest sequence of a batch, or ends; rows of {longest} that are "
      "packed or padded are not computed: give each sequence alone, without "
      "segments_BT and positions_BT"
    )


def _positions(segments_BT):
  place_1T = jnp.arange(segments_BT.shape[1])[None]
  starts_BT = jnp.concatenate(
    [
      jnp.ones_like(segments_BT[:, :1], bool),
      segments_BT[:, 1:] != segments_BT[:, :-1],
    ],
    axis=1,
  )
  start_BT = jax.lax.cummax(jnp.where(starts_BT, place_1T, 0), axis=1)
  return place_1T - start_BT
