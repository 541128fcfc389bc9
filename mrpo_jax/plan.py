# SPDX-License-Identifier: Apache-2.0
"""What a run would take of machines that are not here, from compiling it.

The train step of a config, and the scoring step of each reference that is
scored, are compiled ahead of time for a topology: shapes alone, no weights, no
data.  What memory a step takes does not depend on the data; how long it takes
does, and comes from a batch of pairs of assumed lengths that is packed as a
run packs its own.
"""

import collections
import copy
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import tempfile
import warnings

import jax
import numpy as np

from mrpo_jax import (
  chips,
  flops,
  hlo,
  hub,
  loading,
  optimizer,
  parallel,
  published,
  report,
  scoring,
  setups,
  train,
)
from mrpo_jax.data.encode import Encoded
from mrpo_jax.errors import InputError
from mrpo_jax.inputs import is_scored
from mrpo_jax.models import (
  attention,
  blockwise,
  families,
  head,
  kernels,
  leaves,
)
from mrpo_jax.models import rows as packed
from mrpo_jax.references import score
from mrpo_jax.references.store import Scores

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
TOPOLOGY = re.compile(r"([\w.]+):(\d+(?:x\d+)*)")
LAYOUT = ("positions", "segments", "branches")  # of attention.Layout
SPREAD = (0.5, 1.5)  # lengths of the assumed pairs, of their means
LOOPS = re.compile(
  r"micro_batches_of_(?P<tokens>\d+)"
  r"|\b(?P<name>head_gradient|head|blockwise_gradient|blockwise)\b"
)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a run would be: devices, and what each of them can do."""

  topology: str
  devices: list
  chip: str | None  # a key of chips.CHIPS
  share: float  # of a chip that one device is
  memory: float | None  # bytes of one device

  @property
  def peak(self):
    """chips.Chip of one device, or None."""
    if self.chip is None:
      return None
    whole = dataclasses.astuple(chips.CHIPS[self.chip])
    return chips.Chip(*(self.share * figure for figure in whole))


def find(topology, hbm=None):
  """The Place that a topology names: "v5p:4x4x4", "cpu:8" or "local".

  Args:
    topology: as on the command line.
    hbm: bytes of a device, in place of the chip's own.

  Raises:
    InputError: nobody knows it, or libtpu is not installed.
  """
  name, chip, share = topology, None, 1.0
  if topology == "local":
    devices = jax.devices()
    chip = chips.of_kind(devices[0].device_kind)
  elif topology.startswith("cpu:") and topology[4:].isdecimal():
    devices = _cpu_devices(int(topology[4:]))
  else:
    found = TOPOLOGY.fullmatch(topology)
    if not found or found.group(1) not in TPUS:
      raise InputError(
        f"--topology={topology}: not known; want local, cpu:8, or a TPU slice "
        f"like v5p:4x4x4 of {', '.join(TPUS)}"
      )
    chip = found.group(1)
    devices = _tpu_devices(topology)
    count = int(np.prod([int(n) for n in found.group(2).split("x")]))
    share = count / len(devices)
  memory = hbm or (chips.CHIPS[chip].memory * share if chip else None)
  return Place(name, devices, chip, share, memory)


def _cpu_devices(count):
  try:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # jax has started, with what it was told
    pass
  devices = jax.devices("cpu")
  if not 0 < count <= len(devices):
    raise InputError(
      f"--topology=cpu:{count}: this process has {len(devices)} CPU devices"
    )
  return devices[:count]


def _tpu_devices(topology):
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no TPU here to ask
  jax.config.update("jax_platforms", "cpu")
  from jax.experimental import topologies

  # Both cores of a v4 are one device, as on its machines.
  more = {"chip_config_name": "megachip"} if topology.startswith("v4") else {}
  try:
    importlib.metadata.version("libtpu")
    return topologies.get_topology_desc(topology, "tpu", **more).devices
  except ImportError:
    raise InputError(
      f"--topology={topology} needs the TPU's compiler, which runs without a "
      "TPU: pip install mrpo-jax[plan]"
    ) from None
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"--topology={topology}: {reason}") from None


def read_shape(path):
  """The ModelConfig of a folder, or of a published model by its hub name."""
  if pathlib.Path(path).is_dir():
    return hub.read_config(path)
  if path not in published.MODELS:
    raise InputError(
      f"{path}: no such folder, and no published model whose shape is known "
      f"here; known: {', '.join(published.MODELS)}; of others a folder that "
      "holds config.json will do"
    )
  return families.config_from_hf(published.MODELS[path])


# The assumed batch.


@dataclasses.dataclass(frozen=True)
class Assumed:
  """A batch of pairs of assumed lengths, and how long it keeps each loop."""

  rows: tuple  # per view, as the step takes them
  trips: dict  # (tokens of a row, name of the loop) -> how often it runs

  def of(self, scope):
    """How often a loop of that scope runs, where the data decide; or None."""
    tokens = name = None
    for found in LOOPS.finditer(scope):
      if found["tokens"]:
        tokens, name = int(found["tokens"]), "micro_batches"
      else:
        name = found["name"].removesuffix("_gradient")
    return self.trips.get((tokens, name))


def assume(setup, lengths):
  """The Assumed batch of a run.

  Args:
    setup: setups.SetUp.
    lengths: (prompt, response), means in tokens.
  """
  data, batch = setup.config["data"], setup.config["batch"]
  most = np.array([data["max_prompt"], *[data["max_response"]] * 2])
  mean = np.array([lengths[0], lengths[1], lengths[1]])
  spread = np.random.default_rng(0).uniform(*SPREAD, (batch, 3))
  length_N3 = np.clip(np.round(mean * spread).astype(int), 1, most)
  if setup.method.supervised:
    length_N3[:, 2] = 0
  if length_N3.sum(1).max() > data["row_length"]:
    raise InputError(
      f"--lengths={lengths[0]},{lengths[1]}: some pairs are longer than "
      f"config.data.row_length={data['row_length']}"
    )
  pairs = [
    Encoded(*([0] * n for n in counts)) for counts in length_N3.tolist()
  ]
  views = setup.packing.of([pairs] * setup.objective.views, np.arange(batch))
  chunk = setup.config["policy"]["chunk"]
  shards, trips = parallel.row_shards(setup.mesh), {}
  for part in views[0]:
    trips |= _trips(part, 2 * batch, shards, chunk)
  return Assumed(views, trips)


def _trips(rows, slots, shards, chunk):
  """{(T, loop): how often it runs}, on the device that has most to do."""
  _, R, T = rows.tokens_RT.shape
  used = int((rows.segments_RT > 0).any(axis=(1, 2)).sum())
  chunk = min(T, chunk or head.chunk_size(R // shards, T))
  scored_AR = (rows.slots_RM[:used] < slots).sum(axis=2)
  chunks_A = -(-scored_AR.max(axis=1) // chunk)

  def counts(a, shard):
    own = slice(shard * (R // shards), (shard + 1) * (R // shards))
    layout = attention.Layout(
      *(getattr(rows, f"{name}_RT")[a, own] for name in LAYOUT)
    )
    return np.mean(blockwise.block_counts(layout))

  blocks_A = [max(counts(a, n) for n in range(shards)) for a in range(used)]
  return {
    (T, "micro_batches"): used,
    (T, "head"): float(np.mean(chunks_A)) if used else 0,
    (T, "blockwise"): float(np.mean(blocks_A)) if used else 0,
  }


# The steps.


def _abstract(tree, shardings):
  return jax.tree.map(
    lambda array, to: jax.ShapeDtypeStruct(
      array.shape, array.dtype, sharding=to
    ),
    tree,
    shardings,
  )


def _abstract_rows(views, mesh):
  to = parallel.rows_sharding(mesh)
  return jax.tree.map(
    lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=to),
    views,
  )


def _given(setup, views):
  """What the step is told of the pairs, as zeros."""
  per_token = [] if setup.method.token_weight is not None else None
  none_PC = np.zeros((0, 2), np.float32)
  scores = {
    k: Scores(*[none_PC] * 4, token_logps=per_token)
    for k, model in enumerate(setup.objective.references)
    if model.scored
  }
  known = scoring.known_of([], scores, len(setup.objective.references))
  return known.of(setup.packing, np.arange(0), views)


def train_step(setup, rows):
  """(jitted train step, its abstract arguments, weights of an adapter)."""
  config, mesh = setup.config, setup.mesh
  loaded = loading.plan_models(config, setup.described, mesh)
  policy = loaded["policy"]
  transformation, _ = optimizer.make(
    steps=config["steps"] // config["rounds"]["count"], **config["optimizer"]
  )
  moves = setups.moves(config)
  state, _ = setups.abstract_state(setup, policy, transformation, moves)
  base, trained = leaves.split(policy.params)
  given = _given(setup, rows)
  arguments = (
    state,
    base,
    setups.frozen(setup, loaded, moves),
    _abstract_rows(rows, mesh),
    _abstract(given, parallel.figure_shardings(given, mesh)),
  )
  step = train.compile_step(
    setup.objective,
    transformation,
    jax.tree.map(lambda array: array.sharding, state),
    parallel.rows_sharding(mesh),
    moves,
  )
  sizes = [array.size for array in jax.tree.leaves(trained)]
  adapter = sum(sizes) if policy.adapter is not None else 0
  return step, arguments, adapter


def scoring_step(setup, name, rows):
  """(jitted scoring step of a reference, its abstract arguments)."""
  key = f"references.{name}"
  one = setup.described[key]
  loaded = loading.plan_models(
    setup.config,
    {key: dataclasses.replace(one, model=_online(one.model))},
    setup.mesh,
  )
  step = score.compile_figures(
    one.model.config,
    setup.config["batch"],
    setup.method.token_weight is not None,
    one.model.forward + one.model.head,
  )
  arguments = loaded[key].params, _abstract_rows(rows[0], setup.mesh)
  return step, arguments


def _online(model):
  return dataclasses.replace(model, scored=False)


def scored_names(setup):
  """References that are run before the first step, alike ones once."""
  config, found = setup.config["references"], {}
  for name in config["names"]:
    one = setup.described[f"references.{name}"]
    if is_scored(config[name]) or setup.method.measures:
      alike = one.model, dataclasses.replace(one.base, path="")
      found.setdefault(alike, []).append(name)
  return list(found.values())


# The figures.


def _argument_bytes(arguments):
  """(bytes of one device, from the shardings; how many are there twice).

  What an adapter's base and a reference share is given twice and is there
  once, which the compiler does not know.
  """

  def size(arrays):
    return sum(
      int(np.prod(array.sharding.shard_shape(array.shape)))
      * array.dtype.itemsize
      for array in arrays
    )

  arrays = jax.tree.leaves(arguments)
  once = size({id(array): array for array in arrays}.values())
  return once, size(arrays) - once


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


def measured(step, arguments, mesh, trips):
  """dict of figures of one device, from compiling a jitted step."""
  try:
    compiled, text = compiled_text(step.lower(*arguments), mesh)
  except jax.errors.JaxRuntimeError as error:
    return _too_large(error, arguments)
  memory = compiled.memory_analysis()
  sizes = {
    kind: getattr(memory, f"{kind}_size_in_bytes")
    for kind in ("argument", "output", "alias", "temp")
  }
  sizes["argument"] -= _argument_bytes(arguments)[1]
  sizes["peak"] = sum(sizes.values()) - 2 * sizes["alias"]
  work = hlo.work(text, dict(mesh.shape), trips)
  try:
    cost = compiled.cost_analysis() or {}
  except jax.errors.JaxRuntimeError:  # of a compiler of another version
    cost = {}
  return {
    "bytes": sizes,
    "flops": work.flops,
    "bytes_moved": work.bytes,
    "collectives": _grouped(work.collectives),
    "kernels": work.kernels,
    "unknown_loops": sorted(work.unknown_loops),
    "cost_analysis": {
      key: cost.get(key) for key in ("flops", "bytes accessed")
    },
  }


def _too_large(error, arguments):
  """The figures that a compiler gives when it runs out of memory."""
  text = str(error)
  found = re.search(r"Used ([\d.]+)([KMGT]?) of", text)
  if "RESOURCE_EXHAUSTED" not in text or not found:
    raise error
  unit = 1024 ** " KMGT".index(found.group(2) or " ")
  argument, twice = _argument_bytes(arguments)
  sizes = {
    "argument": argument,
    "peak": float(found.group(1)) * unit - twice,
  }
  return {"bytes": sizes}


def _grouped(collectives):
  """Those of one kind along the same axes together, the largest first."""
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


def _attention(setup, length_N3):
  """Operations that the attention of a step cannot do without."""
  models = [m for m in setup.objective.references if not m.scored]
  models += [setup.objective.policy] * 3  # forward once, backward twice
  return sum(flops.forward(m.config, length_N3)["attention"] for m in models)


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


def plan(config, place, lengths):
  """dict of all that is known of a run in a Place.

  Args:
    config: nested dict that `settings.read` returned.
    place: Place.
    lengths: (prompt, response), means in tokens; None is half of the limits.
  """
  data = config["data"]
  limits = data["max_prompt"], data["max_response"]
  lengths = lengths or tuple(max(1, n // 2) for n in limits)
  mesh = setups.mesh_of(config, place.devices)
  setup = setups.planned(config, mesh, read_shape)
  assumed = assume(setup, lengths)
  step, arguments, adapter = train_step(setup, assumed.rows)
  steps = {"train": measured(step, arguments, mesh, assumed.of)}
  length_N3 = flops.pair_lengths(assumed.rows[0])
  useful = {"train": flops.step(setup.objective, assumed.rows, adapter)}
  in_kernels = {"train": _attention(setup, length_N3)}
  for names in scored_names(setup):
    step, arguments = scoring_step(setup, names[0], assumed.rows)
    key = f"score {', '.join(names)}"
    steps[key] = measured(step, arguments, mesh, assumed.of)
    model = setup.described[f"references.{names[0]}"].model.config
    parts = flops.forward(model, length_N3)
    useful[key], in_kernels[key] = sum(parts.values()), parts["attention"]
  for key, figures in steps.items():
    figures["useful_flops"] = useful[key]
    if figures.get("kernels"):
      # A kernel is closed to the count: at least what it cannot do without.
      figures["flops"] += in_kernels[key] / len(place.devices)
    figures["fits"] = (
      None
      if place.memory is None
      else bool(figures["bytes"]["peak"] <= place.memory)
    )
    figures["seconds"] = roofline(figures, place.peak)
    if figures["seconds"]:
      seconds = max(figures["seconds"].values())
      whole = seconds * place.peak.flops * len(place.devices)
      figures["mfu_bound"] = useful[key] / whole
      figures["pairs_per_second_bound"] = config["batch"] / seconds
  verdicts = [figures["fits"] for figures in steps.values()]
  return {
    "topology": place.topology,
    "chip": place.chip,
    "devices": len(place.devices),
    "mesh": dict(mesh.shape),
    "device_bytes": place.memory,
    "batch": config["batch"],
    "rows": setup.packing.rows,
    "row_length": data["row_length"],
    "assumed_lengths": list(lengths),
    "kernel": _kernel(setup),
    "steps": steps,
    "useful_flops_formula": flops.FORMULA,
    "fits": None if None in verdicts else all(verdicts),
    "versions": versions(),
    "date": datetime.date.today().isoformat(),
  }


def _kernel(setup):
  """The name of the policy's attention kernel."""
  model = setup.objective.policy
  how = dict(model.forward)
  if how["kernel"] != "auto":
    return how["kernel"]
  policy = setup.config["policy"]
  dtype = policy["compute"] or policy["dtype"]
  return kernels.fastest(model.config, dtype, how["split"])


