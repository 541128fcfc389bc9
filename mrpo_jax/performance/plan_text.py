# SPDX-License-Identifier: Apache-2.0
"""Text of a plan: a table for each step."""

from mrpo_jax.performance import nvidia
from mrpo_jax.performance.abstract import SPREAD
from mrpo_jax.runs.memory import verdict
from mrpo_jax.text import aligned, counted, sized, sized_bytes

CALLS = {  # of what a program calls by name -> how it was counted
  "kernels": "counted as their useful work",
  "whole_kernels": (
    "counted as every query with every key, masked or not; of packed sequences "
    "as what is causal in each"
  ),
  "unknown_calls": "whose operations are not known, and not counted",
}


def lines(found):
  """Yields the lines about the figures of `plan.plan`."""
  split = ", ".join(f"{axis}={n}" for axis, n in found["mesh"].items())
  made = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
  prompt, response = found["assumed_lengths"]
  least, most = SPREAD
  devices = counted(found["devices"], "device")
  yield (
    f"{devices} of {found['topology']}, mesh {split}; {made}; {found['date']}"
  )
  yield (
    f"{counted(found['batch'], 'pair')} a step, micro-batches of "
    f"{counted(found['rows'], 'row')} of "
    f"{found['row_length']} tokens, attention {found['kernel']!r}"
  )
  yield (
    f"assumed: prompts of {prompt} tokens, responses of {response} on average, "
    f"uniform from {least} to {most} of that (--lengths)"
  )
  for key, figures in found["steps"].items():
    yield ""
    yield f"{key} step, one device"
    yield aligned(list(_memory_rows(figures, found["device_bytes"])))
    if "flops" in figures:
      yield aligned(list(_work_rows(figures, found)))
      yield aligned(list(_collective_rows(figures)))
  yield ""
  yield from _of_gpus(found)
  yield f"useful: {found['useful_flops_formula']}"
  yield (
    "executed, moved and exchanged: read from the compiled program, a loop as "
    "often as it runs (XLA's own analysis counts it once); a bound on time "
    "takes the largest of compute, memory and network as if the others hid "
    "behind it"
  )


def _memory_rows(figures, memory):
  for kind, size in figures["bytes"].items():
    yield f"  {kind}", sized_bytes(size)
  if memory is not None:
    yield f"  {verdict(figures['fits'])}", f"{sized_bytes(memory)} of a device"


def _work_rows(figures, found):
  devices = found["devices"]
  once = figures["cost_analysis"]["flops"]
  beside = f" (XLA, loops once: {sized(once, 'FLOP')})" if once else ""
  yield "  executed", sized(figures["flops"], "FLOP") + beside
  yield "  useful", sized(figures["useful_flops"] / devices, "FLOP")
  yield "  moved", sized_bytes(figures["bytes_moved"])
  for key, how in CALLS.items():
    for name, calls in figures[key].items():
      yield f"  {name}", f"{calls:.0f} calls, {how}"
  for scope in figures["unknown_loops"]:
    yield "  counted once", scope
  for name, seconds in figures["seconds"].items():
    yield f"  {name}", f"at least {seconds:.4f} s"
  if figures["seconds"]:
    yield "  MFU", f"at most {figures['mfu_bound']:.1%}"
    yield "  pairs/s", f"at most {figures['pairs_per_second_bound']:.1f}"


def _collective_rows(figures):
  many = figures["nodes"] > 1
  head = "  collective", "mesh axes", "times", "sent"
  yield (*head, "to other nodes") if many else head
  for row in figures["collectives"]:
    cells = (
      f"  {row['kind']}",
      " x ".join(row["axes"]) or "-",
      f"{row['count']:.0f}",
      sized_bytes(row["bytes"]),
    )
    yield (*cells, sized_bytes(row["bytes_away"])) if many else cells


def _of_gpus(found):
  """Lines about what is not known of GPUs before a program runs on them."""
  if found["platform"] != "gpu":
    return
  yield (
    "compiled for GPUs that are not here: no kernel was tried out (autotuned), "
    "and the scratch of cuBLAS, cuDNN's workspace and NCCL's buffers are not "
    "known and not in the peak; a device's memory is what jax takes of it, "
    f"{nvidia.FRACTION:.0%} unless XLA_CLIENT_MEM_FRACTION says otherwise"
  )
