# SPDX-License-Identifier: Apache-2.0
"""Tunix's DPOTrainer as a player; see benchmarks/turns.py.

Runs in an environment with google-tunix, without mrpo_jax.  Tunix pads
prompts and responses to fixed lengths; here these are the longest of the job,
so that it compiles once and computes no more padding than it must.
"""

import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tunix
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.sft.dpo import dpo_trainer

from benchmarks import turns

ROTATE = llama.apply_rope
PAD = 2  # of the job's tokenizer; masked, so that its value does not matter


class Trainer(dpo_trainer.DPOTrainer):
  """Keeps the loss of every step; hooks hear of it one step late."""

  def _buffer_metrics(self, *arguments, loss, **named):
    self.losses.append(loss)
    return super()._buffer_metrics(*arguments, loss=loss, **named)


def padded(sequences, length, *, left):
  """(ids, mask), both [N, length]."""
  ids_NT = np.full((len(sequences), length), PAD, np.int32)
  mask_NT = np.zeros_like(ids_NT)
  for ids_T, mask_T, ids in zip(ids_NT, mask_NT, sequences, strict=True):
    place = slice(length - len(ids), None) if left else slice(len(ids))
    ids_T[place], mask_T[place] = ids, 1
  return ids_NT, mask_NT


def load(job, folder, mesh):
  """The model of a Hugging Face folder."""
  values = json.loads((pathlib.Path(folder) / "config.json").read_text())
  rope = values.get("rope_parameters") or values
  config = llama.ModelConfig(
    num_layers=values["num_hidden_layers"],
    vocab_size=values["vocab_size"],
    embed_dim=values["hidden_size"],
    hidden_dim=values["intermediate_size"],
    num_heads=values["num_attention_heads"],
    head_dim=values["head_dim"],
    num_kv_heads=values["num_key_value_heads"],
    rope_theta=int(rope["rope_theta"]),
    norm_eps=values["rms_norm_eps"],
  )
  # Its Llama rotates by a theta of 1e6, whatever its config says (0.1.7).
  llama.apply_rope = functools.partial(ROTATE, rope_theta=config.rope_theta)
  return llama_params.create_model_from_safe_tensors(
    folder, config, mesh, dtype=jnp.dtype(job["dtype"])
  )


def batches(job, channel, trainer):
  """What the trainer asks for; it answers and waits between two rounds."""
  pairs = turns.lines(job["ids"])
  prompt, *responses = (max(map(len, ids)) for ids in zip(*pairs, strict=True))
  for steps in job["rounds"]:
    channel.wait()
    trainer.losses = []
    started = time.perf_counter()
    for places in steps:
      prompts, chosen, rejected = zip(*(pairs[n] for n in places), strict=True)
      chosen_ids, chosen_mask = padded(chosen, max(responses), left=False)
      rejected_ids, rejected_mask = padded(rejected, max(responses), left=False)
      prompt_ids, prompt_mask = padded(prompts, prompt, left=True)
      yield dpo_trainer.TrainingInput(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        chosen_ids=chosen_ids,
        chosen_mask=chosen_mask,
        rejected_ids=rejected_ids,
        rejected_mask=rejected_mask,
      )
    jax.block_until_ready(nnx.state(trainer.model))
    channel.send(
      seconds=time.perf_counter() - started,
      pairs=sum(map(len, steps)),
      losses=[float(loss) for loss in trainer.losses],
      memory=turns.resident(),
    )


def main():
  given = turns.worker_arguments(__doc__)
  job = given.job
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp")
  )
  with mesh:
    trainer = Trainer(
      model=load(job, job["model"], mesh),
      ref_model=load(job, job["references"][0], mesh),
      optimizer=optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(job["lr"], weight_decay=0.0),
      ),
      training_config=dpo_trainer.DPOTrainingConfig(
        beta=job["beta"], eval_every_n_steps=10**9
      ),
    )
    about = {
      "tunix": getattr(tunix, "__version__", "?"),
      "jax": jax.__version__,
    }
    given.channel.send(ready=about)
    trainer.train(batches(job, given.channel, trainer))


if __name__ == "__main__":
  main()
