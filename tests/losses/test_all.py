# SPDX-License-Identifier: Apache-2.0
"""What every loss of `batch`, `pair`, `regression`, `related`, `rewards` and
`unreferenced` promises; its own values stand in the file of its module."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mrpo_jax import losses
from tests.material import losses_fixture as fixture

REQUIRED = inspect.Parameter.empty
SMOOTHED = dict(beta=0.1, label_smoothing=0.0)
WEIGHTS = dict(desirable_weight=1.0, undesirable_weight=1.0)
# Every public function of the six modules, with its keywords.
DEFAULTS = {
  "accelerate": dict(alpha=0.3),
  "adaptive_beta": dict(beta=0.1, strength=0.6, valid_B=None),
  "advantage_weighted": dict(lam=5.0),
  "alpha_dpo": dict(beta=2.5, gamma=0.6, alpha=0.2, mean=0.0, std=1.0),
  "alpha_po": dict(alpha=0.25, beta=2.5, gamma=0.1),
  "aot": dict(SMOOTHED, valid_B=None),
  "aot_unpaired": dict(SMOOTHED, valid_B=None),
  "apa": dict(lam=0.1),
  "apo_down": dict(beta=0.1),
  "apo_zero": dict(beta=0.1),
  "apo_zero_unpaired": dict(WEIGHTS, beta=0.1),
  "awr": dict(lam=2.0),
  "bco": dict(beta=0.1, shift=0.0),
  "bco_unpaired": dict(beta=0.1, shift=0.0),
  "bdpo": dict(beta=0.1, mixing=0.5),
  "bpo": dict(beta=0.1, scale_B=1.0, power=1.0),
  "bradley_terry": dict(center=0.0),
  "cal_dpo": dict(beta=0.1, square_weight=1.0),
  "combine": dict(),
  "cpo": dict(beta=0.1),
  "dar": dict(lam=0.05, mixing=0.1, cap=20.0),
  "diffusion_dpo": dict(beta=5000.0),
  "discopop": dict(beta=0.1, scale_B=1.0, temperature=0.05),
  "dpo": dict(SMOOTHED, scale_B=1.0),
  "dpop": dict(beta=0.1, penalty=5.0),
  "dr_dpo": dict(beta=0.1, beta_prime=1.0, valid_B=None),
  "ema": dict(rate=REQUIRED),
  "exo": dict(beta=0.1, scale_B=1.0, epsilon=1e-3),
  "expectile": dict(tau=0.7),
  "f_dpo": dict(beta=0.1, divergence="reverse_kl", alpha=0.5),
  "focal_dpo": dict(beta=0.1, scale_B=1.0, gamma=0.5, detach_weight=True),
  "hinge": dict(beta=0.1, scale_B=1.0),
  "ipo": dict(beta=0.1, scale_B=1.0),
  "kto": dict(WEIGHTS, beta=0.1, kl_shift=0.0),
  "kto_unpaired": dict(
    WEIGHTS, beta=0.1, kl_shift=0.0, mismatched_logratio_B=None, valid_B=None
  ),
  "minor_dpo": dict(beta=0.1),
  "nca": dict(beta=0.1),
  "nll": dict(),
  "orpo": dict(weight=0.1),
  "ppo_clip": dict(cliprange=0.2),
  "qrpo": dict(beta=0.1),
  "r_dpo": dict(beta=0.1, alpha=0.05),
  "rainbow_po": dict(beta=10.0, mixing=0.25, home_advantage=0.1, scale_B=1.0),
  "reward_quantile": dict(),
  "robust_dpo": dict(beta=0.1, scale_B=1.0, label_smoothing=0.1),
  "simper": dict(),
  "simpo": dict(beta=2.0, gamma=1.0, scale_B=1.0),
  "slic": dict(delta=1.0),
  "sppo": dict(beta=0.1),
  "sppo_hard": dict(beta=0.1),
  "tpo": dict(beta=0.1, alpha=0.05),
  "value_loss": dict(),
}
MODULES = {"batch", "pair", "regression", "related", "rewards"}
MODULES |= {"unreferenced"}
NO_LOSS_OF_ARRAYS = {"accelerate", "combine", "ema", "reward_quantile"}
FUNCTIONS = {
  name: getattr(losses, name)
  for name in DEFAULTS
  if name not in NO_LOSS_OF_ARRAYS
}
VARIANTS = {
  "alpha_po 0": functools.partial(losses.alpha_po, alpha=0.0),
  "alpha_po -1": functools.partial(losses.alpha_po, alpha=-1.0),
  "aot smoothed": functools.partial(losses.aot, label_smoothing=0.2),
  "bdpo 1": functools.partial(losses.bdpo, mixing=1.0),
  "bdpo 0.9": functools.partial(losses.bdpo, mixing=0.9),
  "bpo -0.5": functools.partial(losses.bpo, power=-0.5),
  "bpo 0": functools.partial(losses.bpo, power=0.0),
  "discopop 4": functools.partial(losses.discopop, temperature=4.0),
  "dpo smoothed": functools.partial(losses.dpo, label_smoothing=0.2),
  "f_dpo forward_kl": functools.partial(losses.f_dpo, divergence="forward_kl"),
  "f_dpo js": functools.partial(losses.f_dpo, divergence="js"),
  "f_dpo chi_squared_kl": functools.partial(
    losses.f_dpo, divergence="chi_squared_kl"
  ),
  "f_dpo log_squared": functools.partial(
    losses.f_dpo, divergence="log_squared"
  ),
  "f_dpo 0.5": functools.partial(losses.f_dpo, divergence="alpha"),
  "f_dpo 3": functools.partial(losses.f_dpo, divergence="alpha", alpha=3.0),
  "focal_dpo attached": functools.partial(
    losses.focal_dpo, detach_weight=False
  ),
  "kto shifted": functools.partial(losses.kto, kl_shift=2.0),
}
CASES = FUNCTIONS | VARIANTS
SCALED = [name for name in FUNCTIONS if "scale_B" in DEFAULTS[name]]
# Arguments that teach the policy nothing.
CONSTANT = {
  "advantage",
  "advantage_B",
  "behaviour_logp",
  "behaviour_logp_B",
  "length_BC",
  "margin_B",
  "quantile_BC",
  "ref_error_BC",
  "ref_logp",
  "ref_logp_B",
  "ref_logp_BC",
  "ref_mean_logp_BC",
  "returns",
  "running_margin",
  "win_rate_BC",
}
VALUES = dict(
  advantage=0.2 * fixture.logratio_BC,
  advantage_B=0.1 * fixture.logratio_BC[:, 0],
  behaviour_logp=fixture.ref_mean_logp_BC,
  behaviour_logp_B=fixture.ref_logp_BC[:, 0] + 0.3,
  desirable_B=np.array([True, False, False, True]),
  error_BC=2e-4 * fixture.entropy_BC,
  gold_mean_logp_B=fixture.ref_mean_logp_BC[:, 1],
  length_BC=fixture.length_BC,
  logp=fixture.policy_mean_logp_BC,
  logp_B=fixture.policy_logp_BC[:, 0],
  logp_BC=fixture.policy_logp_BC,
  logratio_B=fixture.logratio_BC[:, 1],
  logratio_BC=fixture.logratio_BC,
  margin_B=fixture.logratio_BC[:, 0] + 2.0,
  mean_logp_B=fixture.policy_mean_logp_BC[:, 0],
  mean_logp_BC=fixture.policy_mean_logp_BC,
  policy_logp_BC=fixture.policy_logp_BC,
  quantile_BC=np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.7], [0.2, 0.8]]),
  ref_error_BC=2e-4 * fixture.kl_BC,
  ref_logp=fixture.ref_mean_logp_BC,
  ref_logp_B=fixture.ref_logp_BC[:, 0],
  ref_logp_BC=fixture.ref_logp_BC,
  ref_mean_logp_BC=fixture.ref_mean_logp_BC,
  residual=fixture.logratio_BC,
  returns=fixture.ref_mean_logp_BC,
  reward_BC=fixture.logratio_BC,
  running_margin=np.array(0.7),
  value=fixture.policy_mean_logp_BC,
  win_rate_BC=np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.7], [0.2, 0.8]]),
)


def arrays_of(function):
  """Names of the arrays that a function takes."""
  parameters = inspect.signature(function).parameters.values()
  return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def arguments(function, dtype=jnp.float32, values=VALUES):
  given = [values[name] for name in arrays_of(function)]
  return tuple(
    jnp.asarray(x, dtype if x.dtype == np.float64 else None) for x in given
  )


def value_and_grads(function, arrays):
  """The loss, and the gradient of its sum by each floating array."""
  places = [
    i for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating)
  ]

  def of_floats(*floats):
    given = list(arrays)
    for i, x in zip(places, floats, strict=True):
      given[i] = x
    return function(*given)

  value, pull = jax.vjp(of_floats, *(arrays[i] for i in places))
  names = [arrays_of(function)[i] for i in places]
  grads = pull(jnp.ones_like(value))
  return value, dict(zip(names, grads, strict=True))


def test_the_table_of_defaults_is_complete():
  of_modules = {
    name
    for name, f in vars(losses).items()
    if inspect.isfunction(f)
    and getattr(f, "__module__", "").rpartition(".")[2] in MODULES
  }
  assert of_modules == set(DEFAULTS)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_published_ones_and_keyword_only(name):
  found = {}
  for parameter in inspect.signature(getattr(losses, name)).parameters.values():
    if parameter.kind is parameter.KEYWORD_ONLY:
      found[parameter.name] = parameter.default
    else:
      assert parameter.default is REQUIRED
  assert found == DEFAULTS[name]


KEYWORDS = [(n, k) for n in FUNCTIONS for k in DEFAULTS[n]]
MISMATCHED_B = jnp.array([3.0, 1.0, 2.0, -1.0])
OTHER = dict(
  divergence="js",
  detach_weight=False,
  label_smoothing=0.3,
  mismatched_logratio_B=MISMATCHED_B,
  mixing=0.8,
  tau=0.4,
  valid_B=jnp.array([True, True, False, True]),
)
NEEDED = {
  ("dar", "cap"): dict(lam=0.01),  # so that a weight reaches it
  ("f_dpo", "alpha"): dict(divergence="alpha"),
  ("kto_unpaired", "valid_B"): dict(mismatched_logratio_B=MISMATCHED_B),
}


@pytest.mark.parametrize("name,keyword", KEYWORDS)
def test_every_keyword_matters(name, keyword):
  function = functools.partial(
    FUNCTIONS[name], **NEEDED.get((name, keyword), {})
  )
  default = DEFAULTS[name][keyword]
  other = OTHER[keyword] if keyword in OTHER else 1.5 * default + 0.3
  changed = functools.partial(function, **{keyword: other})
  arrays = arguments(function)
  if keyword == "detach_weight":
    _, before = value_and_grads(function, arrays)
    _, after = value_and_grads(changed, arrays)
    before, after = before["logratio_BC"], after["logratio_BC"]
  else:
    before, after = function(*arrays), changed(*arrays)
  assert not np.allclose(before, after, rtol=1e-3)


def grid(function, nats=1e4):
  """Every combination of -nats, 0 and nats, as rows of all the arrays."""
  ends = dict(
    desirable_B=(False, True),
    length_BC=(0, 10_000),
    quantile_BC=(0.0, 1.0),
    win_rate_BC=(0.0, 1.0),
  )
  names = arrays_of(function)
  widths = [2 if name.endswith("_BC") else 1 for name in names]
  choices = []
  for name, width in zip(names, widths, strict=True):
    choices += width * [ends.get(name, (-nats, 0.0, nats))]
  columns = zip(*itertools.product(*choices), strict=True)
  # Repeated to one common length, which saves compilations.
  columns = [np.resize(np.array(column), 81) for column in columns]
  arrays = []
  for name, width in zip(names, widths, strict=True):
    taken, columns = columns[:width], columns[width:]
    array = np.stack(taken, axis=-1) if width == 2 else taken[0]
    array = array[-1] if name == "running_margin" else array
    floating = np.issubdtype(array.dtype, np.floating)
    arrays.append(jnp.asarray(array, jnp.float32 if floating else None))
  return arrays


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_finite_at_the_extremes(case):
  function = CASES[case]
  value, grads = value_and_grads(function, grid(function))
  assert np.isfinite(value).all()
  for name, grad in grads.items():
    assert np.isfinite(grad).all(), name


@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_the_policy_and_nothing_else(case):
  function = CASES[case]
  _, grads = value_and_grads(function, arguments(function))
  for name, grad in grads.items():
    assert bool(np.any(grad)) == (name not in CONSTANT), name


# Their gradient leaves something out on purpose: see the files of their
# modules.  Diffusion's beta asks for smaller steps than differences can take.
NOT_BY_DIFFERENCES = {
  "adaptive_beta",
  "alpha_dpo",
  "diffusion_dpo",
  "focal_dpo",
}


@pytest.mark.parametrize(
  "case", [c for c in CASES if c not in NOT_BY_DIFFERENCES]
)
def test_gradient_agrees_with_differences(case):
  function = CASES[case]
  with jax.enable_x64(True):
    first, *rest = arguments(function, jnp.float64)
    check_grads(lambda x: function(x, *rest), (first,), 1, modes=["rev"])


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_computed_in_float32(case):
  function = CASES[case]
  narrow = arguments(function, jnp.bfloat16)
  wide = [
    x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in narrow
  ]
  got = function(*narrow)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, function(*wide))


@pytest.mark.parametrize("name", SCALED)
def test_a_bfloat16_scale_is_computed_in_float32(name):
  function, arrays = FUNCTIONS[name], arguments(FUNCTIONS[name])
  scale_B = jnp.array([0.5, 1.0, 1.5, -2.0])  # exact in both
  got = function(*arrays, scale_B=scale_B.astype(jnp.bfloat16))
  np.testing.assert_array_equal(got, function(*arrays, scale_B=scale_B))


@pytest.mark.parametrize("case", CASES)
def test_float64_stays_and_float32_is_close_to_it(case):
  function = CASES[case]
  with jax.enable_x64(True):
    want = function(*arguments(function, jnp.float64))
    assert want.dtype == jnp.float64
  got = function(*arguments(function))
  np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_types_are_cast_by_hand_alone(case, x64):
  function = CASES[case]
  with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64):
    for dtype in (jnp.bfloat16, jnp.float32, jnp.int32):
      arrays = arguments(function, dtype)
      assert jax.eval_shape(function, *arrays).dtype == jnp.float32
      if case in SCALED:
        scaled = functools.partial(function, scale_B=jnp.ones(4, dtype))
        assert jax.eval_shape(scaled, *arrays).dtype == jnp.float32


@pytest.mark.parametrize("case", CASES)
def test_jit_and_vmap_change_nothing(case):
  function = CASES[case]
  one = arguments(function)
  two = tuple(x[::-1] if x.ndim else x + 1 for x in one)
  stacked = [jnp.stack(pair) for pair in zip(one, two, strict=True)]
  got = jax.jit(jax.vmap(function))(*stacked)
  want = [function(*one), function(*two)]
  np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


LN_2 = np.log(2.0)
# What each returns while the policy is the reference: the default arguments
# on zeros.
AT_THE_START = {
  "alpha_dpo": np.log1p(np.exp(0.6)),
  "alpha_po": np.log1p(np.exp(0.1)),
  "aot": LN_2,
  "aot_unpaired": LN_2,
  "apo_down": 1.0,
  "apo_zero": 1.0,
  "apo_zero_unpaired": 0.5,
  "bco": 2 * LN_2,
  "bco_unpaired": LN_2,
  "bdpo": LN_2,
  "bpo": 0.0,
  "bpo -0.5": 0.0,
  "bpo 0": 0.0,
  "bradley_terry": LN_2,
  "cal_dpo": LN_2 + 2 * 5.0**2,
  "cpo": LN_2,
  "diffusion_dpo": LN_2,
  "discopop": 0.5 * LN_2 + 0.5,
  "dpo": LN_2,
  "dpop": LN_2,
  "dr_dpo": LN_2,
  "exo": 0.5 * np.log(0.5 / 0.999) + 0.5 * np.log(0.5 / 0.001),
  "f_dpo": LN_2,
  "f_dpo 0.5": LN_2,
  "f_dpo chi_squared_kl": LN_2,
  "f_dpo forward_kl": LN_2,
  "f_dpo js": LN_2,
  "f_dpo log_squared": LN_2,
  "focal_dpo": 0.5**0.5 * LN_2,
  "hinge": 1.0,
  "ipo": 5.0**2,
  "kto": 0.5,
  "kto_unpaired": 0.5,
  "minor_dpo": LN_2,
  "nca": 2 * LN_2,
  "orpo": 0.1 * LN_2,
  # Quantiles of 0: the worst of all, which must get less likely.
  "qrpo": (0.1 * np.log(0.1 * np.expm1(10.0))) ** 2,
  "r_dpo": LN_2,
  "rainbow_po": np.log1p(np.exp(10 * 0.75 * 0.1)),
  "robust_dpo": LN_2,
  "simper": 0.0,
  "simpo": np.log1p(np.exp(1.0)),
  "slic": 1.0,
  "sppo": 5.0**2,  # where the chosen always wins and the rejected never
  "sppo_hard": 2 * 5.0**2,
  "tpo": LN_2,
}


@pytest.mark.parametrize("case", AT_THE_START)
def test_value_while_the_policy_is_the_reference(case):
  zeros = {name: np.zeros_like(array) for name, array in VALUES.items()}
  zeros["win_rate_BC"] = np.array(4 * [[1.0, 0.0]])
  got = CASES[case](*arguments(CASES[case], values=zeros))
  np.testing.assert_allclose(got, np.full(got.shape, AT_THE_START[case]), 1e-6)


OF_SINGLE_REWARDS = (
  """
