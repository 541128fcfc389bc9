# SPDX-License-Identifier: Apache-2.0
import json
import re

import huggingface_hub

from mrpo_jax.hub.card import card_text

CONFIG = dict(
  policy=dict(path="", adapter={"rank": 4}),
  references=dict(
    names=["base", "helpful"],
    base=dict(path="policy", adapter=""),
    helpful=dict(path="/models/helpful", adapter="/adapters/é"),
  ),
  loss=dict(name="mrpo", beta=0.1),
  data=dict(train="pairs {{ of }} mine.jsonl"),
)


def test_the_hub_reads_the_head_of_a_card():
  card = huggingface_hub.ModelCard(
    card_text(CONFIG, 3, {"loss": 0.5}, library="peft")
  )
  assert card.data.to_dict() == {
    "library_name": "peft",
    "tags": ["mrpo_jax", "mrpo"],
  }


def test_the_hub_links_what_is_there_by_its_name():
  config = CONFIG | dict(
    policy=dict(path="org/base@v2", adapter=None),
    data=dict(train="org/pairs:train, mine.jsonl,/there/org/more"),
  )
  text = card_text(config, 3, {}, library="transformers")
  found = huggingface_hub.ModelCard(text).data.to_dict()
  assert found["base_model"] == "org/base"
  assert found["datasets"] == ["org/pairs"]


def test_a_card_says_where_the_model_comes_from():
  text = card_text(CONFIG, 3, {"loss": 0.5}, library="transformers")
  head, title, *_ = text.split("---\n\n")
  assert head == (
    "---\nlibrary_name: transformers\ntags:\n- mrpo_jax\n- mrpo\n"
  )
  assert title.startswith("# mrpo, step 3\n")
  rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", text, re.MULTILINE))
  assert rows == {
    "policy": "made from a seed, with an adapter",
    "references": "base: policy; helpful: /models/helpful, with an adapter",
    "loss": '`{"name": "mrpo", "beta": 0.1}`',
    "data": "pairs {{ of }} mine.jsonl",  # a value is no template
  }
  metrics, config = re.findall(r"```json\n(.*?)\n```\n", text, re.DOTALL)
  assert json.loads(metrics) == {"loss": 0.5}
  assert json.loads(config) == CONFIG
  assert text.endswith("}\n```\n")


def test_a_run_without_references_says_so():
  alone = CONFIG | dict(references=dict(names=[]))
  assert "| references | none |" in card_text(alone, 3, {}, library="peft")
