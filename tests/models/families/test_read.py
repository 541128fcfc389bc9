# SPDX-License-Identifier: Apache-2.0
"""config.json of every family: read, written, or refused by name."""

import dataclasses
import json

import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.families import FAMILIES
from mrpo_jax.models.families.family import KEYS, UnsupportedModel
from mrpo_jax.models.families.read import config_from_hf, config_to_hf
from mrpo_jax.models.rope import Rope
from tests.material.folders import GOLDEN

NEEDED = dict(
  model_type="llama",
  vocab_size=96,
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
)
NAMED = dict(rope_scaling="factor")  # of an object the key that is missing
# HuggingFaceTB/SmolLM2-135M as transformers 4 wrote it.
SMOLLM2 = dict(
  architectures=["LlamaForCausalLM"],
  attention_bias=False,
  attention_dropout=0.0,
  bos_token_id=0,
  eos_token_id=0,
  hidden_act="silu",
  hidden_size=576,
  initializer_range=0.041666666666666664,
  intermediate_size=1536,
  is_llama_config=True,
  max_position_embeddings=8192,
  model_type="llama",
  num_attention_heads=9,
  num_hidden_layers=30,
  num_key_value_heads=3,
  pretraining_tp=1,
  rms_norm_eps=1e-05,
  rope_interleaved=False,
  rope_scaling=None,
  rope_theta=100000,
  tie_word_embeddings=True,
  torch_dtype="bfloat16",
  transformers_version="4.40.1",
  use_cache=True,
  vocab_size=49152,
)


def test_a_config_of_transformers_4_is_read():
  assert config_from_hf(SMOLLM2) == ModelConfig(
    vocab_size=49152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    mlp_width=1536,
    ropes=(Rope(100000.0),),
    norm_epsilon=1e-5,
    tied=True,
    max_positions=8192,
    bos_id=0,
    eos_id=0,
  )


def test_a_config_of_transformers_5_is_read():
  values = json.loads((GOLDEN / "llama_theta/config.json").read_text())
  assert "rope_theta" not in values and "rope_parameters" in values
  assert config_from_hf(values) == ModelConfig(
    vocab_size=80,
    width=32,
    layers=2,
    heads=4,
    kv_heads=1,
    head_dim=8,
    mlp_width=40,
    ropes=(Rope(500000.0),),
    norm_epsilon=1e-6,
    max_positions=128,
    bos_id=1,
    eos_id=2,
  )


SIZES = dict(width=256, layers=4, heads=32, vocab_size=96, mlp_width=48)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
  import transformers

  keys = {**KEYS, **FAMILIES[family].keys}
  sizes = {keys[field]: size for field, size in SIZES.items()}
  if FAMILIES[family].mlp_factor:  # a default, too
    sizes.pop(keys["mlp_width"])
  theirs = transformers.AutoConfig.for_model(family, **sizes).to_dict()
  theirs = {k: v for k, v in theirs.items() if k != "architectures"}
  assert config_from_hf(dict(sizes, model_type=family)) == config_from_hf(
    theirs
  )


@pytest.mark.parametrize("values", [NEEDED, SMOLLM2], ids=["small", "smollm2"])
def test_what_is_written_is_read_again(values):
  config = dataclasses.replace(
    config_from_hf(values), bos_id=None, eos_id=7, ropes=(Rope(3e5),)
  )
  written = json.loads(json.dumps(config_to_hf(config, "bfloat16")))
  assert config_from_hf(written) == config
  assert written["dtype"] == written["torch_dtype"] == "bfloat16"
  assert written["architectures"] == ["LlamaForCausalLM"]


def test_what_was_read_is_written_but_for_code_and_dtype():
  extra = dict(auto_map={"AutoModel": "x.Y"}, architectures=["LlamaModel"])
  written = config_to_hf(config_from_hf(SMOLLM2 | extra), "float32")
  assert written == SMOLLM2 | dict(torch_dtype="float32", dtype="float32")


def test_a_config_made_by_hand_is_written_as_a_llama_or_refused():
  config = dataclasses.replace(config_from_hf(NEEDED), norms="both")
  with pytest.raises(UnsupportedModel, match="made by hand"):
    config_to_hf(config, "float32")


