# SPDX-License-Identifier: Apache-2.0
"""What a config's loss is said to lack."""

import pytest

from mrpo_jax.losses.methods.catalogue import LEFT_OUT
from mrpo_jax.runs.config import read
from mrpo_jax.runs.setup import set_up
from tests.material.config import get_config


@pytest.fixture
def said(inputs, tmp_path, caplog):
  """The lines about what a loss is without, of a run that is set up."""

  def lines(name, **loss):
    caplog.clear()
    values = get_config(f"inputs={inputs},run={name}").to_dict()
    values["loss"] = dict(name=name, **loss)
    set_up(read(values), tmp_path)
    return [one for one in caplog.messages if "its paper" in one]

  return lines


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
