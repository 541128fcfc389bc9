# SPDX-License-Identifier: Apache-2.0
"""What looks wrong is said once, with its numbers; what is well is not."""

import math

import pytest

from mrpo_jax.references.warnings import warnings

NAMES = ("base", "second", "third")
LOG_VOCAB = dict.fromkeys(NAMES, math.log(1000))  # 6.91 nats
WELL = {
  "references/base/responsibility": 0.6,
  "references/second/responsibility": 0.3,
  "references/third/responsibility": 0.1,
  "weights_cancel": 0.2,
  **{f"references/{name}/margin": 3.0 for name in NAMES},
  **{f"references/{name}/margin_sd": 4.0 for name in NAMES},
  **{f"references/{name}/token_logp": -2.5 for name in NAMES},
  **{f"references/{name}/character_logp": -0.6 for name in NAMES},
  **{f"references/{name}/logp_size": 200.0 for name in NAMES},
  "references/base/distance/second": 20.0,
  "references/base/distance/third": 30.0,
  "references/second/distance/third": 25.0,
}


def found(names=NAMES, without=(), **figures):
  """{what: sentence}; `second__margin=1.0` sets references/second/margin."""
  given = dict(WELL)
  for name, value in figures.items():
    key = "references/" + name.replace("__", "/") if "__" in name else name
    assert key in given
    given[key] = value
  given = {k: v for k, v in given.items() if not k.endswith(tuple(without))}
  return dict(warnings(given, names, log_vocab=LOG_VOCAB))


def test_a_good_run_is_not_warned_of():
  assert found() == {}
  assert found(NAMES[:2]) == {}
  assert found(NAMES[:1]) == {}


def test_one_reference_carries_the_mixture():
  said = found(second__responsibility=0.93)
  assert list(said) == [("dominant", "second")]
  assert "'second' carries 93% of the mixture" in said["dominant", "second"]
  assert "loss.weights" in said["dominant", "second"]
  assert found(second__responsibility=0.9) == {}


def test_weights_that_cancel():
  said = found(weights_cancel=0.97)
  assert list(said) == [("cancel", "")]
  assert said["cancel", ""].startswith("in 97% of the pairs")
  assert "loss.mixture='geometric'" in said["cancel", ""]
  assert found(weights_cancel=0.9) == {}


@pytest.mark.parametrize("times,odd", [(5, True), (2, False), (1, False)])
@pytest.mark.parametrize("names", [NAMES, NAMES[:2]])
def test_margins_of_another_scale(names, times, odd):
  # The root mean square of a mean of 3 and a deviation of 4 is 5 nats.
  for factor in (times, 1 / times):
    said = found(
      names, second__margin=-3 * factor, second__margin_sd=4 * factor
    )
    assert list(said) == [("scale", "second")] * odd
    if odd:
      sentence = said["scale", "second"]
      assert f"a root mean square of {5 * factor:.3g}, usual" in sentence
      assert "usual here is 5:" in sentence
      assert "loss.scale='zscore'" in sentence


def test_an_outlier_of_three_is_named_alone():
  # However far: the median of the other two would be half of it.
  for factor in (1e3, 1e-3):
    for name in NAMES:
      said = found(**{f"{name}__margin": 0.0, f"{name}__margin_sd": 5 * factor})
      assert list(said) == [("scale", name)]


def test_of_two_references_the_base_is_the_measure():
  said = found(NAMES[:2], base__margin=300.0)
  assert list(said) == [("scale", "second")]


def test_margins_that_are_zero():
  zero = {f"{name}__margin{sd}": 0.0 for name in NAMES for sd in ("", "_sd")}
  assert found(**zero) == {}
  said = found(**{**zero, "third__margin": 1.0})
  assert list(said) == [("scale", "third")]


def test_a_reference_that_guesses():
  # 0.98 of log 1000 is 6.77 nats; K = 1 is judged too.
  for name in NAMES[:2]:
    said = found(NAMES[:2], **{f"{name}__token_logp": -6.8})
    assert list(said) == [("guessing", name)]
    assert "-6.80 nats, guessing gives -6.91" in said["guessing", name]
    assert "tokenizer" in said["guessing", name]
  assert list(found(NAMES[:1], base__token_logp=-7.5)) == [("guessing", "base")]
  assert found(second__token_logp=-6.7) == {}
  # Each has its own vocabulary.
  sizes = dict(LOG_VOCAB, second=math.log(800))
  figures = {**WELL, "references/second/token_logp": -6.7}
  said = warnings(figures, NAMES, log_vocab=sizes)
  assert [what for what, _ in said] == [("guessing", "second")]


def test_a_reference_that_finds_the_text_unlikely():
  said = found(third__character_logp=-0.95)  # 1.58 times
  assert list(said) == [("unlikely", "third")]
  assert "-0.95 nats, 'base' -0.60" in said["unlikely", "third"]
  assert found(third__character_logp=-0.85) == {}  # 1.42 times
  said = found(third__character_logp=-0.35)  # the best; the others 1.71 times
  assert list(said) == [("unlikely", "base"), ("unlikely", "second")]


def test_two_references_that_are_one():
  said = found(second__distance__third=0.01)  # of 200 nats
  assert list(said) == [("same", "second third")]
  assert "'second' and 'third' say the same" in said["same", "second third"]
  assert found(second__distance__third=0.03) == {}
  assert found(NAMES[:2], second__distance__third=0.0) == {}


BAD = dict(
  base__responsibility=0.95,
  weights_cancel=1.0,
  third__margin=300.0,
  second__token_logp=-7.0,
  second__character_logp=-2.0,
  base__distance__third=0.0,
)
KINDS = ["dominant", "cancel", "scale", "guessing", "unlikely", "same"]


def test_everything_at_once():
  assert [kind for kind, _ in found(**BAD)] == KINDS
  for sentence in found(**BAD).values():
    assert "  " not in sentence and len(sentence) > 60


@pytest.mark.parametrize(
  "kind,figure",
  [
    ("dominant", "responsibility"),
    ("cancel", "weights_cancel"),
    ("scale", "margin"),
    ("scale", "margin_sd"),
    ("guessing", "token_logp"),
    ("unlikely", "character_logp"),
    ("same", "base/distance/third"),
    ("same", "logp_size"),
  ],
)
def test_what_is_missing_is_not_judged(kind, figure):
  said = found(without=[figure], **BAD)
  assert [what for what, _ in said] == [k for k in KINDS if k != kind]


def test_without_figures_nothing_is_said():
  assert warnings({}, NAMES, log_vocab=LOG_VOCAB) == []
  # Of a loss without references.
  assert warnings({"weights_cancel": 1.0}, (), log_vocab={}) == []


def test_one_reference_has_none_to_be_compared_with():
  said = found(NAMES[:1], **{**BAD, "base__token_logp": -9.0})
  assert list(said) == [("guessing", "base")]
