# SPDX-License-Identifier: Apache-2.0
"""Mallows' link against a table, 240-digit arithmetic and laws."""

import decimal
import functools
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses

# phi -> rows of s, g(s), log g(s), g'(s), of equation 9 with 50 digits.
TABLE = {
  0.05: [
    (-20, 1.80721282959e-25, -56.9728415396, 5.32332673872e-25),
    (-5, 1.46875048682e-6, -13.4310985276, 4.10310959611e-6),
    (-2, 0.00463748444746, -5.3735832047, 0.0115489059213),
    (-1, 0.047619047619, -3.04452243772, 0.100789397264),
    (-0.1, 0.243969873732, -1.41071052962, 0.357010208786),
    (0.1, 0.756030126268, -0.279674054035, 0.357010208786),
    (0.5, 0.872956552084, -0.135869492898, 0.227558463663),
    (1, 0.952380952381, -0.0487901641694, 0.100789397264),
    (2, 0.995362515553, -0.00464827093951, 0.0115489059213),
    (5, 0.99999853125, -1.46875156543e-6, 4.10310959611e-6),
    (20, 1.0, -1.80721282959e-25, 5.32332673872e-25),
  ],
  0.2: [
    (-20, 1.65675008e-13, -29.4287483086, 2.58255031018e-13),
    (-5, 0.00121648758632, -6.71178760022, 0.00170254790615),
    (-2, 0.0591397849462, -2.82785140091, 0.0668539713309),
    (-1, 0.166666666667, -1.79175946923, 0.154907862181),
    (-0.1, 0.3469463073, -1.05858524501, 0.240558731387),
    (0.1, 0.6530536927, -0.426095928431, 0.240558731387),
    (0.5, 0.742834324032, -0.297282241589, 0.206505304913),
    (1, 0.833333333333, -0.182321556794, 0.154907862181),
    (2, 0.940860215054, -0.0609606997897, 0.0668539713309),
    (5, 0.998783512414, -0.00121722810796, 0.00170254790615),
    (20, 1.0, -1.65675008e-13, 2.58255031018e-13),
  ],
  0.5: [
    (-20, 9.05991942092e-6, -11.6116503319, 5.80302906101e-6),
    (-5, 0.0660522273425, -2.71730952652, 0.0319574098807),
    (-2, 0.238095238095, -1.43508452529, 0.0861539768221),
    (-1, 0.333333333333, -1.09861228867, 0.103496867289),
    (-0.1, 0.431353192839, -0.840828051519, 0.113114002879),
    (0.1, 0.568646807161, -0.564495763138, 0.113114002879),
    (0.5, 0.61327045983, -0.488949233448, 0.109743272442),
    (1, 0.666666666667, -0.405465108108, 0.103496867289),
    (2, 0.761904761905, -0.271933715484, 0.0861539768221),
    (5, 0.933947772657, -0.0683347602424, 0.0319574098807),
    (20, 0.999990940081, -9.05996046224e-6, 5.80302906101e-6),
  ],
  0.8: [
    (-20, 0.0377798383305, -3.27597969615, 0.00627691118041),
    (-5, 0.305266825222, -1.18656904803, 0.0320493434746),
    (-2, 0.408014571949, -0.896452389654, 0.0360405565918),
    (-1, 0.444444444444, -0.810930216216, 0.0367618775019),
    (-0.1, 0.477708204866, -0.738755182962, 0.0371086703983),
    (0.1, 0.522291795134, -0.64952885277, 0.0371086703983),
    (0.5, 0.537113639713, -0.621545587284, 0.0369908037155),
    (1, 0.555555555556, -0.587786664902, 0.0367618775019),
    (2, 0.591985428051, -0.52427325918, 0.0360405565918),
    (5, 0.694733174778, -0.364227428317, 0.0320493434746),
    (20, 0.962220161669, -0.0385119962162, 0.00627691118041),
  ],
  0.95: [
    (-20, 0.330964390621, -1.1057444906, 0.00766266664006),
    (-5, 0.453106551933, -0.791627967177, 0.00848098269282),
    (-2, 0.478639969438, -0.736806593753, 0.00853465223604),
    (-1, 0.487179487179, -0.719122666963, 0.00854363641806),
    (-0.1, 0.494870944944, -0.70345826769, 0.0085478853604),
    (0.1, 0.505129055056, -0.68294132779, 0.0085478853604),
    (0.5, 0.50854794536, -0.676195780112, 0.00854644628348),
    (1, 0.512820512821, -0.667829372576, 0.00854363641806),
    (2, 0.521360030562, -0.651314438337, 0.00853465223604),
    (5, 0.546893448067, -0.603501288831, 0.00848098269282),
    (20, 0.669035609379, -0.401917992499, 0.00766266664006),
  ],
}
# The limits of g(s) as s falls to 0: 1 / (1 - phi) + 1 / log phi.
LIMITS = {
  0.05: 0.718823378252,
  0.2: 0.62866506544,
  0.5: 0.557304959111,
  0.8: 0.518579882275,
  0.95: 0.504274253776,
}
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


