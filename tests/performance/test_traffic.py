# SPDX-License-Identifier: Apache-2.0
"""Bytes that programs move, read from their text, against counts by hand."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.performance import hlo_work
from tests.performance import make_programs

HERE = pathlib.Path(__file__).parent / "hlo"
L = make_programs.LAYERS
# What make_programs.py's programs move, in units of an activation X [N, D] and
# of one layer's weight W [D, D], counted by hand from the instructions of the
# compiled text.  A layer is read as one layer, never as the stack of 12; what
# is written into a stack is one layer, too.
MOVED = {  # file -> (X, W)
  # x copied once; per layer x copied (2X), the product (X + W read, X written).
  "tpu_forward": (2 + L * 4, L * 1),
  # Per layer the slice (2W), the product (2X + W), tanh (2X).
  "gpu_forward": (2 + L * 4, L * 3),
  "cpu_forward": (2 + L * 4, L * 3),
  # x copied, ones and the stack of zeros written.  Forward: x copied (2X) and
  # fetched (X), kept (2X), the product (W) with two kept and x written (3X).
  # Backward: copied (2X), fetched (X), the weight's gradient (4X read, W
  # written in place), that of x (2X + W read, X written).
  "tpu_backward": (3 + L * (8 + 10), L + L * (1 + 2)),
  # As above and three stacks of zeros; slices apart from products.
  "gpu_backward": (3 + 3 * L + L * (10 + 10), L + L * (3 + 6)),
  # Two of the stacks of zeros are copies of the first (2X each).
  "cpu_backward": (3 + 5 * L + L * (12 + 10), L + L * (3 + 6)),
  # Forward: copied (2X), fetched (X), kept (2X), the product (W + X written).
  # Backward: x and the weight fetched (X + W), the layer again (X written) and
  # fetched (X), the gradient of x (2X) and fetched (X), of the weight (W).
  "tpu_remat": (4 + L * (6 + 6), L + L * (1 + 2)),
  "gpu_remat": (3 + L + L * (6 + 11), L + L * (3 + 7)),
  "cpu_remat": (3 + L + L * (8 + 11), L + L * (3 + 7)),
  # Three times the same, and the sum: two stacks read, one written.
  "tpu_accumulate": (3 * (4 + L * 12), 3 * (L + L * 3 + 3 * L)),
  "gpu_accumulate": (3 * (3 + L + L * 17), 3 * (L + L * 10 + 3 * L)),
  "cpu_accumulate": (3 * (3 + L + L * 19), 3 * (L + L * 10 + 3 * L)),
  # Looked up (2X; on a GPU within what adds it), the gradient read, what it is
  # added to read and written.  The table of zeros is counted apart.
  "tpu_embedding": (2 + 1 + 2, 0),
  "gpu_embedding": (1 + 2, 0),
  "cpu_embedding": (2 + 1 + 2, 0),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_program_moves_what_its_instructions_touch(name):
  platform, _, program = name.partition("_")
  N, D, V, dtype = make_programs.sizes(platform)
  width = np.dtype(dtype).itemsize
  x, w = MOVED[name]
  want = width * (x * N * D + w * D * D)
  want += width * V * D if program == "embedding" else 0
  text = (HERE / f"{name}.hlo").read_text()
  # Counters of loops and ids of tokens are a thousandth at most.
  assert hlo_work.work(text, {"x": 1}).bytes == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", ["forward", "backward", "remat"])
def test_a_scan_here_never_moves_its_stack_in_each_turn(name):
  function, given, donated = make_programs.programs("cpu")[name]
  arguments = [jax.ShapeDtypeStruct(*one) for one in given]
  compiled = jax.jit(function).lower(*arguments).compile()
  moved = hlo_work.work(compiled.as_text(), {"x": 1}).bytes
  N, D, _, _ = make_programs.sizes("cpu")
  x, w = 4 * N * D, 4 * D * D
  # Each layer is used once forward, and twice and its gradient backward.
  least = L * (2 * x + w) if name == "forward" else L * (6 * x + 4 * w)
  stack = L * (L - 1) * w  # once too much in each turn
  assert least <= moved <= 4 * least < moved + stack


# Against XLA's own analysis, which is right where nothing repeats.


def _array(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


def _pick(w_LDD, i):
  return jax.lax.dynamic_index_in_dim(w_LDD, i, 0, keepdims=False)


def _put(w_LDD, x_DD, i):
  return jax.lax.dynamic_update_index_in_dim(w_LDD, jnp.tanh(x_DD), i, 0)


def _mlp(w, v, x):
  return (jax.nn.silu(x @ w) @ v).sum()


SQUARE, STACK = _array(128, 128), _array(12, 128, 128)
INDEX = _array(dtype=jnp.int32)
ONCE = {  # what -> (function, arguments)
  "a product": (lambda x, w: jnp.tanh(x @ w), SQUARE, SQUARE),
  "a layer of a stack": (
    lambda x, w, i: x @ jnp.tanh(_pick(w, i)),
    *(SQUARE, STACK, INDEX),
  ),
  "an update in place": (_put, STACK, SQUARE, INDEX),
  "a sum in place": (
    lambda w, x, i: w.at[i].add(x),
    *(STACK, SQUARE, INDEX),
  ),
  "a softmax": (lambda x: jax.nn.softmax(x, -1), SQUARE),
  "a transpose": (lambda x: x.T + 1, SQUARE),
  "strided slices": (lambda x: x[:10, ::2] * x[10:20, 1::2], SQUARE),
  "a concatenation": (lambda x, y: jnp.concatenate([x, 2 * y]), SQUARE, SQUARE),
  "padding": (lambda x: jnp.pad(x, 3), SQUARE),
  "two results": (lambda x, y: (x + y, x * y), SQUARE, SQUARE),
  "a change of dtype": (lambda x: (2 * x).astype(jnp.bfloat16), SQUARE),
  "a sort": (lambda x: jnp.sort(x, 0), SQUARE),
  "a running sum": (lambda x: jnp.cumsum(x, 0), SQUARE),
  "gradients": (jax.grad(_mlp, (0, 1)), SQUARE, SQUARE, SQUARE),
}


@pytest.mark.parametrize("what", ONCE)
def test_xla_says_the_same_of_a_program_without_loops(what):
  function, *arguments = ONCE[what]
  donated = (0,) if "in place" in what else ()
  step = jax.jit(function, donate_argnums=donated)
  compiled = step.lower(*arguments).compile()
  moved = hlo_work.work(compiled.as_text(), {"x": 1}).bytes
  # It counts where a slice begins, and pointers of tuples: a few bytes.
  said = compiled.cost_analysis()["bytes accessed"]
  assert moved == pytest.approx(said, abs=32)


# Single instructions, as compilers write them.


def _moved(inner, entry):
  """Bytes of an entry, beside computations that it calls."""
  text = f"{inner}\nENTRY %main (x: f32[]) -> f32[] {{\n{entry}\n}}\n"
  return hlo_work.work(text, {"x": 2}).bytes


PICK = """
%pick (w.1: bf16[12,64,64], i.1: s32[]) -> bf16[1,64,64] {
  %w.1 = bf16[12,64,64]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %s.1 = bf16[1,64,64]{2,1,0} dynamic-slice(%w.1, %i.1, %zero.1, \
%zero.1), dynamic_slice_sizes={1,64,64}
}
"""
LAYER, FULL = 64 * 64 * 2, 12 * 64 * 64 * 2
GIVEN = """
  %w = bf16[12,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[64,64]{1,0} parameter(2)"""


@pytest.mark.parametrize(
  "between,last",
  [
    ("bitcast(%n.2)", "bf16[64,64]{1,0}"),
    ("copy(%b.2)", "bf16[64,64]{1,0}"),
    ("transpose(%b.2), dimensions={1,0}", "bf16[64,64]{1,0}"),
    ("convert(%b.2)", "f32[64,64]{1,0}"),
    ("multiply(%b.2, %b.2)", "bf16[64,64]{1,0}"),
  ],
)
def test_a_slice_in_an_inner_fusion_is_followed(between, last):
  inner = f"""{PICK}
%outer (w.2: bf16[12,64,64], i.2: s32[], x.2: bf16[64,64]) -> f32[64,64] {{
  %w.2 = bf16[12,64,64]{{2,1,0}} parameter(0)
  %c.2 = bf16[12,64,64]{{2,1,0}} bitcast(%w.2)
  %i.2 = s32[] parameter(1)
  %n.2 = bf16[1,64,64]{{2,1,0}} fusion(%c.2, %i.2), kind=kLoop, calls=%pick
  %b.2 = bf16[64,64]{{1,0}} bitcast(%n.2)
  %l.2 = {last} {between}
  %x.2 = bf16[64,64]{{1,0}} parameter(2)
  ROOT %d.2 = f32[64,64]{{1,0}} convolution(%x.2, %l.2), dim_labels=bf_io->bf
}}"""
  entry = f"""{GIVEN}
  ROOT %f = f32[64,64]{{1,0}} fusion(%w, %i, %x), kind=kOutput, calls=%outer"""
  assert _moved(inner, entry) == LAYER + LAYER + 2 * LAYER


def test_what_is_read_beside_its_slice_is_read_whole():
  inner = f"""{PICK}
%outer (w.2: bf16[12,64,64], i.2: s32[]) -> (bf16[1,64,64], bf16[64]) {{
  %w.2 = bf16[12,64,64]{{2,1,0}} parameter(0)
  %i.2 = s32[] parameter(1)
  %n.2 = bf16[1,64,64]{{2,1,0}} fusion(%w.2, %i.2), kind=kLoop, calls=%pick
  %zero.2 = bf16[] constant(0)
  %r.2 = bf16[64]{{0}} reduce(%w.2, %zero.2), dimensions={{0,1}}, to_apply=%add
  ROOT %t.2 = (bf16[1,64,64]{{2,1,0}}, bf16[64]{{0}}) tuple(%n.2, %r.2)
}}"""
  entry = f"""{GIVEN}
  ROOT %f = (bf16[1,64,64]{{2,1,0}}, bf16[64]{{0}}) fusion(%w, %i), \
kind=kLoop, calls=%outer"""
  assert _moved(inner, entry) == FULL + LAYER + 64 * 2


PUT = """
%put (w.1: bf16[12,64,64], x.1: bf16[64,64], i.1: s32[]) -> bf16[12,64,64] {
  %w.1 = bf16[12,64,64]{2,1,0} parameter(0)
  %x.1 = bf16[64,64]{1,0} parameter(1)
  %b.1 = bf16[1,64,64]{2,1,0} bitcast(%x.1)
  %i.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %u.1 = bf16[12,64,64]{2,1,0} dynamic-update-slice(%w.1, %b.1, %i.1, \
%zero.1, %zero.1)
}
"""


def test_an_update_in_an_inner_fusion_is_in_place():
  # A gradient added to its place in the stack: that is read and written.
  inner = f"""{PICK}{PUT}
%outer (w.2: bf16[12,64,64], i.2: s32[], x.2: bf16[64,64]) -> \
(bf16[12,4096], bf16[64,64]) {{
  %w.2 = bf16[12,64,64]{{2,1,0}} parameter(0)
  %i.2 = s32[] parameter(1)
  %x.2 = bf16[64,64]{{1,0}} parameter(2)
  %n.2 = bf16[1,64,64]{{2,1,0}} fusion(%w.2, %i.2), kind=kLoop, calls=%pick
  %b.2 = bf16[64,64]{{1,0}} bitcast(%n.2)
  %a.2 = bf16[64,64]{{1,0}} add(%b.2, %x.2)
  %u.2 = bf16[12,64,64]{{2,1,0}} fusion(%w.2, %a.2, %i.2), kind=kLoop, \
calls=%put
  %c.2 = bf16[12,4096]{{1,0}} bitcast(%u.2)
  ROOT %t.2 = (bf16[12,4096]{{1,0}}, bf16[64,64]{{1,0}}) tuple(%c.2, %a.2)
}}"""
  entry = f"""{GIVEN}
  ROOT %f = (bf16[12,4096]{{1,0}}, bf16[64,64]{{1,0}}) fusion(%w, %i, %x), \
kind=kLoop, calls=%outer"""
  # The layer of the stack and x read; it and the second result written.
  assert _moved(inner, entry) == 2 * LAYER + 2 * LAYER


def test_an_update_of_a_new_array_writes_all_of_it():
  # Zeros are not read, what an array holds elsewhere is.
  zeros = f"""{PUT}
%outer (i.2: s32[], x.2: bf16[64,64]) -> bf16[12,64,64] {{
  %zero.2 = bf16[] constant(0)
  %z.2 = bf16[12,64,64]{{2,1,0}} broadcast(%zero.2), dimensions={{}}
  %i.2 = s32[] parameter(0)
  %x.2 = bf16[64,64]{{1,0}} parameter(1)
  ROOT %u.2 = bf16[12,64,64]{{2,1,0}} fusion(%z.2, %x.2, %i.2), kind=kLoop, \
calls=%put
}}"""
  entry = f"""{GIVEN}
  ROOT %f = bf16[12,64,64]{{2,1,0}} fusion(%i, %x), kind=kLoop, calls=%outer"""
  assert _moved(zeros, entry) == LAYER + FULL
  other = f"""{PUT}
%outer (w.2: bf16[12,64,64], i.2: s32[], x.2: bf16[64,64]) -> f32[12,64,64] {{
  %w.2 = bf16[12,64,64]{{2,1,0}} parameter(0)
  %i.2 = s32[] parameter(1)
  %x.2 = bf16[64,64]{{1,0}} parameter(2)
  %u.2 = bf16[12,64,64]{{2,1,0}} fusion(%w.2, %x.2, %i.2), kind=kLoop, \
calls=%put
  ROOT %c.2 = f32[12,64,64]{{2,1,0}} convert(%u.2)
}}"""
  entry = f"""{GIVEN}
  ROOT %f = f32[12,64,64]{{2,1,0}} fusion(%w, %i, %x), kind=kLoop, \
calls=%outer"""
  assert _moved(other, entry) == (FULL - LAYER) + LAYER + 2 * FULL


def test_what_is_fetched_onto_the_chip_is_read():
  entry = f"""{GIVEN}
  %s = (bf16[64,64]{{1,0:S(1)}}, bf16[64,64]{{1,0}}, u32[]{{:S(2)}}) \
copy-start(%x)
  %d = bf16[64,64]{{1,0:S(1)}} copy-done(%s)
  ROOT %f = bf16[64,64]{{1,0:S(1)}} add(%d, %d)"""
  assert _moved("", entry) == LAYER


def test_an_exchange_reads_and_writes_however_it_is_written():
  groups = "replica_groups={{0,1}}, dimensions={0}"
  one = f"""{GIVEN}
  ROOT %g = bf16[128,64]{{1,0}} all-gather(%x), {groups}"""
  two = f"""{GIVEN}
  %s = (bf16[64,64]{{1,0}}, bf16[128,64]{{1,0}}) all-gather-start(%x), {groups}
  ROOT %g = bf16[128,64]{{1,0}} all-gather-done(%s)"""
  assert _moved("", one) == _moved("", two) == LAYER + 2 * LAYER


def test_a_gather_on_other_cores_reads_what_it_looks_up():
  # As a TPU hands it to its sparse cores; the embedding is not read whole.
  inner = """
%look (e.1: bf16[32000,64], i.1: s32[8]) -> bf16[8,64] {
  %e.1 = bf16[32000,64]{1,0} parameter(0)
  %i.1 = s32[8]{0} parameter(1)
  ROOT %g.1 = bf16[8,64]{1,0} gather(%e.1, %i.1), offset_dims={1}, \
collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, \
slice_sizes={1,64}
}
%called (e.2: bf16[32000,64], i.2: s32[8]) -> bf16[8,64] {
  %e.2 = bf16[32000,64]{1,0} parameter(0)
  %i.2 = s32[8]{0} parameter(1)
  ROOT %f.2 = bf16[8,64]{1,0} fusion(%e.2, %i.2), kind=kCustom, calls=%look
}, execution_thread="sparsecore"
%async (e.3: bf16[32000,64], i.3: s32[8]) -> bf16[8,64] {
  %e.3 = bf16[32000,64]{1,0} parameter(0)
  %i.3 = s32[8]{0} parameter(1)
  ROOT %c.3 = bf16[8,64]{1,0} custom-call(%e.3, %i.3), \
custom_call_target="T", called_computations={%called}
}, execution_thread="sparsecore"
"""
  entry = """
  %e = bf16[32000,64]{1,0} parameter(0)
  %i = s32[8]{0} parameter(1)
  %s = ((), (), s32[32768]{0}) async-start(), calls=%async
  %u = ((bf16[32000,64]{1,0}, s32[8]{0}), bf16[8,64]{1,0}, s32[32768]{0}) \
async-update(%s, %e, %i)
  ROOT %d = bf16[8,64]{1,0} async-done(%u)"""
  assert _moved(inner, entry) == 2 * 8 * 64 * 2 + 8 * 4


def test_room_and_scratch_are_not_moved():
  room = '  ROOT %r = bf16[64,64]{1,0} custom-call(), custom_call_target="'
  assert _moved("", room + 'AllocateBuffer"') == 0
  product = f"""{GIVEN}
  %p = (bf16[64,64]{{1,0}}, s8[33554432]{{0}}) custom-call(%x, %x), \
custom_call_target="__cublas$lt$matmul"
  ROOT %g = bf16[64,64]{{1,0}} get-tuple-element(%p), index=0"""
  # An operand that is given twice is read once.
  assert _moved("", product) == 2 * LAYER
