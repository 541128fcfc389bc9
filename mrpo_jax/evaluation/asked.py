# SPDX-License-Identifier: Apache-2.0
"""Settings of a benchmark in words: documents, few-shot examples, template."""


def what_was_asked(who, *, limit, num_fewshot, apply_chat_template):
  """One line on an evaluation, to stand at its figures.

  Args:
    who: the model, in words.
    limit: documents of each task; None is all.
    num_fewshot: shots before each document; None is what a task says.
    apply_chat_template: were prompts conversations?
  """
  return ", ".join(
    [
      who,
      "all documents"
      if limit is None
      else f"at most {limit} documents of each task",
      "shots as each task says"
      if num_fewshot is None
      else f"{num_fewshot} shots where a task does not fix them",
      f"{'a' if apply_chat_template else 'no'} chat template",
    ]
  )
