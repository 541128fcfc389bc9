# SPDX-License-Identifier: Apache-2.0
"""Makes tiny models of every family and what torch computes with them.

    pip install torch transformers safetensors numpy
    python tests/golden/make_families.py          # writes what is beside it
    python tests/golden/make_families.py --check  # torch loads what we save
    python tests/golden/make_families.py qwen3    # only names that begin so

Each folder is a random model, with config.json as transformers 5 writes it and
config_v4.json as transformers 4 did.  <name>.npz holds tokens, and masks and
float32 logits of torch for whole, left-padded and right-padded sequences.
With experts there are gradients of the whole sequences, too.
Where the logits of a sequence depend on the others in its batch (RoPE that
looks at the longest), left_alone_logits and right_alone_logits are those of
each padded sequence by itself.  families.json: the versions and the date.

Nothing is written that could not fail a test: leaving out any tensor, or
anything listed under `without`, changes the logits by more than 1 % of the
largest.  --check needs jax, flax and mrpo_jax as well.
"""

import argparse
import copy
import dataclasses
import datetime
import json
import pathlib
import platform
import shutil
import tempfile
import zlib

import numpy as np
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent
MATTERS = 0.01  # of the largest logit
EAGER = dict(attn_implementation="eager")
# model_type -> its key of what `tiny` calls rms_norm_eps.
EPSILON = dict(gpt_neox="layer_norm_eps", stablelm="layer_norm_eps")
# model_type -> {key: its name in transformers 4}.
BEFORE = dict(qwen3_moe=dict(num_local_experts="num_experts"))


@dataclasses.dataclass(frozen=True)
class Golden:
  """One tiny model."""

  model_type: str
  settings: dict
  without: dict = dataclasses.field(default_factory=dict)  # name -> settings
  version_4: dict | None = dataclasses.field(default_factory=dict)  # its own
  dtype: torch.dtype = torch.float32
  embedding: float = 1.0  # scale of the embedding's random weights
  lengths: tuple[int, ...] = (24, 17, 9)  # of the padded sequences
  seed: int | None = None  # None: from the name
  idle: tuple[str, ...] = ()  # tensors that change nothing, and must not
  bare: bool = False  # tensor names as in the first file of GPT-2 on the hub


def tiny(**changes):
  return dict(
    dict(
      vocab_size=64,
      hidden_size=24,
      num_hidden_layers=2,
      num_attention_heads=3,
      num_key_value_heads=1,
      intermediate_size=36,
      max_position_embeddings=64,
      rms_norm_eps=0.1,  # enough to show
      bos_token_id=1,
      eos_token_id=2,
      pad_token_id=0,
    ),
    **changes,
  )


def rope(rope_type="default", rope_theta=100.0, **others):
  values = dict(rope_type=rope_type, rope_theta=rope_theta, **others)
  return dict(rope_parameters=values)


def both(full, sliding):
  """RoPE of Gemma 3, for either type of layer."""
  values = dict(
    full_attention=full["rope_parameters"],
    sliding_attention=sliding["rope_parameters"],
  )
  return dict(rope_parameters=values)


