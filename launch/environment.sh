# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced: makes .venv in the repository and installs this package with the
# extras $1 (tpu or tpu,hub), unless that was done since setup.py changed; then
# activates it.  CONSTRAINTS= (empty) takes the newest versions instead of those
# that were tested.
case ${1-} in
  '' | *[!a-z0-9,]*)
    echo "error: extras are named like tpu,hub; got '${1-}'" >&2
    exit 2
    ;;
esac
venv=$(pwd -P)/.venv
# Its last file names its place: another one if the repository was copied.
if ! grep -qsF -e "=$venv" -e "=\"$venv" -e "='$venv" .venv/bin/activate; then
  [ ! -L .venv ] || { # --clear would empty what it points to
    echo "error: $venv is a link to another environment; remove the link" >&2
    exit 2
  }
  python=${PYTHON:-python3}
  command -v "$python" >/dev/null || {
    echo "error: no $python here; set PYTHON to Python 3.11 or newer" >&2
    exit 2
  }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python runs no Python 3.11 or newer; set PYTHON to one" >&2
    exit 2
  }
  { mkdir -p .venv && [ -w .venv ]; } 2>/dev/null || {
    echo "error: $venv cannot be written" >&2
    exit 2
  }
  "$python" -m venv --clear .venv
fi
if [ -L .venv/bin/python ] && [ ! -e .venv/bin/python ]; then
  # Not made anew: on a disk that machines share others may have that Python.
  echo "error: the Python of $venv is not here any more; remove that folder" >&2
  exit 2
fi
mark=.venv/installed-$1
constraints=${CONSTRAINTS-launch/constraints.txt}
if ! cat setup.py ${constraints:+"$constraints"} | cmp -s - "$mark"; then
  .venv/bin/pip install --quiet --disable-pip-version-check -e ".[$1]" \
    ${constraints:+--constraint "$constraints"}
  cat setup.py ${constraints:+"$constraints"} > "$mark"
fi
# shellcheck disable=SC1091
source .venv/bin/activate
# Compiled programs outlive the process that compiled them.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$venv/xla}
