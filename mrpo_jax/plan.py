# SPDX-License-Identifier: Apache-2.0
"""What a run would take of machines that are not here, from compiling it.

The train step of a config, and the scoring step of each reference that is
scored, are compiled ahead of time for a topology: shapes alone, no weights, no
data.
"""

import collections
import copy
import datetime
import importlib.metadata
import json
import pathlib
import re
import tempfile
import warnings

import jax
import numpy as np

from mrpo_jax import flops, hlo, places, plan_table, planned, setups
from mrpo_jax.errors import InputError
from mrpo_jax.inputs import is_scored
from mrpo_jax.models import kernels


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


def measured(step, arguments, mesh, trips, keep=""):
  """dict of figures of one device, from compiling a jitted step.

  `keep` names a file for the compiled program's text.
  """
  try:
    compiled, text = compiled_text(step.lower(*arguments), mesh)
  except jax.errors.JaxRuntimeError as error:
    return _too_large(error, arguments)
  if keep:
    pathlib.Path(keep).write_text(text)
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


def plan(config, place, lengths, keep=""):
  """dict of all that is known of a run in a Place.

  Args:
    config: nested dict that `settings.read` returned.
    place: places.Place.
    lengths: (prompt, response), means in tokens; None is half of the limits.
    keep: file for the text of the compiled train step, or "".
  """
  data = config["data"]
  limits = data["max_prompt"], data["max_response"]
  lengths = lengths or tuple(max(1, n // 2) for n in limits)
  mesh = setups.mesh_of(config, place.devices)
  setup = setups.planned(config, mesh, places.read_shape)
  assumed = planned.assume(setup, lengths)
  step, arguments, adapter = planned.train_step(setup, assumed.rows)
  steps = {"train": measured(step, arguments, mesh, assumed.of, keep)}
  length_N3 = flops.pair_lengths(assumed.rows[0])
  useful = {"train": flops.step(setup.objective, assumed.rows, adapter)}
  in_kernels = {"train": _attention(setup, length_N3)}
  for names in planned.scored_names(setup):
    step, arguments = planned.scoring_step(setup, names[0], assumed.rows)
    key = f"score {', '.join(names)}"
    steps[key] = measured(step, arguments, mesh, assumed.of)
    model = setup.described[f"references.{names[0]}"].model.config
    parts = flops.forward(model, length_N3)
    useful[key], in_kernels[key] = sum(parts.values()), parts["attention"]
  for key, figures in steps.items():
    if figures.get("kernels"):
      # A kernel is closed to the count: at least what it cannot do without.
      figures["flops"] += in_kernels[key] / len(place.devices)
    figures |= _judged(figures, useful[key], config["batch"], place)
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


def _judged(figures, useful, batch, place):
  """What follows from the figures of a step in a Place."""
  judged = {"useful_flops": useful, "fits": None}
  if place.memory is not None:
    judged["fits"] = bool(figures["bytes"]["peak"] <= place.memory)
  judged["seconds"] = roofline(figures, place.peak)
  if judged["seconds"]:
    seconds = max(judged["seconds"].values())
    whole = seconds * place.peak.flops * len(place.devices)
    judged["mfu_bound"] = useful / whole
    judged["pairs_per_second_bound"] = batch / seconds
  return judged


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
    verdict = plan_table.verdict(found["fits"])
    say(f"{what}: {plan_table.sized_bytes(peak)}, {verdict}")
    if found["fits"]:
      return flags, found
  return None, None


def run(
  config,
  topology,
  *,
  hbm=None,
  lengths=None,
  fits=False,
  to="",
  keep="",
  say=print,
):
  """The command: says a table, and writes JSON to the file `to`.

  Args:
    config: nested dict that `settings.read` returned.
    topology: see `places.find`.
    hbm: bytes of a device, or None for the chip's.
    lengths: see `plan`.
    fits: search for what fits, where it does not?
    to: file for the figures, or "".
    keep: see `plan`.
    say: receives lines for a person.
  """
  place = places.find(topology, hbm)
  found = plan(config, place, lengths, keep)
  for line in plan_table.lines(found):
    say(line)
  if found["fits"] is False and fits:
    flags, fitting = fit(config, place, lengths, say)
    found["fit"] = {"flags": flags, "plan": fitting}
    if flags is None:
      say("nothing of that fits: more devices, or a smaller model")
    else:
      words = [f"--config.{key}={value}" for key, value in flags.items()]
      say(f"fits with {' '.join(words)}")
  elif found["fits"] is False:
    say("does not fit; --fit tries what would")
  if to:
    pathlib.Path(to).write_text(json.dumps(found, indent=2) + "\n")