LLAMA3 = dict(
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=3.0,
  original_max_position_embeddings=20,
)
YARN = dict(factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(
  short_factor=[1.1, 1.4, 2.0],
  long_factor=[1.5, 4.0, 9.0],
  partial_rotary_factor=0.75,
)
PHI4 = dict(
  num_attention_heads=3,
  original_max_position_embeddings=14,
  max_position_embeddings=56,
  tie_word_embeddings=True,
)
GEMMA3 = both(rope("linear", 1000.0, factor=8.0), rope(rope_theta=20.0))
GPT2 = dict(
  vocab_size=61,
  n_embd=21,
  n_layer=2,
  n_head=3,
  n_positions=32,
  layer_norm_epsilon=0.1,
  bos_token_id=0,
  eos_token_id=0,
)
FULL, SLIDING = "full_attention", "sliding_attention"
BFLOAT16 = torch.bfloat16

MODELS = dict(
  llama_gqa_tied=Golden(
    "llama",
    dict(
      vocab_size=96,
      hidden_size=32,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      intermediate_size=48,
      tie_word_embeddings=True,
    ),
    lengths=(12, 9, 5),
    seed=8,
  ),
  # Nothing divides by 8, and the heads are not as wide together as the model.
  llama_mha_odd=Golden(
    "llama",
    dict(
      vocab_size=67,
      hidden_size=21,
      num_hidden_layers=3,
      num_attention_heads=3,
      head_dim=10,
      intermediate_size=37,
      rms_norm_eps=1e-5,
    ),
    lengths=(12, 9, 5),
    seed=7,
  ),
  llama_theta=Golden(
    "llama",
    dict(
      vocab_size=80,
      hidden_size=32,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=1,
      intermediate_size=40,
      max_position_embeddings=128,
      **rope(rope_theta=500000.0),
    ),
    without=dict(theta=rope(rope_theta=10000.0)),
    lengths=(12, 9, 5),
    seed=5,
  ),
  llama_bf16=Golden(
    "llama",
    dict(
      vocab_size=96,
      hidden_size=32,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      intermediate_size=48,
      eos_token_id=[3, 5],
    ),
    dtype=BFLOAT16,
    lengths=(12, 9, 5),
    seed=4,
  ),
  # Wavelengths 6.3, 17.5, 49, 135: kept, blended, divided, divided.
  llama_rope_llama3=Golden(
    "llama",
    tiny(**rope("llama3", 60.0, **LLAMA3)),
    without=dict(
      scaling=rope(rope_theta=60.0),
      factor=rope("llama3", 60.0, **{**LLAMA3, "factor": 2.0}),
      low=rope("llama3", 60.0, **{**LLAMA3, "low_freq_factor": 0.3}),
      high=rope("llama3", 60.0, **{**LLAMA3, "high_freq_factor": 8.0}),
      original=rope(
        "llama3", 60.0, **{**LLAMA3, "original_max_position_embeddings": 60}
      ),
    ),
  ),
  llama_rope_linear=Golden(
    "llama",
    tiny(**rope("linear", factor=4.0)),
    without=dict(scaling=rope(), factor=rope("linear", factor=2.0)),
  ),
  # Of the sequences alone, the last is within max_position_embeddings.
  llama_rope_dynamic=Golden(
    "llama",
    tiny(max_position_embeddings=14, **rope("dynamic", factor=4.0)),
    without=dict(
      scaling=rope(),
      factor=rope("dynamic", factor=2.0),
      length=dict(max_position_embeddings=20),
    ),
  ),
  llama_rope_yarn=Golden(
    "llama",
    tiny(head_dim=12, **rope("yarn", **YARN, beta_fast=1.0, beta_slow=0.2)),
    without=dict(
      scaling=rope(),
      factor=rope(
        "yarn", **{**YARN, "factor": 2.0}, beta_fast=1, beta_slow=0.2
      ),
      fast=rope("yarn", **YARN, beta_slow=0.2),
      slow=rope("yarn", **YARN, beta_fast=1.0),
      attention=rope(
        "yarn", **YARN, beta_fast=1.0, beta_slow=0.2, attention_factor=1.0
      ),
      truncation=rope(
        "yarn", **YARN, beta_fast=1.0, beta_slow=0.2, truncate=False
      ),
    ),
  ),
  llama_rope_yarn_mscale=Golden(
    "llama",
    tiny(
      head_dim=12,
      **rope("yarn", **YARN, mscale=2.0, mscale_all_dim=0.5, truncate=False),
    ),
    without=dict(
      mscale=rope("yarn", **YARN, truncate=False),
      all_dim=rope("yarn", **YARN, mscale=2.0, truncate=False),
      truncate=rope("yarn", **YARN, mscale=2.0, mscale_all_dim=0.5),
    ),
  ),
  llama_rope_yarn_attention=Golden(
    "llama",
    tiny(head_dim=12, **rope("yarn", **YARN, attention_factor=1.4)),
    without=dict(attention=rope("yarn", **YARN)),
    dtype=BFLOAT16,
  ),
  llama_biases=Golden(
    "llama",
    tiny(attention_bias=True, mlp_bias=True, num_key_value_heads=3),
    without=dict(
      attention=dict(attention_bias=False), mlp=dict(mlp_bias=False)
    ),
  ),
  llama_yi=Golden(
    "llama",
    tiny(num_attention_heads=3, rms_norm_eps=1e-5, **rope(rope_theta=5e6)),
    without=dict(theta=rope(rope_theta=10000.0)),
    dtype=BFLOAT16,
  ),
  mistral_window=Golden(
    "mistral",
    tiny(sliding_window=5, **rope()),
    without=dict(window=dict(sliding_window=None), less=dict(sliding_window=4)),
  ),
  mistral_full=Golden(
    "mistral",
    tiny(sliding_window=None, num_key_value_heads=3, **rope(rope_theta=1e6)),
    without=dict(theta=rope(rope_theta=10000.0)),
    dtype=BFLOAT16,
  ),
  mistral_head_dim=Golden(
    "mistral",
    tiny(
      hidden_size=22,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=6,
      intermediate_size=31,
      sliding_window=None,
      vocab_size=67,
    ),
  ),
  mixtral_window=Golden(
    "mixtral",
    tiny(
      num_local_experts=4,
      num_experts_per_tok=2,
      sliding_window=5,
      vocab_size=67,
      **rope(),
    ),
    without=dict(
      window=dict(sliding_window=None),
      fewer=dict(num_experts_per_tok=1),
      more=dict(num_experts_per_tok=3),
      act=dict(hidden_act="relu"),
    ),
  ),
  mixtral_tied=Golden(
    "mixtral",
    tiny(
      num_local_experts=3,
      num_experts_per_tok=3,
      num_key_value_heads=3,
      tie_word_embeddings=True,
      **rope(rope_theta=1e6),
    ),
    without=dict(fewer=dict(num_experts_per_tok=2)),
    dtype=BFLOAT16,
  ),
  qwen3_moe_shares=Golden(
    "qwen3_moe",
    tiny(
      head_dim=10,
      num_experts=5,
      num_experts_per_tok=2,
      moe_intermediate_size=20,
      norm_topk_prob=True,
      attention_bias=True,
      vocab_size=67,
      **rope(rope_theta=1e6),
    ),
    without=dict(
      shares=dict(norm_topk_prob=False),
      bias=dict(attention_bias=False),
      fewer=dict(num_experts_per_tok=1),
    ),
  ),
  qwen3_moe_window=Golden(
    "qwen3_moe",
    tiny(
      num_experts=4,
      num_experts_per_tok=2,
      moe_intermediate_size=28,
      norm_topk_prob=False,
      use_sliding_window=True,
      sliding_window=5,
      num_key_value_heads=3,
      tie_word_embeddings=True,
    ),
    without=dict(
      shares=dict(norm_topk_prob=True),
      window=dict(use_sliding_window=False),
      less=dict(sliding_window=4),
    ),
    dtype=BFLOAT16,
  ),
  qwen2_untied=Golden("qwen2", tiny(vocab_size=67, **rope(rope_theta=1e6))),
  qwen2_tied=Golden(
    "qwen2",
    tiny(tie_word_embeddings=True, num_key_value_heads=3),
    dtype=BFLOAT16,
  ),
  qwen2_window=Golden(
    "qwen2",
    tiny(
      num_hidden_layers=3,
      use_sliding_window=True,
      sliding_window=5,
      max_window_layers=1,
    ),
    without=dict(
      window=dict(use_sliding_window=False),
      less=dict(sliding_window=4),
      layers=dict(max_window_layers=2),
      first=dict(max_window_layers=0),
    ),
  ),
  qwen3_untied=Golden(
    "qwen3",
    tiny(
      head_dim=10, attention_bias=True, vocab_size=67, **rope(rope_theta=1e6)
    ),
    without=dict(
      bias=dict(attention_bias=False), theta=rope(rope_theta=10000.0)
    ),
  ),
  qwen3_tied=Golden(
    "qwen3",
    tiny(head_dim=10, num_key_value_heads=3, tie_word_embeddings=True),
    dtype=BFLOAT16,
  ),
  gemma_mqa=Golden(
    "gemma",
    tiny(head_dim=10, vocab_size=67),
    without=dict(act=dict(hidden_act="silu")),
    embedding=24**-0.5,
  ),
  gemma_bf16=Golden(
    "gemma",
    tiny(head_dim=8, num_key_value_heads=3),
    version_4=dict(hidden_act="gelu"),  # is read as gelu_pytorch_tanh
    dtype=BFLOAT16,
    embedding=24**-0.5,
  ),
  gemma2_caps=Golden(
    "gemma2",
    tiny(
      num_hidden_layers=3,
      head_dim=10,
      query_pre_attn_scalar=6,
      sliding_window=5,
      attn_logit_softcapping=0.8,
      final_logit_softcapping=1.2,
    ),
    without=dict(
      attention=dict(attn_logit_softcapping=None),
      final=dict(final_logit_softcapping=None),
      scalar=dict(query_pre_attn_scalar=10),
      window=dict(sliding_window=64),
      less=dict(sliding_window=4),
      everywhere=dict(layer_types=[SLIDING] * 3),
      others=dict(layer_types=[FULL, SLIDING, FULL]),
      act=dict(hidden_activation="silu"),
    ),
    embedding=24**-0.5,
  ),
  gemma2_bf16=Golden(
    "gemma2",
    tiny(
      head_dim=8,
      query_pre_attn_scalar=8,
      sliding_window=6,
      attn_logit_softcapping=None,
      final_logit_softcapping=None,
    ),
    without=dict(
      attention=dict(attn_logit_softcapping=0.8),
      final=dict(final_logit_softcapping=1.2),
    ),
    dtype=BFLOAT16,
    embedding=24**-0.5,
  ),
  gemma3_pattern=Golden(
    "gemma3_text",
    tiny(
      num_hidden_layers=4,
      head_dim=10,
      query_pre_attn_scalar=6,
      sliding_window=5,
      sliding_window_pattern=2,
      **GEMMA3,
    ),
    without=dict(
      scaling=both(rope(rope_theta=1000.0), rope(rope_theta=20.0)),
      theta=both(rope("linear", 20.0, factor=8.0), rope(rope_theta=20.0)),
      local=both(rope("linear", 1000.0, factor=8.0), rope(rope_theta=1000.0)),
      scalar=dict(query_pre_attn_scalar=10),
      window=dict(sliding_window=64),
      less=dict(sliding_window=4),
      pattern=dict(sliding_window_pattern=4),
      act=dict(hidden_activation="silu"),
    ),
    embedding=24**-0.5,
  ),
  gemma3_layer_types=Golden(
    "gemma3_text",
    tiny(
      head_dim=8,
      num_key_value_heads=3,
      query_pre_attn_scalar=8,
      sliding_window=6,
      layer_types=[FULL, SLIDING],
      final_logit_softcapping=1.2,
      **both(rope(rope_theta=1e6), rope(rope_theta=10000.0)),
    ),
    without=dict(
      types=dict(layer_types=[SLIDING, FULL]),
      final=dict(final_logit_softcapping=None),
      theta=both(rope(rope_theta=1e4), rope(rope_theta=10000.0)),
    ),
    version_4=None,  # knows patterns alone
    dtype=BFLOAT16,
    embedding=24**-0.5,
  ),
  phi3_window=Golden(
    "phi3",
    tiny(sliding_window=5, original_max_position_embeddings=64, vocab_size=67),
    without=dict(window=dict(sliding_window=None), less=dict(sliding_window=4)),
  ),
  phi3_partial=Golden(
    "phi3",
    tiny(
      num_key_value_heads=3,
      original_max_position_embeddings=64,
      **rope(partial_rotary_factor=0.5),
    ),
    without=dict(partial=rope(partial_rotary_factor=1.0)),
    dtype=BFLOAT16,
  ),
  # Of the sequences alone, the last is within the original length.
  phi3_longrope=Golden(
    "phi3",
    tiny(**{**PHI4, **rope("longrope", **LONGROPE)}),
    without=dict(
      scaling=rope(partial_rotary_factor=0.75),
      long=rope(
        "longrope", **{**LONGROPE, "long_factor": LONGROPE["short_factor"]}
      ),
      attention=dict(max_position_embeddings=14),
    ),
  ),
  phi3_longrope_short=Golden(
    "phi3",
    tiny(
      **{
        **PHI4,
        **rope("longrope", **LONGROPE),
        "original_max_position_embeddings": 24,
      }
    ),
    without=dict(
      scaling=rope(partial_rotary_factor=0.75),
      short=rope(
        "longrope", **{**LONGROPE, "short_factor": LONGROPE["long_factor"]}
      ),
      attention=dict(max_position_embeddings=24),
    ),
    dtype=BFLOAT16,
  ),
  phi3_longrope_attention=Golden(
    "phi3",
    tiny(**{**PHI4, **rope("longrope", **LONGROPE, attention_factor=1.6)}),
    without=dict(attention=rope("longrope", **LONGROPE)),
  ),
  olmo2_mha=Golden(
    "olmo2",
    tiny(num_key_value_heads=3, vocab_size=67, **rope(rope_theta=500000.0)),
    without=dict(theta=rope(rope_theta=10000.0)),
  ),
  olmo2_gqa_bias=Golden(
    "olmo2",
    tiny(attention_bias=True),
    without=dict(bias=dict(attention_bias=False)),
    dtype=BFLOAT16,
  ),
  smollm3_interval=Golden(
    "smollm3",
    tiny(num_hidden_layers=4, no_rope_layer_interval=2, **rope()),
    without=dict(
      everywhere=dict(no_rope_layer_interval=99),
      others=dict(no_rope_layer_interval=3),
      reverse=dict(no_rope_layers=[0, 1, 0, 1]),
    ),
    dtype=BFLOAT16,
  ),
  smollm3_window=Golden(
    "smollm3",
    tiny(
      num_hidden_layers=3,
      no_rope_layers=[0, 1, 1],
      use_sliding_window=True,
      sliding_window=5,
      attention_bias=True,
      mlp_bias=True,
      tie_word_embeddings=False,
    ),
    without=dict(
      window=dict(use_sliding_window=False),
      less=dict(sliding_window=4),
      reverse=dict(no_rope_layers=[1, 0, 0]),
      attention=dict(attention_bias=False),
      mlp=dict(mlp_bias=False),
    ),
    # Without RoPE it shifts all scores of a query alike.
    idle=("model.layers.0.self_attn.k_proj.bias",),
  ),
  granite_multipliers=Golden(
    "granite",
    tiny(
      embedding_multiplier=6.0,
      attention_multiplier=0.2,
      residual_multiplier=0.6,
      logits_scaling=3.0,
      tie_word_embeddings=True,
      vocab_size=67,
    ),
    without=dict(
      embedding=dict(embedding_multiplier=1.0),
      attention=dict(attention_multiplier=8**-0.5),
      residual=dict(residual_multiplier=1.0),
      logits=dict(logits_scaling=1.0),
    ),
    embedding=1 / 6,
  ),
  granite_biases=Golden(
    "granite",
    tiny(
      embedding_multiplier=2.0,
      attention_multiplier=0.5,
      residual_multiplier=0.7,
      logits_scaling=0.5,
      attention_bias=True,
      mlp_bias=True,
    ),
    without=dict(
      attention=dict(attention_bias=False), mlp=dict(mlp_bias=False)
    ),
    dtype=BFLOAT16,
  ),
  # As the 1.6B, and as the 12B.
  stablelm_bias=Golden(
    "stablelm",
    tiny(
      use_qkv_bias=True,
      num_key_value_heads=3,
      **rope(partial_rotary_factor=0.5),
    ),
    without=dict(
      bias=dict(use_qkv_bias=False),
      partial=rope(partial_rotary_factor=0.25),
      everything=rope(partial_rotary_factor=1.0),
    ),
  ),
  stablelm_parallel=Golden(
    "stablelm",
    tiny(
      qk_layernorm=True,
      use_parallel_residual=True,
      vocab_size=67,
      **rope(partial_rotary_factor=0.25),
    ),
    without=dict(
      norm=dict(qk_layernorm=False),
      parallel=dict(use_parallel_residual=False),
      partial=rope(partial_rotary_factor=0.5),
    ),
  ),
  stablelm_qk_norm=Golden(
    "stablelm",
    tiny(qk_layernorm=True, **rope(partial_rotary_factor=0.25)),
    without=dict(norm=dict(qk_layernorm=False)),
    dtype=BFLOAT16,
  ),
  # The heads are 7 wide; 4 of these turn.
  gpt_neox_parallel=Golden(
    "gpt_neox",
    tiny(hidden_size=21, vocab_size=67, **rope(partial_rotary_factor=0.6)),
    without=dict(
      parallel=dict(use_parallel_residual=False),
      partial=rope(partial_rotary_factor=0.3),
      act=dict(hidden_act="relu"),
    ),
  ),
  gpt_neox_sequential=Golden(
    "gpt_neox",
    tiny(
      use_parallel_residual=False,
      attention_bias=False,
      **rope(rope_theta=10000.0, partial_rotary_factor=0.25),
    ),
    without=dict(
      parallel=dict(use_parallel_residual=True),
      partial=rope(rope_theta=10000.0, partial_rotary_factor=1.0),
    ),
    dtype=BFLOAT16,
  ),
  gpt2_inner=Golden(
    "gpt2",
    dict(GPT2, n_inner=37),
    without=dict(
      scale=dict(scale_attn_weights=False),
      act=dict(activation_function="relu"),
    ),
  ),
  gpt2_bare=Golden("gpt2", dict(GPT2, n_embd=18), bare=True),
)


# Models.


def config_of(golden, **changes):
  settings = copy.deepcopy({**golden.settings, **changes})  # it writes in them
  if golden.model_type in EPSILON:
    settings[EPSILON[golden.model_type]] = settings.pop("rms_norm_eps")
  if golden.model_type == "gpt_neox":
    settings.pop("num_key_value_heads")
  return transformers.AutoConfig.for_model(golden.model_type, **settings)


def seed_of(name):
  given = MODELS[name].seed
  return zlib.crc32(name.encode()) if given is None else given


def is_norm(key):
  return ("norm" in key or ".ln_" in key) and key.endswith("weight")


def neutral(golden, key):
  """What a tensor holds where it changes nothing."""
  return float(is_norm(key) and not golden.model_type.startswith("gemma"))


def random_model(name):
  """Weights far from their usual start, so that every part shows in logits."""
  golden = MODELS[name]
  torch.manual_seed(seed_of(name))
  config = config_of(golden)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for key, weight in model.named_parameters():
      if is_norm(key):
        middle = neutral(golden, key)
        weight.uniform_(middle - 0.5, middle + 0.5)
      elif key.endswith("bias"):
        weight.normal_(0.0, 0.5)
      elif "embed" in key or ".wte" in key or ".wpe" in key:
        weight.normal_(0.0, golden.embedding)
      else:
        inputs = 0 if golden.model_type == "gpt2" else -1  # it transposes
        fan_in = weight.shape[inputs]
        weight.normal_(0.0, fan_in**-0.5)
  return model.to(golden.dtype)


def masks(lengths):
  place = np.arange(lengths[0])[None]
  lengths = np.array(lengths)[:, None]
  return dict(
    whole=np.ones((len(lengths), place.size), np.int64),
    right=(place < lengths).astype(np.int64),
    left=(place >= place.size - lengths).astype(np.int64),
  )


def logits(model, tokens, mask):
  """Float32 logits; positions count the real tokens."""
  model = copy.deepcopy(model)  # dynamic RoPE remembers the longest
  positions = (mask.cumsum(axis=1) - 1).clip(min=0)
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens),
      attention_mask=torch.tensor(mask),
      position_ids=torch.tensor(positions),
    )
  return out.logits.numpy()


