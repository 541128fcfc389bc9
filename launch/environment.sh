# SPDX-License-Identifier: Apache-2.0
# Sourced: makes .venv in the repository and installs this package with the
# extra $1, unless that was done since setup.py changed; then activates it.
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $python is older than 3.11; set PYTHON to a newer one" >&2
  exit 2
}
mark=.venv/installed-$1
if ! cmp -s setup.py "$mark"; then
  [ -d .venv ] || "$python" -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check -e ".[$1]"
  cp setup.py "$mark"
fi
source .venv/bin/activate
# Compiled programs outlive the process that compiled them.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv/xla}