@functools.partial(jax.jit, static_argnames="keywords")
def _link(s_B, phi_B, keywords):
  def total(s_B):
    logratio_BC = jnp.stack([s_B, jnp.zeros_like(s_B)], axis=-1)
    loss_B = losses.mallows_phi(logratio_BC, phi_B, beta=1.0, **dict(keywords))
    return loss_B.sum(), loss_B

  (_, loss_B), grad_B = jax.value_and_grad(total, has_aux=True)(s_B)
  return loss_B, grad_B


def link(s, phi, *, dtype=np.float64, **keywords):
  """log g(s) and its derivative, one value for each s and phi."""
  s, phi = np.broadcast_arrays(np.asarray(s, dtype), np.asarray(phi, dtype))
  spare = -s.size % 512  # one shape, compiled once
  with jax.enable_x64(dtype == np.float64):
    loss_B, grad_B = _link(
      jnp.asarray(np.pad(s.ravel(), (0, spare))),
      jnp.asarray(np.pad(phi.ravel(), (0, spare), constant_values=0.5)),
      tuple(sorted(keywords.items())),
    )
  assert loss_B.dtype == dtype
  return -np.asarray(loss_B)[: s.size], -np.asarray(grad_B)[: s.size]


def exact(s, phi):
  """log g(s) and its derivative by the formula itself, with 240 digits."""
  with decimal.localcontext(prec=240, Emin=-(10**9), Emax=10**9):
    log, size = Decimal(phi).ln(), abs(Decimal(s))

    def share_and_slope(u):  # u phi^u / (1 - phi^u) and its derivative
      power = (u * log).exp()
      odds = power / (1 - power)
      return u * odds, odds + u * power * log / (1 - power) ** 2

    near, near_slope = share_and_slope(size)
    far, far_slope = share_and_slope(size + 1)
    g = 1 - (near - far) if s > 0 else near - far
    return float(g.ln()), float((far_slope - near_slope) / g)


def test_table_of_the_link():
  rows = [(phi, *row) for phi, rows in TABLE.items() for row in rows]
  phi, s, g, log_g, slope = np.array(rows).T
  assert len(rows) == 55
  got, log_slope = link(s, phi, smoothing="none")
  np.testing.assert_allclose(got, log_g, rtol=1e-9, atol=0)
  np.testing.assert_allclose(np.exp(got), g, rtol=1e-9)
  np.testing.assert_allclose(log_slope * np.exp(got), slope, rtol=1e-9)
  # g(1) = 1 / (1 + phi)
  np.testing.assert_allclose(got[s == 1], -np.log1p(phi[s == 1]), rtol=1e-12)