def gradients(model, tokens):
  """Of the summed loss of predicting each token: what experts may get wrong."""
  model, tokens = copy.deepcopy(model), torch.tensor(tokens)
  out = model(input_ids=tokens).logits[:, :-1]
  torch.nn.functional.cross_entropy(
    out.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
  ).backward()
  layers = [layer.mlp for layer in model.model.layers]
  found = dict(
    router=[mlp.gate.weight for mlp in layers],
    gate_up=[mlp.experts.gate_up_proj for mlp in layers],
    down=[mlp.experts.down_proj for mlp in layers],
  )
  found = {k: torch.stack([one.grad for one in v]) for k, v in found.items()}
  found["embed"] = model.model.embed_tokens.weight.grad
  return {f"gradient_{k}": grad.numpy() for k, grad in found.items()}


def read(folder, **others):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True, **EAGER, **others
  )


def difference(ours, theirs):
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


# What can fail.


def assert_everything_matters(name, model, arrays):
  """Without any one tensor or setting the logits are others."""
  golden, gaps = MODELS[name], {}
  given = arrays["tokens"], arrays["whole_mask"]
  weights = dict(model.named_parameters())
  for key, weight in weights.items():
    saved = weight.data.clone()
    weight.data.fill_(neutral(golden, key))
    gaps[key] = logits(model, *given)
    weight.data.copy_(saved)
  without = dict(golden.without)
  for key in ("rms_norm_eps", "layer_norm_epsilon"):
    if golden.settings.get(key, 0) > MATTERS:
      without["epsilon"] = {key: 1e-6}
  for label, changes in without.items():
    other = transformers.AutoModelForCausalLM.from_config(
      config_of(golden, **changes), **EAGER
    )
    other.eval().load_state_dict(model.state_dict(), strict=False)
    gaps[label] = logits(other, *given)
  gaps = {k: difference(v, arrays["whole_logits"]) for k, v in gaps.items()}
  for key in golden.idle:
    assert gaps.pop(key) < 1e-5, f"{name}: {key} is not idle"
  dead = {key: float(gap) for key, gap in gaps.items() if gap <= MATTERS}
  assert not dead, f"{name}: these do not matter: {dead}"


