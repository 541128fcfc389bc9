# SPDX-License-Identifier: Apache-2.0
"""Makes what TRL's KTO trainer logs of its first steps on labelled responses.

    pip install torch transformers "trl==1.16.0"
    python tests/golden/make_feedback.py     # prints the numbers of its test

The policy is the folder llama_theta, the reference llama_gqa_tied.  A text is
numbers with spaces, which are its token ids, and </s>.  The batch is all rows,
and each is given the response of the row before it: z is estimated from the
same pairs as in tests/training/test_feedback.py.
"""

import pathlib
import tempfile

HERE = pathlib.Path(__file__).parent
POLICY, REFERENCE = "llama_theta", "llama_gqa_tied"
PAD, EOS = 0, 2
# Prompt, response without its EOS, label.
ROWS = [
  ([5, 17, 9], [30, 41, 8, 12], True),
  ([23, 6], [11, 19], False),
  ([44, 45, 46, 47], [7, 7, 33], True),
  ([13], [28, 3, 50, 21, 22], False),
  ([36, 10, 14], [40], True),
]


def text(ids):
  return " ".join(map(str, ids))


def tokenizer(vocabulary):
  """One whose tokens are the numbers of their ids, but for two."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  names = {str(n): n for n in range(vocabulary) if n not in (PAD, EOS)}
  model = models.WordLevel(names | {"<pad>": PAD, "</s>": EOS}, "<pad>")
  found = Tokenizer(model)
  found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=found, eos_token="</s>", pad_token="<pad>"
  )


def lines(loss, **weights):
  """What is logged of three steps over all rows."""
  from datasets import Dataset
  from transformers import LlamaForCausalLM
  from trl import KTOConfig, KTOTrainer

  policy = LlamaForCausalLM.from_pretrained(HERE / POLICY)
  reference = LlamaForCausalLM.from_pretrained(HERE / REFERENCE)
  rows = [
    {
      "prompt": text(prompt),
      "completion": f" {text(said)}",
      "label": good,
    }
    for prompt, said, good in ROWS
  ]
  with tempfile.TemporaryDirectory() as folder:
    arguments = KTOConfig(
      folder,
      loss_type=loss,
      beta=0.05,
      **weights,
      max_steps=3,
      per_device_train_batch_size=len(ROWS),
      learning_rate=1e-3,
      lr_scheduler_type="constant",
      max_grad_norm=1e9,
      train_sampling_strategy="sequential",
      gradient_checkpointing=False,
      bf16=False,
      use_cpu=True,
      logging_steps=1,
      report_to=[],
    )
    trainer = KTOTrainer(
      policy,
      reference,
      args=arguments,
      train_dataset=Dataset.from_list(rows),
      processing_class=tokenizer(policy.config.vocab_size),
    )
    trainer.train()
  return [line for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
  weights = dict(desirable_weight=1.2, undesirable_weight=1.5)
  for name in ("kto", "apo_zero_unpaired"):
    print(name)
    for line in lines(name, **weights):
      shown = ("loss", "kl", "rewards/chosen", "rewards/rejected")
      print("  ", {key: line[key] for key in shown})
