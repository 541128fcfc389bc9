# SPDX-License-Identifier: Apache-2.0
"""The objective of a step: policy, references and method, all static."""

import dataclasses

import jax
import jax.numpy as jnp

from mrpo_jax.losses.methods.method import Method
from mrpo_jax.models import packed
from mrpo_jax.models.config import VALUED, ModelConfig
from mrpo_jax.shapes import axes_of


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as the step sees it; its parameters are arguments."""

  config: ModelConfig
  view: int = 0  # which tokenizer's rows it reads
  computation: packed.Computation = packed.DEFAULT
  scored: bool = False  # its figures are given: no parameters, no rows

  def token_figures(self, params, rows, pairs, **wanted):
    """`packed.token_figures` of one micro-batch."""
    return packed.token_figures(
      self.config, params, rows, pairs, self.computation, **wanted
    )

  def rewards(self, params, rows, pairs):
    """`packed.rewards` of one micro-batch."""
    return packed.rewards(self.config, params, rows, pairs, self.computation)

  def all_token_figures(self, params, views, pairs, *, also=()):
    """List over the parts of the model's view of dict of value_ARM."""
    return [
      packed.all_token_figures(
        self.config, params, rows, pairs, self.computation, also=also
      )
      for rows in views[self.view]
    ]

  def lengths(self, views, pairs):
    """length_BC in its tokens; 0 where a batch holds fewer pairs."""
    return sum(
      packed.response_lengths(rows, pairs) for rows in views[self.view]
    )


@dataclasses.dataclass(frozen=True)
class Objective:
  """Everything static of a step."""

  pairs: int  # B
  policy: Model
  references: tuple[Model, ...]  # K of them; 0 is the base
  names: tuple[str, ...]
  method: Method  # losses.build(...)

  @property
  def views(self):
    """How many tokenizers' rows the step reads."""
    online = [model.view for model in self.references if not model.scored]
    return 1 + max([self.policy.view, *online])

  def compares_tokens(self):
    """Do references have to read the policy's tokens?"""
    return self.method.token_weight is not None or self.needs("kl_BC")

  def needs(self, figure):
    return figure in self.method.needs

  def check(self):
    """Raises ValueError where the models cannot give what the method needs."""
    head = "scalar" if self.method.of_rewards else "tokens"
    if self.method.tokens is not None:
      head = VALUED
    if self.policy.config.head != head:
      raise ValueError(
        f"loss {self.method.name!r} trains a model whose head is {head!r}, but "
        f"the policy's is {self.policy.config.head!r}: set policy.head"
      )
    compares = self.method.tokens is None  # else rollouts have compared before
    for name, model in zip(self.names, self.references, strict=True):
      if not compares and model.view != self.policy.view:
        raise ValueError(
          f"loss {self.method.name!r} compares tokens, so reference {name!r} "
          "needs the policy's tokenizer"
        )
    takes = self.method.takes_reference
    if len(self.references) > 1 and compares and not takes:
      raise ValueError(
        f"loss {self.method.name!r} has no reference, and metrics compare with "
        f"one alone, got {', '.join(self.names)}: leave the others out"
      )
    for name, model in zip(self.names, self.references, strict=True):
      if self.compares_tokens() and model.view != self.policy.view:
        raise ValueError(
          f"loss {self.method.name!r} compares tokens, so reference {name!r} "
          "needs the policy's tokenizer"
        )
    if self.needs("normalised_entropy_BC") and not self.references:
      raise ValueError(
        f"loss {self.method.name!r} takes its dispersion from reference 0, "
        "but there is no reference"
      )
    if self.needs("kl_BC"):
      if self.references and self.references[0].scored:
        raise ValueError(
          f"loss {self.method.name!r} needs every probability of reference "
          f"{self.names[0]!r}, so its mode must be 'online'"
        )
      sizes = [m.config.vocab_size for m in (self.policy, *self.references)]
      if len(set(sizes)) > 1:
        raise ValueError(
          f"loss {self.method.name!r} needs one vocabulary, got sizes {sizes}"
        )
    pair_BC = jax.ShapeDtypeStruct((self.pairs, 2), jnp.float32)
    K = len(self.references)
    ref_BCK = jax.ShapeDtypeStruct((*pair_BC.shape, K), jnp.float32)
    sizes = {"B": self.pairs, "C": 2, "K": K}
    figures = {
      name: jax.ShapeDtypeStruct(
        [sizes[axis] for axis in axes_of(name)], jnp.float32
      )
      for name in self.method.needs
    }
    # Traced on K references: what the loss refuses, it refuses now.
    jax.eval_shape(self.method, pair_BC, ref_BCK if K else None, **figures)
