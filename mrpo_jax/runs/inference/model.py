# SPDX-License-Identifier: Apache-2.0
"""The model of an inference command: of a folder, or a checkpoint of a run."""

import dataclasses
import datetime
import functools
import json
import logging
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax

from mrpo_jax import generation, hub, parallel, processes
from mrpo_jax.data.prompts import turn_end
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  tokenizer_fingerprint,
  with_date,
  with_template,
)
from mrpo_jax.errors import InputError, blames
from mrpo_jax.hub.folder import GENERATION, generation_config
from mrpo_jax.models import experts, lora, parameters, weights
from mrpo_jax.models.config import ModelConfig
from mrpo_jax.models.partition import WHOLE
from mrpo_jax.runs import memory
from mrpo_jax.runs.config import Config
from mrpo_jax.runs.inference.policy import (
  adapted_params,
  read_checkpoint,
  tokenizer_of,
)

logger = logging.getLogger(__name__)


class Source(NamedTuple):
  """Which model is meant, and how it is held: flags of a command."""

  model: str = ""  # its folder, or
  workdir: str = ""  # that of its run
  step: str = ""  # of the run; "" is the newest
  template: str = ""  # "" is the tokenizer's own
  dtype: str | None = None  # None: as stored, or as trained
  quantize: str | None = None
  mesh: dict | None = None  # sizes of its axes; None is one device


@dataclasses.dataclass(frozen=True)
class InferenceModel:
  """A model before its weights are read, and all that is known of it then."""

  config: ModelConfig
  tokenizer: object
  identity: dict  # by which its samples are known
  name: str  # what people call it
  folder: str | None  # that has generation_config.json, if it has one
  conversations: str  # of plain prompts, as `config.data.conversations`
  forward: dict  # arguments of `generation.Decoder`
  load: Callable  # () -> its parameters
  run: Config | None = None  # that of a run's step; None of a folder


def find_model(source, date=None):
  """The InferenceModel that flags name; of weights it reads the hash alone.

  Args:
    source: Source.
    date: of a template that writes one, as text; None is the run's, or today.
  """
  if bool(source.model) == bool(source.workdir):
    raise InputError(
      "give one of --model=FOLDER and --workdir=DIR: the model that is to speak"
    )
  if source.model and source.step:
    raise InputError(
      "--step is of a run: give it with --workdir=DIR, not with --model"
    )
  mesh = _mesh_of(source.mesh)
  found = (_of_folder if source.model else _of_run)(source, mesh, date)
  if found.config.head == "scalar":
    raise InputError(
      f"{found.name} is a reward model: it says nothing, and gives no "
      "probabilities of tokens"
    )
  tokenizer = found.tokenizer
  return dataclasses.replace(
    found,
    identity={
      **found.identity,
      "tokenizer": tokenizer_fingerprint(tokenizer),
      "dtype": source.dtype,
      "quantize": source.quantize,
    },
  )


def _mesh_of(sizes):
  """The mesh of --mesh; None is one device by itself.

  Several processes have all of their devices in it, split over the slots
  unless the flag says otherwise.
  """
  there = jax.device_count()
  if not sizes and not processes.several():
    return None
  count = math.prod(sizes.values()) if sizes else there
  if count > there or processes.several() and count < there:
    raise InputError(f"--mesh: takes {count} devices; there are {there}")
  mesh = parallel.make_mesh(**sizes or {}, devices=jax.devices()[:count])
  processes.connect(mesh)
  return mesh


def _rules(config, mesh, rules=None):
  """Rules of the mesh: keys stay whole where their heads do not divide."""
  heads = parallel.rules_of(rules)["kv_heads"]
  parts = math.prod(mesh.shape[axis] for axis in heads) if mesh else 1
  if config.kv_heads % parts == 0:
    return rules
  logger.info(
    f"{config.kv_heads} heads of keys do not divide over {parts} devices, "
    "which have all of them"
  )
  return {**(rules or {}), "kv_heads": ()}


def _of_folder(source, mesh, date):
  config = hub.read_config(source.model)
  tokenizer = load_tokenizer(source.model)
  with blames("--template", InputError):
    tokenizer = with_template(tokenizer, source.template)
  tokenizer, identity = _on_day(tokenizer, date)
  identity["model"] = hub.fingerprint(source.model)
  rules = _rules(config, mesh)

  def load():
    dtype = source.dtype
    _, params = hub.load(source.model, dtype=dtype, mesh=mesh, rules=rules)
    return _quantized(source, config, params)

  return InferenceModel(
    *(config, tokenizer, identity, source.model, source.model, ""),
    forward=_forward(mesh, rules),
    load=load,
  )


def _of_run(source, mesh, date):
  found = read_checkpoint(source.workdir, source.step or "newest")
  with blames("--template", InputError):
    tokenizer = with_template(tokenizer_of(found), source.template)
  tokenizer, identity = _on_day(tokenizer, date or found.identity.get("date"))
  identity |= {"workdir": os.path.abspath(source.workdir), "step": found.step}
  identity["weights"] = found.mark  # a run may be made anew in its place
  rules = _rules(found.model, mesh, dict(found.section.base.rules))
  compute = None if source.dtype else found.config.policy.compute or None
  base, forward = _base(source, found.section.base), _forward(mesh, rules)
  with blames("--quantize"):
    partition = forward.get("partition", WHOLE)
    experts.check_groups(found.model, base.group, partition)
  return InferenceModel(
    found.model,
    tokenizer,
    identity,
    name=f"step {found.step} of {source.workdir}",
    folder=found.origin,
    conversations=found.config.data.conversations,
    forward=forward | {"dtype": compute},
    load=functools.partial(_policy, source, found, base, mesh, rules),
    run=found.config,
  )


