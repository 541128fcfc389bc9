# SPDX-License-Identifier: Apache-2.0
"""The method of a config: its loss with all its choices, and what it needs."""

import logging

from mrpo_jax import losses
from mrpo_jax.errors import InputError, blames
from mrpo_jax.losses.methods.build import taken
from mrpo_jax.losses.methods.catalogue import LEFT_OUT
from mrpo_jax.runs.config.online import Rollouts

logger = logging.getLogger(__name__)

BY_PAIR = "by_pair"  # weights of references that the data hold


def reward_beta(loss):
  """The beta of the rewards in metrics, from the `loss` of a config.json."""
  with blames("config.loss", (TypeError, ValueError)):
    return losses.build(**loss).beta


def log_odds_beta(config):
  """The beta that makes log-odds of a log-ratio in nats; None without one.

  Such a beta has no loss that reads no reference or means over tokens, and none
  whose references have betas of their own.
  """
  with blames("config.loss", (TypeError, ValueError)):
    method = losses.build(config.loss.name, **config.loss.keywords)
  own = any(one.beta for _, one in config.references.items())
  if not method.takes_reference or method.unit.needs:
    return None
  return None if own or method.mixing.betas else method.beta


def chosen_method(config):
  """The Method of a config, its loss with all its choices."""
  name, keywords = config.loss.name, _loss_keywords(config)
  references = config.references.names
  betas = [one.beta for _, one in config.references.items()]
  with blames("config.loss", (TypeError, ValueError)):
    method = losses.build(name, **keywords)
    if any(betas):
      betas = tuple(beta or method.beta for beta in betas)
      method = losses.build(name, **keywords, betas=betas)
  if method.tokens is not None:
    _check_rollouts(config)
  elif config.online.prompts:
    _check_online(config, method)
  evaluates = config.data.eval and config.eval_every
  if method.mixing.by_pair and not config.data.reference_weights:
    raise InputError(
      "config.loss.weights='by_pair' are of a column of the data: name it in "
      "config.data.reference_weights"
    )
  _check_rewards(config, method)
  if method.learns and not evaluates:
    raise InputError(
      "config.loss.weights learns from held-out accuracy: set config.data.eval "
      "and config.eval_every"
    )
  if "validation" in method.measures and not config.data.validation:
    raise InputError(
      "config.loss.weights measures the references on held-out pairs: name "
      "them in config.data.validation"
    )
  if method.takes_reference and not references:
    problem = "needs a reference"
  elif (method.supervised or method.of_rewards) and references:
    problem = "takes no reference"
  else:
    return method
  raise InputError(
    f"config.loss.name={name!r} {problem}, but config.references.names is "
    f"{references}"
  )


def _check_rollouts(config):
  """Raises InputError where a loss of tokens has nothing to learn from."""
  where = f"config.loss.name={config.loss.name!r}"
  if not config.online.prompts:
    raise InputError(
      f"{where} learns from what the policy itself says and is rewarded for; "
      "preference pairs are not that: set config.online"
    )
  if not config.references.names:
    raise InputError(
      f"{where} compares with the initial policy: name it in "
      "config.references.names, with path='policy'"
    )
  if config.online.discriminates:
    raise InputError(
      f"{where}: a discriminator orders pairs; config.online.reward alone "
      "judges rollouts"
    )
  if config.data.eval:
    raise InputError(
      f"{where}: held-out pairs have no rewards of tokens; leave out "
      "config.data.eval"
    )


def _check_online(config, method):
  """Raises InputError where a method cannot train on the policy's own pairs."""
  where = f"config.loss.name={config.loss.name!r} with config.online"
  if method.supervised or method.of_rewards or method.unpaired:
    raise InputError(
      f"{where}: it trains on no pairs of a policy's own responses; leave out "
      "config.online, or name another loss"
    )
  if config.online.rollouts != Rollouts():
    raise InputError(
      f"{where}: config.online.rollouts is of losses of tokens, apa, awr and "
      "ppo; leave it out"
    )
  if method.measures:
    raise InputError(
      f"{where}: it measures its references on given pairs before the first "
      "step, of which there are none; choose other config.loss.scale and "
      "weights"
    )


def _check_rewards(config, method):
  """InputError where rewards are missing, or nothing would read them."""
  named = config.data.rewards.names
  if config.online.prompts and (named or "aux_reward_BC" in method.needs):
    raise InputError(
      "config.data.rewards and losses that read it are of given pairs, whose "
      "rewards are in the store; config.online makes its own: leave them out"
    )
  if "aux_reward_BC" in method.needs and not named:
    raise InputError(
      f"config.loss.name={config.loss.name!r} reads rewards of the responses: "
      "name them in config.data.rewards"
    )
  if named and "aux_reward_BC" not in method.needs:
    raise InputError(
      f"config.data.rewards: loss {config.loss.name!r} reads no rewards; set "
      "config.loss.auxiliary='hpo', name qrpo, or leave them out (mrpo score "
      "--reward scores them alone)"
    )


def _loss_keywords(config):
  """Keywords of `losses.build`; a column of weights is one of them."""
  name, keywords = config.loss.name, config.loss.keywords
  column = config.data.reference_weights
  if not column or name not in losses.names():  # which `build` refuses
    return keywords
  where = f"config.data.reference_weights={column!r}"
  choices = taken(name)
  if "weights" not in choices:
    raise InputError(
      f"{where}: loss {name!r} mixes no references that could be weighed"
    )
  if "mixture" in choices and (choices | keywords)["mixture"] is None:
    raise InputError(
      f"{where}: loss {name!r} takes one reference; set config.loss.mixture"
    )
  weights = keywords.get("weights", BY_PAIR)
  if weights != BY_PAIR:
    raise InputError(
      f"{where} and config.loss.weights={weights!r} both weigh the "
      f"references; give one, the column with config.loss.weights={BY_PAIR!r}"
    )
  if keywords.get("official_weights"):
    raise InputError(
      f"{where} and config.loss.official_weights, which gives references each "
      "other's weights; give one"
    )
  return {**keywords, "weights": BY_PAIR}


def check_best(config, method):
  """Raises InputError where no evaluation gives what the config asks for."""
  figure = config.checkpoints.best
  if not figure:
    return
  key = f"config.checkpoints.best={figure!r}"
  if not (config.data.eval and config.eval_every):
    raise InputError(f"{key}: set config.data.eval and config.eval_every")
  if method.supervised and figure != "eval/loss":
    raise InputError(f"{key}: {method.name!r} is judged by 'eval/loss' alone")
  if method.of_rewards and figure.startswith(("eval/virtual", "eval/policy")):
    raise InputError(f"{key}: a reward model has no such figure")
  if method.unpaired and "policy" in figure:
    raise InputError(f"{key}: single responses have no such figure")
  if "virtual/" in figure and not method.takes_reference:
    raise InputError(f"{key}: {method.name!r} takes no reference")


def say_unread(config, method):
  """Says it where a config names held-out pairs that nothing measures."""
  if config.data.validation and "validation" not in method.measures:
    logger.info(
      "config.data.validation is not read: config.loss.weights measures no "
      "pairs; config.data.eval names those to evaluate on"
    )


def say_left_out(config):
  """Warns where the paper of a loss has what the config does not mention."""
  name = config.loss.name
  keyword, value, what = LEFT_OUT.get(name, ("", 0, ""))
  if keyword and keyword not in config.loss.keywords:
    logger.warning(
      f"warning: config.loss.name={name!r}: its paper {what}: "
      f"config.loss.{keyword}={value:g}; this run does not"
    )
