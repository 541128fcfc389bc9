#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fresh machine -> environment -> the tests.
#   bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
export HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
# Files side by side, each on one worker: it may have costly fixtures.
exec python -m pytest --numprocesses=auto --dist=loadfile "$@"
