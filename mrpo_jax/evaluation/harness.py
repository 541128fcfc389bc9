# SPDX-License-Identifier: Apache-2.0
"""HarnessLM: a model as lm-evaluation-harness asks it, without torch.

Texts become tokens, and tokens texts, as they do in the harness's own Hugging
Face back end, so that both say the same of one model.
"""

import collections
import json
import logging

import jax
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mrpo_jax.data import templates
from mrpo_jax.errors import InputError
from mrpo_jax.evaluation.answers import Answers
from mrpo_jax.evaluation.loglikelihood import Scorer
from mrpo_jax.models import parameters

logger = logging.getLogger(__name__)


class HarnessLM(TemplateLM):
  """An `lm_eval.api.model.LM` of a decoder and its tokenizer.

  Of several processes each asks and answers everything, and all devices of the
  mesh compute together: to the harness this is rank 0 of 1 everywhere.
  """

  def __init__(
    self,
    config,
    params,
    tokenizer,
    *,
    stop_ids=(),
    max_length=None,
    name="",
    seed=0,
    slots=None,
    cache_dtype=None,
    **forward,
  ):
    """Compiles nothing yet.

    Args:
      config: ModelConfig.
      params: its parameters, or None until they are set; `lm.params = others`
        of the same shapes compiles nothing anew.
      tokenizer: a Hugging Face tokenizer.
      stop_ids: tokens that end what is generated, beside the end tokens of
        tokenizer and model.
      max_length: tokens that the model looks at, at most; None is what it
        allows.
      name: of the model, for tables.
      seed: of what is drawn.
      slots: samples that are decoded side by side; None chooses.
      cache_dtype: of keys and values; None is that of the activations.
      **forward: kernel, dtype, partition; see `Scorer` and
        `generation.Decoder`.
    """
    super().__init__()
    self.tokenizer, self.name = tokenizer, name
    self.config, self.params = config, params
    self._refused = collections.Counter()  # conversations, by the reason
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    self._prefix = next((one for one in ends if one is not None), None)
    self._scorer = Scorer(config, longest=max_length, **forward)
    self._answers = Answers(
      config,
      tokenizer,
      stop_ids=stop_ids,
      longest=self._scorer.longest,
      seed=seed,
      slots=slots,
      cache_dtype=cache_dtype,
      **forward,
    )

  def release(self):
    """Lets go of the parameters, which are to be set anew; programs stay."""
    self.params = None

  # What the harness asks about the model.

  @property
  def eot_token_id(self):
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self):
    """What stands in place of an empty context."""
    if self._prefix is None:
      raise InputError(
        "the tokenizer has neither a start nor an end token, and a request has "
        "no context; give the tokenizer one"
      )
    return self._prefix

  @property
  def max_length(self):
    return self._scorer.longest

  @property
  def max_gen_toks(self):
    return 256

  @property
  def tokenizer_name(self):
    return str(self.tokenizer.name_or_path).replace("/", "__")

  def get_model_info(self):
    """What results.json says of the model."""
    leaf = jax.tree.leaves(self.params)[0]
    return {
      "model": self.name or type(self).__name__,
      "model_num_parameters": parameters.count_parameters(self.config),
      "model_dtype": str(leaf.dtype),
    }

  def chat_template(self, chat_template=False):
    """The template in use; None where none is applied."""
    if chat_template is False or chat_template is None:
      return None
    if isinstance(chat_template, str):
      own = self.tokenizer.chat_template
      known = own if isinstance(own, dict) else {}
      if chat_template not in known:
        raise InputError(
          f"the tokenizer has no chat template named {chat_template!r}; known: "
          f"{', '.join(known) or 'none has a name'}"
        )
      return known[chat_template]
    return templates.chat_template(self.tokenizer)

  def apply_chat_template(self, chat_history, add_generation_prompt=True):
    """The text of a conversation, up to what the model has to say."""
    ending = templates.ANSWER if add_generation_prompt else templates.CONTINUE
    template = templates.chat_template(self.tokenizer)

    def written(turns):
      asked = [templates.Conversation(turns, ending)]
      (text,) = templates.render(self.tokenizer, template, asked)
      return text

    text = written(chat_history)
    if isinstance(text, templates.Refused):
      self._refused[str(text)] += 1
      turns = [turn for turn in chat_history if turn["role"] != "system"]
      text = written(turns)
    if isinstance(text, templates.Refused):
      raise InputError(f"the chat template refuses a conversation: {text}")
    return str(text)

  def _say_refused(self):
    """Says once of how many conversations the system turn is left out."""
    for why, count in self._refused.items():
      logger.warning(
        f"warning: the chat template refuses {count} conversations ({why}); "
        "given without their system turns"
      )
    self._refused.clear()

  # Tokens.

  def tok_encode(self, string, add_special_tokens=None, **_):
    return self._encoded([string], add_special_tokens)[string]

  def _encoded(self, texts, add_special_tokens=None):
    """{text: its ids as a list}, all at once, which takes all cores.

    Unless told, special tokens are added as the tokenizer does, but to a text
    that begins with one itself.
    """
    prefix = ""
    if add_special_tokens is None and self._prefix is not None:
      prefix = self.tokenizer.decode(self._prefix)
    found, kinds = {}, {}
    for text in dict.fromkeys(texts):
      begins = bool(prefix) and text.startswith(prefix)
      kinds.setdefault(begins, []).append(text)
    for begins, some in kinds.items():
      adds = False if begins else add_special_tokens
      given = {} if adds is None else {"add_special_tokens": adds}
      ids = self.tokenizer(some, verbose=False, **given).input_ids
      found.update(zip(some, ids, strict=True))
    return found

  # What it asks the model.

  def loglikelihood(self, requests, disable_tqdm=False):
    """(nats, is it what greedy decoding says?) of each continuation."""
    self._say_refused()
    pairs = [request.args[:2] for request in requests]
    moved = [_spaces_moved(*pair) for pair in pairs]
    whole = {one + two for one, two in moved if one}
    found = self._encoded([*{one for one, _ in moved if one}, *whole])
    alone = self._encoded({two for one, two in moved if not one}, False)
    contexts, encoded = {}, []
    for pair, (context, continuation) in zip(pairs, moved, strict=True):
      if context:
        ids = contexts.setdefault(context, tuple(found[context]))
        rest = found[context + continuation][len(ids) :]
      else:
        ids, rest = (self.prefix_token_id,), alone[continuation]
        if rest[:1] == [self.prefix_token_id]:
          rest = rest[1:]
      if not rest:
        raise InputError(
          f"the continuation {continuation!r} has no token of its own after "
          f"{context[-40:]!r}"
        )
      encoded.append((pair, ids, rest))
    return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

  def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
    ids = [(context, rest) for _, context, rest in requests]
    found = self._scorer.scores(self.params, ids)
    for (pair, *_), one in zip(requests, found, strict=True):
      if pair is not None:
        self.cache_hook.add_partial("loglikelihood", pair, one)
    return found

  def loglikelihood_rolling(self, requests, disable_tqdm=False):
    """Nats of each whole text, in windows of what the model looks at."""
    self._say_refused()
    texts = [request.args[0] for request in requests]
    found, windows, owners = self._encoded(texts), [], []
    for number, text in enumerate(texts):
      for window in get_rolling_token_windows(
        token_list=found[text],
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      ):
        windows.append((None, *make_disjoint_window(window)))
        owners.append(number)
    sums = [0.0] * len(texts)
    for number, (logp, _) in zip(
      owners, self._loglikelihood_tokens(windows), strict=True
    ):
      sums[number] += logp
    for text, total in zip(texts, sums, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
    return sums

  def generate_until(self, requests, disable_tqdm=False):
    """The text of each answer, up to where one of its stops begins."""
    self._say_refused()
    by_arguments = {}
    for number, request in enumerate(requests):
      key = json.dumps(request.args[1], sort_keys=True, default=str)
      by_arguments.setdefault(key, []).append(number)
    found = [None] * len(requests)
    for numbers in by_arguments.values():
      texts = [requests[number].args[0] for number in numbers]
      arguments = requests[numbers[0]].args[1]
      ids = self._encoded(texts)
      prompts = [ids[text] or [self.prefix_token_id] for text in texts]
      said = self._answers.said(
        self.params, prompts, arguments, self.max_gen_toks
      )
      for number, text in zip(numbers, said, strict=True):
        found[number] = text
        self.cache_hook.add_partial(
          "generate_until", requests[number].args, text
        )
    return found


def _spaces_moved(context, continuation):
  """(context, continuation), spaces at the former's end in the latter."""
  kept = context.rstrip()
  return kept, context[len(kept) :] + continuation
