# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder: its files, and which tensor holds which leaf."""

import contextlib
import dataclasses
import hashlib
import itertools
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import safetensors

from mrpo_jax import files, processes
from mrpo_jax.errors import InputError
from mrpo_jax.models import parameters
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.snapshots import folder_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
# Of a file, by which copies of it are told: pieces, and bytes of each.
SAMPLES, SAMPLE = 1024, 512


def fingerprint(path):
  """SHA-256, in hex, over the contents of config.json and the weights.

  The same for a copy elsewhere; another for any changed byte or file name.
  """
  found = _marked(path)
  return _joined({name: files.sha256_of(one) for name, one in found.items()})


def fingerprint_together(path):
  """`fingerprint`, of which each process computes the hashes of some files.

  That they have the same files is told by sizes and by samples, so that of one
  folder no byte is read twice.

  Raises:
    InputError: they have not; on all of them.
  """
  found = _marked(path)
  marks = processes.gather({name: _sampled(one) for name, one in found.items()})
  others = [number for number, one in enumerate(marks) if one != marks[0]]
  if others:
    raise InputError(
      f"{path}: process {others[0]} finds other files there than process 0; "
      "give all of them one folder, or copies of one"
    )
  mine = [*found][jax.process_index() :: jax.process_count()]
  parts = processes.gather(
    {name: files.sha256_of(found[name]) for name in mine}
  )
  hashes = {name: text for part in parts for name, text in part.items()}
  return _joined({name: hashes[name] for name in found})


def _marked(path):
  """{name within the folder: file} of config.json and the weights."""
  config = config_file(path)
  found = [config, *weight_files(path)]
  return {one.relative_to(config.parent).as_posix(): one for one in found}


def _joined(hashes):
  text = "".join(f"{name} {sha}\n" for name, sha in hashes.items())
  return hashlib.sha256(text.encode()).hexdigest()