def versions():
  """{package: version} of the compilers."""
  found = {}
  for name in ("jax", "jaxlib", "libtpu"):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


# What would fit.


def changes(config, place):
  """What makes a step smaller, the cheapest first: [(what, {flag: value})].

  Each stands beside those before it, but integers in place of scoring.
  """
  data, mesh = config["data"], config["mesh"]
  online = [
    name
    for name in config["references"]["names"]
    if not is_scored(config["references"][name])
  ]
  longest = data["max_prompt"] + 2 * data["max_response"]
  fewest = {"data.rows": 0}
  if longest < data["row_length"]:
    fewest["data.row_length"] = longest
  steps = [("rows", fewest), ("remat", {"policy.remat": "full"})]
  if mesh["fsdp"] != -1 or mesh["data"] != 1:
    steps.append(("mesh", {"mesh.data": 1, "mesh.fsdp": -1}))
  shared = dict(pair for _, flags in steps for pair in flags.items())
  before = {}
  for what, flags in steps:
    before = {**before, **flags}
    yield what, before
  if online:
    yield (
      "scored references",
      shared | {f"references.{name}.mode": "scored" for name in online},
    )
    for kind in ("int8", "int4"):
      yield (
        f"{kind} references",
        shared | {f"references.{name}.quantize": kind for name in online},
      )


