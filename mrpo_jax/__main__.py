# SPDX-License-Identifier: Apache-2.0
"""`python -m mrpo_jax` is the command `mrpo`."""

import sys

from mrpo_jax.cli import main

if __name__ == "__main__":
  sys.exit(main())
