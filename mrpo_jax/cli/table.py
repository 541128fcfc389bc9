# SPDX-License-Identifier: Apache-2.0
"""Flags of every command: a table of their names, types and defaults."""

from collections.abc import Callable
from typing import NamedTuple

from mrpo_jax.cli.values import (
  DTYPES,
  count_from,
  dtype,
  mesh_sizes,
  new_file,
  new_folder,
  number,
  one_of,
  positive,
  seed,
  share,
  two_lengths,
  whole,
)
from mrpo_jax.external import TIMEOUT

STORE_ACTIONS = ("ls", "verify", "prune", "export")


class Flag(NamedTuple):
  """A flag of a command: --name, or --name=VALUE."""

  name: str
  about: str
  value: str = ""  # how help shows its value; "": it is a switch
  default: object = ""
  type: Callable = str  # of its text; raises ArgumentTypeError
  required: bool = False  # and not empty
  many: bool = False  # may it be given several times?  Then a list


class Command(NamedTuple):
  """The flags of a command, and what it takes besides."""

  usage: str
  flags: tuple
  takes: str = ""  # "keys" of its config, or "words"
  actions: tuple = ()  # of which the first word is one


def first_given(given, names):
  """The first flag of these names that is not as it was; "" for none."""
  for flag in FLAGS[given.subcommand].flags:
    # A switch has no value, and is False unless given.
    default = [] if flag.many else flag.default if flag.value else False
    value = getattr(given, flag.name.replace("-", "_"))
    if flag.name in names and value != default:
      return f"--{flag.name}"
  return ""


# Flags.

