# SPDX-License-Identifier: Apache-2.0
"""INPUTS: what a loss may ask for, and what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax.losses.methods.catalogue import LOSSES
from mrpo_jax.losses.methods.inputs import (
  FIGURES,
  INPUTS,
  BatchArrays,
  inputs_of,
  refuse_unknown,
)
from mrpo_jax.losses.related import token_mean

POLICY_BC = jnp.array([[-6.0, -9.0], [-4.0, -2.0]])
FIGURES_BC = dict(
  length_BC=jnp.array([[3, 3], [2, 0]]),
  kl_BC=jnp.array([[0.5, 0.25], [1.0, 2.0]]),
  normalised_entropy_BC=jnp.full((2, 2), np.exp(-3.0)),
  token_loss_BC=jnp.array([[4.0, 0.0], [2.5, 0.0]]),
  valid_B=jnp.array([True, False]),
  aux_reward_BC=jnp.array([[0.75, 0.25], [1.0, 0.0]]),
  desirable_B=jnp.array([False, True]),
)


def given(**changes):
  """A batch whose unit is half of nats, against one reference."""
  arguments = dict(
    loss="toy",
    policy_logp_BC=POLICY_BC,
    policy_BC=POLICY_BC / 2,
    figures=FIGURES_BC,
    numbers=dict(phi=0.25, win_rate=0.75),
    dispersion=None,
    ref=jnp.array([[-1.0, -2.0], [-3.0, -1.0]]),
  )
  return BatchArrays(**{**arguments, **changes})


# By hand from the numbers above.
MADE = {
  "policy_logp_BC": [[-3.0, -4.5], [-2.0, -1.0]],
  "logp_BC": [[-3.0, -4.5], [-2.0, -1.0]],
  "mean_logp_BC": [[-3.0, -4.5], [-2.0, -1.0]],
  "policy_margin_B": [1.5, -1.0],
  "reward_BC": [[-3.0, -4.5], [-2.0, -1.0]],
  "mean_logp_B": [-2.0, -2.0],
  "gold_mean_logp_B": [-2.0, -2.0],
  "logratio_BC": [[-2.0, -2.5], [1.0, 0.0]],
  "logratio_B": [-2.0, 1.0],
  "mismatched_logratio_B": [-2.5, 0.0],
  "desirable_B": [False, True],
  "ref_logp_BC": [[-1.0, -2.0], [-3.0, -1.0]],
  "ref_mean_logp_BC": [[-1.0, -2.0], [-3.0, -1.0]],
  "ref_margin_BK": [1.0, -2.0],  # of each of K, here the one
  "length_BC": [[3, 3], [2, 0]],
  "kl_BC": [[0.5, 0.25], [1.0, 2.0]],
  "token_loss_BC": [[4.0, 0.0], [2.5, 0.0]],
  "valid_B": [True, False],
  "scale_B": [1.0, 1.0],
  "phi_B": [0.25, 0.25],
  "quantile_BC": [[0.75, 0.25], [1.0, 0.0]],
  "win_rate_BC": [[0.75, 0.25], [0.75, 0.25]],
}


def test_every_array_is_made_here():
  assert MADE.keys() == INPUTS.keys()


@pytest.mark.parametrize("name", INPUTS)
def test_an_array_by_its_name(name):
  np.testing.assert_allclose(given().array(name), MADE[name], rtol=1e-6)


def test_a_dispersion_makes_scale_and_phi():
  dispersed = given(dispersion=2.0)  # -log dispersion is 3 everywhere
  np.testing.assert_allclose(dispersed.array("scale_B"), [1.5, 1.5], 1e-6)
  np.testing.assert_allclose(
    dispersed.array("phi_B"), [np.exp(-1.5), np.exp(-1.5)], 1e-6
  )


def test_an_array_that_is_given_is_taken_but_for_a_reference():
  other_BC = jnp.ones((2, 2))
  for name, want in (
    ("win_rate_BC", other_BC),
    ("logp_BC", other_BC),
    ("logratio_BC", MADE["logratio_BC"]),
    ("ref_logp_BC", MADE["ref_logp_BC"]),
  ):
    got = given(figures={**FIGURES_BC, name: other_BC}).array(name)
    np.testing.assert_array_equal(got, want)


def test_a_chosen_response_without_a_token_is_not_divided_by_zero():
  lengths = dict(length_BC=jnp.array([[0, 3], [2, 2]]))
  got = given(figures=lengths).array("mean_logp_B")
  np.testing.assert_array_equal(got, [-6.0, -2.0])


@pytest.mark.parametrize(
  "name", [name for name in INPUTS if INPUTS[name].needs]
)
def test_what_an_array_needs_is_a_figure_and_is_named_where_it_lacks(name):
  (figure,) = INPUTS[name].needs
  assert figure in FIGURES
  for figures in ({}, {figure: None}):
    with pytest.raises(ValueError, match=f"loss 'toy' needs {figure}"):
      given(figures=figures).array(name)


def test_a_mask_is_not_needed():
  assert given(figures={}).array("valid_B") is None


def test_every_array_is_asked_for_by_some_loss():
  some = [*LOSSES.values(), token_mean]  # the mean of what is of tokens
  asked = {name for loss in some for name in inputs_of(loss)}
  assert asked == {*INPUTS}


def test_a_loss_that_asks_for_an_unknown_array_is_refused():
  def toy(logratio_BC, colour_BC, *, beta=0.1):
    return beta * logratio_BC * colour_BC

  def masked(logratio_BC, *, beta=0.1, seen_B=None):
    return beta * logratio_BC * seen_B

  def plain(logratio_BC, *, beta=0.1, scale_B=1.0):
    return beta * logratio_BC * scale_B

  known = re.escape(f"known: {', '.join(INPUTS)}")
  for loss, array in ((toy, "colour_BC"), (masked, "seen_B")):
    message = f"loss '{loss.__name__}' asks for '{array}'; {known}"
    with pytest.raises(ValueError, match=message):
      refuse_unknown([plain, loss])
  refuse_unknown([plain])


def having(what):
  return {name for name, one in INPUTS.items() if getattr(one, what)}


def test_what_follows_from_an_array():
  assert having("from_reference") == {
    "logratio_BC",
    "logratio_B",
    "mismatched_logratio_B",
    "ref_logp_BC",
    "ref_mean_logp_BC",
    "ref_margin_BK",
  }
  assert having("per_token") == {"mean_logp_BC", "ref_mean_logp_BC"}
  assert having("all_references") == {"ref_margin_BK"}
  assert having("over_tokens") == {"kl_BC"}
  assert having("dispersed") == {"scale_B", "phi_B"}
  assert having("across_batch") == {"valid_B", "mismatched_logratio_B"}
  assert having("of_scalar_head") == {"reward_BC"}
  assert having("number") == {"win_rate_BC", "phi_B"}
  assert having("known_at_start") == {
    "logratio_BC",
    "logratio_B",
    "mismatched_logratio_B",
    "desirable_B",
    "kl_BC",
    "win_rate_BC",
    "phi_B",
    "scale_B",
  }
