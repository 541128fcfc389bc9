# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts for clusters.
exec 3>&1 # a dry run prints here, from within $(...) too

fail() {
  echo "error: $*" >&2
  exit 2
}

need() { # that the variables of these names are set
  local name
  for name; do
    [ -n "${!name}" ] || fail "set $name; see the top of $0"
  done
}

step() { # the command, or what it would be where DRY_RUN is set
  if [ -z "${DRY_RUN-}" ]; then
    "$@"
  else
    { printf '%q ' "$@" && echo; } >&3
  fi
}
