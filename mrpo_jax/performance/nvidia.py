# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's GPUs as XLA's compiler is told of them, none of which is here.

jax's CUDA plug-in compiles for a description of a GPU: neither a GPU nor its
driver is asked, nor are cuBLAS, cuDNN and NCCL loaded, whose kernels a program
calls by name.  So no kernel is tried out (autotuned), and what cuDNN takes for
itself while it runs is not known.
"""

import dataclasses
import importlib.metadata
import math
import os

import jax

from mrpo_jax.errors import InputError
from mrpo_jax.performance import chips

PLUGIN = "jax-cuda13-plugin"
NODE = 8  # GPUs that NVLink joins in a DGX or HGX of these
CUDNN = 9, 12  # what jax 0.10 asks for at least
FRACTION = 0.75  # of a GPU that jax takes, unless it is told


@dataclasses.dataclass(frozen=True)
class Description:
  """What decides how XLA cuts and fuses its kernels."""

  name: str  # what the driver calls it
  capability: tuple[int, int]
  cores: int  # streaming multiprocessors
  lanes: int  # float32 units of a core
  shared: int  # bytes of shared memory of a core
  l2: int  # bytes
  clock: float  # GHz, boosted


# XLA's own descriptions, read off such GPUs, of 2026-11: a100_sxm_80.txtpb,
# h100_sxm.txtpb, h200.txtpb, b200.txtpb of github.com/openxla/xla,
# xla/backends/gpu/target_config/specs.
DESCRIPTIONS = {
  "a100": Description(
    *("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167936, 41943040, 1.41)
  ),
  "h100": Description(
    *("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233472, 52428800, 1.98)
  ),
  "h200": Description(
    *("NVIDIA H200", (9, 0), 132, 128, 233472, 52428800, 1.98)
  ),
  "b200": Description(
    *("NVIDIA B200", (10, 0), 148, 128, 233472, 132644864, 1.965)
  ),
}


def target_config(name):
  """The text of XLA's GpuTargetConfigProto of a GPU of DESCRIPTIONS."""
  one, chip = DESCRIPTIONS[name], chips.CHIPS[name.upper()]
  major, minor = one.capability
  return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {one.shared}
  shared_memory_per_block_optin: {one.shared - 1024}
  threads_per_core_limit: 2048 core_count: {one.cores}
  fpus_per_core: {one.lanes} block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {one.l2}
  clock_rate_ghz: {one.clock} device_memory_size: {chip.memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
runtime_version {{ major: 13 }}
device_description_str: "{one.name}"
"""


def devices(topology, name, nodes, each):
  """Devices to compile for: `each` of every node, node by node.

  Args:
    topology: as on the command line, for errors.
    name: of DESCRIPTIONS.
    nodes: how many.
    each: GPUs of a node that take part.

  Raises:
    InputError: there is no such node, or jax's plug-in is not installed.
  """
  if not 1 <= each <= NODE or nodes < 1:
    raise InputError(
      f"--topology={topology}: want 1 to {NODE} GPUs of a node, which NVLink "
      f"joins, like {name}:{NODE}, or of two nodes {name}:2x{NODE}"
    )
  _check_plugin(topology)
  # Before jax starts: the compiler is all that is wanted, and a GPU that is
  # here is left alone.
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  jax.config.update("jax_platforms", "cpu")
  jax.devices("cpu")
  _answer_for_cudnn(DESCRIPTIONS[name].capability)
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(
      name,
      "cuda",
      target_config=target_config(name),
      topology=f"1x{nodes}x{each}",
    ).devices
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"--topology={topology}: {reason}") from None


def _check_plugin(topology):
  """Raises InputError without the plug-in that belongs to this jaxlib."""
  jaxlib = importlib.metadata.version("jaxlib")
  try:
    found = importlib.metadata.version(PLUGIN)
  except importlib.metadata.PackageNotFoundError:
    found = None
  if found is None or found.split(".")[:3] != jaxlib.split(".")[:3]:
    beside = f" {jaxlib}, not {found}" if found else ""
    raise InputError(
      f"--topology={topology} needs jax's compiler for GPUs{beside}, which "
      "runs without a GPU: pip install 'mrpo-jax[plan-gpu]'"
    )


def _answer_for_cudnn(capability, put=setattr):
  """Lets jax write calls of cuDNN's attention where there is no cuDNN.

  It asks the library its version and the first GPU its capability, once for
  all devices: what is compiled for answers here.
  """
  from jax._src.cudnn import fused_attention_stablehlo as asked

  major, minor = CUDNN

  def parsed(text):
    return tuple(int(part) for part in text.split("."))

  answers = {
    "check_cudnn_version": lambda: 10000 * major + 100 * minor,
    "check_compute_capability": lambda least: capability >= parsed(least),
    "is_cuda_compute_capability_equal": lambda one: capability == parsed(one),
  }
  for name, answer in answers.items():
    put(asked, name, answer)


def usable_bytes(memory):
  """Bytes that jax takes of a GPU's memory.

  Three quarters, unless XLA_CLIENT_MEM_FRACTION says otherwise, to jax too.
  """
  names = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
  name = next(filter(os.environ.get, names), None)
  if name is None:
    return FRACTION * memory
  try:
    share = float(os.environ[name])
  except ValueError:
    share = math.nan
  if not 0 < share <= 1:
    raise InputError(
      f"{name}={os.environ[name]}: want a number like 0.9, of a GPU's memory"
    )
  return share * memory
