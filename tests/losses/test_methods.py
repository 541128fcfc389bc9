# SPDX-License-Identifier: Apache-2.0
"""A config section becomes a function, or one clear refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrpo_jax import losses
from mrpo_jax.losses.methods.catalogue import OF_TOKENS

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


def test_official_weights_are_those_that_metrics_show():
  method = losses.build(
    "mrpo", weights=(0.2, 0.8), official_weights=True, clip=None
  )
  ref_logp_BCK = REF[..., :2]
  weight, _ = method.mixing.shares(method.init(2), ref_logp_BCK)
  np.testing.assert_allclose(weight, [0.8, 0.2])
  want = losses.harmonic(ref_logp_BCK, weight)
  np.testing.assert_allclose(method.virtual(ref_logp_BCK), want)
  method = losses.build("mrpo", official_weights=True)
  with pytest.raises(ValueError, match="K=2.*K=3"):
    method(POLICY, REF)


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
      "unknown loss 'dop'; .*known: alpha_dpo, .*, dpo, .*, wpo",
    ),
    (dict(name="dpo", gamma=1.0), "'dpo' does not take 'gamma'.*beta"),
    (dict(name="nll", beta=0.1), "'nll' does not take 'beta'"),
    (dict(name="nll", mixture="harmonic"), "does not take 'mixture'"),
    (dict(name="mrpo", mixture="mean"), "unknown mixture 'mean'.*geometric"),
    (dict(name="mrpo", weights="best"), "unknown weights 'best'.*adaptive"),
    (dict(name="mrpo", weights=(0, 0)), "not all 0"),
    (dict(name="mrpo", weights=(-1, 2)), "non-negative"),
    (dict(name="mrpo", clip=dict(eps=1)), "clip does not take 'eps'"),
  ],
)
def test_what_does_not_exist_is_refused_with_what_does(section, match):
  with pytest.raises(ValueError, match=match):
    losses.build(**section)


def test_a_pair_loss_without_mixture_takes_one_reference():
  with pytest.raises(ValueError, match="takes one reference, got K=3"):
    losses.build("dpo")(POLICY, REF)


def test_a_weight_per_reference():
  with pytest.raises(ValueError, match="K has size 3 in"):
    losses.build("mrpo", weights=(0.5, 0.5))(POLICY, REF)


# Every loss by its name is the function of that name.

RNG = np.random.default_rng(7)
LENGTH = jnp.asarray(RNG.integers(2, 9, (4, 2)).astype(np.float32))
FIGURES = dict(
  token_loss_BC=jnp.array([[9.0, 0.5], [2.0, 3.0], [0.0, 4.0], [1.0, 7.0]]),
  length_BC=LENGTH,
  kl_BC=jnp.asarray(RNG.uniform(0, 3, (4, 2)).astype(np.float32)),
  mean_excess_BC=jnp.asarray(RNG.uniform(-1, 0, (4, 2)).astype(np.float32)),
  normalised_entropy_BC=jnp.asarray(
    RNG.uniform(0.1, 0.9, (4, 2)).astype(np.float32)
  ),
  aux_reward_BC=jnp.array([[1.0, 0.0], [0.5, 0.25], [0.0, 1.0], [2.0, -1.0]]),
  value_B=jnp.array([0.5, 0.0, 0.25, -0.5]),
  desirable_B=jnp.array([True, False, False, True]),
)
POLICY_BC = -jnp.asarray(RNG.uniform(5, 12, (4, 2)).astype(np.float32))
REF_BCK = -jnp.asarray(RNG.uniform(5, 12, (4, 2, 3)).astype(np.float32))
REF_BC = REF_BCK[..., 0]
RATIO_BC = POLICY_BC - REF_BC
MEAN_BC, REF_MEAN_BC = POLICY_BC / LENGTH, REF_BC / LENGTH
CHOSEN_MEAN_B = MEAN_BC[:, 0]
SCALE_B = losses.dispersion_scale(
  losses.neg_log_dispersion(FIGURES["normalised_entropy_BC"]), mean=1 / 0.29
)
BY_HAND = {
  "aot": lambda: losses.aot(POLICY_BC, REF_BC),
  "sppo": lambda: losses.sppo(RATIO_BC, jnp.array([[1.0, 0.0]] * 4)),
  "qrpo": lambda: losses.qrpo(RATIO_BC, FIGURES["aux_reward_BC"]),
  "chi_po": lambda: losses.f_dpo(RATIO_BC, divergence="chi_squared_kl"),
  "squared_po": lambda: losses.f_dpo(RATIO_BC, divergence="log_squared"),
  "kto": lambda: losses.kto(RATIO_BC).mean(-1),
  "dr_dpo": lambda: jnp.full(4, losses.dr_dpo(RATIO_BC)),
  "r_dpo": lambda: losses.r_dpo(RATIO_BC, LENGTH),
  "mallows_theta": lambda: losses.mallows_theta(RATIO_BC, SCALE_B),
  "mallows_phi": lambda: losses.mallows_phi(RATIO_BC, jnp.full(4, 0.05)),
  "tdpo": lambda: losses.tdpo(RATIO_BC, FIGURES["kl_BC"]),
  "hypo": lambda: losses.hypo(POLICY_BC, REF_BC),
  "forward_kl_dpo": lambda: losses.forward_kl_dpo(POLICY_BC, REF_BC),
  "mnpo": lambda: losses.mnpo(
    POLICY_BC[:, 0] - POLICY_BC[:, 1], (REF_BC[:, 0] - REF_BC[:, 1])[:, None]
  ),
  "simper": lambda: losses.simper(MEAN_BC),
  "simpo": lambda: losses.simpo(MEAN_BC),
  "alpha_po": lambda: losses.alpha_po(MEAN_BC),
  "orpo": lambda: losses.orpo(MEAN_BC),
  "cpo": lambda: losses.cpo(POLICY_BC),
  "slic": lambda: losses.slic(POLICY_BC),
  "bradley_terry": lambda: losses.bradley_terry(POLICY_BC),
  "nll": lambda: losses.nll(CHOSEN_MEAN_B),
  "rainbow_po": lambda: losses.rainbow_po(MEAN_BC, REF_MEAN_BC),
  "alpha_dpo": lambda: losses.alpha_dpo(MEAN_BC, REF_MEAN_BC),
  "tpo": lambda: losses.tpo(POLICY_BC, CHOSEN_MEAN_B),
  "kto_unpaired": lambda: losses.kto_unpaired(
    RATIO_BC[:, 0],
    FIGURES["desirable_B"],
    kl_shift=RATIO_BC[:, 1].mean(),
  ),
  "apo_zero_unpaired": lambda: losses.apo_zero_unpaired(
    RATIO_BC[:, 0], FIGURES["desirable_B"]
  ),
  # Before the first step the shift is the mean of this batch's rewards.
  "bco_unpaired": lambda: losses.bco_unpaired(
    RATIO_BC[:, 0],
    FIGURES["desirable_B"],
    shift=0.1 * RATIO_BC[:, 0].mean(),
  ),
  "mrpo": lambda: losses.mrpo(POLICY_BC, REF_BCK[..., :1]),
  "multi_dpo": lambda: losses.multi_dpo(POLICY_BC, REF_BCK[..., :1]),
  # Before the first step the running margin is this batch's: beta is beta.
  "beta_dpo": lambda: losses.dpo(RATIO_BC),
  # Token weights are the caller's: these are DPO on weighted sums.
  **dict.fromkeys(
    ("d2po", "ld_dpo", "sampo", "bmc"), lambda: losses.dpo(RATIO_BC)
  ),
  "wpo": lambda: (
    losses.wpo_weight(FIGURES["mean_excess_BC"]) * losses.dpo(RATIO_BC)
  ),
  "mpo": lambda: (
    0.8 * losses.dpo(RATIO_BC)
    + 0.2 * losses.bco(RATIO_BC)
    + losses.nll(CHOSEN_MEAN_B)
  ),
  # Before the delay is over: the host, and what the values learn.
  "hpo": lambda: (
    losses.kto(RATIO_BC).mean(-1)
    + 0.1
    * losses.expectile(
      FIGURES["aux_reward_BC"] - FIGURES["value_B"][:, None]
    ).mean(-1)
  ),
}
BY_HAND |= dict.fromkeys(
  OF_TOKENS,
  # One value for a pair, whose mean is over all tokens of the batch.
  lambda: FIGURES["token_loss_BC"].sum(axis=1) * 4 / FIGURES["length_BC"].sum(),
)
# Keywords without which a loss is nothing.
GIVEN = {"combine": dict(losses=("hinge",), loss_weights=(1.0,))}
NAMES = losses.names()


def called(method, ref_BCK=REF_BCK[..., :1], **more):
  """loss_B of the method with all figures that any asks for."""
  ref_BCK = ref_BCK if method.takes_reference else None
  return method(POLICY_BC, ref_BCK, **{**FIGURES, **more})


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_function_of_that_name(name):
  by_hand = BY_HAND.get(name) or (lambda: getattr(losses, name)(RATIO_BC))
  if name == "combine":
    by_hand = lambda: losses.hinge(RATIO_BC)  # noqa: E731
  method = losses.build(name, **GIVEN.get(name, {}))
  np.testing.assert_allclose(called(method), by_hand(), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_figure_is_named(name):
  method = losses.build(name, **GIVEN.get(name, {}))
  ref_BCK = REF_BCK[..., :1] if method.takes_reference else None
  for figure in method.needs:
    less = {k: v for k, v in FIGURES.items() if k != figure}
    with pytest.raises(ValueError, match=f"'{name}' needs {figure}"):
      method(POLICY_BC, ref_BCK, **less)
  needed = {k: v for k, v in FIGURES.items() if k in method.needs}
  assert method(POLICY_BC, ref_BCK, **needed).shape == (4,)


# Another value than the default, for every keyword of every method.
OTHER = dict(
  beta=0.7,
  label_smoothing=0.2,
  epsilon=0.3,
  temperature=0.5,
  gamma=0.3,
  detach_weight=False,
  shift=0.4,
  kl_shift=0.5,
  desirable_weight=2.0,
  undesirable_weight=2.0,
  divergence="js",
  alpha=0.33,
  square_weight=0.5,
  penalty=2.0,
  power=-0.5,
  beta_prime=3.0,
  smoothing="sigmoid",
  version=1,
  floor=3.0,
  eta=0.5,
  delta=6.0,
  weight=0.5,
  mixing=0.3,
  home_advantage=0.4,
  mean=0.3,
  std=2.0,
  win_rate=0.8,
  phi=0.4,
  nll=0.5,
  center=0.5,
  scale="mean",
  dispersion=2.0,
  adaptive_beta=0.9,
  running=0.5,
  losses=("dpo",),
  loss_weights=(0.5,),
  token_weight=dict(name="wpo", clamp=False),
  auxiliary=dict(name="hpo", delay=0),
  # Several references.
  mixture="geometric",
  clip=dict(epsilon_max=0.02, adaptive=False),
  weights=(1.0, 2.0, 3.0),
  official_weights=True,
  betas=(0.3, 0.7, 0.2),
)
# What a keyword needs beside it to have an effect.
WITH = {
  **{
    (name, "alpha"): dict(divergence="alpha")
    for name in ("f_dpo", "chi_po", "squared_po")
  },
  ("exo", "epsilon"): dict(beta=2.0),
  ("mallows_phi", "epsilon"): dict(beta=0.01),
  ("alpha_dpo", "running"): dict(running=0.9),
}
MIXED = ("mixture", "clip", "weights", "official_weights", "betas")
OF_A_BATCH = ("aot", "aot_unpaired", "dr_dpo")


def keywords_of(name):
  """What `build` says that the method takes."""
  with pytest.raises(ValueError) as error:
    losses.build(name, no_such_keyword=1, **GIVEN.get(name, {}))
  taken = str(error.value).split("it takes: ")[1]
  return [] if taken == "nothing" else taken.split(", ")


# Those of tokens are in test_token_loss.py: here the sums are given.
CASES = [
  (name, keyword)
  for name in NAMES
  if name not in OF_TOKENS
  for keyword in keywords_of(name)
  # The other token weight, WPO's, is of a pair: these have no loss of one.
  if keyword != "token_weight" or name not in OF_A_BATCH
]


@pytest.mark.parametrize("name,keyword", CASES)
def test_every_keyword_changes_the_loss(name, keyword):
  value = OTHER[keyword]
  base = {**GIVEN.get(name, {}), **WITH.get((name, keyword), {})}
  ref_BCK = REF_BCK[..., :1]
  if keyword in MIXED:
    ref_BCK = REF_BCK[..., : 2 if keyword == "official_weights" else 3]
    if name != "mnpo":
      base |= dict(
        mixture="harmonic", weights=(5.0, 1.0, 1.0)[: ref_BCK.shape[-1]]
      )
    if keyword == "clip":
      base |= dict(clip=None)
  if keyword == "official_weights":
    base |= dict(clip=None)
  one = losses.build(name, **base)
  two = losses.build(name, **{**base, keyword: value})
  # A method with a memory is past its first step.
  states = [
    {**method.init(ref_BCK.shape[-1]), "margin": jnp.array([-1.0, 2.0, 1.0])}
    for method in (one, two)
  ]
  if keyword == "detach_weight":  # it changes the gradient alone
    one, two = (
      jax.grad(lambda x, m=m, s=s: m(x, ref_BCK, state=s).sum())(POLICY_BC)
      for m, s in zip((one, two), states, strict=True)
    )
  else:
    excess_BC = -FIGURES["mean_excess_BC"]  # so that a clamp is felt
    one, two = (
      called(method, ref_BCK, state=state, mean_excess_BC=excess_BC)
      for method, state in zip((one, two), states, strict=True)
    )
  assert np.isfinite(one).all() and np.isfinite(two).all()
  assert np.abs(np.asarray(one) - np.asarray(two)).max() > 1e-4, keyword


def test_every_name_of_trl_is_known():
  assert set(losses.TRL_NAMES.values()) <= set(NAMES)
  assert losses.TRL_NAMES["sigmoid"] == "dpo"
  assert losses.TRL_NAMES["exo_pair"] == "exo"


@pytest.mark.parametrize(
  "given,near",
  [
    ("sigmoid", "dpo, which TRL calls 'sigmoid'?"),
    ("sigmod", "dpo, which TRL calls 'sigmoid'?"),
    ("sigmoid_norm", "dpo with scale='mean', which TRL calls 'sigmoid_norm'?"),
    ("kto_pair", "kto, which TRL calls 'kto_pair'?"),
    ("alphapo", "alpha_po, which TRL calls 'alphapo'?"),
    ("DPO", "dpo?"),
    ("mrop", "mrpo?"),
  ],
)
def test_the_name_that_was_meant_is_said(given, near):
  with pytest.raises(ValueError, match="unknown loss") as caught:
    losses.build(given)
  said = str(caught.value)
  assert said.startswith(f"unknown loss {given!r}; did you mean {near} known: ")


def test_every_name_of_trl_leads_to_ours():
  for theirs, ours in losses.TRL_NAMES.items():
    if theirs not in NAMES:
      with pytest.raises(ValueError, match=f"did you mean {ours}.*{theirs}"):
        losses.build(theirs)


# What a loss may be put together from.


def test_likelihood_is_added():
  got = called(losses.build("hinge", nll=0.5))
  want = losses.hinge(RATIO_BC) + 0.5 * losses.nll(CHOSEN_MEAN_B)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_means_take_each_reference_by_its_own_length():
  method = losses.build("ipo", scale="mean", mixture="harmonic")
  ref_length_BCK = jnp.stack([LENGTH, LENGTH + 2, 2 * LENGTH], axis=-1)
  got = called(method, REF_BCK, ref_length_BCK=ref_length_BCK)
  mixed_BC = losses.harmonic(REF_BCK / ref_length_BCK, jnp.ones(3))
  np.testing.assert_allclose(got, losses.ipo(MEAN_BC - mixed_BC), rtol=1e-5)
  # Without lengths of their own they have the policy's.
  got = called(losses.build("ipo", scale="mean"))
  np.testing.assert_allclose(got, losses.ipo(MEAN_BC - REF_MEAN_BC), rtol=1e-5)


def test_any_loss_of_a_pair_takes_several_references():
  for name in ("nca", "simpo", "rainbow_po", "aot"):
    method = losses.build(name)
    if method.takes_reference:
      weights = (1.0, 0.0, 0.0)
      method = losses.build(name, mixture="harmonic", weights=weights)
      multi = losses.build(name, mixture="multi", weights=weights)
      np.testing.assert_allclose(
        called(multi, REF_BCK), BY_HAND_OR(name), rtol=1e-5
      )
    np.testing.assert_allclose(
      called(method, REF_BCK), BY_HAND_OR(name), rtol=1e-5
    )


def BY_HAND_OR(name):
  return BY_HAND.get(name, lambda: getattr(losses, name)(RATIO_BC))()


def test_mnpo_takes_its_references_unmixed():
  method = losses.build("mnpo", weights=(3.0, 1.0, 0.0), eta=0.5)
  margin_BK = REF_BCK[:, 0] - REF_BCK[:, 1]
  want = losses.mnpo(
    POLICY_BC[:, 0] - POLICY_BC[:, 1],
    margin_BK,
    weight=jnp.array([3.0, 1.0, 0.0]),
    eta=0.5,
  )
  np.testing.assert_allclose(called(method, REF_BCK), want, rtol=1e-6)


def test_dispersion_scales_the_margin_of_any_host():
  for name in ("ipo", "simpo"):
    host = losses.ipo if name == "ipo" else losses.simpo
    given = RATIO_BC if name == "ipo" else MEAN_BC
    want = host(given, scale_B=SCALE_B)
    for mean in (1 / 0.29, dict(mean=1 / 0.29)):
      got = called(losses.build(name, dispersion=mean))
      np.testing.assert_allclose(got, want, rtol=1e-6)
  # -log phi is the scale itself.
  got = called(losses.build("mallows_phi", dispersion=1 / 0.29))
  want = losses.mallows_phi(RATIO_BC, jnp.exp(-SCALE_B))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_token_weights_say_what_they_read():
  places = dict(
    index=jnp.arange(4),
    shorter_length=jnp.full(4, 2),
    prompt_length=jnp.full(4, 3),
    token_logp=jnp.log(jnp.full(4, 0.5)),
    differs=jnp.array([0, 1, 0, 1]),
  )
  for given, want in (
    ("temporal_decay", 0.98 ** np.arange(4)),
    (
      dict(name="temporal_decay", gamma=0.5, offset=1),
      [0.5, 0.25, 0.125, 0.0625],
    ),
    (
      dict(name="temporal_decay", gamma=0.5, offset="prompt"),
      0.5 ** np.arange(3, 7),
    ),
    (dict(name="length_desensitized", alpha=0.25), [1, 1, 0.25, 0.25]),
    (dict(name="bridged", cap=1.5), [1, 2.5, 1, 2.5]),
  ):
    method = losses.build("dpo", token_weight=given)
    np.testing.assert_allclose(method.token_weight(places), want, rtol=1e-6)
  assert losses.build("bmc").reads_differences
  assert not losses.build("d2po").reads_differences
  assert losses.build("wpo").token_weight is None
  decayed = losses.build("d2po").token_weight(places)
  np.testing.assert_allclose(decayed, 0.98 ** np.arange(1, 5), rtol=1e-6)


def test_down_sampling_is_given_its_key_and_lengths():
  places = dict(
    key=jax.random.key(0),
    index=jnp.arange(6),
    length=jnp.full(6, 6),
    keep=jnp.full(6, 2),
  )
  assert losses.build("sampo").token_weight(places).sum() == 2


# What a method remembers.


def test_most_methods_remember_nothing():
  assert losses.build("mrpo").init(2) == {"weights": ()}


def test_running_moments_decay_and_start_at_the_first_batch():
  method = losses.build("alpha_dpo", running=0.75)
  margin_B = MEAN_BC[:, 0] - MEAN_BC[:, 1]
  gap_B = np.asarray(margin_B - (REF_MEAN_BC[:, 0] - REF_MEAN_BC[:, 1]))
  state = method.init(1)
  given = dict(length_BC=LENGTH)
  want = losses.alpha_dpo(
    MEAN_BC, REF_MEAN_BC, mean=2.5 * gap_B.mean(), std=2.5 * gap_B.std()
  )
  got = method(POLICY_BC, REF_BCK[..., :1], state=state, **given)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  state = method.update(state, POLICY_BC, REF_BCK[..., :1], **given)
  moments = 0.25 * np.array([gap_B.mean(), gap_B.std(), 1.0])
  np.testing.assert_allclose(state["margin"], moments, rtol=1e-5)
  state = method.update(state, POLICY_BC, REF_BCK[..., :1], **given)
  np.testing.assert_allclose(state["margin"], 1.75 * moments, rtol=1e-5)


def test_equal_margins_have_no_deviation_to_divide_by():
  method = losses.build("alpha_dpo", running=0.9)
  loss_B = method(POLICY_BC, POLICY_BC[..., None], length_BC=LENGTH)
  assert np.isfinite(loss_B).all()


def test_pairs_that_are_not_there_do_not_move_the_running_margin():
  method = losses.build("beta_dpo")
  valid_B = jnp.array([True, True, False, True])
  given = (POLICY_BC, REF_BCK[..., :1])
  masked = method.update(method.init(1), *given, valid_B=valid_B)
  kept = jnp.array([0, 1, 3])
  fewer = method.update(method.init(1), *(array[kept] for array in given))
  np.testing.assert_allclose(masked["margin"], fewer["margin"], rtol=1e-5)


def test_weights_of_a_window_follow_the_batches():
  rule = dict(name="sliding_window", window=2)
  method = losses.build("mrpo", weights=rule)
  state = method.init(3)
  assert state["weights"].shape == (2, 3)
  np.testing.assert_allclose(method.mixing.weights(state, REF_BCK), [1 / 3] * 3)
  state = method.update(state, POLICY_BC, REF_BCK)
  sizes_K = jnp.abs(REF_BCK[:, 0] - REF_BCK[:, 1]).sum(0)
  want_K = sizes_K / sizes_K.sum()
  np.testing.assert_allclose(
    method.mixing.weights(state, REF_BCK), want_K, rtol=1e-6
  )
  got = method(POLICY_BC, REF_BCK, state=state)
  want = losses.mrpo(POLICY_BC, REF_BCK, weight=want_K)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_without_a_state_a_memory_is_empty():
  method = losses.build("mrpo", weights="sliding_window")
  got = method(POLICY_BC, REF_BCK)
  np.testing.assert_array_equal(
    got, method(POLICY_BC, REF_BCK, state=method.init(3))
  )


def test_a_band_of_no_width_is_dpo_on_the_base():
  got = losses.build("mrpo", clip=dict(epsilon_max=0))(POLICY_BC, REF_BCK)
  want = losses.dpo(POLICY_BC - REF_BCK[..., 0])
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_thompson_judges_its_reference_by_feedback():
  rule = dict(name="thompson", prior=2.0, seed=3)
  method = losses.build("mrpo", weights=rule)
  state = method.init(3)
  arm = int(state["weights"].arm)
  same = method.update(state, POLICY_BC, REF_BCK)
  jax.tree.map(np.testing.assert_array_equal, same, state)
  # The first evaluation has nothing to compare with.
  first = method.judge(state, 0.5, 3)
  assert first["accuracy"] == 0.5
  np.testing.assert_array_equal(first["weights"].won_K, [2.0] * 3)
  judged_K = np.full(3, 2.0)
  judged_K[arm] += 1
  better, worse = (method.judge(first, x, 3)["weights"] for x in (0.6, 0.5))
  np.testing.assert_array_equal(better.won_K, judged_K)
  np.testing.assert_array_equal(better.lost_K, [2.0] * 3)
  np.testing.assert_array_equal(worse.lost_K, judged_K)
  assert losses.build("mrpo").judge("state", 0.5, 3) == "state"
  other = losses.build("mrpo", weights=dict(rule, seed=4)).init(3)
  assert (other["weights"].key != state["weights"].key).any()


def test_single_responses_against_a_mixture_by_hand():
  # r = -2 of the response and -1 of the mismatched one: z = 1.
  policy_BC = jnp.array([[-1.0, 0.0]])
  ref_BCK = jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5]]]))  # means 1/2
  method = losses.build(
    "kto_unpaired", mixture="arithmetic", beta=1.0, weights=(1, 1)
  )
  got = method(policy_BC, ref_BCK, desirable_B=jnp.array([True]))
  # beta (r - z) = (-1 + ln 2) - (0 + ln 2) = -1
  np.testing.assert_allclose(got, [1 / (1 + np.exp(-1.0))], rtol=1e-6)


@pytest.mark.parametrize(
  "given,match",
  [
    (dict(weights="adaptive"), "weights 'adaptive' compare those of pairs"),
    (dict(weights="thompson"), "it takes uniform, by_pair or numbers"),
    (dict(scale="zscore"), "scale 'zscore' is of pairs"),
    (dict(clip=dict(epsilon_max=0.1)), "does not take 'clip'"),
    (dict(kl_shift=1.0), "does not take 'kl_shift'"),
    (dict(nll=1.0), "does not take 'nll'"),
    (dict(token_weight="wpo"), "does not take 'token_weight'"),
    (dict(auxiliary="hpo"), "does not take 'auxiliary'"),
  ],
)
def test_what_compares_two_responses_is_refused_of_single_ones(given, match):
  with pytest.raises(ValueError, match=match):
    losses.build("kto_unpaired", **given)
  with pytest.raises(ValueError, match="does not take 'shift'"):
    losses.build("bco_unpaired", shift=1.0)
  with pytest.raises(ValueError, match="does not take the loss 'kto_unpair"):
    losses.build("combine", losses=("kto_unpaired",), loss_weights=(1.0,))


def test_single_responses_keep_their_own_weights_in_a_batch():
  # Unlike `aot`, which looks across the batch too, each has its own loss.
  given = dict(mixture="multi", weights="by_pair")
  assert losses.build("kto_unpaired", **given).coupled


# What it says of itself.


def test_which_methods_look_across_the_batch():
  coupled = {
    name for name in NAMES if losses.build(name, **GIVEN.get(name, {})).coupled
  }
  assert coupled == {
    *("aot", "aot_unpaired", "dr_dpo", "beta_dpo"),
    *("kto_unpaired", "bco_unpaired"),
  }
  assert losses.build("alpha_dpo", running=0.9).coupled


def test_which_methods_need_a_reference():
  free = {
    name
    for name in NAMES
    if not losses.build(name, **GIVEN.get(name, {})).takes_reference
  }
  assert free == {
    *("nll", "simpo", "simper", "alpha_po", "cpo", "slic", "orpo", "tpo"),
    *("bradley_terry", "apa", "awr", "ppo"),
  }
  assert [name for name in free if losses.build(name).supervised] == ["nll"]
  with pytest.raises(ValueError, match="'dpo' needs a reference"):
    losses.build("dpo")(POLICY_BC)


def test_the_loss_where_policy_and_reference_agree():
  for name, want in (
    ("dpo", np.log(2)),
    ("mrpo", np.log(2)),
    ("ipo", 25.0),
    ("sppo_hard", 50.0),
    ("kto", 0.5),
    ("tdpo", np.log(2)),
    ("beta_dpo", np.log(2)),
    ("mallows_theta", np.log(2)),
    ("mallows_phi", np.log(2)),
    ("sppo", 25.0),
    ("kto_unpaired", 0.5),
    ("bco_unpaired", np.log(2)),
  ):
    assert losses.build(name).start_loss == pytest.approx(want), name
  # References that agree are one, whatever their number and weights.
  for given in (
    dict(weights=(1.0, 2.0, 3.0)),
    dict(weights=(1.0, 2.0), scale="zscore"),
    dict(official_weights=True),
    dict(weights="accuracy", scale="character"),
    dict(weights="thompson", scale="mean"),
  ):
    assert losses.build("mrpo", **given).start_loss == pytest.approx(np.log(2))
  # Here it depends on lengths, on the policy or on the reference.
  for name in ("r_dpo", "simpo", "wpo", "mpo", "hypo", "nll"):
    assert losses.build(name).start_loss is None, name


def test_rewards_have_the_temperature_of_the_loss():
  assert losses.build("dpo").beta == 0.1
  assert losses.build("simpo", beta=3).beta == 3.0
  assert losses.build("slic").beta == 1.0


def test_works_under_jit_and_in_bfloat16():
  method = losses.build("mrpo", clip=None)
  want = method(POLICY_BC, REF_BCK)
  got = jax.jit(method)(POLICY_BC, REF_BCK)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  narrow = method(POLICY_BC.astype(jnp.bfloat16), REF_BCK.astype(jnp.bfloat16))
  assert narrow.dtype == jnp.float32


def test_references_get_no_gradient():
  for name in ("mrpo", "mnpo", "alpha_dpo", "hypo", "beta_dpo"):
    method = losses.build(name)
    grad = jax.grad(lambda ref, m=method: called(m, ref).sum())
    assert not grad(REF_BCK[..., :1]).any(), name


@pytest.mark.parametrize(
  "section,match",
  [
    (dict(name="simpo", mixture="harmonic"), "'simpo' does not take 'mixture'"),
    (dict(name="simpo", scale="mean"), "does not take 'scale'"),
    (dict(name="tdpo", token_weight="wpo"), "does not take 'token_weight'"),
    (dict(name="nca", dispersion=1.0), "does not take 'dispersion'"),
    (dict(name="dpo", running=0.9), "does not take 'running'"),
    (dict(name="slic", adaptive_beta=0.6), "not take 'adaptive_beta'"),
    (dict(name="mnpo", mixture="harmonic"), "does not take 'mixture'"),
    (dict(name="mnpo", weight=1.0), "does not take 'weight'"),
    (dict(name="mrpo", p=0), "does not take 'p', which is 'mixture' here; it"),
    (dict(name="mrpo", weight=1), "'weight', which is 'weights' here; it"),
    (dict(name="cpo", p=0), "does not take 'p'; it takes"),
    (dict(name="dpo", scale_B=2.0), "does not take 'scale_B'"),
    (dict(name="aot", valid_B=None), "does not take 'valid_B'"),
    (
      dict(name="aot", token_weight="wpo"),
      "'aot' has no loss of a single pair for token_weight 'wpo' to multiply",
    ),
    (dict(name="dr_dpo", token_weight=dict(name="wpo")), "no loss of a single"),
    (
      dict(name="aot_unpaired", mixture="multi", weights="adaptive"),
      "'aot_unpaired' has no .* pair for weights 'adaptive' to multiply",
    ),
    (dict(name="aot", mixture="multi", weights="by_pair"), "'by_pair' to mul"),
    (
      dict(name="dpo", scale="max"),
      "unknown scale 'max'; known: sum, mean, character, zscore",
    ),
    (dict(name="cpo", scale="zscore"), "'cpo' has no references for scale 'zs"),
    (dict(name="rainbow_po", scale="zscore"), "does not take 'scale'"),
    (dict(name="mrpo", weights=dict(name="accuracy", window=2)), "'window'"),
    (dict(name="dpo", dispersion=0.0), "must be positive, got 0"),
    (
      dict(name="dpo", dispersion=dict(std=1)),
      "dispersion does not take 'std'",
    ),
    (dict(name="dpo", token_weight="decay"), "unknown token_weight 'decay'"),
    (
      dict(name="dpo", token_weight=dict(name="bridged", gamma=1)),
      "token_weight 'bridged' does not take 'gamma'; it takes: cap",
    ),
    (dict(name="mrpo", weights=dict(prior=1)), "unknown weights None"),
    (
      dict(name="mrpo", weights=dict(name="thompson", window=1)),
      "does not take 'window'; it takes: prior, seed",
    ),
    (dict(name="beta_dpo", running=1.0), r"running must be in \[0, 1\)"),
    (dict(name="dpo", label_smoothing="much"), "label_smoothing must be a num"),
    (dict(name="dpo", label_smoothing=1.5), "from 0 to 1, got 1.5"),
    (dict(name="focal_dpo", detach_weight=1), "must be True or False, got 1"),
    (dict(name="discopop", temperature=0.0), "temperature must be positive"),
    (dict(name="mnpo", eta=-1.0), "eta must be positive, got -1.0"),
    # Of names that are free elsewhere.
    (dict(name="focal_dpo", gamma=-1.0), "gamma must be from 0 up, got -1.0"),
    (
      dict(name="d2po", token_weight=dict(name="temporal_decay", gamma=-0.5)),
      "'temporal_decay': gamma must be positive, got -0.5",
    ),
    (
      dict(name="dpo", token_weight=dict(name="length_desensitized", alpha=2)),
      "'length_desensitized': alpha must be from 0 to 1, got 2",
    ),
    (dict(name="hinge", beta=None), "beta must be a number, got None"),
    (dict(name="hinge", nll="1"), "nll must be a number"),
    (dict(name="sppo", win_rate=2), "win_rate must be from 0 to 1"),
    (dict(name="mallows_phi", phi="x"), "phi must be a number"),
    (dict(name="beta_dpo", running="x"), "running must be a number"),
    (dict(name="dpo", dispersion="x"), "mean must be a number, got 'x'"),
    (dict(name="mrpo", weights=dict(name="thompson", prior=0)), "prior must"),
    (
      dict(name="dpo", token_weight=dict(name="temporal_decay", offset="x")),
      "token_weight 'temporal_decay': offset must be a number, got 'x'",
    ),
    (
      dict(name="dpo", token_weight=dict(name="bridged", cap=0)),
      "cap must be positive",
    ),
    (dict(name="combine"), "one weight for each loss, got 0 losses"),
    (dict(name="combine", losses=("kto",), loss_weights=(1,)), "'kto'.*dpo"),
    (dict(name="combine", losses=("aot",), loss_weights=(1,)), "'aot'"),
    (dict(name="dpo", losses=("dpo",)), "does not take 'losses'"),
    (dict(name="beta_dpo", running=-0.5), r"running must be in \[0, 1\)"),
    (dict(name="mrpo", mixture=True), "unknown mixture True; known: harmonic"),
    (dict(name="mrpo", mixture=float("nan")), "unknown mixture nan"),
    (dict(name="mrpo", mixture=[-1]), r"unknown mixture \[-1\]"),
    (dict(name="mrpo", weights=5), "weights 5 must be a rule's name, or num"),
    (dict(name="mrpo", weights=("a",)), r"weights \('a',\) must be"),
    (dict(name="mrpo", weights=()), r"weights \(\) must be"),
    (dict(name="mrpo", clip=0.1), "clip must be None or like .*, got 0.1"),
    (dict(name="mrpo", clip=dict(epsilon_max="a")), "clip: epsilon_max must"),
    (dict(name="mrpo", clip=dict(epsilon_max=-1)), "from 0 up, got -1"),
    (dict(name="mrpo", clip=dict(adaptive=3)), "adaptive must be True or"),
    (dict(name="mrpo", official_weights=1), "True or False, got 1"),
    (
      dict(name="multi_dpo", official_weights=True),
      "official_weights are of a mixture by a power, and mixture is 'multi'",
    ),
    (dict(name="dpo", official_weights=True), "and mixture is None"),
    (dict(name="dpo", token_weight=3), "unknown token_weight 3; known"),
  ],
)
def test_what_a_method_does_not_take_is_refused(section, match):
  with pytest.raises(ValueError, match=match):
    losses.build(**section)
