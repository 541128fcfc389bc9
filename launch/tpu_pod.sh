#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A TPU slice of one or many VMs, and one command on all of them:
#   bash launch/tpu_pod.sh up           ask for the slice, wait until it is up
#   bash launch/tpu_pod.sh run COMMAND  up, copy, install, run; again if preempted
#   bash launch/tpu_pod.sh logs|stop    follow worker 0 | save and end the run
#   bash launch/tpu_pod.sh down         delete the slice
# DRY_RUN=1 prints the commands instead.  Export, or set here:
NAME=${NAME-mrpo}           # of the queued resource and of its node
ZONE=${ZONE-}               # us-east5-a
ACCELERATOR=${ACCELERATOR-} # v5p-32
RUNTIME=${RUNTIME-}         # v2-alpha-tpuv5 (v5p), ...v5-lite (v5e), ...v6e
CAPACITY=${CAPACITY---spot} # --spot, --reserved, or empty: on demand
SHARE=${SHARE-}             # NFS export (Filestore) HOST:/DIR, or gs://BUCKET
MOUNT=${MOUNT-/mnt/share}   # where it is on every VM; --workdir lies in it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

tpus() { step gcloud compute tpus "$@" "--zone=$ZONE" --quiet; }
queue() { tpus queued-resources "$@"; }
on() { tpus tpu-vm ssh "$NAME" "--worker=$1" "--command=$2"; }
pretended='' failures=0 # state in a dry run; on one slice

up() {
  local state
  while true; do
    state=$(queue list "--filter=name~/$NAME$" "--format=value(state.state)")
    case ${state:=$pretended} in
      ACTIVE) return ;;
      FAILED | SUSPENDED) queue delete "$NAME" --force ;; # preempted
      "")
        queue create "$NAME" "--node-id=$NAME" "--runtime-version=$RUNTIME" \
          "--accelerator-type=$ACCELERATOR" ${CAPACITY:+"$CAPACITY"}
        pretended=${DRY_RUN:+ACTIVE} failures=0
        ;;
      *) echo "$NAME: $state" && sleep 30 ;;
    esac
  done
}

start() {
  local archive=${TMPDIR:-/tmp}/$NAME.tgz unpack work
  # What still runs there keeps its code, and tpu_vm.sh waits for it.
  unpack="mkdir -p mrpo_jax; flock -n mrpo.lock tar -xzf mrpo_jax.tgz"
  work=$(printf '%q ' bash mrpo_jax/launch/tpu_vm.sh "$SHARE" "$MOUNT" "$@")
  step tar --exclude-vcs --exclude=.venv --exclude=__pycache__ \
    -czf "$archive" . &&
    tpus tpu-vm scp "$archive" "$NAME:mrpo_jax.tgz" --worker=all &&
    on all "$unpack -C mrpo_jax; $work"
}

run() {
  local code
  while true; do
    up
    code=0 && start "$@" || code=$?
    case $code in
      0 | 2) exit "$code" ;; # done | the input is wrong
      75 | 255) ;;           # SIGTERM | no connection
      *) ((++failures < 3)) || exit "$code" ;;
    esac
    sleep 60 # the service may not know of a preemption yet
  done
}

need ZONE
case ${1-}/$# in
  up/1) need ACCELERATOR RUNTIME && up ;;
  run/1) fail "no command; want bash launch/tpu_pod.sh run mrpo train ..." ;;
  run/*) need ACCELERATOR RUNTIME SHARE && run "${@:2}" ;;
  logs/1) on 0 "tail -n 100 -F mrpo.log" ;;
  stop/1) on all "pkill -TERM -f '[l]aunch/worker.sh'" ;;
  down/1) queue delete "$NAME" --force ;;
  *) fail "want up, run COMMAND, logs, stop or down; see the top of $0" ;;
esac