alpha_po apo_down apo_zero apo_zero_unpaired bco bco_unpaired bdpo cal_dpo
dpop kto
kto_unpaired minor_dpo nca orpo qrpo simper sppo sppo_hard
""".split()
  + [name for name in VARIANTS if name.startswith("f_dpo")]
)
OF_THE_MARGIN = """
alpha_dpo aot aot_unpaired bpo bradley_terry cpo diffusion_dpo discopop dpo
dr_dpo exo f_dpo focal_dpo hinge ipo r_dpo rainbow_po robust_dpo simpo slic tpo
""".split()


def change_by_a_shift(case):
  """Of the loss in float64, where the first array falls by 3 everywhere."""
  function = CASES[case]
  with jax.enable_x64(True):
    first, *rest = arguments(function, jnp.float64)
    return np.asarray(function(first - 3.0, *rest) - function(first, *rest))


@pytest.mark.parametrize("case", OF_THE_MARGIN)
def test_losses_of_the_margin_do_not_see_an_equal_shift(case):
  np.testing.assert_allclose(change_by_a_shift(case), 0.0, atol=1e-9)


@pytest.mark.parametrize("case", OF_SINGLE_REWARDS)
def test_losses_of_single_rewards_see_an_equal_shift(case):
  assert np.abs(change_by_a_shift(case)).max() > 1e-3


@pytest.mark.parametrize("name", SCALED)
def test_scale_multiplies_the_whole_margin(name):
  function, arrays = FUNCTIONS[name], list(arguments(FUNCTIONS[name]))
  free = dict(simpo=dict(gamma=0.0), rainbow_po=dict(home_advantage=0.0))
  function = functools.partial(function, **free.get(name, {}))
  scale_B = jnp.array([1.0, 2.0, 0.5, 0.0])
  by_hand = [scale_B[:, None] * x for x in arrays]
  got = function(*arrays, scale_B=scale_B)
  np.testing.assert_allclose(got, function(*by_hand), rtol=2e-6, atol=1e-6)
  # Labels swapped is the margin with the other sign.
  swapped = [x[:, ::-1] for x in arrays]
  np.testing.assert_allclose(
    function(*arrays, scale_B=-1.0), function(*swapped), rtol=2e-6, atol=1e-6
  )
