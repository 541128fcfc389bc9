# SPDX-License-Identifier: Apache-2.0
"""`mrpo bench` times the step that `mrpo train` would take."""

import json
import math
import pathlib

import jax.numpy as jnp
import pytest

from mrpo_jax import cli, parallel
from mrpo_jax.performance import bench

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"


@pytest.mark.slow
def test_a_run_of_the_command(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(bench, "CPU_SIDE", 64)
  to = tmp_path / "bench.json"
  argv = [f"--config={CONFIG}:dpo,debug", "--steps=2", "--warmup=0"]
  assert cli.main(["bench", *argv, f"--json={to}"]) == 0
  figures = json.loads(to.read_text())
  # A real step: its first loss is known, its second is another.
  first, second = figures["losses"]
  assert first == pytest.approx(math.log(2), abs=1e-5)
  assert second != first
  # 8 pairs a step, of at most 64 prompt and twice 64 response tokens; of the
  # 34,976 weights 16,384 are an embedding, which is no product but as head.
  assert figures["pairs_per_second"] == pytest.approx(
    sum(8 / s for s in figures["seconds"]) / 2
  )
  assert 0 < figures["useful_flops_per_step"] < 4 * 8 * 192 * 2 * 60_000
  assert figures["tokens_per_second"] <= figures["slots_per_second"]
  assert figures["step_bytes"]["temp"] > 0 and figures["peak_bytes"] > 1e6
  shown = capsys.readouterr().out
  assert f"useful share    {figures['useful_share']:.1%}" in shown
  assert list(tmp_path.iterdir()) == [to]


@pytest.mark.slow
def test_integers_of_four_bits_are_timed_too(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bench, "CPU_SIDE", 64)
  base = "--config.references.base."
  argv = [f"--config={CONFIG}:dpo,debug", "--steps=1", "--warmup=1"]
  argv += [f"{base}quantize=int4", f"{base}quantize_group=16"]
  assert cli.main(["bench", *argv]) == 0
  again = "compiling the step again, for arguments that lie apart"
  assert again in capsys.readouterr().out


def test_the_peak_is_of_all_devices(monkeypatch):
  monkeypatch.setattr(bench, "CPU_SIDE", 100)  # 13 rows on each of 8
  mesh = parallel.make_mesh(data=2, fsdp=2, model=2)
  assert bench.matmul_peak(mesh, jnp.bfloat16) > 0
