#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A TPU slice of one or many VMs, and one command on all of them:
#   bash launch/tpu_pod.sh up           ask for the slice, wait until it is up
#   bash launch/tpu_pod.sh run COMMAND  up, copy, install, run; again if preempted
#   bash launch/tpu_pod.sh stage MODEL  a hub model into the share, once for all
#   bash launch/tpu_pod.sh logs|stop    follow worker 0 | save and end the run
#   bash launch/tpu_pod.sh down         delete the slice
# DRY_RUN=1 prints the commands instead.  Export, or set here:
NAME=${NAME-mrpo}           # of the queued resource and of its node
ZONE=${ZONE-}               # us-east5-a
ACCELERATOR=${ACCELERATOR-} # v5p-32
RUNTIME=${RUNTIME-}         # v2-alpha-tpuv5 (v5p), ...v5-lite (v5e), ...v6e
CAPACITY=${CAPACITY---spot} # --spot, --reserved, or empty: on demand
SHARE=${SHARE-}             # NFS export HOST:/DIR, gs://BUCKET to mount, or none
MOUNT=${MOUNT-/mnt/share}   # where it is on every VM; --workdir lies in it
# With SHARE=none, --workdir is gs://BUCKET/NAME itself, and nothing is mounted.
ADDRESS=${ADDRESS-}         # internal: VMs without others; iap: through its tunnel
# HF_TOKEN, where it is set, is copied to a file that only its owner reads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

tpus() { step gcloud compute tpus "$@" "--zone=$ZONE" --quiet; }
queue() { tpus queued-resources "$@"; }
on() {
  tpus tpu-vm ssh "$NAME" ${reach:+"$reach"} "--worker=$1" "--command=$2"
}
copy() { tpus tpu-vm scp "$1" "$NAME:$2" ${reach:+"$reach"} --worker=all; }
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
          "--accelerator-type=$ACCELERATOR" ${CAPACITY:+"$CAPACITY"} \
          ${ADDRESS:+--internal-ips}
        pretended=${DRY_RUN:+ACTIVE} failures=0
        ;;
      *) echo "$NAME: $state" && sleep 30 ;;
    esac
  done
}

token() { # where huggingface_hub looks for it; never on a command line
  [ -n "${HF_TOKEN-}" ] || return 0
  local file code=0
  file=$(mktemp) && printf %s "$HF_TOKEN" > "$file"
  on all "mkdir -p -m 700 .cache/huggingface" &&
    copy "$file" .cache/huggingface/token || code=$?
  rm -f "$file"
  return $code
}

start() { # on these workers
  local archive=${TMPDIR:-/tmp}/$NAME.tgz unpack work workers=$1
  shift
  # What still runs there keeps its code, and tpu_vm.sh waits for it.
  unpack="mkdir -p mrpo_jax; flock -n mrpo.lock tar -xzf mrpo_jax.tgz"
  work=$(printf '%q ' bash mrpo_jax/launch/tpu_vm.sh "$SHARE" "$MOUNT" "$@")
  step tar --exclude-vcs --exclude=.venv --exclude=__pycache__ \
    -czf "$archive" . &&
    copy "$archive" mrpo_jax.tgz && token &&
    on "$workers" "$unpack -C mrpo_jax; $work"
}

run() {
  local code
  while true; do
    up
    code=0 && start all "$@" || code=$?
    case $code in
      0 | 2) exit "$code" ;; # done | the input is wrong
      75 | 255) ;;           # SIGTERM | no connection
      *) ((++failures < 3)) || exit "$code" ;;
    esac
    sleep 60 # the service may not know of a preemption yet
  done
}

need ZONE
[[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  fail "NAME=$NAME; want small letters, digits and - as in Google Cloud"
case $ADDRESS in
  '') reach='' ;;
  internal) reach=--internal-ip ;;
  iap) reach=--tunnel-through-iap ;;
  *) fail "ADDRESS=$ADDRESS; want internal, iap or nothing" ;;
esac
case ${1-}/$# in
  up/1) need ACCELERATOR RUNTIME && up ;;
  run/1) fail "no command; want bash launch/tpu_pod.sh run mrpo train ..." ;;
  run/*) need ACCELERATOR RUNTIME SHARE && run "${@:2}" ;;
  stage/2)
    need ACCELERATOR RUNTIME SHARE
    [ "$SHARE" != none ] || fail "stage needs a SHARE; SHARE=none is none"
    up
    start 0 hf download "$2" "--local-dir=$MOUNT/models/$2"
    ;;
  logs/1) on 0 "tail -n 100 -F mrpo.log" ;;
  stop/1) on all "pkill -TERM -f '[l]aunch/worker.sh'" ;;
  down/1) queue delete "$NAME" --force ;;
  *) fail "want up, run COMMAND, stage MODEL, logs, stop or down; see the top of $0" ;;
esac
