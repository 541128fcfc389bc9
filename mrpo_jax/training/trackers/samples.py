# SPDX-License-Identifier: Apache-2.0
"""Samples in a line of metrics.jsonl: what the policy answered."""

import textwrap

SAMPLES = "samples"  # their key in a line
KEYS = {"index": int, "prompt": str, "response": str, "tokens": int}
KEYS |= {"finish": str}


def are_samples(value):
  """Is it a list of samples, as lines of metrics.jsonl have them?"""
  return isinstance(value, list) and all(
    isinstance(one, dict)
    and all(type(one.get(key)) is kind for key, kind in KEYS.items())
    for one in value
  )


def markdown(sample):
  """A sample as Markdown, its texts as they are."""
  prompt, response = (
    textwrap.indent(sample[key], "    ", lambda line: True)
    for key in ("prompt", "response")
  )
  about = f"{sample['tokens']} tokens, {sample['finish']}"
  return f"{prompt}\n\n**answer** ({about})\n\n{response}"
