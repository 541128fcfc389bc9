# SPDX-License-Identifier: Apache-2.0
"""cuDNN's packed attention, with another kernel where cuDNN would stand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import parallel
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters, transformer
from mrpo_jax.models.attention import cudnn, kernels
from mrpo_jax.models.attention.layout import RowLayout, dense
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.performance import nvidia
from mrpo_jax.rows import most_pairs
from tests.material.attention import (
  CONFIG,
  ROWS,
  layout_of,
  value_and_gradients,
)


def layout_of_sequences(X, starts_RM, lengths_RM):
  """The RowLayout of rows of X places with sequences at these."""

  def numbers(starts_M, lengths_M):
    since_MX = jnp.arange(X)[None] - starts_M[:, None]
    is_in_MX = (since_MX >= 0) & (since_MX < lengths_M[:, None])
    return jnp.where(is_in_MX.any(0), is_in_MX.argmax(0) + 1, 0)

  number_RX = jax.vmap(numbers)(starts_RM, lengths_RM)
  return RowLayout(0 * number_RX, number_RX, 0 * number_RX)  # without windows


def attend(query_RXHE, key_RXGE, value_RXGE, starts_RM, lengths_RM, scale):
  """What cuDNN promises of sequences; beside them is nan, in gradients too."""
  layout = layout_of_sequences(query_RXHE.shape[1], starts_RM, lengths_RM)
  inside_RX11 = (layout.segments > 0)[:, :, None, None]

  @jax.custom_vjp
  def unwritten(array_RXHE):
    return jnp.where(inside_RX11, array_RXHE, jnp.nan)

  unwritten.defvjp(
    lambda array: (unwritten(array), None),
    # Nothing past the sequences is read.
    lambda _, grad: (jnp.where(inside_RX11, grad, 0),),
  )

  @jax.custom_vjp
  def unwritten_gradient(array_RXHE):
    return array_RXHE

  unwritten_gradient.defvjp(
    lambda array: (array, None),
    lambda _, grad: (jnp.where(inside_RX11, grad, jnp.nan),),
  )
  given = map(unwritten_gradient, (query_RXHE, key_RXGE, value_RXGE))
  return unwritten(dense(*given, layout, scale=scale, softcap=None))


KERNEL = functools.partial(cudnn.cudnn_packed, attend=attend)


@pytest.mark.parametrize("rows", ROWS)
def test_packed_equals_the_oracle(rows):
  layout = layout_of(*ROWS[rows])
  got, got_grads = value_and_gradients(KERNEL, layout, None, None)
  want, want_grads = value_and_gradients(dense, layout, None, None)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
  for a, b in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def attend_alone(
  query_RXHE, key_RXGE, value_RXGE, starts_RM, lengths_RM, scale
):
  """The same without what is unwritten, for programs that compute again."""

  layout = layout_of_sequences(query_RXHE.shape[1], starts_RM, lengths_RM)
  given = query_RXHE, key_RXGE, value_RXGE, layout
  return dense(*given, scale=scale, softcap=None)


@pytest.mark.parametrize("sizes", [{}, dict(context=2, model=2)])
def test_layers_that_share_the_sequences_equal_the_oracle(monkeypatch, sizes):
  kernel = functools.partial(cudnn.cudnn_packed, attend=attend_alone)
  monkeypatch.setitem(kernels.KERNELS, "cudnn_packed", kernel)
  config = dataclasses.replace(CONFIG, layers=2, heads=4, kv_heads=2)
  layout = layout_of([[(7, 5, 3), (4, 0, 0)], [(20, 3, 4)]], 32)
  params = parameters.init(config, jax.random.key(0))
  tokens_RT = jax.random.randint(jax.random.key(1), (2, 32), 0, 8)
  is_real_RT1 = (layout.segments > 0)[:, :, None]

  def run(kernel, params, partition=WHOLE):
    def total(params):
      hidden_RTD = transformer.hidden(
        *(config, params, tokens_RT, layout),
        **dict(kernel=kernel, remat="dots", partition=partition),
      )
      hidden_RTD = jnp.where(is_real_RT1, hidden_RTD, 0)
      weight = jnp.cos(jnp.arange(hidden_RTD.size))
      return jnp.vdot(weight, hidden_RTD), hidden_RTD

    gradients, hidden_RTD = jax.jit(jax.grad(total, has_aux=True))(params)
    return [hidden_RTD, *jax.tree.leaves(gradients)]

  want = run("xla", params)
  mesh = parallel.make_mesh(**{"data": -1, **sizes})
  placed = jax.device_put(params, parallel.param_shardings(config, mesh))
  partition = parallel.partition_of(mesh) if sizes else WHOLE
  got = run("cudnn_packed", placed if sizes else params, partition)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def test_places_and_lengths_by_hand():
  # Two pairs of (2, 1, 2) and (1, 2, 1), a token of padding.
  segments_RX = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 0, 0]])
  starts_RM, lengths_RM, fits_R = cudnn._sequences(segments_RX, 5)
  assert starts_RM.tolist() == [[0, 3, 7, 10, -1]]
  assert lengths_RM.tolist() == [[3, 4, 3, 2, -1]]
  assert fits_R.tolist() == [True]
  *_, fits_R = cudnn._sequences(segments_RX, 3)
  assert fits_R.tolist() == [False]


def test_a_row_of_too_many_pairs_is_nan_and_the_others_are_not():
  most = most_pairs(64)
  layout = layout_of([[(1, 1, 1)] * (most + 1), [(1, 1, 1)] * most], 64)
  one_RTHE = jnp.ones((2, 64, 1, 8))
  out_RTHE = KERNEL(one_RTHE, one_RTHE, one_RTHE, layout, scale=1, softcap=None)
  assert np.isnan(out_RTHE[0]).all()
  assert not np.isnan(out_RTHE[1]).any()


@pytest.mark.parametrize(
  "name,remat,calls",
  [
    *(("cudnn", "dots", 1), ("cudnn", "full", 2)),
    ("cudnn_packed", "dots", 2),  # which gives many sums
  ],
)
def test_dots_keep_what_cudnn_gave(monkeypatch, name, remat, calls):
  nvidia._answer_for_cudnn((9, 0), monkeypatch.setattr)
  layout = layout_of(*ROWS["several"])

  @functools.partial(jax.checkpoint, policy=transformer.REMAT[remat])
  def layer(x_RTHE, key_RTGE):
    given = x_RTHE, key_RTGE, key_RTGE, layout
    return jnp.sin(kernels.KERNELS[name](*given, scale=0.3, softcap=None))

  query_RTHE, key_RTGE = (
    jnp.ones((2, 200, heads, 16), jnp.bfloat16) for heads in (4, 2)
  )
  gradient = jax.grad(lambda *given: layer(*given).astype(float).sum(), (0, 1))
  text = str(jax.make_jaxpr(gradient)(query_RTHE, key_RTGE))
  assert text.count(f"{cudnn.CALL}[") == calls
  assert text.count(f"{cudnn.CALL.replace('fwd', 'bwd')}[") == 1


def test_places_that_no_integer_counts_are_refused():
  rows = jax.ShapeDtypeStruct((8, 65536, 32, 128), jnp.bfloat16)
  starts = jax.ShapeDtypeStruct((8, 128), jnp.int32)
  with pytest.raises(InputError, match="fewer config.data.rows"):
    jax.eval_shape(
      functools.partial(cudnn._attend, scale=1.0), *[rows] * 3, starts, starts
    )


def test_sums_do_not_grow_with_the_square_of_a_row(monkeypatch):
  nvidia._answer_for_cudnn((9, 0), monkeypatch.setattr)

  def sums(T):
    row = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.bfloat16)
    layout = RowLayout(*[jax.ShapeDtypeStruct((1, T), jnp.int32)] * 3)
    kernel = functools.partial(cudnn.cudnn_packed, scale=1.0, softcap=None)
    gradient = jax.grad(lambda *given: kernel(*given).astype(float).sum())
    made = jax.make_jaxpr(gradient)(row, row, row, layout)
    calls = [one for one in made.eqns if one.primitive.name == cudnn.CALL]
    return max(var.aval.size for call in calls for var in call.outvars[1:])

  assert sums(65536) == 2 * sums(32768) == 2 * 128 * 2 * 65536


def test_what_it_does_not_know_is_refused():
  layout = layout_of(*ROWS["several"])
  one_RTHE = jnp.ones((2, 200, 1, 8))
  given = one_RTHE, one_RTHE, one_RTHE, layout
  with pytest.raises(ValueError, match="no windows"):
    KERNEL(*given, jnp.int32(3), scale=1, softcap=None)
  for kernel in (KERNEL, cudnn.cudnn):
    with pytest.raises(ValueError, match="no softcap"):
      kernel(*given, scale=1, softcap=30.0)