def logits_alone(model, tokens, mask):
  """Of each sequence by itself, without its padding, put where it stood."""
  placed = np.zeros((*tokens.shape, model.config.vocab_size), np.float32)
  for row, real in enumerate(mask > 0):
    piece = tokens[row, real][None]
    placed[row, real] = logits(model, piece, np.ones_like(piece))
  return placed


# Files.


def rope_4(golden, values, turning):
  """Puts RoPE where the family had it in transformers 4."""
  if golden.model_type == "gemma3_text":
    values["sliding_window_pattern"] = values.pop("_sliding_window_pattern")
    values["rope_local_base_freq"] = turning["sliding_attention"]["rope_theta"]
    turning = turning["full_attention"]
  theta, part = "rope_theta", "partial_rotary_factor"
  old = {theta: theta, part: part}
  if golden.model_type == "gpt_neox":
    old = {theta: "rotary_emb_base", part: "rotary_pct"}
  values.update({old[key]: turning[key] for key in old if key in turning})
  rest = {key: turning[key] for key in turning if key not in old}
  kind = rest.pop("rope_type")
  if golden.model_type == "phi3":
    rest.pop("original_max_position_embeddings", None)  # stands at the top
  new = kind == "llama3" or golden.model_type == "gemma3_text"
  rest["rope_type" if new else "type"] = kind
  values["rope_scaling"] = None if kind == "default" else rest


