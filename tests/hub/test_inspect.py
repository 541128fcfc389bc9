# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import jax
import pytest

from mrpo_jax import hub, parallel
from mrpo_jax.errors import InputError
from mrpo_jax.hub import inspect

PHI = pathlib.Path(__file__).parents[1] / "golden" / "phi3_longrope"


def test_bytes_are_those_of_a_device_that_loads_it():
  sizes = dict(data=4, fsdp=2, model=1)
  config, params = hub.load(PHI, mesh=parallel.make_mesh(**sizes))
  leaves = jax.tree.leaves(params)
  held = sum(leaf.addressable_shards[3].data.nbytes for leaf in leaves)
  first, longest, mesh, head, *arrays, last = inspect.lines(PHI, sizes)
  assert first.endswith(
    f"phi3, {sum(leaf.size for leaf in leaves):,} parameters, float32"
  )
  assert longest.startswith(f"sequences beyond {config.longest} tokens")
  assert mesh == "on 8 devices, data=4, fsdp=2, model=1:"
  assert head.split() == ["array", "axes", "shape", "one", "device", "bytes"]
  assert len(arrays) == len(leaves)
  (query,) = [line for line in arrays if line.startswith("blocks.query ")]
  assert "layers embed heads -" in query
  assert last.startswith(f"{held:,} bytes on each device")


def test_devices_need_not_exist():
  assert "on 1 device, data=1:" in inspect.lines(PHI, dict(data=1))
  *_, last = inspect.lines(PHI, dict(data=64, fsdp=1, model=1))
  assert "bytes on each device" in last


@pytest.mark.parametrize("given", [5, "int7", "int8", ["a"]])
def test_a_dtype_that_is_no_float_is_refused(tmp_path, given):
  config = json.loads((PHI / "config.json").read_text())
  config |= {"dtype": given, "torch_dtype": "float32"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError) as found:
    next(inspect.lines(tmp_path, dict(data=1, fsdp=1, model=1)))
  assert str(found.value) == (
    f"{tmp_path}: config.json says dtype {str(given)!r}; want a floating type "
    "such as 'bfloat16'"
  )
