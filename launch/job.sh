# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts that do a whole job, with the default of their [workdir]
# and their arguments: sets $workdir, goes to the repository, knows `train`.
[[ $# -lt 3 && ${2-} != -* ]] || {
  echo "error: want bash $0 [workdir]; see the top of $0" >&2
  exit 2
}
workdir=${2:-$1}
[[ $workdir = /* ]] || workdir=$PWD/$workdir
[[ $workdir != *,* ]] || { # it separates the arguments of a config
  echo "error: $workdir has a comma; name another folder" >&2
  exit 2
}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

train() { # CONFIG NAME [FLAG ...]: a run in the workdir, to its last step
  local run=$workdir/$2 steps
  echo "== $2"
  mrpo train "--config=$1" --workdir="$run" "${@:3}"
  steps=$(python -c 'import json, sys
print(json.load(open(sys.argv[1], encoding="utf-8"))["steps"])' \
    "$run/config.json")
  # A run that SIGTERM stopped exits with 0, too.
  [ -d "$run/checkpoints/$steps" ] || {
    echo "error: $run stopped before its last step; the same command goes on" >&2
    exit 75
  }
}