def version_4(golden, values):
  """config.json as transformers 4 wrote it."""
  values = dict(values, transformers_version="4.51.0")
  values["torch_dtype"] = values.pop("dtype")
  for key in ("layer_types", "no_rope_layers", "use_bidirectional_attention"):
    if key not in golden.settings:
      values.pop(key, None)
  for key, old in BEFORE.get(golden.model_type, {}).items():
    values[old] = values.pop(key)
  turning = values.pop("rope_parameters", None)
  if turning:
    rope_4(golden, values, turning)
  return {**values, **golden.version_4}


def write_bare(folder):
  """Renames as in the first file of GPT-2, and adds its buffers."""
  file = folder / "model.safetensors"
  tensors = {
    key.removeprefix("transformer."): value
    for key, value in safetensors.torch.load_file(file).items()
  }
  config = json.loads((folder / "config.json").read_text())
  size = config["n_positions"]
  causal = torch.ones(size, size).tril()[None, None]
  for layer in range(config["n_layer"]):
    tensors[f"h.{layer}.attn.bias"] = causal.clone()
  safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def write_json(path, values):
  path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_model(name):
  golden, folder = MODELS[name], HERE / name
  shutil.rmtree(folder, ignore_errors=True)
  random_model(name).save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)
  if golden.bare:
    write_bare(folder)
  if golden.version_4 is not None:
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config_v4.json", version_4(golden, values))