def changed(config, flags):
  """The config with other values at dotted keys."""
  config = copy.deepcopy(config)
  for key, value in flags.items():
    *parents, name = key.split(".")
    section = config
    for parent in parents:
      section = section[parent]
    section[name] = value
  return config


def fit(config, place, lengths, say):
  """(flags, dict of `plan`) of the first change that fits, or (None, None)."""
  for what, flags in changes(config, place):
    try:
      found = plan(changed(config, flags), place, lengths)
    except InputError as error:
      say(f"{what}: {error}")
      continue
    peak = max(f["bytes"]["peak"] for f in found["steps"].values())
    say(f"{what}: {_bytes(peak)}, {_verdict(found['fits'])}")
    if found["fits"]:
      return flags, found
  return None, None


def _verdict(fits):
  return {True: "fits", False: "does not fit", None: "to fit"}[fits]


# The table.


def table(found):
  """What `plan` found, as text."""
  split = ", ".join(f"{axis}={n}" for axis, n in found["mesh"].items())
  made = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
  prompt, response = found["assumed_lengths"]
  yield (
    f"{found['devices']} devices of {found['topology']}, mesh {split}; "
    f"{made}; {found['date']}"
  )
  yield (
    f"{found['batch']} pairs a step, micro-batches of {found['rows']} rows of "
    f"{found['row_length']} tokens, attention {found['kernel']!r}"
  )
  yield (
    f"assumed: prompts of {prompt} tokens, responses of {response} on average, "
    f"uniform from {SPREAD[0]} to {SPREAD[1]} of that (--lengths)"
  )
  for key, figures in found["steps"].items():
    yield ""
    yield f"{key} step, one device"
    yield report.aligned(list(_memory_rows(figures, found["device_bytes"])))
    if "flops" in figures:
      yield report.aligned(list(_work_rows(figures, found)))
      yield report.aligned(list(_collective_rows(figures)))
  yield ""
  yield f"useful: {found['useful_flops_formula']}"
  yield (
    "executed, moved and exchanged: read from the compiled program, a loop as "
    "often as it runs (XLA's own analysis counts it once); a bound on time "
    "takes the largest of compute, memory and network as if the others hid "
    "behind it"
  )


