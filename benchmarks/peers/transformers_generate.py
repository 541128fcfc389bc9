# SPDX-License-Identifier: Apache-2.0
"""transformers' `generate` as a player; see benchmarks/generation.py."""

import time

import torch
import transformers

from benchmarks import turns

AT_ONCE = 20  # prompts


def player(job, cache):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    job["folder"], dtype=torch.float32
  ).eval()
  pad = job["stop"]

  def said(prompts, new, **more):
    """What `generate` returns: greedy, exactly `new` tokens unless told."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    given = dict(do_sample=False, min_new_tokens=new, max_new_tokens=new)
    given |= dict(pad_token_id=pad, eos_token_id=pad)
    given |= dict(repetition_penalty=1.0, use_cache=True)
    if cache == "static":
      given["cache_implementation"] = "static"
    with torch.inference_mode():
      return model.generate(
        torch.tensor(ids), attention_mask=torch.tensor(mask), **given | more
      )

  def turn(number):
    prompts = job["prompts"]
    started = time.perf_counter()
    said(prompts, 1)
    middle = time.perf_counter()
    said(prompts, job["new"])
    seconds = time.perf_counter() - middle
    return {
      "whole": seconds,
      "decode": (seconds - (middle - started)) / (job["new"] - 1),
      "memory": turns.resident(),
    }

  def equality(number):
    """Of each prompt its ids, and how far the second token is behind."""
    found = []
    for first in range(0, len(job["prompts"]), AT_ONCE):
      out = said(
        job["prompts"][first : first + AT_ONCE],
        job["new"],
        output_logits=True,
        return_dict_in_generate=True,
      )
      logp_BTV = torch.log_softmax(torch.stack(out.logits, 1), -1)
      ids_BT = out.sequences[:, -job["new"] :]
      logp_BT = logp_BTV.gather(-1, ids_BT[..., None])[..., 0]
      logp_BTV[..., pad] = -torch.inf  # what may not end
      best_BT, second_BT = logp_BTV.topk(2).values.unbind(-1)
      figures = ids_BT, logp_BT, best_BT - second_BT
      for ids, logp, gap in zip(
        *(one.tolist() for one in figures), strict=True
      ):
        found.append({"ids": ids, "logp": logp, "gap": gap})
    return {"found": found}

  return equality if job["equality"] else turn


def main():
  given = turns.worker_arguments(__doc__, cache="dynamic")
  about = {"torch": torch.__version__, "transformers": transformers.__version__}
  about["threads"] = torch.get_num_threads()
  turns.serve(given.channel, about, player(given.job, given.cache))


if __name__ == "__main__":
  main()
