# SPDX-License-Identifier: Apache-2.0
"""A folder's fingerprint, and which part of a tensor is which leaf."""

import numpy as np
import pytest

from mrpo_jax import hub
from mrpo_jax.errors import InputError
from mrpo_jax.hub import peft
from mrpo_jax.hub.folder import stored
from tests.material.folders import (
  GOLDEN,
  configure,
  edit,
  golden,
  poison,
  shard,
)


def leaf_of(name, leaf):
  return stored(golden(name)[0])["blocks"][leaf]


def test_a_matrix_of_torch_has_its_outputs_first():
  query = leaf_of("llama_theta", "query")  # 4 heads of 8, 32 wide
  assert query.name == "model.layers.{}.self_attn.q_proj.weight"
  assert query.shape == (32, 32) and query.layer == (32, 4, 8)
  tensor = np.arange(32 * 32).reshape(32, 32)
  assert query.view(tensor)[5, 2, 3] == tensor[2 * 8 + 3, 5]
  assert [index for index, _ in query.tensors()] == [(0,), (1,)]
  out = leaf_of("llama_theta", "out")
  assert out.view(tensor)[2, 3, 5] == tensor[5, 2 * 8 + 3]


@pytest.mark.parametrize(
  "name,leaf,shape,place,at",
  [
    # 3 heads of 8 and 3 groups: 24 queries, then 24 keys, then 24 values.
    ("phi3_partial", "key", (72, 24), (5, 2, 3), (24 + 2 * 8 + 3, 5)),
    # Heads of 7: query, key and value of a head, then those of the next.
    ("gpt_neox_parallel", "key", (63, 21), (5, 2, 3), (2 * 21 + 7 + 3, 5)),
    ("gpt_neox_parallel", "key_bias", (63,), (2, 3), (2 * 21 + 7 + 3,)),
    # [in, out].
    ("gpt2_inner", "key", (21, 63), (5, 2, 3), (5, 21 + 2 * 7 + 3)),
    ("gpt2_inner", "value_bias", (63,), (2, 3), (42 + 2 * 7 + 3,)),
  ],
)
def test_leaves_that_share_a_tensor_have_parts_of_it(
  name, leaf, shape, place, at
):
  one = leaf_of(name, leaf)
  assert one.shape == shape
  tensor = np.arange(np.prod(shape)).reshape(shape)
  assert one.view(tensor)[place] == tensor[at]
  one.view(tensor)[place] = -1  # it is a view
  assert tensor[at] == -1


def test_a_norm_of_each_head_is_a_tensor_of_each_head():
  norm = leaf_of("stablelm_parallel", "query_norm")
  assert norm.stacked == 2 and norm.shape == (8,)
  (_, first), *_, (index, last) = norm.tensors()
  assert first == "model.layers.0.self_attn.q_layernorm.norms.0.weight"
  assert (index, last[-8:]) == ((1, 2), "2.weight")


def test_a_fingerprint_stays_what_it_was():
  # It stands in stores and checkpoints of earlier runs.
  assert hub.fingerprint(GOLDEN / "llama_theta") == (
    "c286515e88d51fb8a52a74c8c40380423c31c5402a3be22c46bd592a6d3c2d23"
  )
  assert peft.fingerprint(GOLDEN / "adapter_plain") == (
    "bd8a1f4fd72d021b8d2a1ef192ce76903f981e46217d6de592d89a68a42aed32"
  )


def test_a_copy_has_the_same_fingerprint(folder):
  assert hub.fingerprint(folder) == hub.fingerprint(GOLDEN / "llama_theta")
  (folder / "README.md").write_text("hello")
  assert hub.fingerprint(folder) == hub.fingerprint(GOLDEN / "llama_theta")


@pytest.mark.parametrize(
  "change",
  [
    lambda f: poison(f, 1.0),
    lambda f: configure(f, rms_norm_eps=1e-5),
  ],
  ids=["weight", "config"],
)
def test_a_change_changes_the_fingerprint(change, folder):
  edit(folder, lambda tensors: None)
  before = hub.fingerprint(folder)
  change(folder)
  assert hub.fingerprint(folder) != before


def test_every_shard_counts_in_the_fingerprint(folder):
  shard(folder)
  seen = {hub.fingerprint(folder)}
  for file in ("a.safetensors", "b.safetensors"):
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    seen.add(hub.fingerprint(folder))
  assert len(seen) == 3


@pytest.mark.parametrize("of", [hub.fingerprint, hub.fingerprint_together])
def test_shards_of_one_name_in_two_folders_count_both(folder, of):
  moved = {f"{name}.safetensors": f"{name}/x.safetensors" for name in "ab"}

  def move(index):
    for file, to in moved.items():
      (folder / to).parent.mkdir()
      (folder / file).rename(folder / to)
    names = index["weight_map"].items()
    return {"weight_map": {name: moved[file] for name, file in names}}

  shard(folder, move)
  seen = {of(folder)}
  for file in moved.values():
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    seen.add(of(folder))
  assert len(seen) == 3


def test_no_fingerprint_without_a_model(tmp_path):
  with pytest.raises(InputError, match=r"no config\.json"):
    hub.fingerprint(tmp_path)
