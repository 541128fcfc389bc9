# SPDX-License-Identifier: Apache-2.0
"""Benchmark of a config's own train step on its own data."""

import contextlib
import datetime
import logging
import os
import pathlib
import platform
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import files, parallel
from mrpo_jax.data.batches import training_batches
from mrpo_jax.errors import InputError
from mrpo_jax.performance import flops
from mrpo_jax.progress import stage
from mrpo_jax.rows import token_counts
from mrpo_jax.runs.ahead import Ahead
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.runs.models import load_models
from mrpo_jax.runs.program import Program
from mrpo_jax.runs.score import ScorePlan
from mrpo_jax.runs.setup import set_up
from mrpo_jax.text import aligned

logger = logging.getLogger(__name__)

# Side of the largest matrix of `matmul_peak`.
CPU_SIDE, ACCELERATOR_SIDE = 2048, 8192


def bench_setup(config, workdir):
  """setup.Setup without held-out pairs, unless the method learns from them.

  Raises:
    InputError: the run makes its pairs as it goes, or reads them so.
  """
  if config.online.prompts:
    raise InputError(
      "config.online.prompts: a run of rounds has no pairs to time before it "
      "samples them; mrpo train says pairs/s, and its rounds/<n>/pairs.jsonl "
      "can be config.data.train here"
    )
  if config.data.streaming:
    raise InputError(
      "config.data.streaming: what is timed here are steps on pairs in memory; "
      "leave it out, and name a file of fewer pairs in config.data.train"
    )
  if not chosen_method(config).learns:
    config = config.changed({"data.eval": ""})
  return set_up(config, pathlib.Path(workdir))


class Bench:
  """The train step of a run, one at a time, to whoever holds the watch.

  It is made as `train.train_run` makes it, in one process; nothing but the
  store is written.  References in mode "scored" are scored beforehand, what
  the store has of them is not.

  Attributes:
    pairs: how many pairs of the data can be asked for.
    batch: B, pairs of a step.
    compile_seconds: of the step; from a cache, where there is one.
    compiled: the step as jax.stages.Compiled; a trace names its instructions.
    memory: bytes of the compiled step, as the compiler says them, or {}.
  """

  def __init__(self, setup, *, store=""):
    """Args: setup.Setup; folder of the store, "" is the workdir's own."""
    self._setup = setup
    config, mesh = setup.config, setup.mesh
    scores = ScorePlan.of(setup, store, fresh=True)
    scores.fill()
    models = load_models(setup.described, mesh)
    self._program = Program(setup, models)
    del models  # the policy's start is the state's now
    self._state, _ = self._program.start(scores)
    self._known, self._views = scores.known("train"), setup.views("train")
    self._training = training_batches(
      self._views,
      setup.packing,
      seed=config.seed,
      known=self._known,
      file_weights=setup.file_weights,
    )
    self.pairs, self.batch = len(self._views[0]), config.batch
    packed = self._packed(np.arange(min(self.batch, self.pairs)))
    batch = parallel.global_batch(*packed, mesh)
    arguments = (self._state, *self._program.frozen, *batch)
    lowered = self._program.jitted.lower(*arguments)
    started = time.perf_counter()
    with stage("compiling the step"):
      self.compiled = lowered.compile()
    self.compile_seconds = time.perf_counter() - started
    self.memory = _memory(self.compiled)
    self._step = Ahead(
      "the step", self._program.jitted, arguments, self.compiled
    )

  def step(self, indices=None):
    """One step and what it took; every step ends before the next begins.

    Args:
      indices: which pairs of the data, at most `batch`; None is what training
        would see next.

    Returns:
      dict: `seconds` of the whole step, of these `input_seconds` until its
      rows were there; `pairs`, `tokens`, `slots` (tokens and padding that
      were computed), `flops` (see `flops.step`), `loss`.
    """
    started = time.perf_counter()
    if indices is None:
      _, (rows, given) = next(self._training)
    else:
      rows, given = self._packed(np.asarray(indices))
    batch = parallel.global_batch(rows, given, self._setup.mesh)
    ready = time.perf_counter()
    self._state, metrics = self._step(
      self._state, *self._program.frozen, *batch
    )
    jax.block_until_ready((self._state, metrics))
    ended = time.perf_counter()
    objective = self._setup.objective
    policy_rows = rows[objective.policy.view]
    tokens, slots = map(int, token_counts(policy_rows))
    pairs = len(flops.pair_lengths(policy_rows))
    return {
      "seconds": ended - started,
      "input_seconds": ready - started,
      "pairs": pairs,
      "tokens": tokens,
      "slots": slots,
      "flops": flops.step(objective, rows, self._program.adapter_size),
      "loss": float(metrics["loss"]),
    }

  def matmul_peak(self):
    """Operations per second of `matmul_peak` in what is computed with."""
    policy = self._setup.config.policy
    return matmul_peak(self._setup.mesh, policy.compute or policy.dtype)

  def _packed(self, indices):
    rows = self._setup.packing.of(self._views, indices)
    return rows, self._known.of(self._setup.packing, indices, rows)


def _memory(compiled):
  """Bytes of a compiled program, where the backend tells them."""
  found = compiled.memory_analysis()
  kinds = ("argument", "output", "alias", "temp")
  return {
    kind: getattr(found, f"{kind}_size_in_bytes")
    for kind in kinds
    if hasattr(found, f"{kind}_size_in_bytes")
  }


