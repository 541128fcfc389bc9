# SPDX-License-Identifier: Apache-2.0
"""MallowsPO: how much people disagree about a prompt scales its margin.

The dispersion phi(x) of a prompt is estimated from the reference's next-token
entropy; c(x) = -log phi(x), divided by its mean over the data set, multiplies
the margin inside any loss that takes `scale_B`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mrpo_jax.losses.arguments import checked
from mrpo_jax.losses.pair import MAX_EXPONENT, dpo, margin
from mrpo_jax.shapes import check, widen

MIN_DISPERSION = 1e-4  # so that a certain model's scale is finite


@checked
def normalised_entropy(
  entropy_sum: ArrayLike, count: ArrayLike, *, vocab_size: int
) -> jax.Array:
  """Mean next-token entropy as a share of the largest possible.

      H = sum_t entropy_t / count / log V

  Args:
    entropy_sum: entropies of the next-token distribution, summed over the
      tokens of a response; nats, any shape.
    count: tokens summed, of the same shape.
    vocab_size: V, static.

  Returns:
    In [0, 1], of the same shape; 0 where count is 0.

  Source: released code of MallowsPO (arXiv:2405.14953), for its equation 11.

  >>> import jax.numpy as jnp
  >>> float(normalised_entropy(jnp.log(16.0), 2.0, vocab_size=16))
  0.5
  """
  count = widen(count)
  mean = widen(entropy_sum) / jnp.where(count > 0, count, 1.0)
  return jnp.where(count > 0, mean / jnp.log(float(vocab_size)), 0.0)


@checked
def neg_log_dispersion(normalised_entropy_BC: ArrayLike) -> jax.Array:
  """-log of the entropy share, averaged over both responses of a pair.

      -log phi(x)  ~  -log( (H(y_w) + H(y_l)) / 2 )

  Args:
    normalised_entropy_BC: see `normalised_entropy`; under the reference.

  Returns:
    neg_log_dispersion_B: large where the model is certain.

  Source: MallowsPO, arXiv:2405.14953, equation 11, without its factor phi*,
  which `dispersion_scale` is.
  Numerics: the average is floored at 1e-4.

  >>> import jax.numpy as jnp
  >>> got = neg_log_dispersion(jnp.array([[0.25, 0.75]]))[0]
  >>> bool(jnp.isclose(got, jnp.log(2.0)))
  True
  """
  check(normalised_entropy_BC=normalised_entropy_BC)
  mean_B = jnp.mean(widen(normalised_entropy_BC), axis=-1)
  return -jnp.log(jnp.maximum(mean_B, MIN_DISPERSION))


@checked
def dispersion_scale(
  neg_log_dispersion_B: ArrayLike, *, mean: ArrayLike
) -> jax.Array:
  """c(x): the factor on a pair's margin, 1 on average over the data set.

      c = -log phi(x) / mean over the data set of -log phi(x)

  Args:
    neg_log_dispersion_B: see `neg_log_dispersion`.
    mean: of that over the data set; the released 0.29 is 1 / mean for
      Llama-3-8B-Instruct on UltraFeedback.

  Returns:
    scale_B: no gradient; the `scale_B` of a loss.

  Source: MallowsPO, arXiv:2405.14953, section 3.3; the paper's factor 2 is
  part of phi*, which makes the mean 1.

  >>> import jax.numpy as jnp
  >>> dispersion_scale(jnp.array([1.0, 3.0]), mean=2.0).tolist()
  [0.5, 1.5]
  """
  check(neg_log_dispersion_B=neg_log_dispersion_B)
  return jax.lax.stop_gradient(widen(neg_log_dispersion_B) / mean)


@checked
def mallows_theta(
  logratio_BC: ArrayLike,
  scale_B: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
  """MallowsPO with Spearman's distance: DPO with a factor per prompt.

      loss = -log sigmoid( c(x) * beta * (r_w - r_l) )

  A sharp prompt (large c) saturates sooner.  c = 1 is DPO.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    scale_B: c(x) of each pair, see `dispersion_scale`; no gradient.
    beta: inverse temperature, per nat.
    label_smoothing: see `dpo`.

  Returns:
    loss_B: nats, float32 or better.

  Source: MallowsPO, arXiv:2405.14953, equation 8, with c = -2 log phi
  normalised to mean 1 as in the released code.

  >>> import jax.numpy as jnp
  >>> got = mallows_theta(jnp.array([[2.0, -1.0]]), jnp.array([2.0]), beta=0.5)
  >>> bool(jnp.isclose(got[0], jnp.log1p(jnp.exp(-3.0))))
  True
  """
  check(logratio_BC=logratio_BC, scale_B=scale_B)
  scale_B = jax.lax.stop_gradient(widen(scale_B))
  return dpo(
    logratio_BC, beta=beta, scale_B=scale_B, label_smoothing=label_smoothing
  )


SMOOTHINGS = ("cubic", "sigmoid", "none")


@checked
def mallows_phi(
  logratio_BC: ArrayLike,
  phi_B: ArrayLike,
  *,
  beta: ArrayLike = 0.1,
  smoothing: str = "cubic",
  epsilon: ArrayLike = 0.1,
) -> jax.Array:
  """MallowsPO with Kendall's distance: a link that jumps at 0, smoothed.

      s    = beta * (r_w - r_l)
      g(s) = (|s| + 1) / (1 - phi^(|s| + 1)) - |s| / (1 - phi^|s|)   for s > 0
      g(-s) = 1 - g(s)
      loss = -log g(s)

  phi near 0: rankings are certain; near 1: they are noise.  The raw link is
  discontinuous at s = 0 and has no gradient there: from policy = reference it
  never starts.  "cubic" puts a cubic through 1/2 on [-epsilon, epsilon], with
  value and slope of g at its ends; "sigmoid" is sigmoid(-s log phi), which
  agrees with g at s = 1.

  Args:
    logratio_BC: policy minus reference log-probability; nats.
    phi_B: dispersion of each prompt, in (0, 1); no gradient.
    beta: inverse temperature, per nat.
    smoothing: "cubic", "sigmoid" or "none", static.
    epsilon: half-width of the cubic, in units of s; positive.

  Returns:
    loss_B: nats, float32 or better.

  Raises:
    ValueError: another smoothing.

  Source: MallowsPO, arXiv:2405.14953, equations 9 and 13, section 3.4; how
  the paper fits its cubic is unverified, and no code of this link is released.
  Numerics: log g from sums of positive terms, without cancellation; finite
  for phi in (0, 1) and |s| up to 1e4.

  >>> import jax.numpy as jnp
  >>> one = jnp.array([[1.0, 0.0]])  # g(1) = 1 / (1 + phi)
  >>> got = mallows_phi(one, jnp.array([0.25]), beta=1.0)[0]
  >>> bool(jnp.isclose(got, jnp.log(1.25)))
  True
  """
  if smoothing not in SMOOTHINGS:
    raise ValueError(
      f"unknown smoothing {smoothing!r}; known: {', '.join(SMOOTHINGS)}"
    )
  check(logratio_BC=logratio_BC, phi_B=phi_B)
  s_B = beta * margin(logratio_BC)
  theta_B = -jnp.log(jax.lax.stop_gradient(widen(phi_B)))
  # Where phi rounds to 0 or 1 in float32, and exp(theta) to inf.
  theta_B = jnp.clip(theta_B, 1e-7, MAX_EXPONENT)
  if smoothing == "sigmoid":
    return -jax.nn.log_sigmoid(theta_B * s_B)
  size_B = jnp.abs(s_B)
  if smoothing == "none":
    return -_log_link(s_B, _log_wrong(size_B, theta_B))
  inside_B = size_B < epsilon
  outer_B = _log_link(
    s_B, _log_wrong(jnp.where(inside_B, epsilon, size_B), theta_B)
  )
  inner_B = _cubic(jnp.where(inside_B, s_B, 0.0), theta_B, epsilon)
  return -jnp.where(inside_B, inner_B, outer_B)


def _log_link(s_B, log_wrong_B):
  """log g(s), given log g(-|s|); 1/2 without a slope at 0."""
  right_B = jnp.log1p(-jnp.exp(log_wrong_B))
  sided_B = jnp.where(s_B > 0, right_B, log_wrong_B)
  return jnp.where(s_B == 0, -jnp.log(2.0), sided_B)


def _cubic(s_B, theta_B, epsilon):
  """log of the cubic through 1/2 that meets g at +-epsilon with its slope."""
  epsilon_B = jnp.full_like(theta_B, epsilon)
  log_wrong_B, log_slope_B = jax.jvp(
    lambda size_B: _log_wrong(size_B, theta_B),
    (epsilon_B,),
    (jnp.ones_like(epsilon_B),),
  )
  wrong_B = jnp.exp(log_wrong_B)  # g(-epsilon)
  rise_B = 0.5 - wrong_B  # g(epsilon) - 1/2
  slope_B = -wrong_B * log_slope_B * epsilon  # g'(epsilon) * epsilon
  # From the left end, every term positive: g jumps at 0, then is concave.
  step_B = 1.0 + s_B / epsilon
  bend_B = 0.5 * jnp.maximum(rise_B - slope_B, 0.0)
  cubic_B = wrong_B + slope_B * step_B + bend_B * step_B**2 * (3.0 - step_B)
  return jnp.log(jnp.maximum(cubic_B, jnp.finfo(cubic_B.dtype).tiny))


def _log_wrong(size_B, theta_B):
  """log g(-|s|) with theta = -log phi.

  With f(u) = u / expm1(theta u), g(-a) = f(a) - f(a + 1).  Written over one
  denominator that difference is

      [ c h(x) + e^-theta (h(x) - 1) ] e^-x / (1 - e^-(x + theta)),
      x = theta a,  h(x) = x / (1 - e^-x),  c = (1 - e^-theta)/theta - e^-theta

  in which every term is positive.
  """
  x_B = theta_B * size_B
  grown_B = _grown(x_B)
  decay_B = jnp.exp(-theta_B)
  lead_B = decay_B * _expm1_ratio(theta_B)
  numerator_B = lead_B * (1.0 + grown_B) + decay_B * grown_B
  return jnp.log(numerator_B) - x_B - jnp.log(-jnp.expm1(-(x_B + theta_B)))


def _grown(x):
  """x / (1 - e^-x) - 1, by its series near 0 (Bernoulli numbers)."""
  small = x < 0.5
  near = jnp.where(small, x, 0.0)
  square = near * near
  terms = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)
  series = near * 0.5 + square * _horner(square, terms)
  far = jnp.where(small, 1.0, x)
  return jnp.where(small, series, -far / jnp.expm1(-far) - 1.0)


def _expm1_ratio(x):
  """(e^x - 1) / x - 1, by its series near 0."""
  small = x < 0.5
  near = jnp.where(small, x, 0.0)
  factorial, terms = 1.0, []
  for n in range(2, 15):
    factorial *= n
    terms.append(1.0 / factorial)
  far = jnp.where(small, 1.0, x)
  return jnp.where(
    small, near * _horner(near, terms), jnp.expm1(far) / far - 1.0
  )


def _horner(x, terms):
  """terms[0] + terms[1] x + terms[2] x^2 + ..."""
  total = jnp.zeros_like(x)
  for term in reversed(terms):
    total = total * x + term
  return total
