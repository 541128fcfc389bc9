# SPDX-License-Identifier: Apache-2.0
"""A reward of texts for both sides of a comparison; it costs next to nothing.

Imports the standard library alone.
"""

import zlib


def reward(prompts, responses):
  """Characters, and a fraction by which no two different texts tie."""
  return [
    len(text) + zlib.crc32(text.encode()) / 2**32
    for _, text in zip(prompts, responses, strict=True)
  ]
