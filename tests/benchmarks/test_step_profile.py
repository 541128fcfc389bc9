# SPDX-License-Identifier: Apache-2.0
"""What a trace says of a step falls to the parts that it was compiled from."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import step_profile


def test_time_inside_an_event_is_not_its_own():
  events = [
    (0, 100, "loop"),
    (10, 30, "dot"),
    (12, 20, "wait"),
    (40, 50, "dot"),
  ]
  found = step_profile.own_seconds(events)
  assert found == pytest.approx({"loop": 70e-9, "dot": 22e-9, "wait": 8e-9})


def test_instructions_of_a_loop_have_the_name_of_its_scope():
  def product(x):
    with jax.named_scope("mlp"):
      return jax.lax.fori_loop(0, 3, lambda _, y: y @ y, x)

  compiled = jax.jit(product).lower(jnp.ones((64, 64))).compile()
  found = step_profile.operations(compiled.as_text())
  loops = {name: of for name, of in found.items() if name.startswith("while")}
  assert loops and all("/mlp/" in of for of in loops.values())
  # What the compiler adds to a loop has no name of its own.
  text = """HloModule m

%body.1 (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %copy.2 = f32[2]{0} copy(%p)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0), metadata={op_name="x"}
  ROOT %while.3 = f32[2] while(%x), body=%body.1, metadata={op_name="a/mlp/w"}
}
"""
  found = step_profile.operations(text)
  assert found["copy.2"] == found["while.3"] == "a/mlp/w"
  assert found["x"] == "x"


@pytest.mark.parametrize(
  "operation,part",
  [
    ("jit(f)/jvp()/closed_call/mlp/dot_general", "products of MLPs"),
    ("jit(f)/rematted/mlp/mul", "other work of MLPs"),
    ("a/attention/blockwise_gradient/while", "attention of tokens to tokens"),
    ("a/attention/dot_general", "products around attention"),
    ("a/transpose(jvp(head_gradient))/while/dot_general", "vocabulary"),
    ("jit(f)/jvp(head)/while/exp", "vocabulary"),
    ("jit(f)/head/while/exp", "vocabulary"),
    ("jit(f)/broadcast_in_dim", step_profile.REST),
    ("", step_profile.REST),
  ],
)
def test_parts(operation, part):
  assert step_profile.part_of(operation) == part
