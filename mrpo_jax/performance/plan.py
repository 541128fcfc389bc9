# SPDX-License-Identifier: Apache-2.0
"""Plan of a run: memory and time on machines that are not here.

The train step of a config, and the scoring step of each reference that is
scored, are compiled ahead of time for a topology: shapes alone, no weights, no
data.
"""

import datetime
import importlib.metadata
import logging

import numpy as np

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.models.attention import kernels
from mrpo_jax.performance import flops, nvidia, plan_text, tune
from mrpo_jax.performance.abstract import (
  assume,
  scored_names,
)
from mrpo_jax.performance.compiled import measured, roofline
from mrpo_jax.performance.topology import find_target, read_shape
from mrpo_jax.progress import stage
from mrpo_jax.runs.memory import (
  argument_bytes,
  as_flags,
  changes,
  first_that_fits,
)
from mrpo_jax.runs.program import abstract_train_step
from mrpo_jax.runs.score import abstract_scoring_step
from mrpo_jax.runs.setup import abstract_setup, mesh_of

logger = logging.getLogger(__name__)


def _attention(setup, length_N3):
  """Operations that the attention of a step cannot do without."""
  models = [m for m in setup.objective.references if not m.scored]
  models += [setup.objective.policy] * 3  # forward once, backward twice
  return sum(flops.forward(m.config, length_N3)["attention"] for m in models)


