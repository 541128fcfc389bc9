# SPDX-License-Identifier: Apache-2.0
"""D2PO's discriminator: a reward model that learns from gold as it labels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mrpo_jax import hub, losses, parallel, processes
from mrpo_jax.data.batches import Packing
from mrpo_jax.data.tokenizer import (
  load_judges_tokenizer,
  tokenizer_fingerprint,
)
from mrpo_jax.errors import InputError, blames
from mrpo_jax.models import packed, parameters
from mrpo_jax.models.attention import kernels
from mrpo_jax.models.families.read import with_scalar_head
from mrpo_jax.rows import micro_batch, micro_batches
from mrpo_jax.runs.config import Folder
from mrpo_jax.runs.config.models import POLICY
from mrpo_jax.runs.config.sections import ImportedAdapter
from mrpo_jax.runs.inference.response_scorer import ResponseTexts
from mrpo_jax.runs.models import base_params
from mrpo_jax.training import optimizer, train_state
from mrpo_jax.training.objective import Model, Objective
from mrpo_jax.training.step import compile_step


class Discriminator:
  """A reward model with its optimizer, split as the policy is.

  Its state, a TrainState, is an argument: nothing of it stands here.  It is
  trained as any reward model is, by Bradley-Terry, in float32, all of its
  weights, with a learning rate that stays and moments that live as long as the
  run.
  """

  def __init__(self, config, mesh, policy, tokenizer):
    """Reads the config of its folder; no weights.

    Args:
      config: Config of the run.
      mesh: of the run.
      policy: models.Described of the policy.
      tokenizer: of the policy.

    Raises:
      InputError: the folder holds no reward model; the policy that it starts
        from starts from an adapter; or the mesh cannot share it.
    """
    given = self._given = config.online.discriminator
    self._mesh = mesh
    name, weights, model, tokenizer, self.fingerprint = _start(
      given.path, policy, tokenizer
    )
    self._base = dataclasses.replace(
      policy.section.base,
      weights=weights,
      head="scalar",
      dtype="float32",
      quantize="",
      group=None,
    )
    self._model = model
    self._texts = ResponseTexts(
      name, model, tokenizer, most=config.data.row_length
    )
    share, shares = parallel.row_share(mesh)
    self._packing = Packing(
      batch=-(-given.batch // shares) * shares,
      length=config.data.row_length,
      rows=parallel.row_shards(mesh),
      process=share,
      processes=shares,
    )
    rules = dict(self._base.rules)
    partition = parallel.partition_of(mesh, rules)
    with blames(name):
      kernels.check_heads("auto", model, partition)
    computation = packed.Computation(partition=partition)
    objective = Objective(
      pairs=self._packing.batch,
      policy=Model(model, computation=computation),
      references=(),
      names=(),
      method=losses.build("bradley_terry"),
    )
    # A cosine that ends where it begins.
    transformation, _ = optimizer.make(
      peak_lr=given.peak_lr, steps=1, warmup=0.0, end_lr_share=1.0
    )
    table = parameters.table(model)
    with blames(name, InputError):
      shardings = train_state.shardings(table, transformation, mesh, {}, rules)
    self._create = jax.jit(
      functools.partial(
        train_state.create, transformation=transformation, method_state={}
      ),
      out_shardings=shardings,
    )
    self._step = compile_step(
      objective, transformation, shardings, parallel.rows_sharding(mesh)
    )
    self._rewards = jax.jit(
      functools.partial(_all_rewards, model, self._packing.batch, computation),
      out_shardings=parallel.replicated(mesh),
    )
    shapes = jax.eval_shape(self._create, parameters.abstract(model))
    self.abstract = parallel.abstract(shapes, shardings)

  def create(self):
    """The TrainState that it starts from."""
    return self._create(base_params(self._base, self._model, self._mesh))

  def rewards(self, state, prompts, responses):
    """A float for each response; one that recurs has one reward.

    Args:
      state: its TrainState.
      prompts: texts or lists of messages.
      responses: texts.

    Raises:
      InputError: names the first response that it cannot be given.
    """

    def rewards_of(encoded):
      found, size = [], self._packing.batch
      for first in range(0, len(encoded), size):
        some = np.arange(first, min(first + size, len(encoded)))
        (view,) = self._packing.of([encoded], some)
        rows = parallel.global_rows(view, self._mesh)
        reward_BC = processes.whole(self._rewards(state.params, rows))
        found += reward_BC[: len(some), 0].tolist()
      return found

    return self._texts.numbers(prompts, responses, rewards_of)

  def fit(self, state, pairs, seed):
    """(state, figures) after `passes` over pairs whose order gold decided.

    Args:
      state: its TrainState, donated.
      pairs: list of PreferencePair.
      seed: numbers, of their order.

    Returns:
      figures: the last step's loss and accuracy, and of how many pairs; those
      that cannot be encoded, as where a response is empty, are left out.
    """
    encoded = self._texts.usable(pairs)
    size, metrics = self._packing.batch, {}
    for number in range(self._given.passes):
      order = np.random.default_rng((*seed, number)).permutation(len(encoded))
      for first in range(0, len(encoded), size):
        views = self._packing.of([encoded], order[first : first + size])
        rows = parallel.global_batch(views, {}, self._mesh)
        state, metrics = self._step(state, None, (), *rows)
    found = jax.device_get(metrics)
    names = {"loss": "loss", "fitted": "rewards/accuracies"}
    figures = {
      f"discriminator/{name}": float(found[figure])
      for name, figure in names.items()
      if found
    }
    return state, {"discriminator/pairs": len(encoded), **figures}


def _start(path, policy, tokenizer):
  """(name, weights, ModelConfig, tokenizer, fingerprint) of what is trained.

  Raises:
    InputError: it is no reward model, and none is made of it.
  """
  key = "config.online.discriminator.path"
  if path == POLICY:
    if isinstance(policy.section.adapter, ImportedAdapter):
      raise InputError(
        f"{key}={POLICY!r}: the policy starts from an adapter, which no "
        "reward model is made of; export it merged, and name that folder"
      )
    name, model = "the policy with a scalar head", policy.model.config
    fingerprint = f"{policy.identity} with a scalar head"
    weights = policy.section.base.weights
    return name, weights, with_scalar_head(model), tokenizer, fingerprint
  model = hub.read_config(path)
  if model.head != "scalar":
    raise InputError(
      f"{key}={path}: its model has no scalar head; name a reward model, or "
      f"{POLICY!r} for the policy's start with a head of zeros"
    )
  tokenizer = load_judges_tokenizer(path)
  fingerprint = f"{hub.fingerprint(path)} {tokenizer_fingerprint(tokenizer)}"
  return path, Folder(path), model, tokenizer, fingerprint


def _all_rewards(config, pairs, computation, params, parts):
  """reward_BC of the rows of one step."""
  reward_BC = jnp.zeros((pairs, 2), jnp.float32)
  for rows in parts:

    def add(a, total_BC, rows=rows):
      micro = micro_batch(rows, a)
      return total_BC + packed.rewards(
        config, params, micro, pairs, computation
      )

    reward_BC = jax.lax.fori_loop(0, micro_batches(rows), add, reward_BC)
  return reward_BC
