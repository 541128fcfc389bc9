# SPDX-License-Identifier: Apache-2.0
"""Commands on models: generate, chat, evaluate, compare, inspect, import."""

import logging

from mrpo_jax.cli.table import SAMPLING, SOURCE, first_given
from mrpo_jax.cli.values import mesh_sizes
from mrpo_jax.errors import InputError
from mrpo_jax.files import at_home

ONE_DEVICE = mesh_sizes("")
# Of a comparison: files of responses have none of them.  The seed is of the
# intervals, too.
OF_ANSWERS = {one.name for one in (*SOURCE, *SAMPLING)} - {"seed"}
OF_ANSWERS |= {"samples", "slots"}


def generate(given):
  """Write samples of a model after every prompt of a file.

  The model is a folder of Hugging Face files, or a checkpoint of a run.  Rows
  of --prompts are {"prompt": text or messages, ...}, or lines of a .txt file;
  each line of --to is one with the sample's response, ids, logp (the model's,
  nats), behaviour_logp (of what it was drawn from), tokens, finish, sample
  and index.  The same command goes on where it was killed.

  Nothing is taken from generation_config.json but end tokens, unless
  --generation_config is given; then flags that are given count before it.
  """
  source = _source(given)
  from mrpo_jax.runs.inference import generate

  generate.generate(
    source,
    given.prompts,
    given.to,
    given={**_sampling(given), "samples": given.samples},
    seed=given.seed,
    stops=tuple(given.stop),
    slots=given.slots,
    cache_dtype=given.cache_dtype,
    generation_config=given.generation_config,
  )


def chat(given):
  """Talk to a model in the terminal.

  Its answers are shown as they come.  /help lists what else may be typed;
  Ctrl-C ends an answer, Ctrl-D the chat.  Where the input is no terminal,
  every line of it is a message, and the answers alone are printed.
  """
  source = _source(given)
  from mrpo_jax.cli.chat import talk
  from mrpo_jax.runs.inference.chat import Chat

  talk(
    Chat(
      source,
      given=_sampling(given),
      seed=given.seed,
      stops=tuple(given.stop),
      max_length=given.max_length,
      cache_dtype=given.cache_dtype,
      generation_config=given.generation_config,
      system=given.system,
    )
  )


def evaluate(given):
  """Evaluate a model by benchmarks, or by preference pairs.

  --tasks names tasks of lm-evaluation-harness, with commas.  With --data=DIR
  gsm8k, truthfulqa_mc1, truthfulqa_mc2 and mmlu (or mmlu_anatomy, ...) read
  local files: gsm8k_train.jsonl, gsm8k_test.jsonl, TruthfulQA.csv,
  mmlu_dev.jsonl, mmlu_test.jsonl, each also as .gz.  All others, and these
  without --data, are loaded from the hub.  A file .yaml describes a task of
  your own; functions that it names are run.

  --pairs=FILE says how often the model, against --reference=DIR where there is
  one, finds the chosen response likelier, and by how much, also by which of the
  two is longer.  --against=DIR, the folder of another model's evaluation, adds
  the difference on the same pairs and a sign test by prompt.

  --to is a new folder with results.json: of --tasks in the layout of the
  harness, of --pairs with a pairs.jsonl beside it.
  """
  if bool(given.tasks) == bool(given.pairs):
    raise InputError("give one of --tasks=A,B and --pairs=FILE")
  _refuse_flags_of_other(given)
  source = _source(given)
  if given.pairs:
    from mrpo_jax.runs.evaluation.pairs import evaluate_pairs

    table = evaluate_pairs(
      *(source, given.pairs, given.to),
      reference=given.reference,
      against=given.against,
      max_prompt=given.max_prompt,
      max_response=given.max_response,
      beta=given.beta,
    )
    logging.getLogger("mrpo_jax").info(table)
    return
  from mrpo_jax.runs.evaluation import tasks

  table = tasks.evaluate(
    source,
    given.tasks.split(","),
    given.to,
    data=given.data,
    limit=given.limit,
    num_fewshot=given.num_fewshot,
    apply_chat_template=given.apply_chat_template,
    log_samples=given.log_samples,
    slots=given.slots,
  )
  logging.getLogger("mrpo_jax").info(table)


