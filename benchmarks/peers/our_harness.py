# SPDX-License-Identifier: Apache-2.0
"""mrpo_jax's HarnessLM as a player; see benchmarks/harness.py."""

import lm_eval

from benchmarks import turns
from benchmarks.peers.harness_requests import answered
from mrpo_jax import hub
from mrpo_jax.data.tokenizer import load_tokenizer
from mrpo_jax.evaluation import HarnessLM
from mrpo_jax.performance.bench import machine


def main():
  given = turns.worker_arguments(__doc__)
  folder = given.job["folder"]
  config, params = hub.load(folder, dtype="float32")
  lm = HarnessLM(config, params, load_tokenizer(folder))
  about = {name: machine()[name] for name in ("jax", "device")}
  about["lm-eval"] = lm_eval.__version__
  turns.serve(given.channel, about, lambda _: answered(lm, given.job))


if __name__ == "__main__":
  main()
