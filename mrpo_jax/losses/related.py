# SPDX-License-Identifier: Apache-2.0
"""Objectives and updates from around preference optimization.

They take other things than the log-probabilities of a pair: single responses
with a label, parameters, tokens of rollouts with their advantages, rewards,
denoising errors.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.batch import masked_moments
from mrpo_jax.losses.pair import margin
from mrpo_jax.shapes import check, widen

MAX_EXPONENT = 70.0  # of a weight: exp of it times 1e4 nats is finite


def _leaves(function, first, second):
  """function on each pair of leaves, in float32 or better; dtypes stay."""

  def leaf(x, y):
    dtype = jnp.result_type(x, y, float)
    return function(widen(x), widen(y)).astype(dtype)

  return jax.tree.map(leaf, first, second)


@checked
def accelerate(params: Any, previous: Any, *, alpha: ArrayLike = 0.3) -> Any:
  """Accelerated preference optimization: extrapolate between two rounds.

      params + alpha * (params - previous)

  The next round's reference is the extrapolated model; the result of the last
  round is taken as it is.

  Args:
    params: tree of arrays, the outcome of this round.
    previous: the same tree, the outcome of the round before.
    alpha: Nesterov-like step; the authors use 0.3.

  Returns:
    A tree of the same shapes and dtypes, computed in float32 or better.

  Source: APO, arXiv:2410.06293, equation 3.7, in parameter space; no code is
  released.

  >>> import jax.numpy as jnp
  >>> now, before = {"w": jnp.array(1.2)}, {"w": jnp.array(1.0)}
  >>> round(float(accelerate(now, before)["w"]), 4)
  1.26
  """
  return _leaves(lambda p, q: p + alpha * (p - q), params, previous)


@checked
def ema(average: Any, params: Any, *, rate: ArrayLike) -> Any:
  """Moves a running average of parameters towards the newest.

      average + rate * (params - average)

  TR-DPO's soft update of the reference (its alpha), WARP's anchor (its mu).
  rate = 1 is the hard update.

  Args:
    average: tree of arrays.
    params: the same tree.
    rate: in [0, 1].

  Returns:
    A tree of the same shapes and dtypes, computed in float32 or better.

  Source: TR-DPO, arXiv:2404.09656; WARP, arXiv:2406.16768.

  >>> import jax.numpy as jnp
  >>> ema({"w": jnp.array(1.0)}, {"w": jnp.array(3.0)}, rate=0.25)["w"].item()
  1.5
  """
  # In this form rate = 1 gives params exactly.
  return _leaves(lambda a, p: (1 - rate) * a + rate * p, average, params)


@checked
def bradley_terry(
  reward_BC: ArrayLike, *, center: ArrayLike = 0.0
) -> jax.Array:
  """The loss of a reward model on pairs.

      loss = -log sigmoid( reward_w - reward_l )
             + center (reward_w + reward_l)^2

  Args:
    reward_BC: scalar rewards; index 0 chosen, 1 rejected.
    center: weight of the term that keeps rewards around zero, which pairs
      leave open; 0.01 in the paper.

  Returns:
    loss_B: nats, float32 or better.

  Source: Bradley and Terry, 1952; the discriminator of D2PO,
  arXiv:2405.01511; the centring, arXiv:2312.09244, equation 2.

  >>> import jax.numpy as jnp
  >>> got = bradley_terry(jnp.array([[1.0, 1.0]]))[0]
  >>> bool(jnp.isclose(got, jnp.log(2.0)))
  True
  """
  check(reward_BC=reward_BC)
  loss_B = -jax.nn.log_sigmoid(margin(reward_BC))
  return loss_B + center * jnp.sum(widen(reward_BC), axis=1) ** 2


@checked
def diffusion_dpo(
  error_BC: ArrayLike, ref_error_BC: ArrayLike, *, beta: ArrayLike = 5000.0
) -> jax.Array:
  """DPO of diffusion models, by their denoising errors.

      loss = -log sigmoid( -beta/2 * [ (e_w - e_l) - (e_w - e_l)_ref ] )

  Args:
    error_BC: mean squared error of the model's prediction, both images of a
      pair under the same time step and noise.
    ref_error_BC: the same of the reference; no gradient.
    beta: the authors' code, with the paper's T omega absorbed.

  Returns:
    loss_B: nats, float32 or better.

  Source: Diffusion-DPO, arXiv:2311.12908, equation 14.

  >>> import jax.numpy as jnp
  >>> error_BC = jnp.array([[0.1, 0.3]])
  >>> got = diffusion_dpo(error_BC, error_BC)[0]
  >>> bool(jnp.isclose(got, jnp.log(2.0)))
  True
  """
  check(error_BC=error_BC, ref_error_BC=ref_error_BC)
  ref_B = jax.lax.stop_gradient(margin(ref_error_BC))
  return -jax.nn.log_sigmoid(-0.5 * beta * (margin(error_BC) - ref_B))


@checked
def apa(
  logp: ArrayLike,
  ref_logp: ArrayLike,
  advantage: ArrayLike,
  *,
  lam: ArrayLike = 0.1,
) -> jax.Array:
  """Advantage-induced policy alignment: regress log-ratios on advantages.

      loss = ( log p - log r - advantage / lam )^2

  Args:
    logp: policy log-probability of each token; nats, any shape.
    ref_logp: the same under the initial policy; no gradient.
    advantage: estimated advantage of each token; no gradient.
    lam: temperature, positive.

  Returns:
    One value per element, float32 or better.

  Source: APA, arXiv:2306.02231, with its normaliser taken as 1.

  >>> import jax.numpy as jnp
  >>> half = jnp.array(-0.5)
  >>> float(apa(half, half, jnp.array(0.5), lam=0.25))
  4.0
  """
  target = widen(ref_logp) + widen(advantage) / lam
  return jnp.square(widen(logp) - jax.lax.stop_gradient(target))


@checked
def awr(
  logp: ArrayLike, advantage: ArrayLike, *, lam: ArrayLike = 2.0
) -> jax.Array:
  """Advantage-weighted regression: likelihood of what turned out well.

      loss = -exp(advantage / lam) * log p

  Args:
    logp: policy log-probability of each token; nats, any shape.
    advantage: estimated advantage of each token; no gradient.
    lam: temperature, positive; the authors' exp(0.5 advantage) on HH is 2,
      and 1 on TL;DR.

  Returns:
    One value per element, float32 or better.

  Source: APA, arXiv:2306.02231, whose rival it is; arXiv:1910.00177.
  Numerics: the exponent is clamped at 70, so that 1e4 nats stay finite.

  >>> import jax.numpy as jnp
  >>> awr(jnp.array([-2.0]), jnp.array([0.0])).tolist()
  [2.0]
  """
  exponent = jnp.minimum(widen(advantage) / lam, MAX_EXPONENT)
  return -jnp.exp(jax.lax.stop_gradient(exponent)) * widen(logp)


@checked
def ppo_clip(
  logp: ArrayLike,
  behaviour_logp: ArrayLike,
  advantage: ArrayLike,
  *,
  cliprange: ArrayLike = 0.2,
) -> jax.Array:
  """Proximal policy optimization, its clipped form.

      ratio = p / behaviour
      loss = -min( ratio A,  clip(ratio, 1 - cliprange, 1 + cliprange) A )

  Args:
    logp: policy log-probability of each token; nats, any shape.
    behaviour_logp: the same when it was said; no gradient.
    advantage: estimated advantage of each token; no gradient.
    cliprange: how far the ratio may go from 1 and still count; positive.

  Returns:
    One value per element, float32 or better.

  Source: PPO, arXiv:1707.06347, equation 7.
  Numerics: the exponent is clamped at 70, so that 1e4 nats stay finite.

  >>> import jax.numpy as jnp
  >>> logp = jnp.log(jnp.array([1.5, 0.5]))
  >>> ppo_clip(logp, jnp.zeros(2), jnp.array([2.0, 2.0])).tolist()
  [-2.4000000953674316, -1.0]
  """
  gain = jax.lax.stop_gradient(widen(advantage))
  ratio = importance_ratio(logp, behaviour_logp)
  near = jnp.clip(ratio, 1.0 - cliprange, 1.0 + cliprange)
  return -jnp.minimum(ratio * gain, near * gain)


def importance_ratio(logp, behaviour_logp):
  """p / behaviour of each token, at most exp(70); the gradient is through p."""
  behaviour_logp = jax.lax.stop_gradient(widen(behaviour_logp))
  return jnp.exp(jnp.minimum(widen(logp) - behaviour_logp, MAX_EXPONENT))


@checked
def value_loss(value: ArrayLike, returns: ArrayLike) -> jax.Array:
  """Half the squared distance of a value from the return that came.

      loss = 1/2 ( V - return )^2

  Args:
    value: of the state before each token, any shape.
    returns: advantage plus the value when it was said; no gradient.

  Returns:
    One value per element, float32 or better; not clipped.

  Source: APA, arXiv:2306.02231, its code.

  >>> import jax.numpy as jnp
  >>> float(value_loss(jnp.array(3.0), jnp.array(1.0)))
  2.0
  """
  return 0.5 * jnp.square(widen(value) - jax.lax.stop_gradient(widen(returns)))


def token_mean(token_loss_BC, length_BC):
  """value_B whose mean over the pairs is the mean over all their tokens.

      value_b = sum_c token_loss_bc * pairs / tokens

  Args:
    token_loss_BC: sums over the tokens of each response.
    length_BC: their numbers; 0 where there is no response, and in both where
      there is no pair.

  >>> import jax.numpy as jnp
  >>> sums_BC = jnp.array([[6.0, 0.0], [2.0, 0.0]])
  >>> token_mean(sums_BC, jnp.array([[3.0, 0.0], [1.0, 0.0]])).tolist()
  [3.0, 1.0]
  """
  check(token_loss_BC=token_loss_BC, length_BC=length_BC)
  length_BC = widen(length_BC)
  pairs = jnp.sum(jnp.any(length_BC > 0, axis=1))
  tokens = jnp.maximum(jnp.sum(length_BC), 1.0)
  return jnp.sum(widen(token_loss_BC), axis=1) * (pairs / tokens)


@checked
def advantage_weighted(
  mean_logp_B: ArrayLike, advantage_B: ArrayLike, *, lam: ArrayLike = 5.0
) -> jax.Array:
  """Advantage-weighted likelihood, the auxiliary term of HPO.

      loss = -exp(lam * advantage) * mean_logp

  Args:
    mean_logp_B: policy log-probability per response token; nats.
    advantage_B: reward of the response minus the prompt's value; no gradient.
    lam: inverse temperature.

  Returns:
    loss_B: float32 or better.

  Source: HPO, arXiv:2405.17956, the pseudo-code of its appendix.
  Numerics: the exponent is clamped at 70, so that 1e4 nats stay finite.

  >>> import jax.numpy as jnp
  >>> advantage_weighted(jnp.array([-2.0]), jnp.array([0.0])).tolist()
  [2.0]
  """
  check(mean_logp_B=mean_logp_B, advantage_B=advantage_B)
  exponent_B = jnp.minimum(lam * widen(advantage_B), MAX_EXPONENT)
  weight_B = jnp.exp(jax.lax.stop_gradient(exponent_B))
  return -weight_B * widen(mean_logp_B)


@checked
def kto_unpaired(
  logratio_B: ArrayLike,
  desirable_B: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  kl_shift: ArrayLike = 0.0,
  desirable_weight: ArrayLike = 1.0,
  undesirable_weight: ArrayLike = 1.0,
  mismatched_logratio_B: ArrayLike | None = None,
  valid_B: ArrayLike | None = None,
) -> jax.Array:
  """Kahneman-Tversky optimization of single responses, each good or bad.

      desirable:    weight_d * (1 - sigmoid(beta (r - z)))
      undesirable:  weight_u * (1 - sigmoid(beta (z - r)))

  Args:
    logratio_B: policy minus reference log-probability of a response; nats.
    desirable_B: true where the response is a good one.
    beta: inverse temperature, per nat.
    kl_shift: z; see `kto`.
    desirable_weight: on good responses.
    undesirable_weight: on bad ones; keep n_d weight_d / (n_u weight_u)
      between 1 and 4/3.
    mismatched_logratio_B: log-ratio of another prompt's response to this
      prompt; the mean over the batch is z then, whatever kl_shift is.
    valid_B: true for real responses, over which that mean is; None means all.

  Returns:
    loss_B: one value per response, float32 or better.

  Source: KTO, arXiv:2402.01306, equation 8.

  >>> import jax.numpy as jnp
  >>> good_B = jnp.array([True, False])
  >>> kto_unpaired(jnp.zeros(2), good_B, desirable_weight=3.0).tolist()
  [1.5, 0.5]
  """
  check(logratio_B=logratio_B, desirable_B=desirable_B)
  if mismatched_logratio_B is not None:
    check(logratio_B=logratio_B, mismatched_logratio_B=mismatched_logratio_B)
    valid_B = jnp.ones_like(desirable_B) if valid_B is None else valid_B
    check(logratio_B=logratio_B, valid_B=valid_B)
    kl_shift, _ = masked_moments(mismatched_logratio_B, valid_B)
  shift = jnp.maximum(jax.lax.stop_gradient(widen(kl_shift)), 0.0)
  reward_B = beta * (widen(logratio_B) - shift)
  good_B = desirable_weight * jax.nn.sigmoid(-reward_B)
  bad_B = undesirable_weight * jax.nn.sigmoid(reward_B)
  return jnp.where(desirable_B, good_B, bad_B)


@checked
def apo_zero_unpaired(
  logratio_B: ArrayLike,
  desirable_B: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  desirable_weight: ArrayLike = 1.0,
  undesirable_weight: ArrayLike = 1.0,
) -> jax.Array:
  """`apo_zero` on single responses, each good or bad.

      desirable:    weight_d * (1 - sigmoid(beta r))
      undesirable:  weight_u * sigmoid(beta r)

  It is `kto_unpaired` with z = 0.

  Args:
    logratio_B: policy minus reference log-probability of a response; nats.
    desirable_B: true where the response is a good one.
    beta: inverse temperature, per nat.
    desirable_weight: on good responses.
    undesirable_weight: on bad ones.

  Returns:
    loss_B: one value per response, float32 or better.

  Source: APO, arXiv:2408.06266; TRL 1.16's KTO trainer.

  >>> import jax.numpy as jnp
  >>> good_B = jnp.array([True, False])
  >>> apo_zero_unpaired(jnp.zeros(2), good_B).tolist()
  [0.5, 0.5]
  """
  return kto_unpaired(
    logratio_B,
    desirable_B,
    beta=beta,
    desirable_weight=desirable_weight,
    undesirable_weight=undesirable_weight,
  )


@checked
def bco_unpaired(
  logratio_B: ArrayLike,
  desirable_B: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  shift: ArrayLike = 0.0,
) -> jax.Array:
  """Binary classifier optimization of single responses, each good or bad.

      desirable:    -log sigmoid(beta r - shift)
      undesirable:  -log sigmoid(shift - beta r)

  Args:
    logratio_B: policy minus reference log-probability of a response; nats.
    desirable_B: true where the response is a good one.
    beta: inverse temperature, per nat; the authors use 0.01.
    shift: delta, the mean reward beta r so far; no gradient.  A method
      remembers it over all responses of its steps, this batch included.

  Returns:
    loss_B: nats, float32 or better.

  Source: BCO, arXiv:2404.04656; delta as in TRL's BCO trainer, without the
  weights that match the prompts' distributions.

  >>> import jax.numpy as jnp
  >>> good_B = jnp.array([True, False])
  >>> got_B = bco_unpaired(jnp.full(2, 20.0), good_B, shift=2.0)
  >>> bool(jnp.allclose(got_B, jnp.log(2.0)))
  True
  """
  check(logratio_B=logratio_B, desirable_B=desirable_B)
  shift = jax.lax.stop_gradient(widen(shift))
  logit_B = beta * widen(logratio_B) - shift
  sign_B = jnp.where(desirable_B, 1.0, -1.0)
  return -jax.nn.log_sigmoid(sign_B * logit_B)
