# SPDX-License-Identifier: Apache-2.0
"""Shapes of published models, so that a run is planned before it is fetched.

Of each config.json what decides shapes and work.  `mrpo train` reads the
folder itself.
"""

_LLAMA = dict(
  model_type="llama",
  hidden_size=4096,
  num_hidden_layers=32,
  num_attention_heads=32,
  num_key_value_heads=8,
  intermediate_size=14336,
  rms_norm_eps=1e-5,
)
_LLAMA2_7B = _LLAMA | dict(
  num_key_value_heads=32,
  intermediate_size=11008,
  vocab_size=32000,
  max_position_embeddings=4096,
)
_LLAMA3_8B = _LLAMA | dict(
  vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0
)
_LLAMA3_70B = _LLAMA3_8B | dict(
  hidden_size=8192,
  num_hidden_layers=80,
  num_attention_heads=64,
  intermediate_size=28672,
)
_LLAMA31_8B = _LLAMA3_8B | dict(
  max_position_embeddings=131072,
  rope_scaling=dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
  ),
)
_MISTRAL_7B = _LLAMA | dict(
  model_type="mistral",
  vocab_size=32000,
  max_position_embeddings=32768,
  sliding_window=4096,
)
_QWEN = dict(
  model_type="qwen2",
  vocab_size=151936,
  max_position_embeddings=32768,
  rms_norm_eps=1e-6,
  rope_theta=1000000.0,
  tie_word_embeddings=True,
)
_MIXTRAL = _LLAMA | dict(
  model_type="mixtral",
  vocab_size=32000,
  max_position_embeddings=32768,
  rope_theta=1000000.0,
  num_local_experts=8,
  num_experts_per_tok=2,
)
MODELS = {  # name on the Hugging Face hub -> config.json
  "meta-llama/Llama-2-7b-chat-hf": _LLAMA2_7B,
  "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
  # Two tokens more than Mistral's.
  "teknium/OpenHermes-2.5-Mistral-7B": _MISTRAL_7B | dict(vocab_size=32002),
  "mistralai/Mistral-7B-Instruct-v0.3": _MISTRAL_7B
  | dict(vocab_size=32768, rope_theta=1000000.0, sliding_window=None),
  "mistralai/Mixtral-8x7B-v0.1": _MIXTRAL,
  "mistralai/Mixtral-8x7B-Instruct-v0.1": _MIXTRAL,
  "meta-llama/Meta-Llama-3-8B": _LLAMA3_8B,
  "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
  "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA3_70B,
  "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31_8B,
  "princeton-nlp/Llama-3-Base-8B-SFT": _LLAMA3_8B,
  "Qwen/Qwen2.5-0.5B-Instruct": _QWEN
  | dict(
    hidden_size=896,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=4864,
  ),
  "Qwen/Qwen2.5-1.5B-Instruct": _QWEN
  | dict(
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
  ),
  "Qwen/Qwen3-4B-Instruct-2507": _QWEN
  | dict(
    model_type="qwen3",
    hidden_size=2560,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=9728,
    max_position_embeddings=262144,
    rope_theta=5000000.0,
  ),
  "Qwen/Qwen3-30B-A3B": _QWEN
  | dict(
    model_type="qwen3_moe",
    hidden_size=2048,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    max_position_embeddings=40960,
    tie_word_embeddings=False,
  ),
  "01-ai/Yi-1.5-9B-Chat": _LLAMA
  | dict(
    num_hidden_layers=48,
    num_key_value_heads=4,
    intermediate_size=11008,
    vocab_size=64000,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=5000000.0,
  ),
  "microsoft/Phi-3-medium-128k-instruct": dict(
    model_type="phi3",
    hidden_size=5120,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=10,
    intermediate_size=17920,
    vocab_size=32064,
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    sliding_window=131072,
    rms_norm_eps=1e-5,
    # Its 64 factors change no shape.
    rope_scaling=dict(
      type="longrope", short_factor=[1.0] * 64, long_factor=[1.0] * 64
    ),
  ),
}
