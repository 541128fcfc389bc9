# SPDX-License-Identifier: Apache-2.0
"""Running sums over blocks of a vocabulary: softmax, entropy, argmax, ...

Each class holds a number of every token, made of the logits that were seen so
far.  Sums of shares, exp(logit - top), are against the greatest of these
logits; when a greater one comes, in another block or from another device, a
Rise says what it makes of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30  # a logit without probability; finite, so that 0 times it is 0
MODEL, REFERENCE = 0, 1


class LogSoftmax(NamedTuple):
  """The greatest logit, the sum of shares, and the target's logit."""

  top: jax.Array
  sum: jax.Array
  hit: jax.Array

  def to(self, top):
    """(the same against another greatest logit, the Rise to it)."""
    rise = Rise(self, top, jnp.exp(self.top - top))
    return LogSoftmax(top, self.sum * rise.fade, self.hit), rise

  def add(self, logits_Rcv, hit_Rcv):
    """(these sums and one more block, the Rise to them, share_Rcv)."""
    top_Rc = jnp.maximum(self.top, jnp.max(logits_Rcv, axis=-1))
    share_Rcv = jnp.exp(logits_Rcv - top_Rc[:, :, None])
    old, rise = self.to(top_Rc)
    sum_Rc = old.sum + jnp.sum(share_Rcv, axis=-1)
    hit_Rc = jnp.sum(jnp.where(hit_Rcv, logits_Rcv, 0.0), axis=-1)
    return LogSoftmax(top_Rc, sum_Rc, old.hit + hit_Rc), rise, share_Rcv

  def together(self, axes):
    """(sums over the tokens of all devices, the Rise to them)."""
    own, rise = self.to(jax.lax.pmax(self.top, axes))
    return LogSoftmax(own.top, *jax.lax.psum((own.sum, own.hit), axes)), rise

  def norm(self):
    """The log of the sum of exp(logit)."""
    return self.top + jnp.log(self.sum)


class Rise(NamedTuple):
  """From the sums of a softmax to another greatest logit."""

  old: LogSoftmax
  top: jax.Array
  fade: jax.Array  # what a share against the old one is worth now


class Entropy(NamedTuple):
  """The sum of share * (logit - top)."""

  total: jax.Array
  of = MODEL  # whose shares they are

  def to(self, rise):
    gap = rise.old.top - rise.top
    return Entropy((self.total + gap * rise.old.sum) * rise.fade)

  def add(self, rise, share_Rcv, logits, _):
    below_Rcv = logits[MODEL] - rise.top[:, :, None]
    more_Rc = jnp.sum(share_Rcv * below_Rcv, axis=-1)
    return Entropy(self.to(rise).total + more_Rc)

  def result(self, model, *_):
    return jnp.log(model.sum) - self.total / model.sum


class SquareSum(NamedTuple):
  """The sum of share^2; the result is the log of that of probability^2."""

  total: jax.Array
  of = MODEL

  def to(self, rise):
    return SquareSum(self.total * jnp.square(rise.fade))

  def add(self, rise, share_Rcv, logits, _):
    more_Rc = jnp.sum(jnp.square(share_Rcv), axis=-1)
    return SquareSum(self.to(rise).total + more_Rc)

  def result(self, model, *_):
    return jnp.log(jnp.maximum(self.total, 1.0)) - 2 * jnp.log(model.sum)


class Divergence(NamedTuple):
  """The sum of the reference's share * (its logit - the model's)."""

  total: jax.Array
  of = REFERENCE

  def to(self, rise):
    return Divergence(self.total * rise.fade)

  def add(self, rise, share_Rcv, logits, _):
    apart_Rcv = logits[REFERENCE] - logits[MODEL]
    more_Rc = jnp.sum(share_Rcv * apart_Rcv, axis=-1)
    return Divergence(self.to(rise).total + more_Rc)

  def result(self, model, reference):
    return self.total / reference.sum + (model.norm() - reference.norm())


class Greedy(NamedTuple):
  """1 where the target is the likeliest token, the first of equal ones."""

  is_hit: jax.Array
  of = MODEL

  def to(self, _):
    return self

  def add(self, rise, _, logits, hit_Rcv):
    logits_Rcv = logits[MODEL]
    V = logits_Rcv.shape[-1]
    place_11v = jnp.arange(V)[None, None]

    def first(is_one_Rcv):
      return jnp.min(jnp.where(is_one_Rcv, place_11v, V), axis=-1)

    here_Rc1 = jnp.max(logits_Rcv, axis=-1, keepdims=True)
    is_hit_Rc = first(logits_Rcv == here_Rc1) == first(hit_Rcv)
    # A later block wins by a greater logit alone, and then the top has risen.
    wins_Rc = rise.top > rise.old.top
    return Greedy(
      jnp.where(wins_Rc, is_hit_Rc.astype(self.is_hit.dtype), self.is_hit)
    )

  def owned(self, rise, axes):
    """0 but on the first of the devices that have the greatest logit."""
    place = jax.lax.axis_index(axes)
    far = jnp.iinfo(jnp.int32).max
    mine_RM = jnp.where(rise.old.top == rise.top, place, far)
    return Greedy(
      jnp.where(jax.lax.pmin(mine_RM, axes) == place, self.is_hit, 0)
    )

  def result(self, *_):
    return self.is_hit


FIGURES = {
  "entropy": Entropy,
  "log_sum_sq": SquareSum,
  "kl": Divergence,
  "is_greedy": Greedy,
}


class Sums(NamedTuple):
  """The sums of a model, and of its reference where it has one."""

  softmax: list[LogSoftmax]  # of each
  figures: dict  # name in FIGURES -> what it names

  @classmethod
  def start(cls, zero, models, names):
    softmax = LogSoftmax(jnp.full_like(zero, NEVER), zero, zero)
    return cls(
      [softmax] * models, {name: FIGURES[name](zero) for name in names}
    )

  def add(self, logits, hit_Rcv):
    """These sums and one more block, of logits_Rcv of each model."""
    softmax, rises, shares = zip(
      *(
        one.add(logits_Rcv, hit_Rcv)
        for one, logits_Rcv in zip(self.softmax, logits, strict=True)
      ),
      strict=True,
    )
    figures = {
      name: one.add(rises[one.of], shares[one.of], logits, hit_Rcv)
      for name, one in self.figures.items()
    }
    return Sums(list(softmax), figures)

  def together(self, axes):
    """Sums over the tokens of all devices, from those of each."""
    softmax, rises = zip(
      *(one.together(axes) for one in self.softmax), strict=True
    )
    own = {
      name: one.owned(rises[one.of], axes)
      if isinstance(one, Greedy)
      else one.to(rises[one.of])
      for name, one in self.figures.items()
    }
    return Sums(list(softmax), jax.lax.psum(own, axes))

  def result(self):
    """(figures, norms): see `head.token_figures`, and for its gradient."""
    # Places past the chunks in use have no sum; their figures are dropped.
    softmax = [
      one._replace(sum=jnp.maximum(one.sum, 1.0))  # the top's own share is 1
      for one in self.softmax
    ]
    norms = [one.norm() for one in softmax]
    names = ("logp", "ref_logp")[: len(softmax)]
    figures = {
      name: one.hit - norm
      for name, one, norm in zip(names, softmax, norms, strict=True)
    }
    for name, one in self.figures.items():
      figures[name] = one.result(*softmax)
    return figures, norms
