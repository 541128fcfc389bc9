# SPDX-License-Identifier: Apache-2.0
"""config.data.reference_weights: which losses it is for, what it excludes."""

import pytest

from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import read
from mrpo_jax.runs.config.method import chosen_method
from mrpo_jax.runs.data import load_pairs
from tests.material.config import get_config


def config_of(name="mrpo", column="route", **loss):
  c = get_config(name)
  c.data.reference_weights = column
  c.loss.update(loss)
  return read(c.to_dict())


@pytest.mark.parametrize("name", ["mrpo", "multi_dpo", "mnpo"])
def test_a_column_weighs_in_the_place_of_what_is_published(name):
  method = chosen_method(config_of(name))
  assert method.mixing.by_pair and "weight_BK" in method.needs
  assert not chosen_method(config_of(name, column="")).mixing.by_pair


def test_without_the_key_config_json_is_as_it_was():
  assert "reference_weights" not in config_of(column="").to_dict()["data"]
  assert config_of().to_dict()["data"]["reference_weights"] == "route"


@pytest.mark.parametrize(
  ("name", "loss", "match"),
  [
    ("simpo", {}, "loss 'simpo' mixes no references that could be weighed"),
    ("nll", {}, "loss 'nll' mixes no references"),
    ("dpo", {}, "loss 'dpo' takes one reference; set config.loss.mixture"),
    ("mrpo", {"mixture": None}, "takes one reference; set config.loss.mixture"),
    ("mrpo", {"weights": "sliding_window"}, "weights='sliding_window' both"),
    (
      "mrpo",
      {"weights": (0.5, 0.5)},
      "weights=.0.5, 0.5. both weigh the refer",
    ),
    ("no_such_loss", {}, "unknown loss 'no_such_loss'"),
  ],
)
def test_a_loss_that_a_column_cannot_weigh_is_refused(name, loss, match):
  with pytest.raises(InputError, match=match):
    chosen_method(config_of(name, **loss))


def test_weights_by_pair_need_their_column():
  with pytest.raises(InputError, match="name it in config.data.reference_weig"):
    chosen_method(config_of(column="", weights="by_pair"))
  assert chosen_method(config_of(weights="by_pair")).mixing.by_pair


def test_a_column_that_pairs_are_read_from_holds_no_weights():
  with pytest.raises(InputError, match="='scores' is a column that pairs are"):
    load_pairs(config_of(column="scores"), ["train"])