def sized(number, unit, step=1000):
  """A number with a prefix: "1.25 TFLOP", "95.0 GiB"."""
  for prefix in ("", "K", "M", "G", "T", "P", "E"):
    if abs(number) < step or prefix == "E":
      break
    number /= step
  binary = "i" if prefix and step == 1024 else ""
  return f"{number:.4g} {prefix}{binary}{unit}"


def _bytes(number):
  return sized(number, "B", 1024)


def _memory_rows(figures, memory):
  for kind, size in figures["bytes"].items():
    yield f"  {kind}", _bytes(size)
  of = "" if memory is None else f"{_bytes(memory)} of a device"
  yield f"  {_verdict(figures['fits'])}", of


def _work_rows(figures, found):
  devices = found["devices"]
  once = figures["cost_analysis"]["flops"]
  beside = f" (XLA, loops once: {sized(once, 'FLOP')})" if once else ""
  yield "  executed", sized(figures["flops"], "FLOP") + beside
  yield "  useful", sized(figures["useful_flops"] / devices, "FLOP")
  yield "  moved", _bytes(figures["bytes_moved"])
  for name, calls in figures["kernels"].items():
    yield f"  {name}", f"{calls:.0f} calls, counted as their useful work"
  for scope in figures["unknown_loops"]:
    yield "  counted once", scope
  for name, seconds in figures["seconds"].items():
    yield f"  {name}", f"at least {seconds:.4f} s"
  if figures["seconds"]:
    yield "  MFU", f"at most {figures['mfu_bound']:.1%}"
    yield "  pairs/s", f"at most {figures['pairs_per_second_bound']:.1f}"


