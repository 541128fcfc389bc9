# SPDX-License-Identifier: Apache-2.0
"""Work and exchanges read from compiled programs, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import parallel
from mrpo_jax.models import grouped
from mrpo_jax.performance import hlo_work
from mrpo_jax.performance.abstract import Assumed

MESH = {"data": 2, "fsdp": 4, "model": 1}
# As libtpu writes it: a loop of 6 whose bound stands in its condition, products
# as convolutions, S(1) for memory on the chip, an all-reduce that keeps a part.
TPU = """HloModule jit_f, is_scheduled=true

%cond (p.1: (s32[], bf16[6,256,1024])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(6)
  %p.1 = (s32[]{:T(128)}, bf16[6,256,1024]{2,1,0}) parameter(0)
  %gte.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.1, %constant.1), direction=LT
}

%slice (param_0.1: bf16[6,256,1024], param_1.1: s32[]) -> bf16[1,256,1024] {
  %param_0.1 = bf16[6,256,1024]{2,1,0} parameter(0)
  %param_1.1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %ds.1 = bf16[1,256,1024]{2,1,0:T(8,128)S(1)} dynamic-slice(%param_0.1, \
%param_1.1), dynamic_slice_sizes={1,256,1024}
}

%all-reduce-scatter.1 (input.2: bf16[1024,1024]) -> bf16[256,1024] {
  %input.2 = bf16[1024,1024]{1,0} parameter(0)
  ROOT %all-reduce.4 = bf16[1024,1024]{1,0} all-reduce(%input.2), \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add.1
}

%body (p.2: (s32[], bf16[6,256,1024])) -> (s32[], bf16[6,256,1024]) {
  %p.2 = (s32[]{:T(128)}, bf16[6,256,1024]{2,1,0}) parameter(0)
  %gte.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %gte.3 = bf16[6,256,1024]{2,1,0} get-tuple-element(%p.2), index=1
  %fusion.1 = bf16[1,256,1024]{2,1,0:T(8,128)S(1)} fusion(%gte.3, %gte.2), \
kind=kLoop, calls=%slice
  %all-gather.1 = bf16[1,1024,1024]{2,1,0:T(8,128)S(1)} \
all-gather(%fusion.1), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
  %bitcast.1 = bf16[1024,1024]{1,0:S(1)} bitcast(%all-gather.1)
  %convolution.1 = bf16[1024,1024]{1,0:S(1)} convolution(%bitcast.1, \
%bitcast.1), dim_labels=bf_io->bf
  %fusion.2 = bf16[256,1024]{1,0:S(1)} fusion(%convolution.1), kind=kCustom, \
calls=%all-reduce-scatter.1
  %constant.2 = s32[]{:T(128)} constant(1)
  %add.2 = s32[]{:T(128)} add(%gte.2, %constant.2)
  ROOT %tuple.1 = (s32[], bf16[6,256,1024]{2,1,0}) tuple(%add.2, %gte.3)
}

