# SPDX-License-Identifier: Apache-2.0
"""Multi-reference preference optimization in JAX.

Axes, the same letters everywhere:

  B  pairs in the batch               L  layers (scanned axis of a weight)
  C  choice: 0 chosen, 1 rejected     D  model width
  K  references; 0 is the base        H, G  query heads, key-value heads
  R  packed rows                      E  width of a head
  T, S  positions: queries, keys      F  width of the MLP
  N  pairs of the whole data set      V  vocabulary
  M  scored positions of a row        A  micro-batches of a step
  X, Y  prompts, responses (tabular)  I  runs trained at once

`logp` is a natural logarithm in nats, summed over response tokens; `mean_logp`
is the same divided by the response's token count.
"""

import logging

__version__ = "0.2.0"  # setup.py reads it
# Quiet unless asked; the command `mrpo` prints what is logged here.
logging.getLogger(__name__).addHandler(logging.NullHandler())