def save_unless_rounding(file, arrays):
  """Another processor rounds otherwise; that is no reason for a new file."""
  if file.exists():
    there = np.load(file)
    if there.keys() == arrays.keys() and all(
      there[key].shape == array.shape
      and np.allclose(there[key], array, 0, 1e-5)
      for key, array in arrays.items()
    ):
      return
  np.savez_compressed(file, **arrays)


def write_numbers(name):
  golden, folder = MODELS[name], HERE / name
  lengths = golden.lengths
  model, info = read(folder)
  assert not any(info.values()), (name, info)
  generator = np.random.default_rng(seed_of(name))
  size = (len(lengths), lengths[0])
  tokens = generator.integers(0, model.config.vocab_size, size, np.int64)
  arrays = dict(tokens=tokens)
  for kind, mask in masks(lengths).items():
    arrays[f"{kind}_mask"] = mask
    arrays[f"{kind}_logits"] = logits(model, tokens, mask)
  for kind in ("right", "left"):
    mask = arrays[f"{kind}_mask"]
    alone = logits_alone(model, tokens, mask)
    batch = np.where(mask[..., None], arrays[f"{kind}_logits"], 0)
    if difference(batch, alone) > 1e-5:
      arrays[f"{kind}_alone_logits"] = alone
  assert_everything_matters(name, model, arrays)
  if "num_experts_per_tok" in golden.settings and golden.dtype != BFLOAT16:
    arrays |= gradients(model, tokens)
  if golden.version_4 is not None:
    file = folder / "config_v4.json"
    config = transformers.AutoConfig.from_pretrained(file)
    old = logits(read(folder, config=config)[0], tokens, arrays["whole_mask"])
    np.testing.assert_array_equal(old, arrays["whole_logits"], name)
  save_unless_rounding(HERE / f"{name}.npz", arrays)
  return "right_alone_logits" in arrays


