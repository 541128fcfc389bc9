# SPDX-License-Identifier: Apache-2.0
"""TRL's DPOTrainer as a player; see benchmarks/turns.py.

Runs in an environment with torch and TRL, without mrpo_jax.  Kinds:

  default  as DPOConfig comes, but for bfloat16, which float32 models exclude
  best     no gradient checkpointing, the fused AdamW, batches of similar
           length (each round's pairs sorted: TRL 1.16 cannot group by length
           in DPO)
  cached   best, the reference scored beforehand
  liger    best, with Liger's layer kernels
"""

import time
import types

import datasets
import peft
import torch
import transformers
import trl
from trl.trainer.utils import add_fused_lm_head

from benchmarks import turns

BEST = dict(gradient_checkpointing=False, optim="adamw_torch_fused")
KINDS = {
  "default": {},
  "best": BEST,
  "cached": {**BEST, "precompute_ref_log_probs": True},
  "liger": {**BEST, "use_liger_kernel": True},
}


class Averaged(torch.nn.Module):
  """References whose log-probabilities are averaged, as one."""

  def __init__(self, models):
    super().__init__()
    self.models = torch.nn.ModuleList(models)

  def forward(self, **inputs):
    found = [model(**inputs).log_probs for model in self.models]
    return types.SimpleNamespace(log_probs=sum(found) / len(found))


class Trainer(trl.DPOTrainer):
  """Keeps the loss of every step; logs would round it."""

  def training_step(self, *arguments, **named):
    loss = super().training_step(*arguments, **named)
    self.losses.append(loss.detach())
    return loss


class Turns(transformers.TrainerCallback):
  """Waits for its turn before a round, and answers after it."""

  def __init__(self, channel, rounds):
    self.channel, self.left = channel, 0
    self.steps = [len(steps) for steps in rounds]
    self.batches = [[len(pairs) for pairs in steps] for steps in rounds]

  def on_step_begin(self, *_, **__):
    if not self.left:
      self.number = self.channel.wait()
      self.left = self.steps[self.number]
      self.trainer.losses.clear()
      self.started = time.perf_counter()

  def on_step_end(self, *_, **__):
    self.left -= 1
    if self.left:
      return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
      torch.cuda.synchronize()
    self.channel.send(
      seconds=time.perf_counter() - self.started,
      pairs=sum(self.batches[self.number]),
      losses=[float(loss) for loss in self.trainer.losses],
      memory=torch.cuda.max_memory_allocated() if on_gpu else turns.resident(),
    )


def rows_of(job, *, sort):
  """The pairs in the order in which the steps see them."""
  pairs = turns.lines(job["pairs"])
  lengths = [
    len(prompt) + max(len(chosen), len(rejected))
    for prompt, chosen, rejected in turns.lines(job["ids"])
  ]
  order = []
  for steps in job["rounds"]:
    places = [place for step in steps for place in step]
    order += sorted(places, key=lengths.__getitem__) if sort else places
  return datasets.Dataset.from_list([pairs[place] for place in order])


def trainer(job, kind, references, callback):
  """The DPOTrainer that does the job."""

  def load(folder):
    dtype = getattr(torch, job["dtype"])
    return transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=dtype
    )

  tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
  on_gpu = torch.cuda.is_available()
  arguments = trl.DPOConfig(
    output_dir=f"{job['pairs']}-trl",
    per_device_train_batch_size=job["batch"],
    num_train_epochs=1,
    max_length=job["longest"],
    beta=job["beta"],
    learning_rate=job["lr"],
    lr_scheduler_type="constant",
    max_grad_norm=1.0,
    bf16=on_gpu and job["dtype"] == "bfloat16",
    use_cpu=not on_gpu,
    train_sampling_strategy="sequential",
    report_to=[],
    save_strategy="no",
    **KINDS[kind],
  )
  model = load(job["model"])
  alone = arguments.precompute_ref_log_probs
  if job["adapter"]:  # its base is the reference
    alone = True
    model = peft.PeftModel.from_pretrained(
      model, job["adapter"], is_trainable=True
    )
  found = Trainer(
    model=model,
    ref_model=None if alone else load(job["references"][0]),
    args=arguments,
    train_dataset=rows_of(job, sort=kind != "default"),
    processing_class=tokenizer,
    callbacks=[callback],
  )
  if references > 1:
    others = [load(folder) for folder in job["references"][1:references]]
    for other in others:
      add_fused_lm_head(other.to(found.ref_model.device).eval())
    found.ref_model = Averaged([found.ref_model, *others])
  return found


def main():
  given = turns.worker_arguments(__doc__, kind="best", references=1)
  callback = Turns(given.channel, given.job["rounds"])
  callback.trainer = trainer(given.job, given.kind, given.references, callback)
  callback.trainer.losses = []
  given.channel.send(
    ready={
      "trl": trl.__version__,
      "transformers": transformers.__version__,
      "torch": torch.__version__,
      "threads": torch.get_num_threads(),
    }
  )
  callback.trainer.train()


if __name__ == "__main__":
  main()