def _base(source, base):
  """The Base of a run's policy with the dtype and integers that flags name."""
  if source.dtype:
    base = dataclasses.replace(base, dtype=source.dtype)
  if source.quantize and source.quantize != base.quantize:
    group = weights.GROUP if source.quantize == "int4" else None
    base = dataclasses.replace(base, quantize=source.quantize, group=group)
  return base


def _policy(source, found, base, mesh, rules):
  """The parameters of a checkpoint where they are used."""

  def place(tree, table):
    if source.dtype:
      tree = jax.tree.map(lambda array: array.astype(source.dtype), tree)
    to = mesh and parallel.table_shardings(table, mesh, rules)
    return jax.device_put(tree, to)

  table = parameters.table(found.model)
  if found.adapter is None:
    return _quantized(source, found.model, place(found.params, table))
  own = lora.adapter_table(table, found.adapter)
  return adapted_params(found, base, lambda tree: place(tree, own), mesh)


def _quantized(source, config, params):
  if not source.quantize:
    return params
  with blames("--quantize"):
    return weights.quantize(params, parameters.table(config), source.quantize)


def _forward(mesh, rules):
  return {"partition": parallel.partition_of(mesh, rules)} if mesh else {}


def _on_day(tokenizer, date):
  """(tokenizer, {"date": ...} where its template writes the day)."""
  with blames("the day that was recorded"):
    day = datetime.date.fromisoformat(date) if date else datetime.date.today()
  dated = with_date(tokenizer, day)
  return dated, {} if dated is tokenizer else {"date": str(day)}


# What ends a sample, and its text.


def ends(model, *, chats, stops=()):
  """({token that ends a sample: who says so}, texts that end one).

  Args:
    model: InferenceModel.
    chats: does it answer conversations?  Then what the chat template writes
      after an answer counts, too.
    stops: texts of --stop.
  """
  config, texts = model.config, []
  source = json.loads(config.source or "{}")
  said = {
    "tokenizer": [model.tokenizer.eos_token_id],
    "config.json": [*_ids(source, "config.json"), config.eos_id],
  }
  if model.folder:
    values = generation_config(model.folder)
    where = f"{model.folder}/{GENERATION}"
    said["generation_config.json"] = _ids(values, where)
  if chats:
    end = turn_end(model.tokenizer)
    is_text = isinstance(end, str)
    said["chat template"] = [] if is_text else [end]
    texts = [end] if is_text and end else []
  found = {}
  for who, ids in said.items():
    for one in dict.fromkeys(ids):
      if one is not None and 0 <= one < config.vocab_size:
        found.setdefault(one, []).append(who)
      elif one is not None:
        logger.warning(
          f"warning: {who} ends samples with the token {one}, which never "
          f"comes: the model has {config.vocab_size}"
        )
  added = model.tokenizer.get_added_vocab()
  for text in stops:  # one that is a token has no text of its own
    if text in added:
      found.setdefault(added[text], ["--stop"])
  return found, [*texts, *stops]


def _ids(values, where):
  """The end tokens in a file's JSON: none, one or several."""
  value = values.get("eos_token_id")
  some = value if isinstance(value, list) else [value]
  for one in some:
    if one is not None and type(one) is not int:
      raise InputError(
        f"{where}: eos_token_id={value!r} is neither a token's number nor a "
        "list of them"
      )
  return some


def say_ends(model, tokens, texts):
  """Says once what ends a sample."""
  names = [
    f"{model.tokenizer.convert_ids_to_tokens(one)} ({', '.join(who)})"
    for one, who in tokens.items()
  ]
  names += map(repr, texts)
  if names:
    logger.info(f"a sample ends with {', '.join(names)}")
  else:
    logger.warning("warning: nothing is known to end a sample")


def text_of(tokenizer):
  """The function of ids to their text, as it stands within a longer one.

  Special tokens have none.  By themselves some tokenizers would leave out a
  space before the first word.
  """
  before = tokenizer("a", add_special_tokens=False).input_ids
  decode = functools.partial(
    tokenizer.decode,
    skip_special_tokens=True,
    clean_up_tokenization_spaces=False,
  )
  head = decode(before)
  return lambda ids: decode([*before, *ids])[len(head) :]


def said_text(sample, stopped, ends, text_of):
  """The text of a Sample, without the token or the text that ended it.

  Args:
    sample: generation.Sample.
    stopped: its text before the stop text that ended it; None without one.
    ends: tokens that end a sample.
    text_of: ids -> their text.
  """
  if stopped is not None:
    return stopped
  is_end = sample.ids[-1] in ends
  return text_of(sample.ids[:-1] if is_end else sample.ids)


# Samples.


def decoder(model, params, **given):
  """The `generation.Decoder` of a InferenceModel whose weights are read.

  Raises:
    InputError: the devices cannot hold it.
  """
  with blames(model.name):
    found = generation.Decoder(
      model.config, params, **{**model.forward, **given}
    )
  partition = model.forward.get("partition")
  mesh = partition.mesh if partition else None
  free = memory.free_bytes(
    mesh or parallel.make_mesh(devices=jax.devices()[:1])
  )
  if free is not None and found.bytes > free:
    raise InputError(
      f"{model.name}: {found.slots} slots of {found.length} tokens take "
      f"{found.bytes / 1e9:.1f} GB of a device, and {free / 1e9:.1f} GB are "
      "free; give fewer --slots, a smaller --max_new_tokens, shorter prompts "
      "or --cache_dtype=bfloat16"
    )
  return found