def test_limits_at_zero():
  phi, limit = np.array(list(LIMITS.items())).T
  above, _ = link(1e-13, phi, smoothing="none")
  below, _ = link(-1e-13, phi, smoothing="none")
  np.testing.assert_allclose(np.exp(above), limit, rtol=1e-11)
  np.testing.assert_allclose(np.exp(below), 1 - limit, rtol=1e-11)
  np.testing.assert_allclose(1 / (1 - phi) + 1 / np.log(phi), limit, rtol=1e-10)


def test_link_to_twelve_digits_between_certainty_and_noise():
  # theta |s| lies on both sides of 0.5, where series take over.
  phi = [1e-30, 1e-6, 0.05, 0.37, 0.5, 0.6, 0.62, 0.7, 0.8, 0.95, 0.999]
  size = [1e-6, 0.05, 0.3, 0.49, 0.51, 0.7, 0.99, 1.2, 2.2, 7.0, 100.0]
  phi, s = np.meshgrid(phi, [*size, *(-x for x in size)])
  phi, s = phi.ravel(), s.ravel()
  want = [exact(*given) for given in zip(s, phi, strict=True)]
  log_g, log_slope = np.array(want).T
  got, got_slope = link(s, phi, smoothing="none")
  np.testing.assert_allclose(got, log_g, rtol=1e-12, atol=1e-300)
  np.testing.assert_allclose(got_slope, log_slope, rtol=3e-11, atol=1e-300)


@pytest.mark.parametrize("smoothing", ["none", "cubic", "sigmoid"])
def test_a_swapped_pair_has_the_other_probability(smoothing):
  phi, s = np.meshgrid([1e-6, 0.05, 0.5, 0.95], [1e-3, 0.06, 0.1, 0.7, 3.0])
  got, slope = link(s, phi, smoothing=smoothing)
  other, other_slope = link(-s, phi, smoothing=smoothing)
  np.testing.assert_allclose(np.exp(got) + np.exp(other), 1, rtol=1e-13)
  np.testing.assert_allclose(
    slope * np.exp(got), other_slope * np.exp(other), rtol=1e-8
  )


def test_coefficients_of_the_cubic():
  # P(s) = 1/2 + a1 s + a3 s^3 with epsilon 0.1.
  phi = np.array([0.05, 0.5, 0.9])
  a1 = np.array([3.66194678963, 0.973145105975, 0.149229388336])
  a3 = np.array([-110.164552695, -28.6677034365, -4.38926467391])
  for s in (0.0, 0.03, -0.03, 0.07, -0.0999):
    log_g, log_slope = link(s, phi, smoothing="cubic", epsilon=0.1)
    g = 0.5 + a1 * s + a3 * s**3
    np.testing.assert_allclose(np.exp(log_g), g, rtol=1e-10)
    slope = a1 + 3 * a3 * s**2
    np.testing.assert_allclose(log_slope * np.exp(log_g), slope, rtol=1e-8)


@pytest.mark.parametrize("epsilon", [0.1, 1.4])
def test_the_cubic_meets_the_link_with_its_slope(epsilon):
  phi = np.array([1e-6, 0.05, 0.5, 0.95])
  for end in (epsilon, -epsilon):
    inside = link(end * (1 - 1e-9), phi, smoothing="cubic", epsilon=epsilon)
    outside = link(end, phi, smoothing="none")
    np.testing.assert_allclose(inside[0], outside[0], rtol=1e-7)
    # The cubic bends, so the slope of g is nearly met, that of log g less.
    slopes = [slope * np.exp(log_g) for log_g, slope in (inside, outside)]
    np.testing.assert_allclose(*slopes, rtol=1e-6, atol=1e-8)
    # From there on it is the link itself.
    for place in (end, 1.5 * end):
      got = link(place, phi, smoothing="cubic", epsilon=epsilon)
      want = link(place, phi, smoothing="none")
      np.testing.assert_allclose(got, want, rtol=1e-13)


