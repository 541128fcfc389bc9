# SPDX-License-Identifier: Apache-2.0
"""The commands of `mrpo`, a function of their flags each.

Its docstring is its help.  What they work with is imported inside them, so that
help needs no jax.
"""

from mrpo_jax.cli.commands import data, models, runs

COMMANDS = {
  "train": runs.train,
  "score": runs.score,
  "store": data.store,
  "export": runs.export,
  "generate": models.generate,
  "chat": models.chat,
  "evaluate": models.evaluate,
  "compare": models.compare,
  "report": runs.report,
  "sweep": runs.sweep,
  "bench": runs.bench,
  "plan": runs.plan,
  "import-gguf": models.import_gguf,
  "inspect": models.inspect,
  "prepare": data.prepare,
  "bridge": data.bridge,
}