def make(names):
  for name in names:
    write_model(name)
    batch = "  (the longest of a batch matters)" if write_numbers(name) else ""
    print(f"{name}{batch}", flush=True)
  made = dict(
    script="tests/golden/make_families.py",
    date=datetime.date.today().isoformat(),
    python=platform.python_version(),
    torch=torch.__version__,
    transformers=transformers.__version__,
    numpy=np.__version__,
  )
  (HERE / "families.json").write_text(json.dumps(made, indent=2) + "\n")


# Back into torch.


def tensor_names(folder, bare=False):
  names = set()
  for file in folder.glob("*.safetensors"):
    with safetensors.safe_open(file, framework="np") as stored:
      names |= set(stored.keys())
  if bare:  # a buffer is not saved, and names are whole
    names = {key for key in names if not key.endswith(".attn.bias")}
    names = {f"transformer.{key}" for key in names}
  return names


def check_one(name):
  """A golden model, through our load and save, back into torch."""
  from mrpo_jax import hub
  from mrpo_jax.hub import write

  golden, source = MODELS[name], HERE / name
  numbers = np.load(HERE / f"{name}.npz")
  config, params = hub.load(source)
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    if golden.version_4 is not None:
      shutil.copytree(source, scratch / "old")
      (scratch / "old/config_v4.json").replace(scratch / "old/config.json")
      assert hub.read_config(scratch / "old") == config, (
        "config_v4.json differs"
      )
    for limit in (5 * 10**9, 20_000):
      write.SHARD_BYTES = limit
      hub.save(scratch / str(limit), config, params)
      model, info = read(scratch / str(limit))
      assert not any(info.values()), info
      assert tensor_names(scratch / str(limit)) == tensor_names(
        source, golden.bare
      ), "other tensor names"
      ours = logits(model, numbers["tokens"], numbers["whole_mask"])
      gap = difference(ours, numbers["whole_logits"])
      assert gap <= 1e-6, f"logits off by {gap:.1e} of the largest"
  return gap


def check(names):
  failed = []
  for name in names:
    try:
      print(f"{name}: as before, to {check_one(name):.1e}", flush=True)
    except Exception as error:  # the others are to be tried all the same
      failed.append(name)
      print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
  if failed:
    raise SystemExit(f"{len(failed)} of {len(names)} failed: {failed}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--check", action="store_true")
  parser.add_argument("beginnings", nargs="*", help="of names; none: all")
  given = parser.parse_args()
  chosen = [
    name for name in MODELS if name.startswith(tuple(given.beginnings) or "")
  ]
  torch.set_num_threads(1)
  (check if given.check else make)(chosen)
