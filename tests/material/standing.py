# SPDX-License-Identifier: Apache-2.0
"""Runs that stand at a step, made without training."""

import jax
import jax.numpy as jnp
import optax

from mrpo_jax import files, hub
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  tokenizer_fingerprint,
  with_template,
)
from mrpo_jax.models import lora, parameters
from mrpo_jax.models.families.read import config_to_hf
from mrpo_jax.runs.config import read
from mrpo_jax.training import checkpoints, train_state
from tests.material.config import get_config


def run_of(workdir, source, poison=False, moved=0.0, rules=None, **policy):
  """A workdir that stands at step 1: the start of the run, and no more.

  Args:
    workdir: folder to make.
    source: folder of the policy, beside `pairs.jsonl`.
    poison: is a number of the weights not finite?
    moved: what is added to every number that is trained.
    rules: config.mesh.rules.
    **policy: keys of config.policy.
  """
  values = get_config(f"dpo,inputs={source.parent}").to_dict()
  values["policy"] |= {"path": str(source), **policy}
  values["mesh"] = {**values.get("mesh", {}), "rules": rules or {}}
  config = read(values)
  section = config.models()["policy"]
  tokenizer = with_template(
    load_tokenizer(section.tokenizer.folder), section.tokenizer.template
  )
  content = config.to_dict() | {
    "identity": {
      "policy": hub.fingerprint(source),
      "policy.tokenizer": tokenizer_fingerprint(tokenizer),
    }
  }
  head = config.policy.head
  model, params = hub.load(source, dtype=config.policy.dtype, head=head)
  meta = {"step": 1, "config": content, "head": head}
  plain, _ = parameters.language_model(model, {})
  meta["model"] = config_to_hf(plain, "float32")
  if config.policy.adapter:
    adapter = lora.Adapter(**config.policy.adapter.model_dump())
    table = lora.adapter_table(parameters.table(model), adapter)
    params = lora.init_adapters(table, jax.random.key(0))
    meta["adapter"] = adapter.to_json()
  params = jax.tree.map(lambda array: array + moved, params)
  if poison:
    params["norm"] = params["norm"].at[0].set(jnp.inf)
  state = train_state.create(params, optax.sgd(0.1), {})
  files.write_json(workdir / "config.json", content)
  files.write_lines(workdir / "metrics.jsonl", [{"step": 1, "loss": 0.5}])
  with checkpoints.manager(workdir) as manager:
    checkpoints.save(manager, 1, state, meta)
  return workdir
