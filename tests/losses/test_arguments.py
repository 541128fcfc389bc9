# SPDX-License-Identifier: Apache-2.0
"""Every public loss says what is wrong with an argument, by its name."""

import importlib.resources
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.arguments import POSITIVE, SHARES, keywords_of
from tests.losses.test_axes import FUNCTIONS, PUBLIC, arrays_of

LOGRATIO_BC = jnp.array([[2.0, -1.0]])
EMPTY = inspect.Parameter.empty


def given(name):
  """Arrays of ones for a function, and what else it wants."""
  function = FUNCTIONS[name]
  arrays = {
    key: jnp.ones(shape, np.int32 if key == "targets_BT" else None)
    for key, shape in arrays_of(function).items()
  }
  others = dict(p=-1, mean=1.0, running_margin=0.5, weight=jnp.ones(3))
  wanted = inspect.signature(function).parameters.items()
  return arrays | {
    key: others[key]
    for key, p in wanted
    if key not in arrays and p.default is EMPTY and p.kind is not p.VAR_KEYWORD
  }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_list_is_refused_by_the_name_of_its_array(name):
  right = given(name)
  for key in arrays_of(FUNCTIONS[name]):
    axes = " ".join(key.rpartition("_")[2])
    message = f"`{key}` must have axes [{axes}], got a list"
    if key == "weight_BK":
      continue  # numbers will do
    with pytest.raises(ValueError, match=re.escape(message)):
      FUNCTIONS[name](**{**right, key: np.asarray(right[key]).tolist()})


NUMBERS = [
  (name, key)
  for name, function in FUNCTIONS.items()
  for key in keywords_of(function)
  if key in POSITIVE | SHARES
]


@pytest.mark.parametrize("name,key", NUMBERS)
def test_a_number_out_of_its_range_is_refused_by_name(name, key):
  for value in (-0.1, float("nan"), float("inf"), jnp.float32(-0.1), np.inf):
    with pytest.raises(ValueError, match=f"{name}: {key} must be .*, got "):
      FUNCTIONS[name](**given(name), **{key: value})
  for value in ("0.1", True, None, [0.1]):
    with pytest.raises(ValueError, match=f"{name}: {key} must be a number, go"):
      FUNCTIONS[name](**given(name), **{key: value})


def test_every_loss_with_a_beta_is_among_them():
  with_beta = [n for n, f in FUNCTIONS.items() if "beta" in keywords_of(f)]
  assert {(name, "beta") for name in with_beta} <= {*NUMBERS}
  assert len(with_beta) > 30


def test_a_number_that_is_traced_is_taken():
  got = jax.jit(lambda beta: losses.dpo(LOGRATIO_BC, beta=beta))(0.1)
  np.testing.assert_allclose(got, losses.dpo(LOGRATIO_BC), rtol=1e-6)


@pytest.mark.parametrize(
  "name", [name for name, f in FUNCTIONS.items() if keywords_of(f)]
)
def test_a_keyword_by_position_is_refused_by_name(name):
  function, right = FUNCTIONS[name], given(name)
  keywords = [*keywords_of(function)]
  arrays = [right[key] for key in right if key not in keywords]
  message = f"{name} takes {', '.join(keywords)}"
  with pytest.raises(TypeError, match=re.escape(message)):
    function(*arrays, 0.1)


def test_the_usual_mistake_is_answered_with_the_right_call():
  policy_BC = ref_BC = LOGRATIO_BC
  for call, message in (
    (lambda: losses.dpo(policy_BC, 0.3), "dpo(logratio_BC, beta=0.3)"),
    (lambda: losses.dpo(policy_BC, ref_BC), "dpo(logratio_BC, beta=...)"),
    (
      lambda: losses.build("dpo", "harmonic"),
      "build(name, mixture='harmonic')",
    ),
    (
      lambda: losses.build("r_dpo")(policy_BC, ref_BC[..., None], policy_BC),
      "Method takes state, **figures by name: Method(policy_logp_BC, ",
    ),
    (
      lambda: losses.combine([losses.dpo], [1.0])(policy_BC, 0.1),
      "combined takes beta by name",
    ),
  ):
    with pytest.raises(TypeError, match=re.escape(message)):
      call()


@pytest.mark.parametrize(
  "keyword,message",
  [
    (dict(mixture="geometric"), "mrpo does not take 'mixture', which is 'p' h"),
    (
      dict(weights="uniform"),
      "mrpo does not take 'weights', which is 'weight'",
    ),
    (
      dict(mixtur=0),
      "mrpo does not take 'mixtur'; it takes: beta, pair_loss, ",
    ),
  ],
)
def test_a_keyword_of_configs_is_answered_by_that_of_the_function(
  keyword, message
):
  with pytest.raises(TypeError, match=re.escape(message)):
    losses.mrpo(LOGRATIO_BC, LOGRATIO_BC[..., None], **keyword)


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("make", [jnp.ones, lambda K: [1.0] * K])
def test_weights_of_mnpo_are_refused_by_its_own_array(K, make):
  message = f"axis K has size 3 in `ref_margin_BK`, but {K} in `weight_K`"
  with pytest.raises(ValueError, match=message):
    losses.mnpo(jnp.zeros(4), jnp.zeros((4, 3)), weight=make(K))


@pytest.mark.parametrize(
  "figures,message",
  [
    (dict(lenght_BC=1), "is given 'lenght_BC', which is no figure; did you m"),
    (dict(length=1), "is given 'length', .* did you mean length_BC?"),
    (dict(logratio_BC=1), "is given 'logratio_BC', which it makes itself"),
    (dict(length_BC=[[3, 4]]), "`length_BC` must have axes .B C., got a list"),
    (dict(length_BC=jnp.ones(1)), "`length_BC` must have axes .B C., got sha"),
    (dict(length_BC=jnp.ones((1, 1))), "axis C .* of `length_BC` has size 1"),
    (dict(length_BC=jnp.ones((3, 2))), "axis B has size 1 in `policy_logp_BC"),
    (dict(valid_B=[True]), "`valid_B` must have axes .B., got a list"),
    (dict(ref_length_BCK=jnp.ones((1, 2, 2))), "axis K has size 1 in `ref_lo"),
  ],
)
def test_a_figure_of_a_method_is_refused_by_name(figures, message):
  right = dict(length_BC=jnp.ones((1, 2)))
  method = losses.build("r_dpo", scale="mean")
  call = (LOGRATIO_BC, LOGRATIO_BC[..., None])
  for function in (
    method,
    lambda *a, **k: method.update(method.init(1), *a, **k),
  ):
    with pytest.raises(ValueError, match=message):
      function(*call, **{**right, **figures})


def test_every_public_function_is_annotated():
  for name, function in PUBLIC.items():
    signature = inspect.signature(function)
    assert signature.return_annotation is not EMPTY, name
    for key, parameter in signature.parameters.items():
      assert parameter.annotation is not EMPTY, f"{key} of {name}"


def test_the_package_says_that_it_is_typed():
  assert importlib.resources.files("mrpo_jax").joinpath("py.typed").is_file()