ENTRY %main (arg.1: (s32[], bf16[6,256,1024])) -> (s32[], bf16[6,256,1024]) {
  %arg.1 = (s32[], bf16[6,256,1024]{2,1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[6,256,1024]{2,1,0}) while(%arg.1), \
condition=%cond, body=%body, metadata={op_name="jit(f)/layers/while"}
}
"""


def test_a_loop_counts_as_often_as_it_runs():
  work = hlo_work.work(TPU, MESH)
  assert work.flops == 6 * 2 * 1024**3
  shard = 256 * 1024 * 2  # bytes
  gather, scatter = work.collectives
  assert (gather.kind, gather.axes) == ("all-gather", ("fsdp",))
  assert (gather.bytes, gather.times) == (3 * shard, 6)
  assert (scatter.kind, scatter.axes) == ("reduce-scatter", ("fsdp",))
  assert (scatter.bytes, scatter.times) == (3 * shard, 6)
  # A slice of the stack leaves the large memory; the rest stays on the chip.
  counter = 4 + 4 + 4  # it, what is added, the sum
  assert work.bytes == 6 * (shard + counter)
  assert not work.unknown_loops


def test_a_loop_that_the_compiler_unrolled_runs_less_often():
  twice = TPU.replace(
    "%constant.2 = s32[]{:T(128)} constant(1)",
    """\
%constant.2 = s32[]{:T(128)} constant(2)""",
  )
  assert hlo_work.work(twice, MESH).flops == 3 * 2 * 1024**3
  # The same inside a fusion, which is given the 4.
  fused = (
    TPU.replace(
      "%body (",
      """\
%count (param_0.9: s32[], param_1.9: s32[]) -> s32[] {
  %param_0.9 = s32[]{:T(128)} parameter(0)
  %param_1.9 = s32[]{:T(128)} parameter(1)
  ROOT %add.9 = s32[]{:T(128)} add(%param_0.9, %param_1.9)
}

%body (""",
    )
    .replace("constant(1)", "constant(4)")
    .replace(
      "add(%gte.2, %constant.2)",
      "fusion(%gte.2, %constant.2), kind=kLoop, calls=%count",
    )
  )
  assert hlo_work.work(fused, MESH).flops == 2 * 2 * 1024**3
  # What is counted otherwise is not known.
  other = TPU.replace("add(%gte.2, %constant.2)", "multiply(%gte.2, %gte.2)")
  assert hlo_work.work(other, MESH).unknown_loops == {"jit(f)/layers/while"}


def test_what_the_data_decide_is_asked_for():
  text = TPU.replace("direction=LT", "direction=NE")
  work = hlo_work.work(text, MESH)
  assert work.unknown_loops == {"jit(f)/layers/while"}
  assert work.flops == 2 * 1024**3
  asked = hlo_work.work(text, MESH, {"jit(f)/layers/while": 2.5}.get)
  assert asked.flops == 2.5 * 2 * 1024**3 and not asked.unknown_loops


@pytest.mark.parametrize(
  "groups,axes",
  [
    ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
    ("{{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
    ("[2,4]<=[8]", ("fsdp",)),
    ("[4,2]<=[2,4]T(1,0)", ("data",)),
    ("[1,8]<=[8]", ("data", "fsdp")),
    ("mesh['x'=2,'y'=4] {'x'}", ("data",)),
    ("mesh['x'=8] {'x':(2)4}", ("fsdp",)),
    ("mesh['x'=8] {'x'}", ("data", "fsdp")),
    ("{}", ("data", "fsdp")),
  ],
)
def test_groups_of_devices_are_axes_of_the_mesh(groups, axes):
  text = f"""ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16]{{0}} parameter(0)
  ROOT %r = f32[16]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add
}}
"""
  (one,) = hlo_work.work(text, MESH).collectives
  assert one.axes == axes
  n = np.prod([MESH[axis] for axis in axes])
  assert one.bytes == pytest.approx(2 * (n - 1) / n * 64)


def test_a_compiled_scan_on_this_backend():
  def f(x_ND, w_LDD):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_ND, w_LDD)[0]

  arrays = [
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((128, 64), (5, 64, 64))
  ]
  compiled = jax.jit(f).lower(*arrays).compile()
  work = hlo_work.work(compiled.as_text(), {"data": 1})
  assert work.flops == 5 * 2 * 128 * 64 * 64
  once = compiled.cost_analysis()["flops"]
  assert once < 2 * 2 * 128 * 64 * 64  # which is why it is counted here


def test_products_by_group_on_this_backend():
  N, G, D, F = 4096, 8, 32, 64

  def loss(rows, weight, sizes):
    return jnp.sum(jnp.square(grouped.product(rows, weight, sizes, N)))

  arrays = [
    jax.ShapeDtypeStruct(shape, kind)
    for shape, kind in (((N, D), "f4"), ((G, D, F), "f4"), ((G,), "i4"))
  ]
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
  trips = Assumed([], {}).of
  work = hlo_work.work(compiled.as_text(), {"data": 1}, trips)
  # Blocks of 128 rows: 32, and half a block for each group.
  assert work.flops == 3 * 36 * 2 * 128 * D * F
  assert not work.unknown_loops
  dense = jax.jit(jax.lax.ragged_dot).lower(*arrays).compile()
  whole = hlo_work.work(dense.as_text(), {"data": 1})
  assert whole.flops == G * 2 * N * D * F  # which is why it is not taken


# As libtpu 0.0.52 writes the product of 4,096 rows with 8 matrices of 512 by
# 1,024, and the gradient of these, of which 1,024 rows are expected here.
RAGGED = """HloModule m

