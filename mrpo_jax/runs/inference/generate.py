# SPDX-License-Identifier: Apache-2.0
"""Samples of a model after the prompts of a file, a line of JSON each.

FILE.jsonl is written in the order of prompts and samples, a whole line at a
time; FILE.jsonl.run.json, which is written first, says what its lines are of.
The same command goes on where it was killed.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib

from mrpo_jax import files, processes
from mrpo_jax.errors import InputError
from mrpo_jax.generation.generate import SLOTS, Sample, samples
from mrpo_jax.generation.stops import HALF, Stops
from mrpo_jax.progress import Progress
from mrpo_jax.runs.inference import model
from mrpo_jax.runs.inference.prompts import prompt_ids, read_prompts
from mrpo_jax.runs.inference.sampling import sampling_of
from mrpo_jax.runs.workdir import differences

logger = logging.getLogger(__name__)

OWN = (  # keys of a line beside those of its prompt
  *("response", "ids", "logp", "behaviour_logp", "tokens", "finish"),
  *("sample", "index"),
)
DECIMALS = 4  # of log-probabilities in nats


@dataclasses.dataclass(frozen=True)
class Job:
  """What a command has to do, all of it checked."""

  model: model.InferenceModel
  prompts: list  # of prompts.Prompt
  ids: list  # of each prompt
  sampling: object
  seed: int
  ends: tuple  # tokens
  stops: tuple  # texts

  @property
  def total(self):
    return len(self.prompts) * self.sampling.samples

  def request(self, number):
    """(prompt, sample) of a line."""
    return divmod(number, self.sampling.samples)


def generate(
  source,
  prompts,
  to,
  *,
  given,
  seed=0,
  stops=(),
  slots=SLOTS,
  cache_dtype=None,
  generation_config=False,
):
  """Writes samples of a model after every prompt of a file.

  Args:
    source: model.Source.
    prompts: file of them, see `prompts.read_prompts`.
    to: file to write, or to go on with.
    given: values of flags by the names of Sampling, None where not given.
    seed: of all samples.
    stops: texts that end a sample.
    slots: samples that are decoded side by side.
    cache_dtype: of keys and values; None is that of the activations.
    generation_config: does the model's file of that name count, too?

  Raises:
    InputError: something that was given is wrong; nothing is written then.
  """
  if "" in stops:
    raise InputError("--stop is empty; give the text that ends a sample")
  to = pathlib.Path(to)
  # Of several processes all generate, and the first one reads and writes.
  with files.alone(to) if processes.is_first() else contextlib.nullcontext():
    known = processes.first(lambda: _known(to))
    found = model.find_model(source, (known or {}).get("date"))
    work = _work(found, prompts, given, seed, stops, generation_config)
    record = _record(work, prompts, cache_dtype)
    _refuse_apart({**record, "slots": slots, "mesh": source.mesh})
    done = 0
    if known is not None:
      done = processes.first(lambda: _done(to, known, record, work))
    if done == work.total:
      logger.info(f"{to} is done: it holds all {done} samples")
      return
    decoder = model.decoder(
      found,
      found.load(),
      sampling=work.sampling,
      stop_ids=work.ends,
      # Of all samples, so that the programs are those of the first command.
      slots=min(slots, work.total),
      longest=max(map(len, work.ids)),
      cache_dtype=cache_dtype,
    )
    if known is None and processes.is_first():
      files.write_json(_beside(to), record)
    _run(work, decoder, to, done)


def _work(found, path, given, seed, stops, generation_config):
  """The Job of flags; reads prompts, but no weights."""
  sampling = sampling_of(given, found, generation_config)
  prompts = read_prompts(path, keys=OWN, conversations=found.conversations)
  ids = prompt_ids(found, prompts, sampling.max_new_tokens)
  chats = sum(one.is_chat for one in prompts)
  tokens, texts = model.ends(found, chats=bool(chats), stops=stops)
  logger.info(
    f"{len(prompts)} prompts, {chats} of them conversations, of "
    f"{min(map(len, ids))} to {max(map(len, ids))} tokens"
  )
  model.say_ends(found, tokens, texts)
  return Job(found, prompts, ids, sampling, seed, (*tokens,), (*texts,))


def _refuse_apart(given):
  """InputError on all processes where they are not given the same."""
  first, *others = processes.gather(given)
  for number, other in enumerate(others, 1):
    if found := [str(one) for one in differences(other, first)]:
      raise InputError(
        f"process {number} is given another command than process 0: "
        f"{'; '.join(found)}; give all of them the same"
      )


# What is there.


def _beside(to):
  return to.with_name(f"{to.name}.run.json")


def _record(work, prompts, cache_dtype):
  """All that the lines of a file follow from."""
  return {
    **work.model.identity,
    "prompts": files.sha256_of(prompts),
    "sampling": dataclasses.asdict(work.sampling),
    "seed": work.seed,
    "ends": sorted(work.ends),
    "stop": list(work.stops),
    "cache_dtype": cache_dtype,
  }


def _known(to):
  """The record of what a file holds already; None where it holds nothing."""
  if _beside(to).is_file():
    known = files.read_json(_beside(to))
    if not isinstance(known.get("date", ""), str):
      raise InputError(
        f"{_beside(to)} is not as it was written; remove it and {to.name}"
      )
    return known
  if to.exists() and to.stat().st_size:
    raise InputError(
      f"{to} exists, and no {_beside(to).name} beside it says of what it is; "
      "remove it or name another file"
    )
  return None


def _done(to, known, record, work):
  """How many lines stand there, whole; a last one that was cut is removed.

  Raises:
    InputError: they are of another command, or are not its first lines.
  """
  # Earlier code did not record the weights of runs.
  known = {"weights": record.get("weights"), **known}
  found = [str(one) for one in differences(record, known)]
  if found:
    raise InputError(
      f"{to} is of another command: {'; '.join(found)}; name another file, or "
      f"remove it and {_beside(to).name}"
    )
  if not to.exists():
    return 0
  lines = to.read_bytes().split(b"\n")[:-1]
  text_of = model.text_of(work.model.tokenizer)
  for number, line in enumerate(lines):
    where = f"{to} line {number + 1}"
    if not _was_made(work, number, line, files.parsed(line, where), text_of):
      raise InputError(
        f"{where} is not the one that was written there; remove the file and "
        f"{_beside(to).name}"
      )
  files.cut_half_line(to)
  return len(lines)


def _was_made(work, number, line, values, text_of):
  """Is it the line of that number, as far as the line itself can say?"""
  if number >= work.total:
    return False
  try:
    figures = [values["logp"]], [values["behaviour_logp"]]
    sample = Sample(values["ids"], *figures, values["finish"])
    text = values["response"]
    if _line(work, work.request(number), sample, text) != line + b"\n":
      return False
    # The end may have been cut within a character.
    return text_of(values["ids"]).startswith(text.rstrip(HALF))
  except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
    return False


# What is made.


def _run(work, decoder, to, done):
  """Writes the lines that are left."""
  text_of = model.text_of(work.model.tokenizer)
  stops = Stops(work.stops, text_of)
  requests = map(work.request, range(done, work.total))
  made, tokens = {}, 0
  if done:
    logger.info(f"{to} holds {done} of {work.total} samples; going on")
  with (
    open(to if processes.is_first() else os.devnull, "ab") as file,
    Progress("generating", work.total, "samples", done=done) as progress,
    contextlib.closing(
      samples(decoder, work.ids, requests, work.seed, stops.ended)
    ) as found,
  ):
    for request, sample in found:
      text = model.said_text(sample, stops.text(request), work.ends, text_of)
      made[request] = _line(work, request, sample, text)
      tokens += len(sample.ids)
      while work.request(done) in made:
        file.write(made.pop(work.request(done)))
        file.flush()
        done += 1
      speed = f"{progress.per_second(tokens):.0f} tokens/s"
      progress.update(1, (speed,))
    if processes.is_first():
      os.fsync(file.fileno())
    speed = progress.per_second(tokens)
  logger.info(
    f"{to} holds all {done} samples; {tokens} tokens, {speed:.0f} a second"
  )


def _line(work, request, sample, text):
  """The line of a sample, as bytes."""
  prompt, number = request
  row = {
    **work.prompts[prompt].row,
    "response": text,
    "ids": [int(one) for one in sample.ids],
    "logp": round(float(sum(sample.logp)), DECIMALS),
    "behaviour_logp": round(float(sum(sample.behaviour_logp)), DECIMALS),
    "tokens": len(sample.ids),
    "finish": sample.finish,
    "sample": number,
    "index": prompt,
  }
  return (json.dumps(row, allow_nan=False) + "\n").encode()
