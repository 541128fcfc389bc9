# SPDX-License-Identifier: Apache-2.0
"""The commands of `mrpo`, a function of their flags each.

What they work with is imported inside them, so that help needs no jax.
"""

import logging
import tempfile

from mrpo_jax.cli.values import mesh_sizes
from mrpo_jax.errors import InputError
from mrpo_jax.files import at_home


def train(given):
  """Train as the config says; the same command resumes.

  Scores first what the store lacks of references in mode "scored"; with
  --no-autoscore it names the command that does.  --store=DIR is shared by
  runs; unless given, it is the workdir's own.

  A workdir of another config, data or reference is refused, key by key, unless
  only what changes no number differs, or numbers by rounding (the mesh, say).
  --allow-changed goes on all the same, where the checkpoint still fits:
  config.json then has the new values, config-<step>.json the old ones.
  """
  config = _config(given)
  from mrpo_jax import processes
  from mrpo_jax.runs import bandit
  from mrpo_jax.runs.config import BanditConfig
  from mrpo_jax.runs.train import train_run

  if isinstance(config, BanditConfig):
    if processes.several():
      raise InputError("a bandit runs in one process")
    return bandit.train_run(config, given.workdir)
  same = [f"--config={given.config}", f"--workdir={given.workdir}"]
  same += [f"--store={given.store}"] if given.store else []
  same += ["--allow-changed"] if given.allow_changed else []
  train_run(
    config,
    given.workdir,
    store=given.store,
    autoscore=not given.no_autoscore,
    command=" ".join([*same, *given.rest]),
    allow_changed=given.allow_changed,
  )


def score(given):
  """Score the references in mode "scored" over all pairs of the config.

  What is in the store is not scored again.  --part=i/n scores the i-th of n
  shares of the data, i from 0: n commands, on any machines that share the
  store, divide the work.
  """
  config = _config(given)
  from mrpo_jax.runs.config import BanditConfig
  from mrpo_jax.runs.score import score_run

  if isinstance(config, BanditConfig):
    raise InputError("a bandit has no references to score")
  score_run(
    config,
    given.workdir,
    store=given.store,
    part=given.part,
    allow_changed=given.allow_changed,
  )


def store(given):
  """Look after a store of scores: ls, verify, prune, export.

  ls lists what it holds; verify re-reads every file and says which is broken;
  prune removes the keys that it is given, what verify finds broken, and what
  killed writers left; export writes one key as .parquet, .jsonl or .csv.  The
  start of a key will do.
  """
  action, *keys = given.rest
  from mrpo_jax.references import maintenance
  from mrpo_jax.reports.store import stored, verified

  if action == "ls":
    print(stored(maintenance.entries(given.store)))
  elif action == "verify":
    verified(given.store, maintenance.verify(given.store, keys))
  elif action == "prune":
    removed = maintenance.prune(given.store, keys)
    print(
      "\n".join(f"removed {path}" for path in removed) or "nothing to prune"
    )
  elif not given.to:
    raise InputError("--to is missing; see mrpo store --help")
  elif len(keys) != 1:
    raise InputError("give one key: mrpo store export KEY --store=DIR --to=F")
  else:
    maintenance.export(given.store, keys[0], given.to)
    print(f"{keys[0]} of {given.store} is now {given.to}")


def export(given):
  """Write a checkpoint of a run as a Hugging Face folder.

  --step takes the newest one (the default), the best one by the run's
  config.checkpoints.best, or the one of a step that is kept.

  A run that trained an adapter gives a folder of PEFT; --merge-adapters adds
  it to its base and gives a whole model.  The folder has the tokenizer, the
  chat template that was trained with and the source's generation_config.json.
  --dtype is that of the weights; unless given, they stay as trained.
  """
  from mrpo_jax.runs.export import export

  export(
    given.workdir,
    given.to,
    step=given.step,
    merge=given.merge_adapters,
    dtype=given.dtype,
  )


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


def compare(given):
  """Compare models by a judge of their answers to the same prompts.

  The models, folders or --workdir of runs, answer the prompts of a file, as
  `mrpo generate` does; instead of a model --responses takes what it, or another
  engine, wrote.  Each has a name, which may be given as NAME=DIR.  The first is
  the baseline: files of responses come before models, and runs after them.

  The judge is a command that reads lines {"prompt", "first", "second", "index",
  "order"} and writes {"preference": 1 to 2} or {"winner": "first", "second" or
  "tie"} for each; it is asked in both orders.  Or it is module:name, a Python
  function reward(prompts, responses) that gives a number for each, the larger
  the better.

  --to holds the answers, the judgements and results.json: the win rate of each
  model against those before it, raw and as if answers were equally long.  The
  same command goes on where it was killed; no judgement is asked for twice.
  """
  from mrpo_jax.runs.evaluation import compare
  from mrpo_jax.runs.inference.model import Source

  held = ("step", "template", "dtype", "quantize", "mesh")
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
  from mrpo_jax.cli.table import FLAGS

  of_pairs = ("reference", "against", "beta", "max_prompt", "max_response")
  of_tasks = ("data", "limit", "num_fewshot", "slots")
  of_tasks += ("apply_chat_template", "log_samples")
  there, other = ("pairs", "tasks") if given.pairs else ("tasks", "pairs")
  names = of_tasks if given.pairs else of_pairs
  for flag in FLAGS["evaluate"].flags:
    # A switch has no value, and is False unless given.
    default = flag.default if flag.value else False
    if flag.name in names and getattr(given, flag.name) != default:
      raise InputError(f"--{flag.name} is of --{other}; --{there} has none")