ENTRY %main (g: s32[8], x: bf16[4096,512], w: bf16[8,512,1024], \
y: bf16[4096,1024]) -> f32[8,512,1024] {
  %g = s32[8]{0} parameter(0)
  %x = bf16[4096,512]{1,0} parameter(1)
  %w = bf16[8,512,1024]{2,1,0} parameter(2)
  %y = bf16[4096,1024]{1,0} parameter(3)
  %ragged-dot-metadata = (s32[9]{0}, s32[1]{0}) custom-call(%g), \
custom_call_target="tpu_custom_call", metadata={op_name="ragged-dot-metadata"}
  %n = s32[1]{0} get-tuple-element(%ragged-dot-metadata), index=1
  %ragged-dot-none = bf16[4096,1024]{1,0} custom-call(%n, /*index=1*/%x, %w), \
custom_call_target="tpu_custom_call", \
frontend_attributes={ragged_dot_tiling="128,512,1024"}, \
metadata={op_name="jit(f)/ragged_dot_general/ragged-dot-none"}
  ROOT %r = f32[8,512,1024]{2,1,0} custom-call(%n, %x, %y), \
custom_call_target="tpu_custom_call", \
frontend_attributes={ragged_dot_tiling="128,512,1024"}, \
metadata={op_name="jit(f)/rows_of_experts_1024/ragged_dot_general/\
ragged-dot-none"}
}
"""


def test_a_tpus_product_by_group_counts_its_rows():
  work = hlo_work.work(RAGGED, {"data": 1})
  assert work.flops == 2 * (4096 + 1024) * 512 * 1024
  assert not work.kernels and not work.unknown_calls
  # A kernel of attention beside them is still one.
  other = RAGGED.replace("ragged-dot-metadata", "attention")
  assert hlo_work.work(other, {"data": 1}).kernels == {"tpu_custom_call": 1}


def test_a_padded_convolution_counts_what_is_there():
  text = """ENTRY %main (x: f32[2,3,8], y: f32[3,8,4]) -> f32[2,3,4] {
  %x = f32[2,3,8]{2,1,0} parameter(0)
  %y = f32[3,8,4]{2,1,0} parameter(1)
  ROOT %c = f32[2,3,4]{2,1,0} convolution(%x, %y), \
window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}
"""
  # Of 3 x 3 places of the window two fall on padding.
  assert hlo_work.work(text, MESH).flops == 2 * 2 * 4 * 8 * 7


def test_exchanges_of_a_compiled_program():
  mesh = parallel.make_mesh(data=4, fsdp=2)
  P = jax.sharding.PartitionSpec

  def exchanged(x):
    x = jax.lax.all_gather(x, "fsdp", axis=1, tiled=True)
    return jax.lax.psum(jax.lax.psum(x, "data"), "model")

  step = jax.jit(
    jax.shard_map(
      exchanged,
      mesh=mesh,
      in_specs=P("data", "fsdp"),
      out_specs=P(None, None),
      check_vma=False,
    )
  )
  x = jax.ShapeDtypeStruct((16, 32), jnp.float32)
  text = step.lower(x).compile().as_text()
  found = {
    one.kind: (one.axes, one.bytes)
    for one in hlo_work.work(text, dict(mesh.shape)).collectives
  }
  # 4 x 16 numbers here, 4 x 32 together; over "model" of 1 nothing is sent.
  assert found == {
    "all-gather": (("fsdp",), 4 * 16 * 4),
    "all-reduce": (("data",), 2 * 3 / 4 * 4 * 32 * 4),
  }
