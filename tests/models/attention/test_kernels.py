# SPDX-License-Identifier: Apache-2.0
"""Every attention kernel equals the oracle, or is refused where it cannot."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.models import parameters, transformer
from mrpo_jax.models.attention import blockwise, kernels
from mrpo_jax.models.attention.layout import dense
from mrpo_jax.performance import nvidia
from tests.material.attention import (
  CONFIG,
  ROWS,
  SPLASH,
  TREES,
  layout_of,
  value_and_gradients,
)

KERNELS = {"blockwise": blockwise.blockwise, "splash": SPLASH}


@pytest.mark.parametrize("window,softcap", [(None, None), (17, None), (0, 5.0)])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_the_oracle(name, rows, window, softcap):
  layout = layout_of(*ROWS[rows])
  window = None if window is None else jnp.int32(window)
  kernel = KERNELS[name]
  if window is None and name == "splash":
    kernel = functools.partial(kernel, windows=(0,))
  got, got_grads = value_and_gradients(kernel, layout, window, softcap)
  given = layout, window, softcap
  want, want_grads = value_and_gradients(dense, *given)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
  for a, b in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("rows", TREES)
def test_blocks_equal_the_oracle_on_any_number_of_branches(rows, window):
  layout = layout_of(*TREES[rows])
  given = layout, None if window is None else jnp.int32(window), None
  got, got_grads = value_and_gradients(blockwise.blockwise, *given)
  want, want_grads = value_and_gradients(dense, *given)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
  for a, b in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_some_kernels_are_not_for_more_than_two_branches(monkeypatch):
  monkeypatch.setattr(kernels, "fastest", lambda *_: "splash")
  for name, want in {
    "auto": "blockwise",
    "splash": "blockwise",
    "xla": "xla",
    "cudnn": "cudnn",
    "cudnn_packed": "cudnn",
  }.items():
    assert kernels.of_siblings(name, CONFIG, "bfloat16") == want


@pytest.mark.parametrize(
  "name,dtype,platform,softcap,message",
  [
    (
      "splash",
      "bfloat16",
      "cpu",
      None,
      "'splash' runs on a tpu, this is a cpu",
    ),
    ("cudnn", "bfloat16", "tpu", None, "'cudnn' runs on a gpu, this is a tpu"),
    ("cudnn", "float32", "gpu", None, "half precision, not in float32"),
    ("cudnn", "bfloat16", "gpu", 30.0, "knows no softcap"),
  ],
)
def test_kernels_refuse_what_they_cannot(
  name, dtype, platform, softcap, message
):
  config = dataclasses.replace(CONFIG, attention_softcap=softcap)
  with pytest.raises(ValueError, match=message):
    kernels.check(name, config, dtype, platform)


def test_every_kernel_runs_somewhere():
  for platform in ("cpu", "gpu", "tpu"):
    kernels.check("auto", CONFIG, "float32", platform)
  kernels.check("cudnn", CONFIG, "bfloat16", "gpu")
  kernels.check("splash", CONFIG, "float32", "tpu")
  assert kernels.choose("auto", CONFIG, "float32") is blockwise.blockwise


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("name", kernels.PREPARE)
def test_what_layers_share_is_worked_out_before_them(
  monkeypatch, name, is_trained
):
  nvidia._answer_for_cudnn((9, 0), monkeypatch.setattr)
  config = dataclasses.replace(CONFIG, layers=2, head_dim=8)
  layout = layout_of(*ROWS["several"])
  params = parameters.init(config, jax.random.key(0), "bfloat16")
  tokens_RT = jnp.ones_like(layout.segments)

  def total(params):
    given = config, params, tokens_RT, layout
    remat = "dots" if is_trained else "none"
    hidden_RTD = transformer.hidden(*given, kernel=name, remat=remat)
    return hidden_RTD.astype(float).sum()

  made = jax.make_jaxpr(jax.grad(total) if is_trained else total)(params)
  scans = [one for one in made.eqns if one.primitive.name == "scan"]
  assert [one.params["length"] for one in scans] == [2] * (1 + is_trained)
  assert "scatter" in str(made)
  assert not any("scatter" in str(one) for one in scans)