def _refuse_flags_of_other(given):
  """InputError where a flag is given that counts for the other kind alone."""
  of_pairs = ("reference", "against", "beta", "max_prompt", "max_response")
  of_tasks = ("data", "limit", "num_fewshot", "slots")
  of_tasks += ("apply_chat_template", "log_samples")
  there, other = ("pairs", "tasks") if given.pairs else ("tasks", "pairs")
  names = of_tasks if given.pairs else of_pairs
  if flag := first_given(given, names):
    raise InputError(f"{flag} is of --{other}; --{there} has none")
  if given.beta is not None and not given.reference:
    raise InputError(
      "--beta is of --reference=DIR: without one there is no calibration"
    )


def compare(given):
  """Compare models by a judge of their answers to the same prompts.

  The models, folders or --workdir of runs, answer the prompts of a file, as
  `mrpo generate` does; instead of a model --responses takes what it, or another
  engine, wrote.  Each has a name, which may be given as NAME=DIR.  The first is
  the baseline: files of responses come before models, and runs after them.

  The judge is a command that reads lines {"prompt", "first", "second", "index",
  "order"} and writes {"preference": 1 to 2} or {"winner": "first", "second" or
  "tie"} for each; it is asked in both orders.  Or it is a reward, the larger
  the better: module:name, a Python function reward(prompts, responses) that
  gives a number for each, or the folder of a reward model.

  --to holds the answers, the judgements and results.json: the win rate of each
  model against those before it, raw and as if answers were equally long.  The
  same command goes on where it was killed; no judgement is asked for twice.
  """
  from mrpo_jax.runs.evaluation import compare
  from mrpo_jax.runs.inference.model import Source

  held = ("step", "template", "dtype", "quantize", "mesh")
  if not given.model and not given.workdir:
    if flag := first_given(given, OF_ANSWERS):
      raise InputError(
        f"{flag} is of a model that answers; --responses has answers"
      )
  table = compare.compare(
    given.model,
    given.prompts,
    given.judge,
    given.to,
    responses=given.responses,
    workdirs=given.workdir,
    source=Source(**{name: getattr(given, name) for name in held}),
    given={**_sampling(given), "samples": given.samples},
    seed=given.seed,
    timeout=given.judge_timeout,
    stops=tuple(given.stop),
    slots=given.slots,
    cache_dtype=given.cache_dtype,
    generation_config=given.generation_config,
  )
  print(table)


def _source(given):
  """The model that flags name, as inference.model.Source."""
  from mrpo_jax.runs.inference.model import Source

  return Source(**{name: getattr(given, name) for name in Source._fields})


def _sampling(given):
  """{name: value, None where it was not given} of the flags of sampling."""
  from mrpo_jax.runs.inference.sampling import NAMES

  return {name: getattr(given, name) for name in NAMES}


def inspect(given):
  """Print the arrays of a model folder and their bytes on each device."""
  if len(given.rest) != 1:
    raise InputError("give one folder: mrpo inspect FOLDER")
  from mrpo_jax.hub import inspect

  for line in inspect.lines(at_home(given.rest[0]), given.mesh or ONE_DEVICE):
    print(line)


def import_gguf(given):
  """Write the model of a GGUF file as a Hugging Face folder.

  Such files are llama.cpp's.  Weights are dequantised, and rounded to --dtype;
  config, tokenizer and chat template are made from the metadata.  Of a split
  file any part will do.
  Refused by name is what cannot be told; gguf.json keeps the file's SHA-256.
  """
  if len(given.rest) != 1:
    raise InputError("give one file: mrpo import-gguf FILE --to=DIR")
  from mrpo_jax.hub.gguf import import_gguf

  import_gguf(at_home(given.rest[0]), given.to, dtype=given.dtype)