def test_transformers_reads_what_is_written():
  import transformers

  config = dataclasses.replace(config_from_hf(SMOLLM2), head_dim=48)
  written = config_to_hf(config, "float32")
  theirs = transformers.AutoConfig.for_model(**written)
  assert config_from_hf(theirs.to_dict()) == config


@pytest.mark.parametrize(
  "extra, field, value",
  [
    (dict(hidden_act="swish"), "width", 32),
    (dict(pretraining_tp=2, attention_dropout=0.1), "width", 32),
    (dict(num_key_value_heads=None, head_dim=None), "kv_heads", 4),
    (dict(head_dim=10), "head_dim", 10),
    (dict(eos_token_id=[5, 6]), "eos_id", 5),
    (dict(eos_token_id=None), "eos_id", None),
    (dict(eos_token_id=[]), "eos_id", None),
    (dict(rope_theta=5e5, rope_scaling=None), "ropes", (Rope(5e5),)),
    (
      dict(rope_theta=5e5, rope_scaling={"type": "default"}),
      "ropes",
      (Rope(5e5),),
    ),
    # As in transformers: what stands inside rope_parameters wins.
    (
      dict(rope_theta=1.0, rope_parameters={"rope_theta": 2}),
      "ropes",
      (Rope(2.0),),
    ),
    (dict(partial_rotary_factor=1.0), "head_dim", 8),
    (dict(quantization_config=None), "width", 32),
    (dict(architectures=None), "width", 32),
    (dict(architectures=["LlamaModel"]), "width", 32),
    (  # so many layers from the first see all: here none does
      dict(
        model_type="qwen2",
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=0,
        num_key_value_heads=4,
      ),
      "layer_windows",
      (6, 6),
    ),
  ],
  ids=str,
)
def test_harmless_settings_are_accepted(extra, field, value):
  assert getattr(config_from_hf({**NEEDED, **extra}), field) == value


