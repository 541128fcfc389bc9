# SPDX-License-Identifier: Apache-2.0
"""Does a step cost more with more scored references?  Side by side.

  python -m benchmarks.scored_references

One policy of the quickstart's shape, 64 human pairs a step, MRPO against 1, 2
and 4 scored references and against one online; steps of all kinds take turns,
so that what the machine does besides falls on all alike.
"""

import functools
import itertools
import os
import platform
import time

import jax
import numpy as np

from configs import common, quickstart
from mrpo_jax import losses, optimizer, parallel, train, train_state
from mrpo_jax.data import encode, formats, loader, vocabulary
from mrpo_jax.models import spec
from mrpo_jax.objective import Model, Objective
from mrpo_jax.report import aligned

BATCH, STEPS, WARM_UP = 64, 20, 2
KINDS = {"1 scored": (1, True), "2 scored": (2, True), "4 scored": (4, True)}
KINDS |= {"1 online": (1, False)}


def main():
  pairs = list(formats.read(common.HH_HARMLESS / "train.jsonl.gz"))
  texts = (text for pair in pairs for text in formats.texts(pair))
  shape = quickstart.SHAPES["base"]
  tokenizer = vocabulary.train_tokenizer(
    texts, kind=shape["tokenizer"], vocab_size=shape["vocab_size"]
  )
  encoded = encode.encode_all(tokenizer, pairs, max_prompt=96, max_response=160)
  encoded = [one for one in encoded if not one.dropped]
  names = ("layers", "width", "heads", "kv_heads", "mlp_width")
  config = spec.ModelConfig(
    **{name: shape[name] for name in names},
    head_dim=shape["width"] // shape["heads"],
    vocab_size=len(tokenizer),
    tied=True,
  )
  runs = {kind: runner(config, encoded, *of) for kind, of in KINDS.items()}
  seconds = {kind: [] for kind in KINDS}
  for step, kind in itertools.product(range(WARM_UP + STEPS), KINDS):
    started = time.perf_counter()
    next(runs[kind])
    if step >= WARM_UP:
      seconds[kind].append(time.perf_counter() - started)
  base = np.array(seconds["1 scored"])
  rows = [("references", "ms a step", "to 1 scored", "quartiles")]
  for kind, times in seconds.items():
    # Of neighbours in time, so that a slow minute is in both.
    ratio = np.array(times) / base
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    rows.append(
      (
        kind,
        f"{1e3 * np.median(times):.0f}",
        f"{middle:.3f}",
        f"{low:.3f} to {high:.3f}",
      )
    )
  print(aligned(rows))
  print(
    f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, "
    f"{platform.machine()}, Python {platform.python_version()}, "
    f"jax {jax.__version__}, {jax.devices()[0].device_kind}"
  )


def runner(config, encoded, K, scored):
  """An iterator whose every turn is a whole step, its data included."""
  objective = Objective(
    pairs=BATCH,
    policy=Model(config),
    references=(Model(config, scored=scored),) * K,
    names=tuple("abcd"[:K]),
    method=losses.build("mrpo", weights="uniform"),
  )
  transformation, _ = optimizer.make(peak_lr=1e-5, steps=STEPS)
  params = spec.init(config, jax.random.key(0))
  mesh = parallel.make_mesh(devices=jax.devices()[:1])
  memory = objective.method.init(K)
  table = spec.table(config)
  shardings = train_state.shardings(table, transformation, mesh, memory)
  create = functools.partial(
    train_state.create, transformation=transformation, method_state=memory
  )
  state = jax.jit(create, out_shardings=shardings)(params)
  step = train.compile_step(
    objective, transformation, shardings, parallel.rows_sharding(mesh)
  )
  packing = loader.Packing(batch=BATCH, length=512, rows=1)
  rng, shape = np.random.default_rng(0), (len(encoded), 2, K)
  known = loader.Known(
    {
      "character_BC": np.full(shape[:2], 100, np.float32),
      "ref_logp_BCK": rng.normal(-100, 10, shape).astype(np.float32),
      "ref_length_BCK": np.full(shape, 50, np.float32),
    }
  )
  references = (None if scored else params,) * K
  for _, (views, given) in loader.training(
    [encoded], packing, seed=0, known=known
  ):
    views = tuple(parallel.global_rows(view, mesh) for view in views)
    given = parallel.global_figures(given, mesh)
    state, metrics = step(state, None, references, views, given)
    yield jax.block_until_ready(metrics)


if __name__ == "__main__":
  main()
