# SPDX-License-Identifier: Apache-2.0
"""ModelConfig: a decoder, by what it computes."""

import dataclasses

from mrpo_jax.models.rope import Rope, check_rope

LARGEST = 2**31 - 1
VALUED = "tokens+value"  # the head that also says what a response is worth
SIZES = (
  *("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim"),
  *("mlp_width", "experts"),
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder, by what it computes.

  The defaults are Llama's: RMSNorm before each branch, RoPE, grouped queries,
  SwiGLU.  `families.read` makes it from the config.json of any family.
  """

  vocab_size: int
  width: int  # D
  layers: int  # L
  heads: int  # H
  kv_heads: int  # G, divides H
  head_dim: int  # E
  mlp_width: int  # F
  norm_epsilon: float = 1e-5
  tied: bool = False  # the head is the embedding
  max_positions: int = 2048
  bos_id: int | None = None
  eos_id: int | None = None
  family: str = "llama"  # a key of families.FAMILIES
  # Norms.
  norm: str = "rms"  # "layer" subtracts the mean, too, and has a bias
  norm_shift: float = 0.0  # the factor is this plus the weight
  norms: str = "before"  # or "after" each branch, or "both"
  parallel: str | None = None  # branches side by side: "one" norm, or "two"
  qk_norm: str | None = None  # over a "head", each of the "heads", or "all"
  # Positions.
  ropes: tuple[Rope | None, ...] = (Rope(),)  # None turns nothing
  layer_ropes: tuple[int, ...] = ()  # of each layer; empty: the first for all
  learned_positions: bool = False  # added to the embedding
  # Attention.
  qkv_bias: bool = False
  out_bias: bool = False
  attention_scale: float | None = None  # of q.k; None: head_dim^-1/2
  attention_softcap: float | None = None
  layer_windows: tuple[int, ...] = ()  # of each layer, in tokens; 0 for none
  # MLP.
  gated: bool = True
  activation: str = "silu"  # a key of transformer.ACTIVATIONS
  mlp_bias: bool = False
  # Experts: so many MLPs of mlp_width in place of one; 0 for a dense model.
  experts: int = 0
  experts_per_token: int = 0
  shares_sum_to_one: bool = True  # of a token's experts; else of all experts
  # Factors.
  embedding_scale: float = 1.0
  residual_scale: float = 1.0  # of each branch
  logits_scale: float = 1.0
  logits_softcap: float | None = None
  # "tokens": a logit for each of the vocabulary; "tokens+value": beside them
  # one number, the value of what was said so far; "scalar": one number alone,
  # a reward, of a model that says nothing.
  head: str = "tokens"
  # The config.json it came from, as text: what `hub.save` writes.
  source: str = dataclasses.field(default="", compare=False, repr=False)

  def __post_init__(self):
    for name in SIZES:
      if getattr(self, name) > LARGEST:
        raise ValueError(
          f"{name}={getattr(self, name)} is more than {LARGEST}, the largest "
          "axis of an array"
        )
    if self.heads % self.kv_heads:
      raise ValueError(
        f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
      )
    if self.experts:
      self._check_experts()
    for rope in filter(None, self.ropes):
      check_rope(rope, self.head_dim)

  def _check_experts(self):
    if not 0 < self.experts_per_token <= self.experts:
      raise ValueError(
        f"experts_per_token={self.experts_per_token}; want 1 to experts="
        f"{self.experts}"
      )
    if not self.gated or self.mlp_bias:
      raise ValueError("experts without a gate, or with biases, are not known")

  @property
  def longest(self):
    """Tokens of a sequence up to which batching changes nothing, or None.

    Some ropes look at the longest sequence of a batch once it goes past a
    bound, and learned positions end: a packed row must stay within.
    """
    bounds = [rope.longest for rope in self.ropes if rope and rope.longest]
    return min(
      [*bounds, *([self.max_positions] * self.learned_positions)], default=None
    )