def usual_lengths(config):
  """(prompt, response), means in tokens: half of their limits."""
  limits = config.data.max_prompt, config.data.max_response
  return tuple(max(1, n // 2) for n in limits)


def _programs(setup, assumed, target, keep, scoring):
  """Yields each step's name, figures, and what it cannot do without.

  That is its useful operations, and those of them in attention; see `plan`.
  """
  mesh = setup.mesh
  step, arguments, adapter = abstract_train_step(setup, assumed.rows)
  needed, _ = argument_bytes(arguments)
  if not scoring and target.memory is not None and needed > target.memory:
    figures = {"bytes": {"argument": needed, "peak": needed}}
  else:
    with stage("compiling the train step"):
      figures = measured(step, arguments, mesh, assumed.of, keep)
  useful = assumed.mean(
    lambda views: flops.step(setup.objective, views, adapter)
  )
  lengths_DN3 = [flops.pair_lengths(views[0]) for views in assumed.draws]
  attention = np.mean([_attention(setup, one_N3) for one_N3 in lengths_DN3])
  yield "train", figures, useful, attention
  for names in scored_names(setup) if scoring else ():
    step, arguments = abstract_scoring_step(
      setup.described[names[0]],
      mesh,
      setup.packing,
      per_token=setup.method.token_weight is not None,
      rows=assumed.rows[0],
    )
    key = f"score {', '.join(names)}"
    with stage(f"compiling the {key} step"):
      figures = measured(step, arguments, mesh, assumed.of)
    model = setup.described[names[0]].model.config
    parts = [flops.forward(model, one_N3) for one_N3 in lengths_DN3]
    useful = np.mean([sum(one.values()) for one in parts])
    yield key, figures, useful, np.mean([one["attention"] for one in parts])


def plan(config, target, lengths, keep="", *, scoring=True):
  """dict of all that is known of a run on a Target.

  Args:
    config: Config of the run.
    target: topology.Target.
    lengths: (prompt, response), means in tokens.
    keep: file for the text of the compiled train step, or "".
    scoring: the steps that score references, too?  Else, in a search, a train
      step is not compiled whose arguments alone are too large.
  """
  mesh = mesh_of(config, target.devices)
  setup = abstract_setup(config, mesh, read_shape)
  assumed = assume(setup, lengths)
  steps = {}
  for key, figures, useful, attention in _programs(
    setup, assumed, target, keep, scoring
  ):
    if figures.get("kernels"):
      # A kernel is closed to the count: at least what it cannot do without.
      figures["flops"] += attention / len(target.devices)
    steps[key] = figures | _judged(figures, useful, config.batch, target)
  verdicts = [figures["fits"] for figures in steps.values()]
  platform = target.devices[0].platform
  return {
    "topology": target.topology,
    "chip": target.chip,
    "platform": platform,
    "devices": len(target.devices),
    "mesh": dict(mesh.shape),
    "device_bytes": target.memory,
    "batch": config.batch,
    "rows": setup.packing.rows,
    "row_length": config.data.row_length,
    "assumed_lengths": list(lengths),
    "kernel": _kernel(setup),
    "steps": steps,
    "useful_flops_formula": flops.FORMULA,
    "fits": None if None in verdicts else all(verdicts),
    "versions": versions(platform),
    "date": datetime.date.today().isoformat(),
  }


def _judged(figures, useful, batch, target):
  """Figures of a step that follow from its Target: fits, seconds, bounds."""
  judged = {"useful_flops": useful, "fits": None}
  if target.memory is not None:
    judged["fits"] = bool(figures["bytes"]["peak"] <= target.memory)
  judged["seconds"] = roofline(figures, target.peak)
  if judged["seconds"]:
    seconds = max(judged["seconds"].values())
    whole = seconds * target.peak.flops * len(target.devices)
    judged["mfu_bound"] = useful / whole
    judged["pairs_per_second_bound"] = batch / seconds
  return judged


def _kernel(setup):
  """The name of the policy's attention kernel."""
  model = setup.objective.policy
  how = model.computation
  if how.kernel != "auto":
    return how.kernel
  policy = setup.config.policy
  dtype = policy.compute or policy.dtype
  return kernels.fastest(model.config, dtype, how.partition)


def versions(platform):
  """{package: version} of the compilers of a platform."""
  found = {}
  compiler = {"tpu": ["libtpu"], "gpu": [nvidia.PLUGIN]}.get(platform, [])
  for name in ("jax", "jaxlib", *compiler):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def fit(config, target, lengths):
  """(flags, dict of `plan`) of the first change that fits, or (None, None)."""

  def judge(changed):
    found = plan(changed, target, lengths)
    peak = max(f["bytes"]["peak"] for f in found["steps"].values())
    return peak, found["fits"], found

  return first_that_fits(config, changes(config, len(target.devices)), judge)


def _tuned(config, target, lengths, found):
  """What `tune.tune` found beside a plan, and the lines about it."""

  def judge(changed, scoring):
    if changed == config:
      return found
    return plan(changed, target, lengths, scoring=scoring)

  tuned = tune.tune(config, target, lengths, judge)
  if tuned["plan"] is None:
    logger.info("nothing of that fits: more devices, or a smaller model")
    return tuned
  for line in plan_text.lines(tuned["plan"]):
    logger.info(line)
  logger.info(
    f"fastest of {len(tuned['tried'])} plans, at most "
    f"{tuned['pairs_per_second']:.1f} pairs/s: "
    + (as_flags(tuned["flags"]) or "as it is")
  )
  return tuned


def run(
  config,
  topology,
  *,
  hbm=None,
  lengths=None,
  fits=False,
  fastest=False,
  to="",
  keep="",
):
  """The command: logs a table, and writes JSON to the file `to`.

  Args:
    config: Config of the run.
    topology: see `topology.find_target`.
    hbm: bytes of a device, or None for the chip's.
    lengths: (prompt, response), means in tokens; None is `usual_lengths`.
    fits: search for what fits, where it does not?
    fastest: search for what is fastest of what fits?
    to: file for the figures, or "".
    keep: see `plan`.
  """
  target = find_target(topology, hbm)
  if fits and fastest:
    raise InputError("--fit and --tune: what is fastest fits, so give one")
  if fastest:
    tune.check(target)
  lengths = lengths or usual_lengths(config)
  found = plan(config, target, lengths, keep)
  for line in plan_text.lines(found):
    logger.info(line)
  if fastest:
    found["tune"] = _tuned(config, target, lengths, found)
  elif found["fits"] is False and fits:
    flags, fitting = fit(config, target, lengths)
    found["fit"] = {"flags": flags, "plan": fitting}
    if flags is None:
      logger.info("nothing of that fits: more devices, or a smaller model")
    else:
      logger.info(f"fits with {as_flags(flags)}")
  elif found["fits"] is False:
    logger.info("does not fit; --fit tries what would")
  if to:
    files.write_json(to, found, sort_keys=False)