def test_the_cubic_only_rises():
  s = np.linspace(-0.119, 0.119, 97)
  for phi in (1e-30, 0.05, 0.95):
    log_g, log_slope = link(s, phi, smoothing="cubic")
    assert (np.diff(log_g) > 0).all() and (log_slope > 0).all()


@pytest.mark.parametrize("epsilon", [0.1, 1.4, 20.0])
def test_the_cubic_is_finite_next_to_its_ends(epsilon):
  # g underflows at the left end of the wide ones.
  s = epsilon * (np.logspace(-7, 0, 50) - 1)
  s = np.concatenate(
    [s, -s, [np.nextafter(np.float32(-epsilon), np.float32(0))]]
  )
  phi, s = np.meshgrid([1e-38, 1e-30, 1e-6, 0.05, 0.95, BELOW_ONE], s)
  log_g, log_slope = link(
    s, phi, dtype=np.float32, smoothing="cubic", epsilon=epsilon
  )
  assert np.isfinite(log_g).all() and np.isfinite(log_slope).all()
  assert (log_slope >= 0).all()
  wide, _ = link(s, np.float32(phi), smoothing="cubic", epsilon=epsilon)
  middle = np.abs(s.ravel()) < 0.99 * epsilon
  np.testing.assert_allclose(log_g[middle], wide[middle], rtol=2e-5, atol=1e-6)


def test_the_raw_link_never_starts():
  log_g, log_slope = link(0.0, [1e-6, 0.05, 0.95], smoothing="none")
  np.testing.assert_allclose(log_g, -np.log(2))
  assert not log_slope.any()
  for smoothing in ("cubic", "sigmoid"):
    log_g, log_slope = link(0.0, [1e-6, 0.05, 0.95], smoothing=smoothing)
    np.testing.assert_allclose(log_g, -np.log(2))
    assert (log_slope > 0).all()


