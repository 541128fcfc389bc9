#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One run as several processes on this machine, over loopback:
#   CONFIG=configs/quickstart.py:mrpo,debug WORKDIR=/tmp/run bash launch/local.sh
# Further arguments go to the command (--config.steps=20).  The same command
# resumes; SIGTERM or Ctrl-C saves first.  DRY_RUN=1 prints all it would run.
CONFIG=${CONFIG-}         # configs/quickstart.py:mrpo,debug
WORKDIR=${WORKDIR-}       # of the run
COMMAND=${COMMAND:-train} # or score
PROCESSES=${PROCESSES:-2}
DEVICES=${DEVICES:-1}     # CPU devices of each process
GPUS=${GPUS:-0}           # of each process, instead of CPU devices
PORT=${PORT:-}            # on which process 0 listens; a free one if empty
GRACE=${GRACE:-60}        # seconds for the others to end after the first fault
PYTHON=${PYTHON:-python3} # that has mrpo_jax
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need CONFIG WORKDIR

if [ -z "$PORT" ]; then
  PORT=$("$PYTHON" -c 'import socket
with socket.socket() as s: s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi
pids=()
# Nothing outlives this script.
# shellcheck disable=SC2329 # by the traps
send() { # a signal to those that are there
  [ ${#pids[@]} -eq 0 ] || kill "$1" "${pids[@]}" 2>/dev/null || true
}
trap 'send -KILL; wait' EXIT
trap 'send -TERM' INT TERM

for ((n = 0; n < PROCESSES; n++)); do
  if [ "$GPUS" -gt 0 ]; then
    own=$(seq -s, $((n * GPUS)) $(((n + 1) * GPUS - 1)))
    devices=("CUDA_VISIBLE_DEVICES=$own")
  else
    forced=--xla_force_host_platform_device_count=$DEVICES
    devices=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$forced")
  fi
  run=(env "${devices[@]}" "$PYTHON" -m mrpo_jax "$COMMAND" "--config=$CONFIG"
    "--workdir=$WORKDIR" "--coordinator=127.0.0.1:$PORT"
    "--processes=$PROCESSES" "--process=$n" "$@")
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${run[@]}" && echo
  else
    "${run[@]}" &
    pids[n]=$!
  fi
done

code=0 deadline=
while [ ${#pids[@]} -gt 0 ] && [ $SECONDS -lt "${deadline:-$((SECONDS + 1))}" ]
do
  for n in "${!pids[@]}"; do
    kill -0 "${pids[n]}" 2>/dev/null && continue
    status=0 && wait "${pids[n]}" || status=$?
    unset "pids[n]"
    if [ $status -ne 0 ] && [ $code -eq 0 ]; then
      code=$status deadline=$((SECONDS + GRACE))
      echo "process $n ended with exit code $code" >&2
    fi
  done
  sleep 0.2
done
exit $code