CONFIG = Flag(
  "config",
  "file and its argument, or a name",
  "FILE[:args]",
  required=True,
  many=True,
)
WORKDIR = Flag("workdir", "folder of the run", "DIR", required=True)
STORE = Flag("store", "scores of references (default: in the workdir)", "DIR")
ALLOW_CHANGED = Flag(
  "allow-changed", "go on though config, data or a reference differs"
)
JSON = Flag("json", "write all figures to this file", "FILE", type=new_file)
HBM = Flag(
  "hbm", "what a device holds (default: the chip's)", "GIB", None, positive
)
LENGTHS = Flag(
  *("lengths", "mean tokens of each (default: half the limits)"),
  *("PROMPT,RESPONSE", None, two_lengths),
)
PROCESSES = (
  Flag("coordinator", "where process 0 of several listens", "HOST:PORT"),
  Flag("processes", "how many processes; 1: this one by itself", "N"),
  Flag("process", "which one this is, from 0 on", "I"),
)
MESH = Flag(
  *("mesh", "sizes of its axes (default: one device)"),
  *("AXIS=N,...", None, mesh_sizes),
)
SOURCE = (
  Flag("model", "folder of the model", "DIR"),
  WORKDIR._replace(about="folder of its run", required=False),
  Flag("step", "newest, best or a step (default: newest)", "STEP"),
  Flag("template", "chat template (default: the tokenizer's)", "NAME|FILE"),
  Flag(
    *("dtype", f"{', '.join(DTYPES)} (default: as it is)"),
    *("TYPE", None, dtype),
  ),
  Flag(
    *("quantize", "weights as integers: int8 or int4"),
    *("KIND", None, one_of("int8", "int4")),
  ),
  MESH,
)
SAMPLING = (
  Flag("temperature", "0 is greedy (default: 1)", "T", None, number),
  Flag("top_k", "likeliest tokens; 0: all (default: 0)", "N", None, whole),
  Flag("top_p", "share of the likeliest (default: 1)", "P", None, number),
  Flag("min_p", "least share of the best one (default: 0)", "P", None, number),
  Flag(
    *("repetition_penalty", "of tokens that were there (default: 1)"),
    *("X", None, number),
  ),
  Flag("max_new_tokens", "at most (default: 256)", "N", None, count_from(1)),
  Flag("min_new_tokens", "at least (default: 0)", "N", None, count_from(0)),
  Flag("seed", "of what is drawn", "N", 0, seed),
  Flag("stop", "a text that ends a sample; may be repeated", "TEXT", many=True),
  Flag(
    *("cache_dtype", "of keys and values (default: as computed)"),
    *("TYPE", None, dtype),
  ),
  Flag("generation_config", "the model's file of that name counts"),
)
FLAGS = {
  "train": Command(
    "NAME|--config=FILE[:args] --workdir=DIR [key=value ...]",
    (
      *(CONFIG, WORKDIR, STORE),
      Flag("no-autoscore", "refuse to start where scores are missing"),
      *(ALLOW_CHANGED, *PROCESSES),
    ),
    takes="keys",
  ),
  "score": Command(
    "--config=FILE --workdir=DIR | --reward=NAME --pairs=FILE",
    (
      CONFIG._replace(required=False),
      WORKDIR._replace(required=False),
      STORE,
      Flag("reward", "score this reward, not references", "NAME"),
      Flag("pairs", "of --reward: rows, in place of a config's", "FILE"),
      Flag(
        *("reward_timeout", "seconds for an answer of its command", "S"),
        *(TIMEOUT, positive),
      ),
      Flag("part", "the i-th of n shares of the data", "i/n", "0/1", share),
      *(ALLOW_CHANGED, *PROCESSES),
    ),
    takes="keys",
  ),
  "store": Command(
    f"{'|'.join(STORE_ACTIONS)} [KEY ...] --store=DIR [--to=FILE]",
    (
      Flag("store", "folder of the store", "DIR", required=True),
      Flag("to", "export: a file .parquet, .jsonl or .csv", "FILE"),
    ),
    takes="words",
    actions=STORE_ACTIONS,
  ),
  "export": Command(
    "--workdir=DIR --to=DIR [flags]",
    (
      WORKDIR,
      Flag("to", "folder to write", "DIR", required=True),
      Flag("step", "checkpoint: newest, best or a step", "STEP", "newest"),
      Flag("merge-adapters", "write a whole model, not its adapter"),
      Flag("discriminator", "write that of an online run, a reward model"),
      Flag("push", "upload the folder to the Hugging Face hub", "ORG/NAME"),
      Flag("public", "of --push: everybody may read the new repository"),
      Flag(
        "dtype",
        f"{', '.join(DTYPES)} (default: as trained)",
        "TYPE",
        None,
        dtype,
      ),
    ),
  ),
  "generate": Command(
    "--model=DIR|--workdir=DIR --prompts=FILE --to=FILE [flags]",
    (
      *SOURCE,
      Flag("prompts", "rows of JSON, or a .txt file", "FILE", required=True),
      Flag("to", "JSON lines to write", "FILE", type=new_file, required=True),
      Flag("samples", "samples of each prompt", "N", 1, count_from(1)),
      *SAMPLING,
      Flag("slots", "samples side by side", "N", 64, count_from(1)),
      *PROCESSES,
    ),
  ),
  "chat": Command(
    "--model=DIR|--workdir=DIR [flags]",
    (
      *SOURCE,
      Flag("system", "what the system turn says", "TEXT"),
      *SAMPLING,
      Flag(
        *("max_length", "tokens of a chat (default: at most 4096)"),
        *("N", None, count_from(2)),
      ),
    ),
  ),
  "evaluate": Command(
    "--model=DIR|--workdir=DIR --tasks=A,B|--pairs=FILE --to=DIR",
    (
      *SOURCE,
      Flag(*("tasks", "names of tasks, or files .yaml, with commas"), "A,B"),
      Flag("data", "folder of the files that offline tasks read", "DIR"),
      Flag("pairs", "file of preference pairs to judge", "FILE"),
      Flag("reference", "of --pairs: folder of a reference", "DIR"),
      Flag("against", "of --pairs: --to of another evaluation", "DIR"),
      Flag(
        *("max_prompt", "of --pairs: tokens (default: the run's, or half)"),
        *("N", None, count_from(1)),
      ),
      Flag(
        *("max_response", "of --pairs: tokens (default: as above)"),
        *("N", None, count_from(1)),
      ),
      Flag(
        *("beta", "of --pairs: of the loss (default: the run's)"),
        *("B", None, positive),
      ),
      Flag("to", "new folder for results", "DIR", required=True),
      Flag(
        *("limit", "documents of each task (default: all)"),
        *("N", None, count_from(1)),
      ),
      Flag(
        *("num_fewshot", "shots before each document (default: the task's)"),
        *("N", None, count_from(0)),
      ),
      Flag("apply_chat_template", "prompts are conversations"),
      Flag("log_samples", "write samples_<task>.jsonl, too"),
      Flag(
        *("slots", "answers side by side (default: up to 64)"),
        *("N", None, count_from(1)),
      ),
      *PROCESSES,
    ),
  ),
  "compare": Command(
    "--model=DIR ... --prompts=FILE --judge=COMMAND --to=DIR",
    (
      Flag(
        *("model", "folder of a model; the first is the baseline"),
        "[NAME=]DIR",
        many=True,
      ),
      Flag("workdir", "folder of a run; after models", "[NAME=]DIR", many=True),
      Flag(
        *("responses", "JSON lines of what a model said; before models"),
        "[NAME=]FILE",
        many=True,
      ),
      Flag("prompts", "rows of JSON, or a .txt file", "FILE", required=True),
      Flag(
        "judge",
        "a command, module:name or a reward model",
        "COMMAND",
        required=True,
      ),
      Flag(
        *("judge_timeout", "seconds for an answer of a command", "S"),
        *(TIMEOUT, positive),
      ),
      Flag("to", "folder to write", "DIR", type=new_folder, required=True),
      *(one for one in SOURCE if one.name not in ("model", "workdir")),
      Flag("samples", "answers to each prompt", "N", 1, count_from(1)),
      *SAMPLING,
      Flag("slots", "samples side by side", "N", 64, count_from(1)),
    ),
  ),
  "report": Command(
    "--workdir=DIR",
    (WORKDIR._replace(about="folder of a run, or with runs in it"),),
  ),
  "sweep": Command(
    "NAME|--config=FILE --vary KEY=V1,V2 ... --workdir=DIR",
    (
      CONFIG,
      Flag(
        *("vary", "a key and its values; once for each key"),
        *("KEY=V1,V2", None),
        required=True,
        many=True,
      ),
      WORKDIR._replace(about="folder of the sweep"),
      Flag("part", "the i-th of n shares of the runs", "i/n", "0/1", share),
      Flag("dry-run", "list the runs and where each stands"),
    ),
    takes="keys",
  ),
  "bench": Command(
    "NAME|--config=FILE[:args] [key=value ...]",
    (
      CONFIG,
      Flag("steps", "steps to time", "N", 20, count_from(1)),
      Flag("warmup", "steps before those", "N", 3, count_from(0)),
      STORE._replace(about="scores of references (default: none are kept)"),
      JSON,
      Flag(
        *("trace", "write a profile of the timed steps here", "DIR"),
        type=new_folder,
      ),
    ),
    takes="keys",
  ),
  "plan": Command(
    "NAME|--config=FILE[:args] --topology=NAME [key=value ...]",
    (
      CONFIG,
      Flag(
        "topology", "v5p:4x4x4, h100:2x8, cpu:8 or local", "NAME", required=True
      ),
      HBM,
      LENGTHS,
      Flag("fit", "search for settings that fit"),
      Flag("tune", "search for the fastest settings that fit"),
      JSON,
      Flag("program", "write the compiled step here", "FILE", type=new_file),
    ),
    takes="keys",
  ),
  "import-gguf": Command(
    "FILE --to=DIR [--dtype=TYPE]",
    (
      Flag("to", "folder to write", "DIR", type=new_folder, required=True),
      Flag(
        *("dtype", f"of the weights: {', '.join(DTYPES)}"),
        *("TYPE", "bfloat16", dtype),
      ),
    ),
    takes="words",
  ),
  "inspect": Command(
    "FOLDER [--mesh=data=1,fsdp=4,model=2]",
    (MESH,),
    takes="words",
  ),
  "prepare": Command(
    "--data=FILE --to=DIR [--split=NAME]",
    (
      Flag(
        "data", "rows, as config.data.train names them", "FILE", required=True
      ),
      Flag(
        *("to", "the data set is preference_pairs/1.0.0 in it", "DIR"),
        required=True,
      ),
      Flag("split", "its split", "NAME", "train"),
    ),
  ),
  "bridge": Command(
    "--pairs=FILE --command=COMMAND|--model=DIR --to=FILE.jsonl",
    (
      Flag(
        "pairs", "rows, as config.data.train names them", "FILE", required=True
      ),
      Flag("command", "program that rewrites", "COMMAND"),
      Flag(
        *("command_timeout", "seconds for an answer of it", "S"),
        *(TIMEOUT, positive),
      ),
      Flag("to", "JSON lines to write", "FILE", type=new_file, required=True),
      *SOURCE,
      Flag("instructions", "file of what a model is told", "FILE"),
      *SAMPLING,
      Flag("slots", "rewrites side by side", "N", 64, count_from(1)),
    ),
  ),
}
