# SPDX-License-Identifier: Apache-2.0
"""A step compiled ahead: for what it was compiled, and for other arguments."""

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import parallel
from mrpo_jax.runs.ahead import Ahead, compile_within
from tests.material.logged import logged


def abstract_of(array):
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def test_integers_of_four_bits_are_compiled_for_again_and_said():
  array = jax.device_put(jnp.arange(8, dtype=jnp.int4) - 4, jax.devices()[0])
  with logged() as lines:
    ahead = compiled_sum(array, lambda x: x.astype(jnp.float32).sum())
    assert [float(ahead(array)) for _ in range(2)] == [-4.0, -4.0]
  again = ["compiling a sum again, for arguments that lie apart"] * 2
  # From jax 0.12 on they lie as the compiler assumes.
  assert said(lines)[2:] == ([] if jax.__version_info__ >= (0, 12) else again)


def compiled_sum(array, function=jnp.sum):
  step, arguments = jax.jit(function), (abstract_of(array),)
  compiled, sizes = compile_within(None, "a sum", step, arguments)
  assert sizes["peak"] >= sizes["argument"] + 4
  return Ahead("a sum", step, arguments, compiled)


def said(lines):
  return [line.partition(" took")[0] for line in lines]


def test_it_compiles_once_and_before_its_arguments_are_there():
  array = jax.device_put(np.arange(8.0), parallel.replicated(mesh()))
  with logged() as lines:
    ahead = compiled_sum(array)
    assert said(lines) == 2 * ["compiling a sum"]
    assert [float(ahead(array)) for _ in range(2)] == [28.0, 28.0]
  assert len(lines) == 2


def test_arguments_that_lie_elsewhere_are_compiled_for_and_said():
  array = jax.device_put(np.arange(8.0), parallel.replicated(mesh()))
  apart = jax.sharding.NamedSharding(mesh(), jax.sharding.PartitionSpec("data"))
  with logged() as lines:
    ahead = compiled_sum(array)
    assert float(ahead(jax.device_put(array, apart))) == 28.0
  assert (
    said(lines)[2:]
    == ["compiling a sum again, for arguments that lie apart"] * 2
  )


def mesh():
  return parallel.make_mesh()