def _source(given):
  """The model that flags name, as inference.model.Source."""
  from mrpo_jax.runs.inference.model import Source

  return Source(**{name: getattr(given, name) for name in Source._fields})


def _sampling(given):
  """{name: value, None where it was not given} of the flags of sampling."""
  from mrpo_jax.runs.inference.sampling import NAMES

  return {name: getattr(given, name) for name in NAMES}


def report(given):
  """Compare the evaluated runs of a folder: a table, JSON and a page.

  The folder is one run, or holds runs at any depth; results.json and
  report.html come into it.  Seeds of one config stand together, below their
  mean; differences are of the same held-out pairs, and what cannot be compared
  is said.  The page fetches nothing; its plots need matplotlib (pip install
  mrpo-jax[plot]).
  """
  from mrpo_jax.reports.report import report

  print(report(given.workdir))


def sweep(given):
  """Train a grid of runs, one after the other.

  --vary KEY=V1,V2 is given once for each key that varies; 0:5 is 0, 1, 2, 3, 4;
  --vary config=A,B are arguments of the config file, as after its colon.  The
  grid of all values is trained, each point as `mrpo train` in
  DIR/<key=value,...>/, with DIR/store for the scores of references; DIR/logs
  has what each run says.  All configs are checked before the first run starts.

  Killed at any moment, the same command goes on; more values of the same keys
  join the sweep.  --part=i/n trains the i-th of n shares, i from 0: n commands,
  on any machines that share DIR, divide the work.  --dry-run lists the runs and
  where each stands.  At the end the report of DIR is written; see mrpo report.
  """
  import jax

  from mrpo_jax.cli.flags import changed_values
  from mrpo_jax.sweeps.sweep import checked, listed
  from mrpo_jax.sweeps.train import train

  jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
  found = checked(
    given.vary,
    given.workdir,
    config=given.config,
    keys=given.rest,
    part=given.part,
    values_of=changed_values,
  )
  if given.dry_run:
    print(listed(found))
  else:
    train(found)


def bench(given):
  """Time the train step of a config on its data.

  Says pairs, tokens and useful operations per second.  Nothing is trained,
  evaluated or saved.  References in mode "scored" are scored first, into
  --store=DIR where it is given.
  """
  config = _of_models(given, "to time")
  from mrpo_jax.performance import bench

  with tempfile.TemporaryDirectory() as workdir:
    bench.run(
      config,
      workdir,
      steps=given.steps,
      warmup=given.warmup,
      store=given.store,
      to=given.json,
      trace=given.trace,
    )


def plan(given):
  """Compile the steps of a config for devices that need not be here.

  Prints memory, operations, exchanges between devices and the least time of a
  step on a topology: a TPU slice (v5p:4x4x4; needs libtpu), cpu:8 or local.
  No weights are loaded and no data is read: models are folders with a
  config.json or names of the hub.
  """
  config = _of_models(given, "to plan")
  from mrpo_jax.performance import plan

  plan.run(
    config,
    given.topology,
    hbm=given.hbm and given.hbm * 2**30,
    lengths=given.lengths,
    fits=given.fit,
    to=given.json,
    keep=given.program,
  )


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


def prepare(given):
  """Turn files of preference rows into a TFDS data set, once."""
  from mrpo_jax.data import source

  print(source.prepare(given.data, given.to, split=given.split))


def _config(given):
  """The config of a command, with the keys that its flags change."""
  from mrpo_jax.cli.flags import changed_config

  return changed_config(given.config, given.rest)


def _of_models(given, purpose):
  """The config of a command that wants one with a step."""
  from mrpo_jax.runs.config import BanditConfig

  config = _config(given)
  if isinstance(config, BanditConfig):
    raise InputError(f"a bandit has no step {purpose}")
  return config


ONE_DEVICE = mesh_sizes("")
COMMANDS = {
  "train": train,
  "score": score,
  "store": store,
  "export": export,
  "generate": generate,
  "chat": chat,
  "evaluate": evaluate,
  "compare": compare,
  "report": report,
  "sweep": sweep,
  "bench": bench,
  "plan": plan,
  "import-gguf": import_gguf,
  "inspect": inspect,
  "prepare": prepare,
}
