#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fresh machine -> environment -> the tests; at the end the 30 slowest.
#   bash launch/test.sh                 all but those marked `slow`
#   bash launch/test.sh --all           all
#   bash launch/test.sh tests/losses    these, slow ones too
# and any arguments of pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
export HF_HUB_OFFLINE=1
which=(-m "not slow")
if [ "${1:-}" = --all ]; then
  which=()
  shift
fi
for given in "$@"; do # a file or folder is run whole
  [ ! -e "${given%%::*}" ] || which=()
done
ruff check .
ruff format --check .
python -c 'import jax, platform; print("Python", platform.python_version(), "jax", jax.__version__)'
# Whoever has nothing left to do takes tests from another worker.
exec python -m pytest --numprocesses=auto --dist=worksteal --durations=30 \
  ${which[@]+"${which[@]}"} "$@"