@pytest.mark.parametrize(
  "extra, words",
  [
    (dict(model_type="bert"), "model_type 'bert'.*llama"),
    (dict(architectures=["LlamaForSequenceClassification"]), "SequenceClass"),
    (dict(architectures=5), "architecture 5"),
    (dict(hidden_act="tanh"), "hidden_act='tanh'.*silu"),
    (dict(rope_scaling={"rope_type": "mrope"}), "rope_type='mrope'.*yarn"),
    (dict(rope_scaling={"type": "longrope"}), "rope_type='longrope'"),
    (
      dict(model_type="gpt2", scale_attn_by_inverse_layer_idx=True),
      "scale_attn_by_inverse_layer_idx=True",
    ),
    (dict(model_type="gemma", use_bidirectional_attention=True), "bidirect"),
    (dict(model_type="gemma3"), "model_type 'gemma3'.*gemma3_text"),
    (dict(model_type="gpt_oss"), "model_type 'gpt_oss' is not supported"),
    (dict(model_type="mixtral", router_jitter_noise=0.1), "jitter_noise=0.1"),
    (dict(model_type="qwen3_moe", decoder_sparse_step=2), "sparse_step=2"),
    (dict(model_type="qwen3_moe", mlp_only_layers=[0]), r"layers=\[0\]"),
    (
      dict(model_type="gemma2", layer_types=["linear_attention"] * 2),
      "layer_types: 'linear_attention'",
    ),
    (
      dict(rope_parameters={"full_attention": {"rope_type": "default"}}),
      "type of layer",
    ),
    (dict(quantization_config={"quant_method": "fp8"}), "quantization_config"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    (
      dict(rope_parameters={"partial_rotary_factor": 0.5}),
      "partial_rotary_factor=0.5",
    ),
    (dict(sliding_window=4096), "sliding_window=4096"),
    (dict(is_causal=False), "is_causal=False"),
    (dict(is_encoder_decoder=True), "is_encoder_decoder=True"),
  ],
  ids=str,
)
def test_what_is_not_computed_is_refused_by_name(extra, words):
  with pytest.raises(UnsupportedModel, match=words):
    config_from_hf({**NEEDED, **extra})


def test_the_number_of_experts_has_two_names_and_one_value():
  moe = {**NEEDED, "model_type": "qwen3_moe"}
  for key in ("num_experts", "num_local_experts"):
    config = config_from_hf({**moe, key: 16})
    assert config.experts == 16
    written = config_to_hf(config, "float32")
    assert written["num_experts"] == 16  # transformers 4 reads that
    assert config_from_hf(written) == config
  with pytest.raises(
    InputError, match="num_local_experts=4, but num_experts=8"
  ):
    config_from_hf({**moe, "num_experts": 8, "num_local_experts": 4})
  with pytest.raises(InputError, match="experts_per_token=8; want 1 to exp"):
    config_from_hf({**moe, "num_experts": 4})


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(key):
  with pytest.raises(InputError, match=key) as caught:
    config_from_hf({k: v for k, v in NEEDED.items() if k != key})
  assert not isinstance(caught.value, UnsupportedModel)


@pytest.mark.parametrize(
  "key, value",
  [
    ("model_type", 5),
    ("num_attention_heads", 0),
    ("num_attention_heads", 5),  # 32 / 5
    ("num_key_value_heads", 3),  # 4 / 3
    ("num_key_value_heads", 0),
    ("hidden_size", "32"),
    ("hidden_size", True),
    ("num_hidden_layers", -2),
    ("num_hidden_layers", 2.0),
    ("vocab_size", None),
    ("head_dim", 7),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", float("nan")),
    ("rope_theta", -1.0),
    ("rope_theta", 10**400),
    ("rope_parameters", [1]),
    ("rope_scaling", {"type": "linear"}),  # without its factor
    ("rope_scaling", {"type": "llama3", "factor": 8.0}),
    ("attention_bias", 1),
    ("tie_word_embeddings", "yes"),
    ("bos_token_id", -1),
    ("eos_token_id", ["a"]),
  ],
  ids=str,
)
def test_a_senseless_value_is_refused_with_its_key(key, value):
  with pytest.raises(InputError, match=NAMED.get(key, key)) as caught:
    config_from_hf({**NEEDED, key: value})
  assert not isinstance(caught.value, UnsupportedModel)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", [100_001, 10**9, 10**18])
def test_absurdly_many_layers_are_refused_at_once(family, number):
  named = {**KEYS, **FAMILIES[family].keys}
  values = {named[k]: NEEDED[key] for k, key in KEYS.items() if key in NEEDED}
  key = named["layers"]
  given = {**values, "model_type": family, key: number}
  with pytest.raises(InputError, match=f"{key}={number}; want a positive int"):
    config_from_hf(given)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("number", [100_001, 10**12])
def test_absurdly_many_experts_are_refused_at_once(family, number):
  given = {**NEEDED, "model_type": family, "num_local_experts": number}
  with pytest.raises(InputError, match=f"_experts={number}; want a positive"):
    config_from_hf(given)


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "head_dim"])
def test_an_axis_that_no_array_has_is_refused(key):
  with pytest.raises(InputError, match="=2147483648 is more than 2147483647"):
    config_from_hf({**NEEDED, key: 2**31})


def rope_of(rope_type, **settings):
  return {"rope_scaling": {"rope_type": rope_type, **settings}}


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
PHI = dict(
  model_type="phi3",
  rope_scaling=dict(
    type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4
  ),
  original_max_position_embeddings=32,
  max_position_embeddings=128,
)


def phi(**settings):
  return PHI | dict(rope_scaling=PHI["rope_scaling"] | settings)


