# SPDX-License-Identifier: Apache-2.0
"""Templates that take too long, too much or write too much end in one line."""

import os
import signal
import time

import pytest

from mrpo_jax.data import templates
from mrpo_jax.data.chat import sandbox
from mrpo_jax.data.chat.sandbox import OverBudget, Sandbox
from mrpo_jax.data.encode import encode
from mrpo_jax.data.formats import PreferencePair
from mrpo_jax.data.tokenizer import train_tokenizer
from mrpo_jax.errors import InputError

NONE = {"conversations": [[]]}


@pytest.fixture(scope="module")
def box():
  box = Sandbox(seconds=1)
  yield box
  box.close()


@pytest.fixture(scope="module")
def patient():
  """Of so much time that it is the size that ends it, however busy we are."""
  box = Sandbox(seconds=60)
  yield box
  box.close()


@pytest.fixture(scope="module")
def tokenizer():
  return train_tokenizer([], 259)


def assert_over(box, template, problem):
  started = time.monotonic()
  with pytest.raises(OverBudget, match=problem):
    box.render(template, [NONE])
  assert time.monotonic() - started < 30  # on a busy machine
  assert box.render("a", [NONE, NONE]) == [{"text": "a"}] * 2


@pytest.mark.parametrize(
  "template",
  [  # Loops and one operation of the processor alike.
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "{{ 3 ** (10 ** 9) }}",
  ],
)
def test_a_template_has_a_budget_of_time(box, template):
  assert_over(box, template, "more than 1 seconds")


@pytest.mark.parametrize(
  "template, problem",
  [
    ("{{ 'x' * 5 * 10 ** 9 }}", "more than 1.1 GB"),
    ("{{ 'x' | center(10 ** 10) }}", "more than 1.1 GB"),
    ("{{ '%010000000000d' % 1 }}", "more than 1.1 GB"),
    (
      "{% set all = namespace(it=['x']) %}{% for i in range(60) %}"
      "{% set all.it = all.it + all.it %}{% endfor %}",
      "more than 1.1 GB",
    ),
    ("{{ 'x' * 10 ** 8 }}", "more than 1,000,000 characters"),
  ],
)
def test_a_template_has_a_budget_of_sizes(patient, template, problem):
  assert_over(patient, template, problem)


@pytest.mark.parametrize(
  "template, problem",
  [
    ("{% for i in range(10 ** 10) %}{% endfor %}", "Range too big"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ raise_exception('x' * 10 ** 6) }}", "xxx"),
    (r"{{ raise_exception('two\nlines') }}", "two"),
    ("{{ a.b.c }}", "undefined"),
  ],
)
def test_what_a_template_raises_is_one_short_line(box, template, problem):
  (answer,) = box.render(template, [NONE])
  assert problem in answer["error"] and answer["line"] is None
  assert len(answer["error"]) <= 300 and "\n" not in answer["error"]


def test_a_bad_template_has_a_line(box):
  (answer,) = box.render("a\n{% if %}", [NONE])
  assert answer["line"] == 2


def test_chance_is_the_same_every_time(box):
  template = "{{ range(99999) | random }} {{ lipsum() }}"
  first = box.render(template, [NONE] * 2)
  box.close()
  assert first[0] == first[1] == box.render(template, [NONE])[0]


def test_texts_are_those_of_apply_chat_template(tokenizer):
  turns = [{"role": "user", "content": "é\ud800 \u2028"}]
  for template in ("{{ messages | tojson }}", "{{ bos_token }}{{ tools }}"):
    (text,) = templates.render(
      tokenizer, template, [templates.Conversation(turns, tools=[{"a": 1}])]
    )
    assert text == tokenizer.apply_chat_template(
      turns, chat_template=template, tools=[{"a": 1}], tokenize=False
    )


def test_the_process_that_ends_by_itself_is_started_again(box):
  assert box.render("a", [NONE]) == [{"text": "a"}]
  os.kill(box._process.pid, signal.SIGTERM)
  with pytest.raises(OverBudget, match="ends its process"):
    box.render("a", [NONE])
  assert box.render("a", [NONE]) == [{"text": "a"}]


def test_what_was_not_read_is_not_the_answer_to_the_next(box, monkeypatch):
  def interrupted(process):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    box.render("a", [NONE])
    patch.setattr(box, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
      box.render("a", [NONE])
  assert box.render("b", [NONE]) == [{"text": "b"}]


def test_encode_and_a_template_file_end_in_one_line(tokenizer, tmp_path):
  path = tmp_path / "mine.jinja"
  path.write_text("{{ 'x' * 5 * 10 ** 9 }}")
  with pytest.raises(InputError, match=r"mine\.jinja takes more than"):
    templates.load_template(str(path))
  turns = [[{"role": r, "content": "a"}] for r in ("user", *["assistant"] * 2)]
  tokenizer.chat_template = path.read_text()
  with pytest.raises(InputError, match="takes more than 1.1 GB"):
    encode(tokenizer, PreferencePair(*turns), max_prompt=9, max_response=9)


def test_a_long_conversation_may_be_written(box):
  said = "x" * (sandbox.LEAST * 2)
  request = {"conversations": [[{"role": "user", "content": said}]]}
  (answer,) = box.render("{{ messages[0].content }}", [request])
  assert answer["text"] == said
