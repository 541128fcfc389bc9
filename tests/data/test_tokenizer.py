# SPDX-License-Identifier: Apache-2.0
"""Trained tokenizers: the same each time, lossless, and loadable."""

import copy
import datetime
import json
import logging
import os
import pathlib
import subprocess
import sys

import pytest

from mrpo_jax import configs
from mrpo_jax.data.templates import TEMPLATES, chat_template, load_template
from mrpo_jax.data.tokenizer import (
  SMALLEST,
  WRONG_PATTERN,
  load_tokenizer,
  tokenizer_fingerprint,
  train_tokenizer,
  with_date,
  with_template,
)
from mrpo_jax.errors import InputError

TEXTS = [
  "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
  "Numbers 1 2 3 and words, words, words; nothing else is in here.",
  "A tokenizer needs enough different words before it fills its vocabulary,"
  " otherwise training stops early: therefore this sentence mentions several"
  " unusual expressions, among them juxtaposition, kaleidoscope, marmalade,"
  " perpendicular, quicksilver, rhododendron, symphony, trampoline, umbrella,"
  " ventriloquist, watermelon, xylophone, yesterday and zeppelin.",
  "たほかのながわ: many characters once each, so their counts are equal.",
]
ODD = [
  "",
  " ",
  "  two  spaces  ",
  " a",
  "a",
  "tab\tand\r\nlines\n\n",
  "\x00\x7f\ufeff\u200b",
  "日本語 é e\u0301 \U0001f600\U0001f468\u200d\U0001f469",
  "<0x41> <0xZZ> [/INST]",
  "‘quotes’ and wörds",
  "z" * 100,
  "do n't , stop .",
]


@pytest.fixture(scope="module", params=["trained", "shipped"])
def tokenizer(request):
  """One trained here, byte-level BPE, and the Unigram that configs use."""
  if request.param == "shipped":
    return load_tokenizer(configs.TOKENIZERS / "unigram-512")
  return train_tokenizer(TEXTS, 480)