@pytest.mark.parametrize(
  "values,words",
  [
    (rope_of("linear", factor=0.0), "factor=0.0; want a positive"),
    (rope_of("linear", factor=-2.0), "factor=-2.0; want a positive"),
    (rope_of("linear", factor=1e-310), "factor=1e-310.* divides by zero"),
    (rope_of("dynamic", factor=0), "factor=0; want a positive"),
    (
      # 2 / (2 - 2)
      rope_of("dynamic", factor=2.0) | dict(head_dim=2),
      "'dynamic' with .* over 2 dims divides by zero",
    ),
    (rope_of("llama3", **LLAMA3 | dict(factor=-8)), "factor=-8"),
    (
      rope_of("llama3", **LLAMA3 | dict(high_freq_factor=1.0)),
      "low_freq_factor=1.0 is not below high_freq_factor=1.0",
    ),
    (
      rope_of("llama3", **LLAMA3 | dict(low_freq_factor=5.0)),
      "low_freq_factor=5.0 is not below high_freq_factor=4.0",
    ),
    (rope_of(**YARN, beta_fast=-32), "beta_fast=-32; want a positive"),
    (rope_of(**YARN, beta_slow="1"), "beta_slow='1'; want a positive"),
    (rope_of(**YARN, beta_fast=0.5), "beta_fast=0.5 is below beta_sl"),
    (rope_of(**YARN, mscale=-1.0), "mscale=-1.0; want a positive"),
    (
      rope_of(**YARN, mscale=1, mscale_all_dim=-7.2),
      "mscale_all_dim=-7.2; want a positive",
    ),
    (
      rope_of(**YARN, attention_factor=-1.0),
      "attention_factor=-1.0; want a positive",
    ),
    (
      rope_of(**YARN, attention_factor=float("nan")),
      "attention_factor=nan; want a positive",
    ),
    (rope_of(**YARN, truncate="false"), "truncate='false'; want true"),
    (
      rope_of(**YARN) | dict(rope_theta=1.0),  # log(1)
      "'yarn' with theta=1.0.* divides by zero",
    ),
    (phi(attention_factor=0), "attention_factor=0; want a positive"),
    (phi(short_factor=[1.0, 1.0, 0.0, 1.0]), "short_factor: want positive"),
    (phi(long_factor=[1.0, -1.0, 1.0, 1.0]), "long_factor: want positive"),
    (
      phi(long_factor=[1.0, float("inf"), 1.0, 1.0]),
      "long_factor: want positive",
    ),
    (
      PHI | dict(original_max_position_embeddings=1),  # log(1)
      "original_max_position_embeddings=1; want more",
    ),
    (
      dict(
        model_type="stablelm", partial_rotary_factor=0.1, num_key_value_heads=4
      ),
      "partial_rotary_factor=0.1 turns none of the 8 dims",
    ),
    (dict(model_type="gpt_neox", rotary_pct=-0.25), "share up to 1"),
    (
      dict(model_type="gemma3_text", rope_local_base_freq=0.0),
      "rope_local_base_freq=0.0; want a positive",
    ),
  ],
  ids=str,
)
def test_a_rope_that_divides_by_zero_or_is_negative_is_refused(values, words):
  with pytest.raises(InputError, match=words) as caught:
    config_from_hf({**NEEDED, **values})
  assert not isinstance(caught.value, UnsupportedModel)


@pytest.mark.parametrize(
  "values", [rope_of("llama3", **LLAMA3), rope_of(**YARN), PHI], ids=str
)
def test_ropes_that_make_sense_are_read(values):
  (rope,) = config_from_hf({**NEEDED, **values}).ropes
  assert rope.kind in ("llama3", "yarn", "longrope")


@pytest.mark.parametrize(
  "rope",
  [
    Rope(theta=0.0),
    Rope(theta=-1.0),
    Rope(kind="linear", settings=(("factor", 0.0),)),
    Rope(kind="linear", settings=(("factor", -1.0),)),
    Rope(
      kind="dynamic",
      settings=(("factor", -9.0), ("max_position_embeddings", 8)),
    ),
  ],
  ids=str,
)
def test_such_a_rope_is_refused_in_a_config_made_by_hand_too(rope):
  with pytest.raises(ValueError, match="divides by zero, or turns by no pos"):
    dataclasses.replace(config_from_hf(NEEDED), ropes=(rope,))


def test_no_angle_is_made_for_an_absurd_head():
  with pytest.raises(
    InputError, match="head_dim=1000000000 is more than 65536"
  ):
    config_from_hf({**NEEDED, "head_dim": 10**9})


def test_a_list_is_no_config():
  with pytest.raises(InputError, match="list"):
    config_from_hf([NEEDED])