def _collective_rows(figures):
  yield "  collective", "mesh axes", "times", "sent"
  for row in figures["collectives"]:
    yield (
      f"  {row['kind']}",
      " x ".join(row["axes"]) or "-",
      f"{row['count']:.0f}",
      _bytes(row["bytes"]),
    )


def run(config, topology, *, hbm=None, lengths=None, fits=False, to="", say):
  """The command: says a table, and writes JSON to the file `to`.

  Args:
    config: nested dict that `settings.read` returned.
    topology: see `find`.
    hbm: bytes of a device, or None for the chip's.
    lengths: see `plan`.
    fits: search for what fits, where it does not?
    to: file for the figures, or "".
    say: receives lines for a person.
  """
  place = find(topology, hbm)
  found = plan(config, place, lengths)
  for line in table(found):
    say(line)
  if found["fits"] is False and fits:
    flags, fitting = fit(config, place, lengths, say)
    found["fit"] = {"flags": flags, "plan": fitting}
    if flags is None:
      say("nothing of that fits: more devices, or a smaller model")
    else:
      words = " ".join(f"--config.{key}={value}" for key, value in flags.items())
      say(f"fits with {words}")
  elif found["fits"] is False:
    say("does not fit; --fit tries what would")
  if to:
    pathlib.Path(to).write_text(json.dumps(found, indent=2) + "\n")