def matmul_peak(mesh, dtype):
  """Operations per second of the fastest matrix product on all devices.

  The rows of the left factor lie on the devices of the mesh, the right one on
  each: no communication.  Square factors, and tall ones as in a decoder.
  """
  cpu = mesh.devices.flat[0].platform == "cpu"
  side = CPU_SIDE if cpu else ACCELERATOR_SIDE
  devices = mesh.devices.size
  # Forced CPU devices share the cores: more rows would only take longer.
  scale = -(-side // devices) * devices if cpu else side * devices
  rows = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(mesh.axis_names)
  )
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  product = jax.jit(jnp.matmul)
  best = 0.0
  for n, k, m in ((scale, side, side), (4 * scale, side // 4, side)):
    left_NK = jax.device_put(jnp.ones((n, k), dtype), rows)
    right_KM = jax.device_put(jnp.ones((k, m), dtype), everywhere)
    jax.block_until_ready(product(left_NK, right_KM))
    for _ in range(3):
      started = time.perf_counter()
      jax.block_until_ready(product(left_NK, right_KM))
      seconds = time.perf_counter() - started
      best = max(best, 2 * n * k * m / seconds)
  return best


def peak_memory():
  """(bytes, of what): of the fullest device, or else of this process."""
  devices = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [stats.get("peak_bytes_in_use", 0) for stats in devices]
  if max(peaks):
    return max(peaks), "device"
  status = pathlib.Path("/proc/self/status")
  if status.exists():  # ru_maxrss of a child starts with its parent's
    lines = status.read_text().split("\n")
    (line,) = (one for one in lines if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024, "process"
  unit = 1 if sys.platform == "darwin" else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * unit, "process"


def machine():
  """{what: value} that a timing is worth nothing without."""
  return {
    "jax": jax.__version__,
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "cores": os.cpu_count(),
    "machine": platform.machine(),
    "date": datetime.date.today().isoformat(),
  }


def measure(bench, *, steps, warmup, trace=""):
  """dict of figures over `steps` timed steps, after `warmup` others.

  The peak of `matmul_peak` is measured between the steps, so that a slow
  minute is in both; with a trace only around them.
  """
  for _ in range(warmup):
    bench.step()
  peaks, found = [bench.matmul_peak()], []
  with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
    for n in range(steps):
      found.append(bench.step())
      if not trace and n % max(1, steps // 4) == 0:
        peaks.append(bench.matmul_peak())
  peaks.append(bench.matmul_peak())
  columns = {name: np.array([one[name] for one in found]) for name in found[0]}
  seconds = columns["seconds"]
  low, middle, high = np.quantile(columns["pairs"] / seconds, [0.25, 0.5, 0.75])
  useful = np.median(columns["flops"] / seconds)
  memory, of_what = peak_memory()
  return {
    "pairs_per_second": float(middle),
    "pairs_per_second_quartiles": [float(low), float(high)],
    "tokens_per_second": float(np.median(columns["tokens"] / seconds)),
    "slots_per_second": float(np.median(columns["slots"] / seconds)),
    "useful_flops_per_second": float(useful),
    "useful_flops_per_step": float(np.mean(columns["flops"])),
    "useful_flops_formula": flops.FORMULA,
    "matmul_flops_per_second": max(peaks),
    "useful_share": float(useful / max(peaks)),
    "input_share": float(columns["input_seconds"].sum() / seconds.sum()),
    "compile_seconds": bench.compile_seconds,
    "peak_bytes": memory,
    "peak_bytes_of": of_what,
    "step_bytes": bench.memory,
    "seconds": seconds.tolist(),
    "losses": columns["loss"].tolist(),
    "batch": bench.batch,
    "steps": steps,
    "warmup": warmup,
    "machine": machine(),
  }


def text(figures):
  """Aligned text of the figures of `measure`."""
  low, high = figures["pairs_per_second_quartiles"]
  tokens, slots = figures["tokens_per_second"], figures["slots_per_second"]
  of_what = figures["peak_bytes_of"]
  rows = [
    (
      "pairs/s",
      f"{figures['pairs_per_second']:.2f} ({low:.2f} to {high:.2f})",
    ),
    (
      "tokens/s",
      f"{tokens:,.0f}, with padding {slots:,.0f} ({tokens / slots:.1%} real)",
    ),
    ("useful GFLOP/s", f"{figures['useful_flops_per_second'] / 1e9:.1f}"),
    (
      "matmul GFLOP/s",
      f"{figures['matmul_flops_per_second'] / 1e9:.1f}, the fastest product",
    ),
    ("useful share", f"{figures['useful_share']:.1%}"),
    ("input", f"{figures['input_share']:.1%} of the time"),
    ("compilation", f"{figures['compile_seconds']:.1f} s"),
    ("peak memory", f"{figures['peak_bytes'] / 1e6:,.0f} MB of the {of_what}"),
  ]
  if figures["step_bytes"]:
    sizes = figures["step_bytes"].items()
    kinds = ", ".join(f"{kind} {size / 1e6:,.1f}" for kind, size in sizes)
    rows.append(("compiled step", f"{kinds} MB"))
  about = figures["machine"].items()
  rows.append(("measured", ", ".join(f"{k} {v}" for k, v in about)))
  return f"{aligned(rows)}\nuseful: {flops.FORMULA}"


def run(config, workdir, *, steps, warmup, store="", to="", trace=""):
  """The command: measures, says a table, and writes JSON to the file `to`."""
  bench = Bench(bench_setup(config, workdir), store=store)
  figures = measure(bench, steps=steps, warmup=warmup, trace=trace)
  logger.info(text(figures))
  if to:
    files.write_json(to, figures, sort_keys=False)
