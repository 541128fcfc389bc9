# SPDX-License-Identifier: Apache-2.0
"""Figures of one compiled step: bytes, operations, collectives."""

import collections
import pathlib
import tempfile
import warnings

import jax

from mrpo_jax.performance import hlo_work
from mrpo_jax.runs.memory import bytes_of_failure, compiled_bytes

SUMS = "count", "bytes", "bytes_away"  # of exchanges of a kind


def compiled_text(lowered, mesh):
  """(compiled step, its text)."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # donations that the CPU does not use
    platform = mesh.devices.flat[0].platform
    if platform != "tpu":
      # There is no GPU to try kernels on.
      no_trials = {"xla_gpu_autotune_level": 0}
      options = no_trials if platform == "gpu" and not _is_here(mesh) else None
      compiled = lowered.compile(compiler_options=options)
      return compiled, compiled.as_text()
    # libtpu writes its own text: jaxlib need not know all of its operations.
    with tempfile.TemporaryDirectory() as folder:
      options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
      compiled = lowered.compile(compiler_options=options)
      (file,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
      return compiled, file.read_text()


def _is_here(mesh):
  """Are these devices of this process, or only to be compiled for?"""
  device = mesh.devices.flat[0]
  return device in jax.devices()


def nodes_of(mesh):
  """The node of each device of a mesh of GPUs, in order; else one node.

  Chips of a TPU slice talk to each other without their hosts.
  """
  devices = mesh.devices.flat
  if devices[0].platform != "gpu":
    return [0] * mesh.size
  return [device.process_index for device in devices]


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
  nodes = nodes_of(mesh)
  work = hlo_work.work(text, dict(mesh.shape), trips, nodes)
  try:
    cost = compiled.cost_analysis() or {}
  except jax.errors.JaxRuntimeError:  # of a compiler of another version
    cost = {}
  return {
    "bytes": compiled_bytes(compiled, arguments),
    "flops": work.flops,
    "bytes_moved": work.bytes,
    "collectives": _grouped(work.collectives),
    "nodes": len(set(nodes)),
    "kernels": work.kernels,
    "whole_kernels": work.whole_kernels,
    "unknown_calls": work.unknown_calls,
    "unknown_loops": sorted(work.unknown_loops),
    "cost_analysis": {
      key: cost.get(key) for key in ("flops", "bytes accessed")
    },
  }


def _grouped(collectives):
  """Rows of collectives, one a kind and axes, the largest first."""
  groups = collections.defaultdict(lambda: dict.fromkeys(SUMS, 0.0))
  for one in collectives:
    group = groups[one.kind, one.axes]
    group["count"] += one.times
    group["bytes"] += one.times * one.bytes
    group["bytes_away"] += one.times * one.away
  rows = [
    {"kind": kind, "axes": list(axes), **group}
    for (kind, axes), group in groups.items()
  ]
  return sorted(rows, key=lambda row: -row["bytes"])


def roofline(figures, peak):
  """{resource: seconds} at least; empty where the chip is not known."""
  if peak is None or "flops" not in figures:
    return {}
  sent, away = (
    sum(row.get(key, 0) for row in figures["collectives"])
    for key in ("bytes", "bytes_away")
  )
  seconds = {
    "compute": figures["flops"] / peak.flops,
    "memory": figures["bytes_moved"] / peak.bandwidth,
    "network": (sent - away) / peak.network,
  }
  if away:
    seconds["between nodes"] = away / peak.between
  return seconds
