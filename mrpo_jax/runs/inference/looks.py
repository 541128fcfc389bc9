# SPDX-License-Identifier: Apache-2.0
"""Looks at the policy while it trains: benchmarks, and what it says."""

import os

from mrpo_jax.data.chat import messages
from mrpo_jax.errors import InputError, blames
from mrpo_jax.generation import Sampling
from mrpo_jax.models import lora
from mrpo_jax.runs.config import Folder
from mrpo_jax.runs.inference import model
from mrpo_jax.runs.inference.prompts import prompt_ids, read_prompts
from mrpo_jax.runs.inference.sampler import Sampler
from mrpo_jax.training.trackers.samples import SAMPLES


def policy_of(setup):
  """The policy of a run as model.InferenceModel, without its weights."""
  described = setup.described["policy"]
  base, found = described.section.base, described.model
  is_folder = isinstance(base.weights, Folder)
  return model.InferenceModel(
    config=found.config,
    tokenizer=setup.tokenizers.views[found.view],
    identity={},
    name="the policy",
    folder=os.path.abspath(base.weights.path) if is_folder else None,
    conversations=setup.config.data.conversations,
    forward={
      "partition": found.computation.partition,
      "dtype": found.computation.dtype,
    },
    load=None,
  )


class PolicySamples:
  """What the policy answers to the prompts of `config.samples`."""

  def __init__(self, setup):
    """Reads and encodes the prompts."""
    given = setup.config.samples
    self._seed = setup.config.seed
    self._model = policy_of(setup)
    with blames("config.samples", InputError):
      self._prompts = read_prompts(
        given.prompts, keys=(), conversations=self._model.conversations
      )
      self._ids = prompt_ids(
        self._model,
        self._prompts,
        given.max_new_tokens,
        name="config.samples.max_new_tokens",
      )
    with blames("config.samples"):
      sampling = Sampling(
        temperature=given.temperature, max_new_tokens=given.max_new_tokens
      )
    self._sampler = Sampler(
      self._model,
      sampling=sampling,
      chats=any(one.is_chat for one in self._prompts),
      longest=max(map(len, self._ids)),
      requests=len(self._ids),
    )

  def __call__(self, params):
    """{"samples": ...} of the policy's parameters, for a line of the log."""
    said = self._sampler(params, self._ids, self._seed)
    found = [
      {
        "index": index,
        "prompt": _shown(prompt.pair.prompt),
        "response": text,
        "tokens": len(sample.ids),
        "finish": sample.finish,
      }
      for index, (prompt, (sample, text)) in enumerate(
        zip(self._prompts, said, strict=True)
      )
    ]
    return {SAMPLES: found}


def _shown(prompt):
  """A prompt as text; of a conversation its last turn."""
  return prompt if isinstance(prompt, str) else messages.content(prompt[-1])


class PolicyBenchmarks:
  """Figures of the policy on the tasks of `config.evaluation`."""

  def __init__(self, setup):
    """Reads the tasks."""
    from mrpo_jax import evaluation

    given = setup.config.evaluation
    shots = given.num_fewshot
    self._asked = {
      "limit": given.limit or None,
      "num_fewshot": None if shots < 0 else shots,
      "apply_chat_template": given.apply_chat_template,
    }
    with blames("config.evaluation", InputError):
      self._tasks = evaluation.find(given.tasks.split(","), given.data)
      evaluation.check_shots(self._tasks, self._asked["num_fewshot"])
    self._evaluation = evaluation
    policy = policy_of(setup)
    ends, _ = model.ends(policy, chats=given.apply_chat_template)
    with blames("config.evaluation", InputError):
      self._lm = evaluation.HarnessLM(
        *(policy.config, None, policy.tokenizer),
        name=policy.name,
        stop_ids=(*ends,),
        **policy.forward,
      )

  def __call__(self, params):
    """{"eval/task/metric,filter": its value} of the policy's parameters.

    Standard errors stand beside them, as "eval/task/metric_stderr,filter".
    """
    self._lm.params = params
    try:
      found = self._evaluation.evaluate_tasks(
        self._lm, self._tasks, **self._asked
      )
    finally:
      self._lm.release()
    values = self._evaluation.figures(found)
    values |= self._evaluation.standard_errors(found)
    return {f"eval/{name}": value for name, value in values.items()}


# Those that a config asks for.


def _wanted(config):
  """[(class of a look, its section)] in the order of `Due.look_every`."""
  found = []
  if config.evaluation.tasks:
    found.append((PolicyBenchmarks, config.evaluation))
  if config.samples.prompts:
    found.append((PolicySamples, config.samples))
  return found


def periods(config):
  """Steps between the looks of a config, as `Due.look_every` has them."""
  return tuple(section.every for _, section in _wanted(config))


class Looks:
  """All looks that the config of a run asks for, as `loop.train` calls them."""

  def __init__(self, setup):
    """Checks what they need; reads no weights and writes nothing.

    Raises:
      InputError: names what cannot be had.
    """
    if setup.method.of_rewards and _wanted(setup.config):
      raise InputError(
        "config.samples and config.evaluation ask what the policy says; a "
        "reward model says nothing: leave them out"
      )
    self._each = [kind(setup) for kind, _ in _wanted(setup.config)]

  def of(self, program, due):
    """(step, state) -> the values of the looks that are due at that step."""

    def look(step, state):
      params = lora.join(program.frozen[0], state.params)
      found = {}
      for place in due.looks(step):
        found |= self._each[place](params)
      return found

    return look
