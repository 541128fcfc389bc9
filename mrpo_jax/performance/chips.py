# SPDX-License-Identifier: Apache-2.0
"""Peak figures of chips: memory, operations, bandwidth, network.

Those of the v4's interconnect and of the GPUs are as commonly given; the pages
named beside them were not read for it.  Memory and bandwidth of GPUs are what
the driver says of them (nvidia.py); of what jax takes see nvidia.usable_bytes.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Figures of one chip; a device of jax may be a part of it."""

  memory: float  # bytes of HBM that programs may use
  flops: float  # bfloat16 products, without sparsity, operations a second
  bandwidth: float  # of the HBM, bytes a second
  network: float  # to other chips of the slice or node, one way, bytes a second
  between: float | None = None  # to other nodes, one way, bytes a second


# Interconnects are given for both ways together: `network` is half of that.
CHIPS = {
  # https://docs.cloud.google.com/tpu/docs/v4 (2,400 Gbit/s for each way)
  "v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
  # https://docs.cloud.google.com/tpu/docs/v5e (400 GB/s both ways)
  "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9),
  # https://docs.cloud.google.com/tpu/docs/v5p (1,200 GB/s both ways)
  "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9),
  # https://docs.cloud.google.com/tpu/docs/v6e (800 GB/s both ways)
  "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9),
  # https://docs.cloud.google.com/tpu/docs/tpu7x (1,200 GB/s both ways)
  "tpu7x": Chip(192 * GIB, 2307e12, 7380e9, 600e9),
  # https://www.nvidia.com/en-us/data-center/a100/ (SXM of 80 GB; NVLink 600
  # GB/s both ways); a node of
  # https://www.nvidia.com/en-us/data-center/dgx-a100/ has an InfiniBand of 200
  # Gbit/s for each
  "A100": Chip(85100068864, 312e12, 2039.04e9, 300e9, 25e9),
  # https://www.nvidia.com/en-us/data-center/h100/ (SXM; its products are given
  # with sparsity, twice these; NVLink 900 GB/s both ways); a node of
  # https://www.nvidia.com/en-us/data-center/dgx-h100/ has an InfiniBand of 400
  # Gbit/s for each
  "H100": Chip(84929347584, 989.5e12, 3352.32e9, 450e9, 50e9),
  # https://www.nvidia.com/en-us/data-center/h200/ (SXM, likewise)
  "H200": Chip(150754820096, 989.5e12, 4800e9, 450e9, 50e9),
  # https://www.nvidia.com/en-us/data-center/dgx-b200/ (72 PFLOPS in FP8 of 8
  # with sparsity, four times these; NVLink 1.8 TB/s both ways; 400 Gbit/s)
  "B200": Chip(191514411008, 2250e12, 7672.32e9, 900e9, 50e9),
}


# What jax calls them, which knows two names of some
# (jax/_src/pallas/mosaic/tpu_info.py): an H100 PCIe, an H200 NVL, a GB200 are
# others.
KINDS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
  "NVIDIA A100-SXM4-80GB": "A100",
  "NVIDIA H100 80GB HBM3": "H100",
  "NVIDIA H200": "H200",
  "NVIDIA B200": "B200",
}


def of_kind(kind):
  """The name in CHIPS of a device_kind of jax, or None."""
  return KINDS.get(kind)
