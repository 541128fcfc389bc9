# SPDX-License-Identifier: Apache-2.0
"""What the harness asks: tokens, scores and answers as its own back end's."""

import copy
import functools
import gc
import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from mrpo_jax.errors import InputError
from mrpo_jax.evaluation import HarnessLM, answers
from mrpo_jax.evaluation.answers import asked
from mrpo_jax.generation import Sampling, generate
from mrpo_jax.models import transformer
from tests.material.rows import user

PROMPTS = ["Human: What is it?", "Human: How", "What a day it was, said the"]


def instances(kind, arguments):
  return [
    Instance(request_type=kind, doc={}, arguments=one, idx=i)
    for i, one in enumerate(arguments)
  ]


@functools.partial(jax.jit, static_argnums=0)
def logp_of(config, params, tokens_BT):
  return jax.nn.log_softmax(transformer.apply(config, params, tokens_BT))


def nats(lm, context, continuation):
  """The log-probability of ids after others, by the path of checks."""
  ids = [*context, *continuation]
  padded_1T = np.zeros((1, 96), np.int32)
  padded_1T[0, : len(ids)] = ids
  logp_TV = logp_of(lm.config, lm.params, padded_1T)[0]
  places = np.arange(len(context) - 1, len(ids) - 1), np.array(continuation)
  return float(logp_TV[places].sum())


def test_to_the_harness_every_process_is_the_only_one(lm):
  assert isinstance(lm, LM)
  assert (lm.rank, lm.world_size) == (0, 1)
  assert lm.max_gen_toks == 256 and lm.max_length == 2048
  assert lm.get_model_info()["model_dtype"] == "float32"


def test_spaces_at_the_end_of_a_context_are_part_of_what_follows(lm):
  encode = lm.tokenizer.encode
  pairs = [
    ("It is ", "warm"),
    ("It is", " warm"),
    ("It is\n\n", "so"),
    ("", "so"),
  ]
  got = lm.loglikelihood(instances("loglikelihood", pairs))
  # One text, cut after "It is" both times.
  whole, context = encode("It is warm"), encode("It is")
  want = nats(lm, context, whole[len(context) :])
  assert got[0] == got[1] and got[0][0] == pytest.approx(want, abs=1e-4)
  lines = encode("It is\n\nso")
  want = nats(lm, context, lines[len(context) :])
  assert got[2][0] == pytest.approx(want, abs=1e-4)
  # Without a context the tokenizer's start token stands there, once.
  bos = lm.tokenizer.bos_token_id
  assert encode("so")[0] == bos == lm.prefix_token_id
  so = encode("so", add_special_tokens=False)
  assert got[3][0] == pytest.approx(nats(lm, [bos], so), abs=1e-4)
  written = [("", f"{lm.tokenizer.bos_token}so")]
  assert lm.loglikelihood(instances("loglikelihood", written))[0] == got[3]


def test_a_start_token_in_the_text_is_not_added_again(lm):
  start = lm.tokenizer.bos_token
  assert lm.tok_encode(f"{start}so") == lm.tok_encode("so")
  assert (
    lm.tok_encode("so", add_special_tokens=False) == lm.tok_encode("so")[1:]
  )


def test_a_continuation_without_a_token_of_its_own_is_refused(lm):
  with pytest.raises(InputError, match="'' has no token of its own after 'It"):
    lm.loglikelihood(instances("loglikelihood", [("It is", "")]))


def test_greedy_is_what_greedy_decoding_says(lm):
  ids = lm.tok_encode("It is")
  ((one,),) = generate(
    *(lm.config, lm.params, [ids]),
    sampling=Sampling(temperature=0, max_new_tokens=3),
  )
  others = [*one.ids[:2], (one.ids[2] + 1) % 512]
  requests = [(None, ids, one.ids), (None, ids, others)]
  assert [is_greedy for _, is_greedy in lm._loglikelihood_tokens(requests)] == [
    True,
    False,
  ]


