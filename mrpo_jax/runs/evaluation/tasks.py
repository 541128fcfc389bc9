# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of a folder's model or a run's, into a folder of results."""

import contextlib
import logging

from mrpo_jax import evaluation, files, processes
from mrpo_jax.runs.evaluation import RESULTS
from mrpo_jax.runs.inference import model

logger = logging.getLogger(__name__)


def evaluate(source, tasks, to, *, log_samples=False, slots=None, **given):
  """Writes what the harness says of a model, and returns its table.

  Args:
    source: model.Source.
    tasks: names, or files .yaml.
    to: new folder for results.json and, where asked for, samples_<task>.jsonl.
    log_samples: is every document written, too?
    slots: answers that are generated side by side; None chooses.
    **given: see `evaluation.evaluate_tasks`.

  Raises:
    InputError: something that was given is wrong; nothing is written then.
  """
  is_first = processes.is_first()
  # Of several processes all evaluate, and the first one writes.
  with files.new_folder(to) if is_first else contextlib.nullcontext() as folder:
    found = evaluation.find(tasks, given.get("data", ""))
    evaluation.check_shots(found, given.get("num_fewshot"))
    one = model.find_model(source)
    ends, _ = model.ends(one, chats=given.get("apply_chat_template", False))
    lm = evaluation.HarnessLM(
      *(one.config, None, one.tokenizer),
      name=one.name,
      stop_ids=tuple(ends),
      slots=slots,
      **one.forward,
    )
    lm.params = one.load()  # after what may be refused
    results = evaluation.evaluate_tasks(
      lm, found, log_samples=log_samples, **given
    )
    samples = results.pop("samples", {})
    if is_first:
      for task, rows in samples.items():
        files.write_lines(folder / f"samples_{task}.jsonl", rows)
      files.write_json(folder / RESULTS, results, sort_keys=False)
  logger.info(f"{to} holds {RESULTS}")
  return evaluation.table(results)
