# SPDX-License-Identifier: Apache-2.0
"""Figures of one compiled step: bytes, operations, collectives."""

import collections
import pathlib
import tempfile
import warnings

import jax

from mrpo_jax.performance import hlo_work
from mrpo_jax.runs.memory import bytes_of_failure, compiled_bytes


def compiled_text(lowered, mesh):
  """(compiled step, its text)."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # donations that the CPU does not use
    if mesh.devices.flat[0].platform != "tpu":
      compiled = lowered.compile()
      return compiled, compiled.as_text()
    # libtpu writes its own text: jaxlib need not know all of its operations.
    with tempfile.TemporaryDirectory() as folder:
      options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
      compiled = lowered.compile(compiler_options=options)
      (file,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
      return compiled, file.read_text()


def measured(step, arguments, mesh, trips, keep=""):
  """dict of figures of one device, from compiling a jitted step.

  `keep` names a file for the compiled program's text.
  """
  try:
    compiled, text = compiled_text(step.lower(*arguments), mesh)
  except jax.errors.JaxRuntimeError as error:
    return {"bytes": bytes_of_failure(error, arguments)}
  if keep:
    pathlib.Path(keep).write_text(text)
  work = hlo_work.work(text, dict(mesh.shape), trips)
  try:
    cost = compiled.cost_analysis() or {}
  except jax.errors.JaxRuntimeError:  # of a compiler of another version
    cost = {}
  return {
    "bytes": compiled_bytes(compiled, arguments),
    "flops": work.flops,
    "bytes_moved": work.bytes,
    "collectives": _grouped(work.collectives),
    "kernels": work.kernels,
    "unknown_loops": sorted(work.unknown_loops),
    "cost_analysis": {
      key: cost.get(key) for key in ("flops", "bytes accessed")
    },
  }


def _grouped(collectives):
  """Rows of collectives, one a kind and axes, the largest first."""
  groups = collections.defaultdict(lambda: {"count": 0.0, "bytes": 0.0})
  for one in collectives:
    group = groups[one.kind, one.axes]
    group["count"] += one.times
    group["bytes"] += one.times * one.bytes
  rows = [
    {"kind": kind, "axes": list(axes), **group}
    for (kind, axes), group in groups.items()
  ]
  return sorted(rows, key=lambda row: -row["bytes"])


def roofline(figures, peak):
  """{resource: seconds} at least; empty where the chip is not known."""
  if peak is None or "flops" not in figures:
    return {}
  sent = sum(row["bytes"] for row in figures["collectives"])
  return {
    "compute": figures["flops"] / peak.flops,
    "memory": figures["bytes_moved"] / peak.bandwidth,
    "network": sent / peak.network,
  }