def _sampled(path):
  """[size, SHA-256 of bytes that lie evenly over it] of a file.

  Two models that differ by an adapter alone have the same ends.
  """
  size, found = path.stat().st_size, hashlib.sha256()
  with open(path, "rb") as file:
    for number in range(SAMPLES):
      file.seek(max(0, size - SAMPLE) * number // (SAMPLES - 1))
      found.update(file.read(SAMPLE))
  return [size, found.hexdigest()]


# Files.


def config_file(path):
  """The config.json of a folder."""
  file = folder_of(path) / "config.json"
  if file.is_file():
    return file
  if not file.parent.is_dir():
    raise InputError(
      f"{path}: no such folder, and no name on the Hugging Face hub, which are "
      "ORG/NAME or ORG/NAME@REVISION"
    )
  _refuse_adapter(file.parent)
  raise InputError(f"{path}: there is no config.json")


def _refuse_adapter(folder):
  if (folder / "adapter_config.json").is_file():
    raise InputError(
      f"{folder}: holds an adapter alone; merge it into its base model first"
    )


def generation_config(folder):
  """The content of generation_config.json; {} where there is none."""
  file = folder_of(folder) / GENERATION
  return files.read_json(file) if file.is_file() else {}


def _weight_map(folder):
  """Name of each tensor that the index lists -> name of its file."""
  file = folder / INDEX
  listed = files.read_json(file).get("weight_map")
  if not isinstance(listed, dict) or not listed:
    raise InputError(f"{file}: weight_map is missing or empty")
  for shard in listed.values():
    if not isinstance(shard, str):
      raise InputError(f"{file}: {shard!r} is no file name")
    place = pathlib.PurePath(shard)
    if place.is_absolute() or ".." in place.parts:
      raise InputError(f"{file}: {shard!r} leaves the folder")
    if not (folder / place).is_file():
      raise InputError(f"{file}: its shard {shard!r} is absent")
  return listed


def weight_files(folder):
  """The files that hold the weights, in order of name."""
  folder = folder_of(folder)
  if (folder / WEIGHTS).is_file():
    return [folder / WEIGHTS]
  if (folder / INDEX).is_file():
    shards = set(_weight_map(folder).values())
    return [folder / shard for shard in sorted(shards)]
  if any(folder.glob("pytorch_model*")) or any(folder.glob("*.pth")):
    raise InputError(
      f"{folder}: holds pickled weights only, which can run code when read; "
      "convert them with save_pretrained(..., safe_serialization=True)"
    )
  _refuse_adapter(folder)
  raise InputError(f"{folder}: there is no {WEIGHTS} and no {INDEX}")


# Tensors.


class TensorInfo(NamedTuple):
  """A tensor of a folder, before it is read."""

  path: pathlib.Path
  dtype: str  # as safetensors names it
  shape: tuple[int, ...]


@contextlib.contextmanager
def whole(path):
  """Turns what safetensors says of a broken file into InputError."""
  try:
    yield
  except safetensors.SafetensorError as error:
    raise InputError(
      f"{path}: not a whole safetensors file ({error}); fetch it again"
    ) from None


def check_header(path):
  """Raises InputError where a whole file of tensors names one twice.

  safetensors takes the last of them without a word.
  """
  with open(path, "rb") as file:
    size = int.from_bytes(file.read(8), "little")
    files.parsed(file.read(size), f"{path}: its header")


def tensor_infos(folder):
  """{name: TensorInfo} of a folder, from the headers of its files."""
  folder, infos = folder_of(folder), {}
  for path in weight_files(folder):
    with whole(path), safetensors.safe_open(path, framework="np") as file:
      check_header(path)
      for name in file.keys():
        if name in infos:
          raise InputError(f"{path}: {name} stands in {infos[name].path} too")
        tensor = file.get_slice(name)
        shape = tuple(tensor.get_shape())
        infos[name] = TensorInfo(path, tensor.get_dtype(), shape)
  if not (folder / WEIGHTS).is_file():
    for name, shard in _weight_map(folder).items():
      if name not in infos or infos[name].path != folder / shard:
        raise InputError(f"{folder / INDEX}: {name} is not in {shard}")
  return infos


def read_tensor(infos, name):
  """The array of that name, its file opened for it alone."""
  # A file that stays open keeps what was read of it in memory.
  with safetensors.safe_open(infos[name].path, framework="np") as file:
    return file.get_tensor(name)


def floating(dtype):
  """The dtype of that name or kind; InputError where it is no float of jax."""
  dtype = jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise InputError(f"dtype={dtype.name} is no floating type")
  if jax.dtypes.canonicalize_dtype(dtype) != dtype:
    raise InputError(f"dtype={dtype.name} needs jax_enable_x64")
  return dtype


def refuse_names(where, missing, unexpected):
  """Raises InputError where a folder lacks tensors, or has others."""
  for problem, which in (("missing", missing), ("unexpected", unexpected)):
    if which:
      more = f" and {len(which) - 3} more" if len(which) > 3 else ""
      raise InputError(
        f"{where}: {problem} tensors: {', '.join(which[:3])}{more}"
      )


# Leaves.


@dataclasses.dataclass(frozen=True)
class Stored:
  """A leaf in files: one tensor for each layer, or a part of one."""

  spec: parameters.ArraySpec
  name: str  # of the tensors; each "{}" is an index of a leading axis
  inputs_first: bool  # a matrix is [in, out], not torch's [out, in]
  # Where the tensors hold other leaves, too:
  whole: tuple[int, ...] | None = None  # the shape of such a tensor
  split: tuple[int, ...] = ()  # what to reshape it to
  part: tuple[int | slice, ...] = ()  # what to index that with

  @property
  def stacked(self):
    """Number of leading axes that the files keep apart."""
    return self.name.count("{}")

  @property
  def layer(self):
    """The leaf's own shape in one tensor."""
    return self.spec.shape[self.stacked :]

  @property
  def shape(self):
    """The shape of one tensor."""
    n = self.spec.inputs
    if self.whole:
      return self.whole
    if not n:  # heads are flat in a bias, a vocabulary is not
      return (math.prod(self.layer),) if self.stacked else self.layer
    inputs, outputs = math.prod(self.layer[:n]), math.prod(self.layer[n:])
    return (inputs, outputs) if self.inputs_first else (outputs, inputs)

  def tensors(self):
    """[(index of the leading axes, name)] of its tensors."""
    counts = map(range, self.spec.shape[: self.stacked])
    return [(i, self.name.format(*i)) for i in itertools.product(*counts)]

  def view(self, tensor):
    """The part of one tensor that is the leaf's, as a view in its own axes.

    Reading copies from it, and writing into it.
    """
    n = self.spec.inputs
    if self.whole:
      tensor = tensor.reshape(self.split)[self.part]
    if not n or self.inputs_first:
      return tensor.reshape(self.layer)
    tensor = tensor.reshape(*self.layer[n:], *self.layer[:n])
    outputs = len(self.layer) - n
    return tensor.transpose(*range(outputs, tensor.ndim), *range(outputs))


def stored(config):
  """The tree of Stored: a model's table joined to its family's names."""
  names = FAMILIES[config.family].tensors

  def alone(leaf, spec):
    inputs_first = names.inputs_first and spec.inputs > 0
    return Stored(spec, names.of(leaf), inputs_first)

  table = parameters.table(config)
  blocks = {leaf: alone(leaf, spec) for leaf, spec in table["blocks"].items()}
  sharing = {}
  for leaf, one in blocks.items():
    sharing.setdefault(one.name, []).append(leaf)
  for leaves in sharing.values():
    if len(leaves) > 1:
      members = [blocks[leaf] for leaf in leaves]
      head_dim = config.head_dim if names.interleaved else None
      blocks |= dict(zip(leaves, _parts(members, head_dim), strict=True))
  others = {k: alone(k, spec) for k, spec in table.items() if k != "blocks"}
  return {**others, "blocks": blocks}


def _parts(members, head_dim):
  """The Stored of leaves that share their tensors, each with its part.

  They stand one after the other; with a `head_dim` they alternate by head.
  """
  first, n = members[0], members[0].spec.inputs
  sizes = [math.prod(one.layer[n:]) for one in members]
  inputs, start, parts = first.layer[:n], 0, []
  for i, (one, size) in enumerate(zip(members, sizes, strict=True)):
    rows = slice(start, start + size)
    whole = (sum(sizes), *inputs)
    split, part = whole, (rows,)
    if head_dim:
      split = (size // head_dim, len(members), head_dim, *inputs)
      part = (slice(None), i)
    elif first.inputs_first:
      whole = split = whole[::-1]
      part = (slice(None), rows)
    parts.append(dataclasses.replace(one, whole=whole, split=split, part=part))
    start += size
  return parts
