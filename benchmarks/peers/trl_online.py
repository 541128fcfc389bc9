# SPDX-License-Identifier: Apache-2.0
"""TRL's OnlineDPOTrainer as a player; see benchmarks/turns.py.

Runs in an environment with torch and TRL, without mrpo_jax.  It samples by
transformers' `generate`, as it does without vLLM, which needs a GPU.  With
--said=FOLDER it trains on the responses in the rounds of a run instead, so that
losses can be compared.
"""

import pathlib
import time

import datasets
import torch
import transformers
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from benchmarks import turns
from benchmarks.peers.text_reward import reward


class Trainer(OnlineDPOTrainer):
  """Keeps the loss of every step; logs would round it."""

  said = None  # rounds, each a list of pairs

  def training_step(self, *arguments, **named):
    loss = super().training_step(*arguments, **named)
    self.losses.append(float(loss.detach()))
    return loss

  def _generate(self, model, prompts, images=None):
    if self.said is None:
      return super()._generate(model, prompts, images)
    pairs = self.said[len(self.losses)]
    ids = [one["prompt_ids"] for one in pairs] * 2
    responses = [one["chosen_ids"] for one in pairs]
    responses += [one["rejected_ids"] for one in pairs]
    return *_padded(ids, left=True), *_padded(responses, left=False), None

  def _calculate_rewards_from_functions(self, **named):
    if self.said is None:
      return super()._calculate_rewards_from_functions(**named)
    pairs = self.said[len(self.losses)]
    return torch.tensor([1.0] * len(pairs) + [0.0] * len(pairs))


def _padded(lists, *, left):
  """(ids, mask) of lists of ids, as tensors."""
  longest, ids, mask = max(map(len, lists)), [], []
  for one in lists:
    free = longest - len(one)
    before, after = (free, 0) if left else (0, free)
    ids.append([0] * before + list(one) + [0] * after)
    mask.append([0] * before + [1] * len(one) + [0] * after)
  return torch.tensor(ids), torch.tensor(mask)


class Turns(transformers.TrainerCallback):
  """Waits for its turn before a round, and answers after it."""

  def __init__(self, channel, job):
    self.channel, self.job, self.left = channel, job, 0

  def on_step_begin(self, *_, **__):
    if not self.left:
      self.channel.wait()
      self.left, self.first = self.job["steps"], len(self.trainer.losses)
      self.started = time.perf_counter()

  def on_step_end(self, *_, **__):
    self.left -= 1
    if not self.left:
      self.channel.send(
        seconds=time.perf_counter() - self.started,
        pairs=self.job["steps"] * self.job["batch"],
        losses=self.trainer.losses[self.first :],
        memory=turns.resident(),
      )


def main():
  given = turns.worker_arguments(__doc__, said="")
  job = given.job

  def load():
    return transformers.AutoModelForCausalLM.from_pretrained(
      job["model"], dtype=torch.float32
    )

  tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
  tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
  steps = job["steps"] * job["rounds"]
  prompts = turns.lines(job["prompts"])
  rows = [prompts[n % len(prompts)] for n in range(steps * job["batch"])]
  callback = Turns(given.channel, job)
  Trainer.losses = []
  if given.said:
    Trainer.said = [
      turns.lines(pathlib.Path(given.said) / str(n) / "pairs.jsonl")
      for n in range(steps)
    ]
  trainer = Trainer(
    model=load(),
    ref_model=load(),
    reward_funcs=lambda prompts, completions, **_: reward(prompts, completions),
    args=OnlineDPOConfig(
      output_dir=f"{job['prompts']}-trl",
      per_device_train_batch_size=job["batch"],
      max_steps=steps,
      max_new_tokens=job["max_new_tokens"],
      max_length=job["max_prompt"] + job["max_new_tokens"],
      temperature=1.0,
      top_k=0,
      beta=job["beta"],
      learning_rate=job["lr"],
      lr_scheduler_type="constant",
      max_grad_norm=1.0,
      gradient_checkpointing=False,
      optim="adamw_torch_fused",
      bf16=False,
      use_cpu=True,
      report_to=[],
      save_strategy="no",
      logging_strategy="no",
    ),
    train_dataset=datasets.Dataset.from_list(rows),
    processing_class=tokenizer,
    callbacks=[callback],
  )
  callback.trainer = trainer
  about = {"torch": torch.__version__, "transformers": transformers.__version__}
  given.channel.send(ready=about)
  trainer.train()


if __name__ == "__main__":
  main()
