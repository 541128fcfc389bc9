# SPDX-License-Identifier: Apache-2.0
"""What a config's loss is said to lack."""

import pytest

from mrpo_jax.losses.methods.catalogue import LEFT_OUT
from mrpo_jax.runs.config import read
from mrpo_jax.runs.config.method import log_odds_beta
from mrpo_jax.runs.setup import set_up
from tests.material.config import get_config


@pytest.fixture
def lines(inputs, tmp_path, caplog):
  """What a run says as it is set up."""

  def lines(name, loss, **data):
    caplog.clear()
    caplog.set_level("INFO", "mrpo_jax")
    values = get_config(f"inputs={inputs},run={name}").to_dict()
    values["loss"] = dict(name=name, **loss)
    values["data"].update(data)
    set_up(read(values), tmp_path)
    return caplog.messages

  return lines


@pytest.fixture
def said(lines):
  """The lines about what a loss is without."""
  return lambda name, **loss: [
    one for one in lines(name, loss) if "its paper" in one
  ]


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.usefixtures("one_device")
def test_what_a_paper_has_and_the_run_does_not_is_said(name, said):
  keyword, value, _ = LEFT_OUT[name]
  (line,) = said(name)
  assert f"config.loss.{keyword}={value:g}" in line
  assert not said(name, **{keyword: value})


@pytest.mark.usefixtures("one_device")
def test_what_is_left_out_on_purpose_is_not_said(said):
  assert not said("orpo", nll=0.0) and not said("dpo")


@pytest.mark.parametrize(
  "weights,named,want",
  [
    ("uniform", True, True),
    ("uniform", False, False),
    ("discrimination", True, False),
  ],
)
@pytest.mark.usefixtures("one_device")
def test_pairs_that_no_weight_measures_are_said_to_be_unread(
  weights, named, want, inputs, lines
):
  found = lines(
    "mrpo",
    dict(weights=weights),
    validation=str(inputs / "pairs.jsonl") if named else "",
  )
  assert any("data.validation is not read" in one for one in found) == want


@pytest.mark.parametrize(
  "loss,own,want",
  [
    (dict(name="dpo", beta=0.3), 0.0, 0.3),
    (dict(name="dpo", beta=0.3), 0.2, None),  # it is not read then
    (dict(name="dpo", betas=(0.2,)), 0.0, None),
    (dict(name="dpo", beta=2.0, scale="mean"), 0.0, None),
    (dict(name="simpo", beta=2.0), 0.0, None),
  ],
)
def test_a_beta_that_makes_log_odds_is_of_sums_against_a_reference(
  loss, own, want, inputs
):
  values = get_config(f"inputs={inputs},run=dpo").to_dict()
  values["loss"] = loss
  values["references"][values["references"]["names"][0]]["beta"] = own
  assert log_odds_beta(read(values)) == want
