# SPDX-License-Identifier: Apache-2.0
"""Model card: the README.md of an export, which says where it comes from."""

import json

import huggingface_hub

from mrpo_jax.snapshots import is_name

TEMPLATE = """\
---
{{ card_data }}
---

# {{ loss }}, step {{ step }}

Trained with mrpo_jax on {{ material }}.

| | |
|---|---|
| policy | {{ policy }} |
| references | {{ references }} |
| loss | `{{ loss_section }}` |
| data | {{ data }} |

The last numbers of the run:

```json
{{ metrics }}
```

Its whole config:

```json
{{ config }}
```
"""
EMPTY = "none"


def card_text(config, step, metrics, *, library):
  """The card of one step of a run.

  Args:
    config: the checked config of the run, as in its config.json.
    step: that was exported.
    metrics: dict of the last line that was written up to that step.
    library: that reads the folder, "transformers" or "peft".
  """
  references, loss = config["references"], config["loss"]["name"]
  online = config.get("online")
  named = [
    f"{name}: {_origin(references[name])}" for name in references["names"]
  ]
  card = huggingface_hub.ModelCard.from_template(
    huggingface_hub.ModelCardData(
      library_name=library, tags=["mrpo_jax", loss], **_origins(config)
    ),
    template_str=TEMPLATE,
    loss=loss,
    step=step,
    policy=_origin(config["policy"]),
    references="; ".join(named) or EMPTY,
    loss_section=json.dumps(config["loss"]),
    material="its own responses" if online else "preference pairs",
    data=_rounds(online) if online else config["data"]["train"],
    metrics=json.dumps(metrics, indent=2),
    config=json.dumps(config, indent=2),
  )
  return f"{card}\n"  # which the template engine takes off


def _origins(config):
  """The model and the data sets that the hub has by these names."""
  base = config["policy"]["path"]
  sources = [] if config.get("online") else config["data"]["train"].split(",")
  names = [name.strip().partition(":")[0] for name in sources]
  found = {"datasets": [name for name in names if is_name(name)]}
  if is_name(base):
    found["base_model"] = base.partition("@")[0]
  return {key: value for key, value in found.items() if value}


def _rounds(online):
  """What an online run made its data of, in words."""
  return (
    f"responses to {online['prompts']}, by the reward {online['reward']}, in "
    f"{online['rounds']} rounds"
  )


def _origin(section):
  """The origin of a model's weights, in words."""
  path = section["path"] or "made from a seed"
  adapter = section["adapter"]
  return f"{path}, with an adapter" if adapter else path