def test_sigmoid_smoothing_is_a_logistic_that_agrees_at_one():
  phi = np.array([1e-6, 0.05, 0.5, 0.95])
  for s in (1.0, -1.0):
    got, _ = link(s, phi, smoothing="sigmoid")
    np.testing.assert_allclose(got, link(s, phi, smoothing="none")[0])
  # sigmoid(-s log phi) = 1 / (1 + phi^s)
  got, slope = link(0.3, phi, smoothing="sigmoid")
  np.testing.assert_allclose(np.exp(got), 1 / (1 + phi**0.3))
  np.testing.assert_allclose(slope, -np.log(phi) * phi**0.3 / (1 + phi**0.3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("smoothing", ["cubic", "sigmoid", "none"])
def test_finite_from_certainty_to_noise(smoothing, dtype):
  phi = [1e-30, 1e-6, 0.05, 0.5, 0.95, 1 - 1e-6, BELOW_ONE]
  size = [0.0, 1e-3, 0.1, 1.0, 1e2, 1e4]
  phi, s = np.meshgrid(phi, [*size, *(-x for x in size)])
  log_g, log_slope = link(s, phi, dtype=dtype, smoothing=smoothing)
  assert np.isfinite(log_g).all() and np.isfinite(log_slope).all()
  assert (log_g <= 0).all() and (log_slope >= 0).all()
  if dtype == np.float32:
    wide, wide_slope = link(s, np.float32(phi), smoothing=smoothing)
    np.testing.assert_allclose(log_g, wide, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(log_slope, wide_slope, rtol=2e-5, atol=1e-5)


def test_dispersions_that_round_to_the_ends_are_finite():
  # theta = -log phi is held to [1e-7, 80].
  log_g, log_slope = link([-1.0, 1.0], [[0.0], [1.0]], smoothing="sigmoid")
  theta = np.array([80.0, 80.0, 1e-7, 1e-7])
  s = np.array([-1.0, 1.0, -1.0, 1.0])
  np.testing.assert_allclose(log_g, -np.logaddexp(0, -theta * s), rtol=1e-9)
  for smoothing in ("cubic", "none"):
    for dtype in (np.float32, np.float64):
      got = link(
        [[-1e4], [-1.0], [0.05], [2.0]],
        [0.0, 1.0],
        dtype=dtype,
        smoothing=smoothing,
      )
      assert np.isfinite(got).all()


LOGRATIO = jnp.array([[2.0, -1.0], [0.3, 0.1], [-4.0, 2.0]])
PHI = jnp.array([0.05, 0.5, 0.9])


def test_default_link():
  # beta * margins = 0.3, 0.02, -0.6: the second lies inside the cubic.
  spelled = dict(beta=0.1, smoothing="cubic", epsilon=0.1)
  got = jax.jit(losses.mallows_phi)(LOGRATIO, PHI)
  loss = jax.jit(functools.partial(losses.mallows_phi, **spelled))
  want = loss(LOGRATIO, PHI)
  np.testing.assert_array_equal(got, want)
  s = 0.1 * np.array([3.0, 0.2, -6.0])
  log_g, _ = link(s, np.asarray(PHI), smoothing="cubic", epsilon=0.1)
  np.testing.assert_allclose(-got, log_g, rtol=1e-5)


def test_no_gradient_for_dispersion_and_scale():
  for smoothing in ("cubic", "sigmoid", "none"):
    loss = functools.partial(losses.mallows_phi, LOGRATIO, smoothing=smoothing)
    grad = jax.jit(jax.grad(lambda x, loss=loss: loss(x).sum()))(PHI)
    assert not grad.any()
  theta = lambda x: losses.mallows_theta(LOGRATIO, x).sum()  # noqa: E731
  assert not jax.grad(theta)(PHI).any()
  scale = lambda x: losses.dispersion_scale(x, mean=2.0).sum()  # noqa: E731
  assert not jax.grad(scale)(PHI).any()


def test_theta_is_dpo_with_a_factor_for_each_prompt():
  scale_B = jnp.array([2.0, 0.5, 1.5])
  # beta * scale * margin = 0.25 * (6, 0.1, -9)
  margin_B = np.array([1.5, 0.025, -2.25])
  got = losses.mallows_theta(LOGRATIO, scale_B, beta=0.25)
  np.testing.assert_allclose(got, np.logaddexp(0, -margin_B), rtol=1e-6)
  got = losses.mallows_theta(LOGRATIO, scale_B, beta=0.25, label_smoothing=0.2)
  want = 0.8 * np.logaddexp(0, -margin_B) + 0.2 * np.logaddexp(0, margin_B)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_theta_with_scale_one_is_dpo():
  got = losses.mallows_theta(LOGRATIO, jnp.ones(3))
  want = losses.dpo(LOGRATIO, beta=0.1, label_smoothing=0.0)
  np.testing.assert_array_equal(got, want)
  got = losses.mallows_theta(
    LOGRATIO, jnp.ones(3), beta=2.0, label_smoothing=0.3
  )
  want = losses.dpo(LOGRATIO, beta=2.0, label_smoothing=0.3)
  np.testing.assert_array_equal(got, want)
  with pytest.raises(TypeError, match="scale_B"):
    losses.mallows_theta(LOGRATIO)


def test_entropy_is_a_share_of_the_largest():
  # 3 log 16 over 4 tokens of 16 words; log 4 over one; none; none with junk.
  got = losses.normalised_entropy(
    jnp.array([[3 * np.log(16.0), np.log(4.0)], [0.0, 5.0]]),
    jnp.array([[4, 1], [0, 0]]),
    vocab_size=16,
  )
  np.testing.assert_allclose(got, [[0.75, 0.5], [0.0, 0.0]], rtol=1e-6)
  one = jnp.float32(1.0)
  grad = jax.grad(lambda x: losses.normalised_entropy(x, 0.0, vocab_size=9))
  assert grad(one) == 0.0


def test_log_dispersion_is_of_the_mean_over_the_pair():
  # means 1/2, 1/4; 0 and 1e-5 are held at 1e-4; just above it is kept
  share_BC = jnp.array(
    [[0.25, 0.75], [0.5, 0.0], [0.0, 0.0], [1e-5, 1e-5], [1e-4, 4e-4]]
  )
  want = [np.log(2), np.log(4), np.log(1e4), np.log(1e4), np.log(4e3)]
  got = losses.neg_log_dispersion(share_BC)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_scale_is_one_on_average_over_the_data_set():
  entropy_BC = jnp.array([[0.1, 0.2], [0.4, 0.3], [0.02, 0.05], [0.9, 0.7]])
  value_B = losses.neg_log_dispersion(entropy_BC)
  scale_B = losses.dispersion_scale(value_B, mean=value_B.mean())
  np.testing.assert_allclose(scale_B.mean(), 1, rtol=1e-6)
  np.testing.assert_allclose(
    scale_B, np.asarray(value_B) / np.asarray(value_B).mean(), rtol=1e-6
  )
  assert scale_B[2] == scale_B.max()  # the most certain prompt
  # The released 0.29 is 1 / mean.
  np.testing.assert_allclose(
    losses.dispersion_scale(value_B, mean=1 / 0.29), 0.29 * value_B, rtol=1e-6
  )


def test_computes_in_float32():
  half = LOGRATIO.astype(jnp.bfloat16), PHI.astype(jnp.bfloat16)
  wide = [x.astype(jnp.float32) for x in half]
  for smoothing in ("cubic", "sigmoid", "none"):
    loss = jax.jit(functools.partial(losses.mallows_phi, smoothing=smoothing))
    got = loss(*half)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, loss(*wide), rtol=1e-6)
  got = losses.mallows_theta(*half)
  assert got.dtype == jnp.float32
  want = losses.mallows_theta(*wide)
  np.testing.assert_array_equal(got, want)
  share = losses.normalised_entropy(half[1], half[1], vocab_size=7)
  for value in (
    share,
    losses.neg_log_dispersion(half[0]),
    losses.dispersion_scale(half[1], mean=2.0),
  ):
    assert value.dtype == jnp.float32


def test_jit_and_vmap_change_nothing():
  for loss in (losses.mallows_phi, losses.mallows_theta):
    want = loss(LOGRATIO, PHI)
    np.testing.assert_allclose(jax.jit(loss)(LOGRATIO, PHI), want, rtol=1e-6)
    one_by_one = jax.vmap(lambda x, phi, f=loss: f(x[None], phi[None])[0])
    got = jax.jit(one_by_one)(LOGRATIO, PHI)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_another_smoothing_is_refused():
  with pytest.raises(ValueError, match="'step'.*cubic, sigmoid, none"):
    losses.mallows_phi(LOGRATIO, PHI, smoothing="step")


@pytest.mark.parametrize("loss", [losses.mallows_phi, losses.mallows_theta])
def test_a_wrong_axis_is_refused_by_name(loss):
  with pytest.raises(
    ValueError, match="B has size 3 in `logratio_BC`, but 2 in"
  ):
    loss(LOGRATIO, PHI[:2])
  with pytest.raises(ValueError, match=r"`logratio_BC` must have axes \[B C\]"):
    loss(LOGRATIO[0], PHI)
  with pytest.raises(ValueError, match=r"\[B\]"):
    loss(LOGRATIO, LOGRATIO)
  with pytest.raises(
    ValueError, match="`normalised_entropy_BC` has size 3 and"
  ):
    losses.neg_log_dispersion(jnp.zeros((2, 3)))
  with pytest.raises(ValueError, match=r"\[B\]"):
    losses.dispersion_scale(LOGRATIO, mean=1.0)
