# SPDX-License-Identifier: Apache-2.0
"""The harness's own Hugging Face back end as a player; see harness.py."""

import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from benchmarks import turns
from benchmarks.peers.harness_requests import answered


def main():
  given = turns.worker_arguments(__doc__, batch=8)
  lm = HFLM(
    given.job["folder"],
    dtype="float32",
    device="cpu",
    batch_size=given.batch,
  )
  about = {"torch": torch.__version__, "transformers": transformers.__version__}
  about |= {"lm-eval": lm_eval.__version__, "batch": given.batch}
  about["threads"] = torch.get_num_threads()
  turns.serve(given.channel, about, lambda _: answered(lm, given.job))


if __name__ == "__main__":
  main()
