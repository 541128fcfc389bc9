#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One process of a run: what the scripts for clusters start on every machine.
#   bash launch/worker.sh EXTRA mrpo train --config=... --workdir=...
# EXTRA of setup.py brings jax for the machine (tpu, cuda, cuda12) and, after a
# comma each, what configs need (hub, tensorboard).  Exits as the command does;
# with 75 (try again) where SIGTERM ended it: then mrpo saves and exits with 0,
# which a scheduler must not take for a run that is done.
set -euo pipefail
trap 'exit 75' TERM # until there is a child
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh
[ $# -gt 1 ] || fail "want bash launch/worker.sh EXTRA mrpo train ..."
step source launch/environment.sh "$1"
shift
if [ -n "${DRY_RUN-}" ]; then
  step "$@" && exit
fi
export PYTHONUNBUFFERED=1 # a log that is followed

signals=0 child=''
on_term() {
  signals=$((signals + 1))
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap on_term TERM
"$@" &
child=$!
[ "$signals" = 0 ] || on_term # it came before the child had a name
seen=-1
while [ "$seen" != "$signals" ]; do # a signal cuts `wait` short
  seen=$signals code=0
  wait "$child" || code=$?
done
if [ "$signals" != 0 ]; then
  # Saved | died before it could | 127, -1: bash no longer knows.
  case $code in 0 | 143 | 127 | -1) code=75 ;; esac
fi
exit "$code"
