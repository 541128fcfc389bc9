# SPDX-License-Identifier: Apache-2.0
"""A config section becomes a function, or one clear refusal."""

import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses

REF = jnp.array([[[-40.0, -44.0, -38.0], [-46.0, -45.0, -47.0]]])
POLICY = jnp.array([[-39.0, -46.5]])


def test_a_published_name_is_the_published_method():
  np.testing.assert_array_equal(
    losses.build("mrpo")(POLICY, REF), losses.mrpo(POLICY, REF)
  )
  np.testing.assert_array_equal(
    losses.build("multi_dpo")(POLICY, REF), losses.multi_dpo(POLICY, REF)
  )


@pytest.mark.parametrize(
  "mixture,p",
  [
    ("harmonic", -1),
    ("geometric", 0),
    ("arithmetic", 1),
    ("minimum", float("-inf")),
    ("maximum", float("inf")),
    (-0.5, -0.5),
  ],
)
def test_mixtures_by_name_and_by_number(mixture, p):
  weight_K = jnp.array([1.0, 2.0, 5.0])
  section = dict(mixture=mixture, weights=(1, 2, 5), clip=None, beta=0.3)
  want = losses.mrpo(
    POLICY, REF, weight=weight_K, epsilon_max=None, p=p, beta=0.3
  )
  for name in ("dpo", "mrpo"):
    got = losses.build(name, **section)(POLICY, REF)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_clip_reaches_the_trust_region():
  clip = dict(epsilon_max=0.02, adaptive=False)
  got = losses.build("mrpo", clip=clip, weights="uniform")(POLICY, REF)
  want = losses.mrpo(
    POLICY,
    REF,
    weight=jnp.ones(3),
    epsilon_max=0.02,
    adaptive_epsilon=False,
  )
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_an_empty_clip_has_the_defaults():
  got = losses.build("dpo", mixture="harmonic", clip=dict())(POLICY, REF)
  want = losses.mrpo(POLICY, REF, weight=jnp.ones(3), epsilon_max=0.1)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_multi_is_one_loss_per_reference():
  got = losses.build("dpo", mixture="multi", weights="adaptive")(POLICY, REF)
  want = losses.multi_dpo(POLICY, REF, weight=losses.adaptive_weights(REF))
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_official_weights_pass_through():
  ref_logp_BCK = REF[..., :2]
  got = losses.build("mrpo", official_weights=True)(POLICY, ref_logp_BCK)
  np.testing.assert_allclose(got, [0.51019285], atol=1e-6)


def test_hyper_parameters_of_the_pair_loss_pass_through():
  got = losses.build("dpo", label_smoothing=0.2, beta=0.7)(POLICY, REF[..., :1])
  want = losses.dpo(POLICY - REF[..., 0], label_smoothing=0.2, beta=0.7)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_likelihood_divides_by_the_length():
  length_BC = jnp.array([[13, 5]])
  got = losses.build("nll")(POLICY, None, length_BC=length_BC)
  np.testing.assert_allclose(got, [3.0])


def test_virtual_reference_of_the_method():
  np.testing.assert_array_equal(
    losses.build("mrpo").virtual(REF), losses.virtual_reference(REF)
  )
  np.testing.assert_allclose(
    losses.build("multi_dpo").virtual(REF), REF.mean(-1), rtol=1e-6
  )


@pytest.mark.parametrize(
  "section,match",
  [
    (
      dict(name="dop"),
      "unknown loss 'dop'; known: alpha_dpo, .*, dpo, .*, wpo",
    ),
    (dict(name="dpo", gamma=1.0), "'dpo' does not take 'gamma'.*beta"),
    (dict(name="nll", beta=0.1), "'nll' does not take 'beta'"),
    (dict(name="nll", mixture="harmonic"), "does not take 'mixture'"),
    (dict(name="mrpo", mixture="mean"), "unknown mixture 'mean'.*geometric"),
    (dict(name="mrpo", weights="best"), "unknown weights 'best'.*adaptive"),
    (dict(name="mrpo", weights=(0, 0)), "not all 0"),
    (dict(name="mrpo", weights=(-1, 2)), "non-negative"),
    (dict(name="mrpo", clip=dict(eps=1)), "clip does not take 'eps'"),
    (dict(name="mrpo", clip=dict(epsilon_max=-1)), "epsilon_max must be >= 0"),
  ],
)
def test_what_does_not_exist_is_refused_with_what_does(section, match):
  with pytest.raises(ValueError, match=match):
    losses.build(**section)


def test_a_pair_loss_without_mixture_takes_one_reference():
  with pytest.raises(ValueError, match="takes one reference, got K=3"):
    losses.build("dpo")(POLICY, REF)


def test_a_weight_per_reference():
  with pytest.raises(ValueError, match="K=3"):
    losses.build("mrpo", weights=(0.5, 0.5))(POLICY, REF)