def test_a_long_text_is_scored_in_windows(lm):
  short = HarnessLM(lm.config, lm.params, lm.tokenizer, max_length=8)
  text = "It is warm here, said the other one, and so they went."
  ids = short.tok_encode(text)
  assert len(ids) > 17
  got = short.loglikelihood_rolling(
    instances("loglikelihood_rolling", [(text,), ("so",)])
  )
  # Eight tokens after the start token; then eight after one; then what is
  # left after as many as there is room for.
  prefix, want, at = [short.prefix_token_id], 0.0, 8
  want += nats(lm, prefix, ids[:8])
  while at < len(ids):
    more = min(8, len(ids) - at)
    first = at + more - 9
    want += nats(lm, ids[first:at], ids[at : at + more])
    at += more
  assert got[0] == pytest.approx(want, abs=1e-3)
  assert got[1] == pytest.approx(
    nats(lm, prefix, short.tok_encode("so")), abs=1e-4
  )


def said(lm, texts, **arguments):
  return lm.generate_until(
    instances("generate_until", [(text, dict(arguments)) for text in texts])
  )


def test_answers_end_before_the_first_stop(lm):
  whole = said(lm, PROMPTS, max_gen_toks=12)
  ids = [lm.tok_encode(text) for text in PROMPTS]
  want = generate(
    *(lm.config, lm.params, ids),
    sampling=Sampling(temperature=0, max_new_tokens=12),
    stop_ids=[lm.eot_token_id],
  )
  decode = functools.partial(lm.tokenizer.decode, skip_special_tokens=True)
  assert whole == [decode(one.ids) for (one,) in want]
  stops = [text[4:6] for text in whole]
  for alias in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
    got = said(lm, PROMPTS, until=stops, **{alias: 12})
    for text, all_of_it in zip(got, whole, strict=True):
      assert text == min((all_of_it.split(one)[0] for one in stops), key=len)


def test_a_stop_that_is_no_token_does_not_end_answers_at_the_unknown(lm):
  ids = lm.tok_encode(PROMPTS[0])
  ((one,),) = generate(
    *(lm.config, lm.params, [ids]),
    sampling=Sampling(max_new_tokens=12),
  )
  tokenizer = copy.deepcopy(lm.tokenizer)
  unknown = tokenizer.convert_ids_to_tokens(one.ids[2])
  tokenizer.add_special_tokens({"unk_token": unknown})
  assert tokenizer.convert_tokens_to_ids("Question:") == one.ids[2]
  other = HarnessLM(lm.config, lm.params, tokenizer)
  given = dict(do_sample=True, max_gen_toks=12, until=["Question:"])
  got = said(other, PROMPTS[:1], **given)
  assert got == [tokenizer.decode(one.ids, skip_special_tokens=True)]


def test_a_prompt_that_leaves_no_room_loses_its_start(lm, caplog):
  short = HarnessLM(lm.config, lm.params, lm.tokenizer, max_length=20)
  with caplog.at_level(logging.WARNING, "mrpo_jax"):
    got = said(short, ["It is. " * 20 + PROMPTS[0]], max_gen_toks=12)
  ids = lm.tok_encode("It is. " * 20 + PROMPTS[0])[-8:]
  assert "of 1 of 1 prompts the start is cut off" in caplog.text
  ((want,),) = generate(
    *(lm.config, lm.params, [ids]),
    sampling=Sampling(temperature=0, max_new_tokens=12),
    stop_ids=[lm.eot_token_id],
  )
  assert got == [lm.tokenizer.decode(want.ids, skip_special_tokens=True)]
  with pytest.raises(InputError, match="answers of 20 tokens leave no room"):
    said(short, PROMPTS, max_gen_toks=20)


def test_new_parameters_answer_through_the_same_programs(lm, caplog):
  other = HarnessLM(lm.config, lm.params, lm.tokenizer)
  before = said(other, PROMPTS, max_gen_toks=6)
  other.params = jax.tree.map(lambda leaf: leaf[::-1], lm.params)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    assert said(other, PROMPTS, max_gen_toks=6) != before
  assert "Compiling" not in caplog.text
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    said(other, PROMPTS, max_gen_toks=7)
  assert "Compiling" in caplog.text


def test_answers_leave_neither_weights_nor_caches_behind(lm):
  def held():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())

  other = HarnessLM(lm.config, lm.params, lm.tokenizer)
  before = held()
  for most in (5, 6):
    said(other, PROMPTS, max_gen_toks=most)
  assert held() <= before + 1024  # constants of programs


