# SPDX-License-Identifier: Apache-2.0
"""Two processes read one model: each a part, together what one reads alone."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from mrpo_jax.hub.read import BUFFERS
from tests.material.folders import GOLDEN, WEIGHTS, edit

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = (
  *("llama_gqa_tied", "llama_mha_odd", "gpt2_bare", "gemma2_bf16"),
  *("gpt_neox_parallel", "phi3_partial"),
)
PROGRAM = """
import json, sys
import jax, numpy as np
from mrpo_jax import hub, parallel, processes
from mrpo_jax.errors import InputError
from mrpo_jax.hub.shares import Shares

coordinator, number, *folders = sys.argv[1:]
processes.start(coordinator, 2, int(number))
split = parallel.make_mesh(data=2, fsdp=2, model=2)
whole = parallel.make_mesh(data=8)
for mesh in (split, whole):
  processes.connect(mesh)
read, sizes = Shares._read, []

def counted(self, name, start, stop):
  part = read(self, name, start, stop)
  sizes.append(part.nbytes)
  return part

Shares._read = counted
for place, folder in enumerate(folders):
  mesh = whole if place else split  # of small models few divide
  sizes.clear()
  folder = folder.format(number)  # of copies, each process has its own
  try:
    marks = hub.fingerprint_together(folder), hub.fingerprint(folder)
    config, params = hub.load(folder, mesh=mesh)
  except InputError as error:
    print(json.dumps({"error": str(error)}))
    continue
  _, alone = hub.load(folder)
  same = jax.tree.map(
    lambda one, want: all(
      np.array_equal(shard.data, want[shard.index])
      for shard in one.addressable_shards
    ),
    params,
    jax.tree.map(np.asarray, alone),
  )
  to = parallel.param_shardings(config, mesh)
  placed = jax.tree.map(lambda one: one.sharding, params) == to
  found = {"bytes": sum(sizes), "same": all(jax.tree.leaves(same))}
  found["marked"] = marks[0] == marks[1]
  print(json.dumps({**found, "placed": placed}))
"""


def together(*folders):
  """What each of two processes, of four devices, says of each folder."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
  both = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, address, str(n), *map(str, folders)],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for n in range(2)
  ]
  try:
    ends = [one.communicate(timeout=300) for one in both]
  finally:
    for one in both:
      one.kill()
  assert not any(one.returncode for one in both), ends
  lines = [[x for x in out.splitlines() if x[:1] == "{"] for out, _ in ends]
  return [[*map(json.loads, found)] for found in lines]  # Gloo talks, too


@pytest.fixture
def broken(tmp_path):
  """(name, change of its tensors) -> a copy of a folder."""

  def broken(name, change):
    shutil.copytree(GOLDEN / name, tmp_path / name)
    edit(tmp_path / name, change)
    return tmp_path / name

  return broken


def test_two_read_each_tensor_once_and_get_what_one_gets(broken, tmp_path):
  def last_number(tensors):
    tensors["model.norm.weight"][-1] = np.inf

  def other_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][-1] += 1.0

  folders = [GOLDEN / name for name in FOLDERS]
  folders += [broken("llama_theta", last_number)]
  folders += [broken("llama_gqa_tied", other_head)]
  for number in "01":
    copied = broken("llama_mha_odd", last_number if number == "1" else dict)
    copied.rename(tmp_path / f"copy-{number}")
  folders += [tmp_path / "copy-{}"]
  first, second = together(*folders)
  for name, one, other in zip(FOLDERS, first, second, strict=False):
    assert one["same"] and other["same"], name
    assert one["placed"] and other["placed"], name
    assert one["marked"] and other["marked"], name
    found = safetensors.numpy.load_file(GOLDEN / name / WEIGHTS)
    tensors = [x for key, x in found.items() if not BUFFERS.search(key)]
    size = sum(tensor.nbytes for tensor in tensors)
    assert one["bytes"] + other["bytes"] == size, name
    # Eight parts of as many rows each, of which the last may lack some.
    rows = sum(8 * tensor[:1].nbytes for tensor in tensors)
    assert abs(one["bytes"] - other["bytes"]) <= rows, name
  # What one of them sees is refused by both, in the same words.
  for found in (first, second):
    assert len(found) == len(folders)
    number, head, copies = (one["error"] for one in found[-3:])
    assert "model.norm.weight holds numbers that are not finite" in number
    assert "lm_head.weight is not the embedding" in head
    assert "process 1 finds other files there than process 0" in copies