def files(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


def test_the_same_texts_give_the_same_files_in_any_process(tmp_path):
  train_tokenizer(TEXTS, 480).save_pretrained(tmp_path / "one")
  program = (
    "from mrpo_jax.data.tokenizer import train_tokenizer\n"
    f"trained = train_tokenizer({TEXTS!r}, 480)\n"
    f"trained.save_pretrained({str(tmp_path / 'two')!r})"
  )
  environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
  command = [sys.executable, "-c", program]
  subprocess.run(command, check=True, env=environment)
  assert "tokenizer.json" in files(tmp_path / "one")
  assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("text", ODD)
def test_nothing_is_lost(tokenizer, text):
  assert tokenizer.decode(tokenizer(text).input_ids) == "<bos>" + text


def test_special_tokens_are_the_first_ids(tokenizer):
  special = "bos_token_id", "eos_token_id", "pad_token_id"
  assert [getattr(tokenizer, name) for name in special] == [0, 1, 2]
  ids = tokenizer("a<eos><pad>").input_ids
  assert ids[0] == 0 and ids[-2:] == [1, 2] and len(ids) == 4


def test_one_bos_and_no_eos_by_default(tokenizer):
  ids = tokenizer("The quick fox").input_ids
  assert ids[0] == 0 and ids.count(0) == 1 and 1 not in ids
  ids = tokenizer("The", "fox").input_ids
  assert ids.count(0) == 1 and 1 not in ids


def test_frequent_words_are_one_token():
  tokenizer = train_tokenizer(TEXTS, 480)
  ids = tokenizer("and words", add_special_tokens=False).input_ids
  assert len(ids) < len("and words") // 2
  assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
  assert len(tokenizer) == 480


def test_a_first_space_counts(tokenizer):
  first, second = (tokenizer(s).input_ids for s in ("a", " a"))
  assert first != second


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
  tokenizer.chat_template = "{{ messages }}"
  tokenizer.save_pretrained(tmp_path)
  tokenizer.chat_template = None
  loaded = load_tokenizer(tmp_path)
  assert loaded.chat_template == "{{ messages }}"
  assert loaded(TEXTS + ODD).input_ids == tokenizer(TEXTS + ODD).input_ids
  special = "bos_token", "eos_token", "pad_token", "unk_token"
  for name in special:
    assert getattr(loaded, name) == getattr(tokenizer, name)


def test_a_fingerprint_survives_saving_and_what_encode_ignores(
  tokenizer, tmp_path
):
  want = tokenizer_fingerprint(tokenizer)
  tokenizer.save_pretrained(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert tokenizer_fingerprint(loaded) == want
  loaded.pad_token = "<eos>"
  loaded.model_max_length = 7
  loaded.backend_tokenizer.enable_truncation(3)
  loaded.backend_tokenizer.enable_padding(length=9)
  assert tokenizer_fingerprint(loaded) == want


def test_a_fingerprint_tells_what_encodes_differently(tokenizer):
  from tokenizers import processors

  others = [copy.deepcopy(tokenizer) for _ in range(4)]
  others[0].chat_template = "{{ messages }}"
  others[1].eos_token = "<pad>"
  others[2].backend_tokenizer.post_processor = processors.ByteLevel()
  others[3].split_special_tokens = True  # "<eos>" in a text is five letters
  others.append(train_tokenizer(TEXTS[:2], 300))
  assert (
    len({tokenizer_fingerprint(other) for other in [tokenizer, *others]}) == 6
  )


def test_a_fingerprint_tells_which_token_a_template_writes(tokenizer):
  marks = set()
  for token in ("<bos>", "<eos>"):
    one = copy.deepcopy(tokenizer)
    one.chat_template, one.sep_token = "{{ messages }}{{ sep_token }}", token
    marks.add(tokenizer_fingerprint(one))
  assert len(marks) == 2


def test_a_named_template_is_set_and_goes_into_the_fingerprint(
  tokenizer, tmp_path
):
  tokenizer.save_pretrained(tmp_path / "saved")
  loaded = {
    name: load_tokenizer(tmp_path / "saved", name) for name in TEMPLATES
  }
  for name, one in loaded.items():
    assert one.chat_template == "{{ bos_token }}" + TEMPLATES[name]
    one.save_pretrained(tmp_path / name)
    again = load_tokenizer(tmp_path / name)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(one)
  marks = [tokenizer_fingerprint(one) for one in loaded.values()]
  assert len(set(marks)) == len(TEMPLATES) == 4
  # That of the transcript is what a tokenizer without a template uses.
  bare = load_tokenizer(tmp_path / "saved", "")
  assert not bare.chat_template and tokenizer_fingerprint(bare) == marks[0]


@pytest.mark.parametrize(
  "family, pattern, fixed",
  [
    ("mistral3", WRONG_PATTERN, True),
    ("llama", WRONG_PATTERN, False),
    ("mistral3", WRONG_PATTERN.replace("{1,3}", ""), False),
  ],
)
def test_the_wrong_pattern_that_mistral_published_is_fixed(
  family, pattern, fixed, tmp_path, caplog
):
  from tokenizers import Regex, Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  # transformers looks at large vocabularies alone.
  letters = {letter: i for i, letter in enumerate("HeloWrd")}
  vocab = letters | {f"<{i}>": i for i in range(len(letters), 100_002)}
  backend = Tokenizer(models.BPE(vocab, []))
  split = pre_tokenizers.Split(Regex(pattern), "isolated")
  byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
  tokenizer.save_pretrained(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
  with caplog.at_level(logging.INFO, "mrpo_jax"):
    loaded = load_tokenizer(tmp_path).backend_tokenizer
  words = [text for text, _ in loaded.pre_tokenizer.pre_tokenize_str("HelloW")]
  assert words == (["Hello", "W"] if fixed else ["HelloW"])
  assert ("fix is applied" in caplog.text) == fixed


def test_a_template_leaves_the_tokenizer_given_alone(tokenizer):
  before = tokenizer.chat_template
  changed = with_template(tokenizer, "chatml")
  assert tokenizer.chat_template == before != changed.chat_template
  assert changed(TEXTS).input_ids == tokenizer(TEXTS).input_ids
  assert with_template(tokenizer, "") is tokenizer


@pytest.mark.parametrize(
  "source, text",
  [
    ("{{ strftime_now('%d %b %Y') }}", "06 Jul 2024"),
    # A line break at its start stays; a number without its zero.
    ("\n {{ strftime_now(format='%-d %B, %A') }}", "\n 6 July, Saturday"),
    ("{{ strftime_now('%%Y is %Y, %%%Y') }}", "%Y is 2024, %2024"),
    ("{{ strftime_now('%H:%M %p %s') }}", "00:00 AM 1720224000"),
    (
      "{% macro day() %}{{ strftime_now('%F') }}{% endmacro %}"
      "{% if strftime_now is defined %}{{ day() }}{% endif %}",
      "2024-07-06",
    ),
  ],
)
def test_a_template_with_a_date_is_that_of_a_day(tokenizer, source, text):
  dated = copy.deepcopy(tokenizer)
  dated.chat_template = source
  marks = {tokenizer_fingerprint(dated)}
  for day in (datetime.date(2024, 7, 6), datetime.date(2025, 8, 9)):
    one = with_date(dated, day)
    said = one.apply_chat_template([{"role": "user"}], tokenize=False)
    assert (said == text) == (day.day == 6)
    marks.add(tokenizer_fingerprint(one))
  assert len(marks) == 3
  assert dated.chat_template == source
  # Without a date nothing changes, nor does what it is known by.
  assert with_date(tokenizer, day) is tokenizer


def test_a_template_has_bos_only_where_plain_text_has_it(tokenizer, tmp_path):
  path = tmp_path / "mine.jinja"
  path.write_text("{{ messages }}\n", encoding="utf-8")
  assert chat_template(with_template(tokenizer, str(path))) == (
    "{{ messages }}\n"  # a file says so itself
  )
  bare = copy.deepcopy(tokenizer)
  bare.backend_tokenizer.post_processor = None
  assert with_template(bare, "alpaca").chat_template == TEMPLATES["alpaca"]


def test_one_of_several_templates_is_the_default_or_named(tokenizer, tmp_path):
  several = copy.deepcopy(tokenizer)
  several.chat_template = {"rag": "{{ 'rag' }}", "tool_use": "{{ 'tool' }}"}
  several.save_pretrained(tmp_path)
  loaded = load_tokenizer(tmp_path)
  with pytest.raises(InputError) as info:
    chat_template(loaded)
  for word in ("rag, tool_use", "`template`"):
    assert word in str(info.value)
  assert chat_template(with_template(loaded, "rag")) == "{{ 'rag' }}"
  assert TEMPLATES["chatml"] in chat_template(with_template(loaded, "chatml"))
  several.chat_template["default"] = "{{ 'default' }}"
  assert chat_template(several) == "{{ 'default' }}"


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("vicuna", None, "the named are transcript, chatml, alpaca, plain"),
    ("none.jinja", None, "no such .jinja file"),
    ("mine.txt", b"{{ messages }}", "no such .jinja file"),
    ("mine.jinja", b"\xff", "mine.jinja: is not UTF-8"),
    ("mine.jinja", b"a" * 100_001, "mine.jinja: more than 100000 bytes"),
    ("mine.jinja", b"a\n{% if %}", "mine.jinja line 2: "),
    ("mine.jinja", b"{% nonsense %}", "mine.jinja line 1: "),
  ],
)
def test_what_is_no_template_is_refused(
  name, content, message, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError) as info:
    load_template(name)
  assert message in str(info.value) and "\n" not in str(info.value)


def test_a_template_file_may_refuse_an_empty_conversation(tmp_path):
  path = tmp_path / "mine.jinja"
  for source in ("{{ messages[0]['content'] + 1 }}", "a" * 100_000, ""):
    for encoding in ("utf-8", "utf-8-sig"):
      if len(source.encode(encoding)) <= 100_000:
        path.write_text(source, encoding=encoding)
        assert load_template(str(path)) == source


@pytest.mark.parametrize("texts", [[], [""], ["lone \ud800"]])
def test_few_texts_still_give_a_tokenizer(texts):
  tokenizer = train_tokenizer(texts, SMALLEST)
  assert tokenizer.decode(tokenizer("é?").input_ids) == "<bos>é?"


def test_too_few_tokens_are_refused():
  with pytest.raises(InputError, match=f"{SMALLEST} or more"):
    train_tokenizer(TEXTS, SMALLEST - 1)


@pytest.mark.parametrize(
  "name, content",
  [
    ("README.md", "nothing else"),
    ("tokenizer.json", "{"),
    ("tokenizer.json", '{"model": {"type": "none"}}'),
    ("config.json", '{"model_type": "gpt2"}'),
    ("config.json", '{"model_type": "llama"}'),
  ],
)
def test_a_folder_without_a_tokenizer_is_named(name, content, tmp_path):
  (tmp_path / name).write_text(content)
  with pytest.raises(InputError) as info:
    load_tokenizer(tmp_path)
  assert str(tmp_path) in str(info.value) and "\n" not in str(info.value)


def test_a_missing_folder_is_no_hub_name(tmp_path):
  with pytest.raises(InputError, match="no such folder"):
    load_tokenizer(tmp_path / "gpt2")


def test_code_in_a_tokenizer_folder_does_not_run(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path)
  path = tmp_path / "tokenizer_config.json"
  config = json.loads(path.read_text())
  config |= {
    "tokenizer_class": "Mine",
    "auto_map": {"AutoTokenizer": [None, "mine.Mine"]},
  }
  path.write_text(json.dumps(config))
  touched = tmp_path / "touched"
  (tmp_path / "mine.py").write_text(f"open({str(touched)!r}, 'w')\n")
  try:
    load_tokenizer(tmp_path)
  except InputError as error:
    assert str(tmp_path) in str(error)
  assert not touched.exists()


def test_importing_loads_no_heavy_library():
  program = (
    "import sys, mrpo_jax.data.tokenizer, mrpo_jax.data.encode\n"
    "print({'transformers', 'tokenizers'} & set(sys.modules))"
  )
  command = [sys.executable, "-c", program]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout == "set()\n"


# Files of tokenizers that mean harm, or nothing.


def changed(folder, name, change):
  """A trained tokenizer's folder, with a change to one of its JSON files."""
  train_tokenizer(TEXTS, 300).save_pretrained(folder)
  path = folder / name
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  return folder


def test_dropout_is_off_and_said(tmp_path, caplog):
  caplog.set_level(logging.INFO, "mrpo_jax")
  folder = changed(
    tmp_path, "tokenizer.json", lambda one: one["model"].update(dropout=0.5)
  )
  tokenizer = load_tokenizer(folder)
  ids = [tokenizer(TEXTS[0]).input_ids for _ in range(9)]
  assert ids == ids[:1] * 9
  assert len(ids[0]) < len(TEXTS[0])  # some merges are left
  (said,) = [line for line in caplog.messages if "dropout 0.5" in line]
  assert said.startswith(f"{folder}: its tokenizer drops merges at random")
  plain = changed(tmp_path / "plain", "tokenizer.json", lambda one: None)
  same = [
    tokenizer_fingerprint(one) for one in (tokenizer, load_tokenizer(plain))
  ]
  assert same[0] == same[1]


NOPE = [
  {"SpecialToken": {"id": "<nope>", "type_id": 0}},
  {"Sequence": {"id": "A", "type_id": 0}},
]


@pytest.mark.parametrize(
  "part, value",
  [
    (
      "normalizer",
      {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    ),
    (
      "normalizer",
      {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="},
    ),
    (
      "normalizer",
      {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    ),
    (
      "post_processor",
      {
        "type": "TemplateProcessing",
        "single": NOPE,
        "pair": [*NOPE, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
      },
    ),
  ],
)
def test_a_tokenizer_that_panics_is_refused(tmp_path, part, value):
  folder = changed(
    tmp_path, "tokenizer.json", lambda one: one.update({part: value})
  )
  with pytest.raises(InputError) as info:
    load_tokenizer(folder)
  assert str(info.value).startswith(f"{folder}: no tokenizer ")
  assert "panics" in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("template", [5, {"default": 5}])
def test_a_chat_template_that_is_no_text_is_refused(tmp_path, template):
  folder = changed(
    tmp_path,
    "tokenizer_config.json",
    lambda one: one.update(chat_template=template),
  )
  with pytest.raises(InputError) as info:
    load_tokenizer(folder)
  assert str(info.value).startswith(f"{folder}: ")
  assert "chat template is '5', want a text" in str(info.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_pipe_among_the_files_is_refused(tmp_path, name):
  folder = changed(tmp_path, "tokenizer_config.json", lambda one: None)
  (folder / name).unlink(missing_ok=True)
  (folder / "vocab.txt").touch()
  os.mkfifo(folder / name)
  with pytest.raises(InputError, match=f"{name}: is a pipe"):
    load_tokenizer(folder)