def test_weights_are_gathered_once_however_few_slots_fit(lm, monkeypatch):
  given, use = [], answers.Decoder.use

  def noted(decoder, params):
    given.append((decoder.slots, jax.tree.leaves(params)[0]))
    use(decoder, params)

  monkeypatch.setattr(answers.Decoder, "use", noted)
  want = said(HarnessLM(lm.config, lm.params, lm.tokenizer), PROMPTS)
  monkeypatch.setattr(answers, "CACHE_BYTES", {"cpu": 1})
  given.clear()
  assert said(HarnessLM(lm.config, lm.params, lm.tokenizer), PROMPTS) == want
  assert [one for one, leaf in given if isinstance(leaf, jax.Array)] == [1]


@pytest.mark.parametrize(
  "arguments,sampling",
  [
    (dict(do_sample=False, temperature=0.7), dict(temperature=0.0)),
    (dict(temperature=0.7), dict(temperature=0.7)),
    (dict(do_sample=True), dict(temperature=1.0)),
    (dict(do_sample=True, top_k=5, top_p=0.5), dict(top_k=5, top_p=0.5)),
    (dict(max_gen_toks=5, max_new_tokens=6), dict(max_new_tokens=5)),
  ],
)
def test_the_harness_s_arguments_are_how_tokens_are_drawn(arguments, sampling):
  found, _ = asked({"until": "\n", **arguments}, 256)
  defaults = dict(temperature=0.0, max_new_tokens=256)
  if arguments.get("do_sample"):
    defaults["temperature"] = 1.0
  assert found == Sampling(**defaults | sampling)


@pytest.mark.parametrize(
  "arguments,message",
  [
    (dict(num_beams=4), "'num_beams' is not known here"),
    (dict(top_kk=4), "'top_kk' is not known here; did you mean top_k"),
    (
      dict(do_sample=True, temperature=0.0),
      "do_sample is true and temperature",
    ),
    (dict(do_sample=True, top_p=2.0), "top_p=2.0 is out of range"),
    (dict(max_gen_toks="many"), "generation_kwargs: .*many"),
  ],
)
def test_arguments_that_nothing_here_does_are_refused(arguments, message):
  with pytest.raises(InputError, match=message):
    asked(arguments, 256)


def test_a_conversation_is_what_the_chat_template_writes(inputs, lm):
  turns = [{"role": "user", "content": "How are you?"}]
  asks = lm.apply_chat_template(turns)
  assert asks == "<bos>\n\nHuman: How are you?\n\nAssistant:"
  # Which begins with the start token, so that none is added.
  assert lm.tok_encode(asks) == lm.tokenizer.encode(
    asks, add_special_tokens=False
  )
  answers = [*turns, {"role": "assistant", "content": "The answer is"}]
  goes_on = lm.apply_chat_template(answers, add_generation_prompt=False)
  assert goes_on == f"{asks} The answer is"
  assert lm.chat_template(True) and lm.chat_template(False) is None
  with pytest.raises(InputError, match="no chat template named 'other'"):
    lm.chat_template("other")
  assert lm.tokenizer_name == str(inputs / "base").replace("/", "__")


def test_a_template_without_system_turns_is_said_once(lm, caplog):
  tokenizer = copy.deepcopy(lm.tokenizer)
  tokenizer.chat_template = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}"
  )
  other = HarnessLM(lm.config, lm.params, tokenizer)
  turns = [user("It is"), {"role": "system", "content": "Be short."}][::-1]
  with caplog.at_level(logging.WARNING, "mrpo_jax"):
    texts = [other.apply_chat_template(turns) for _ in range(3)]
    assert texts == ["It is"] * 3 and not caplog.messages
    other.loglikelihood(instances("loglikelihood", [(texts[0], " warm")]) * 2)
    other.loglikelihood(instances("loglikelihood", [(texts[0], " so")]))
  (line,) = caplog.messages
  assert "the chat template refuses 3 conversations (" in line


def test_neither_torch_nor_models_of_transformers_are_imported(
  inputs, benchmarks
):
  code = f"""
import sys
from mrpo_jax import evaluation, hub
from mrpo_jax.data.tokenizer import load_tokenizer
config, params = hub.load({str(inputs / "base")!r})
tokenizer = load_tokenizer({str(inputs / "base")!r})
lm = evaluation.HarnessLM(config, params, tokenizer)
tasks, data = ["truthfulqa_mc1"], {str(benchmarks)!r}
evaluation.evaluate_tasks(lm, tasks, data=data, limit=1)
heavy = [name for name in sys.modules if name == "torch"
         or name.startswith(("torch.", "transformers.models."))
         and "modeling_" in name or name == "transformers.modeling_utils"]
print(heavy)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip().split("\n")[-1] == "[]"
