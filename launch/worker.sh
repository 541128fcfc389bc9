#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One process of a run; what the cluster scripts start on every machine.
#   bash launch/worker.sh EXTRA mrpo train --config=... --workdir=...
# EXTRA of setup.py brings jax for the machine: tpu, cuda, cuda12.  The exit code
# is the command's; 75 (try again) where SIGTERM ended it: then mrpo saves and
# exits with 0, which a scheduler must not take for a finished run.
set -euo pipefail
[ $# -gt 1 ] || {
  echo "error: want bash launch/worker.sh EXTRA mrpo train ..." >&2
  exit 2
}
extra=$1
shift
if [ -n "${DRY_RUN-}" ]; then
  printf '%q ' source launch/environment.sh "$extra" && echo
  printf '%q ' "$@" && echo
  exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh "$extra"
export PYTHONUNBUFFERED=1 # a log that is followed

"$@" &
child=$!
signals=0
trap 'signals=$((signals + 1)); kill -TERM "$child" 2>/dev/null || true' TERM
seen=-1
while [ "$seen" != "$signals" ]; do # a signal cuts `wait` short
  seen=$signals code=0
  wait "$child" || code=$?
done
if [ "$signals" != 0 ]; then
  # Saved; died before it could; and 127, -1: bash no longer knows.
  case $code in 0 | 143 | 127 | -1) code=75 ;; esac
fi
exit "$code"
