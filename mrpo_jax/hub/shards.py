# SPDX-License-Identifier: Apache-2.0
"""Shards of a model written tensor by tensor, each made when its turn comes.

The library safetensors takes all tensors of a file at once; a file of its
format is a header in JSON and the bytes of one tensor after the other.
"""

import json
import math

import huggingface_hub
import numpy as np

from mrpo_jax import files
from mrpo_jax.hub.folder import INDEX
from mrpo_jax.hub.write import SHARD_BYTES

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_shards(folder, shapes, dtype, tensor_of, *, limit=SHARD_BYTES):
  """Writes the weights of a folder, and their index where there are several.

  Args:
    folder: that is there.
    shapes: {name: shape} of the tensors.
    dtype: NumPy dtype of them all, a key of DTYPES.
    tensor_of: name -> array of that shape and dtype.
    limit: bytes of one file.
  """
  plan = huggingface_hub.split_state_dict_into_shards_factory(
    shapes,
    get_storage_size=lambda shape: math.prod(shape) * dtype.itemsize,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=limit,
  )
  for shard, names in plan.filename_to_tensors.items():
    chosen = {name: shapes[name] for name in names}
    with open(folder / shard, "wb") as file:
      file.write(_header(chosen, dtype))
      for name in chosen:
        file.write(_bytes(tensor_of(name)))
  if plan.is_sharded:
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    files.write_json(folder / INDEX, index, sort_keys=False)


def _header(shapes, dtype):
  """The start of a file of these tensors, in this order."""
  entries, start = {"__metadata__": {"format": "pt"}}, 0
  for name, shape in shapes.items():
    end = start + math.prod(shape) * dtype.itemsize
    entries[name] = {
      "dtype": DTYPES[dtype.name],
      "shape": list(shape),
      "data_offsets": [start, end],
    }
    start = end
  text = json.dumps(entries, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
  return len(text).to_bytes(8, "little") + text


def _bytes(array):
  """The little-endian bytes of an array, without a copy where it can be."""
  return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
