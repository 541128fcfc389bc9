# SPDX-License-Identifier: Apache-2.0
"""The README.md that an exported model carries: where it comes from."""

import json

TEMPLATE = """\
---
library_name: {library}
tags:
- mrpo_jax
- {loss}
---

# {loss}, step {step}

Trained with mrpo_jax on preference pairs.

| | |
|---|---|
| policy | {policy} |
| references | {references} |
| loss | `{loss_section}` |
| data | {data} |

The last numbers of the run:

```json
{metrics}
```

Its whole config:

```json
{config}
```
"""
EMPTY = "none"


def card_text(config, step, metrics, *, library):
  """The card of one step of a run.

  Args:
    config: the checked config of the run, as in its config.json.
    step: that was exported.
    metrics: dict of the last line that was written up to that step.
    library: what reads the folder, "transformers" or "peft".
  """
  references = config["references"]
  named = [
    f"{name}: {_origin(references[name])}" for name in references["names"]
  ]
  return TEMPLATE.format(
    library=library,
    loss=config["loss"]["name"],
    step=step,
    policy=_origin(config["policy"]),
    references="; ".join(named) or EMPTY,
    loss_section=json.dumps(config["loss"]),
    data=config["data"]["train"],
    metrics=json.dumps(metrics, indent=2),
    config=json.dumps(config, indent=2),
  )


def _origin(section):
  """Where a model's weights come from, in words."""
  path = section["path"] or "made from a seed"
  adapter = section["adapter"]
  return f"{path}, with an adapter" if adapter else path
