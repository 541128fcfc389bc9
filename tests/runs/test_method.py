# SPDX-License-Identifier: Apache-2.0
"""What a config's loss is said to lack."""

import pytest

from mrpo_jax import losses
from mrpo_jax.losses.methods.catalogue import LIKELIHOOD
from mrpo_jax.runs.config import read
from mrpo_jax.runs.setup import set_up
from tests.material.config import get_config


@pytest.mark.parametrize("name", LIKELIHOOD)
@pytest.mark.usefixtures("one_device")
def test_a_paper_that_adds_the_likelihood_is_said(
  name, inputs, tmp_path, caplog
):
  def said(**loss):
    caplog.clear()
    values = get_config(f"inputs={inputs}").to_dict()
    values["loss"], values["references"] = dict(name=name, **loss), {}
    set_up(read(values), tmp_path)
    return [one for one in caplog.messages if "preference term alone" in one]

  (line,) = said()
  assert f"config.loss.nll={LIKELIHOOD[name]:g}" in line
  assert not said(nll=LIKELIHOOD[name]) and not said(nll=0.0)
  assert losses.build(name).nll == 0


@pytest.mark.usefixtures("one_device")
def test_of_other_losses_nothing_is_said(inputs, tmp_path, caplog):
  set_up(read(get_config(f"inputs={inputs}").to_dict()), tmp_path)
  assert "preference term alone" not in caplog.text
