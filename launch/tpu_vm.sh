#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On each VM of a slice, started by tpu_pod.sh: the share, Python, the worker.
#   bash launch/tpu_vm.sh SHARE MOUNT mrpo train ... --workdir=MOUNT/...
# SHARE is an NFS export like 10.0.0.2:/share (Filestore), gs://BUCKET, which
# Cloud Storage FUSE mounts, or none, where --workdir is in a bucket itself.
# DRY_RUN=1 prints the commands instead.  The run
# outlives the connection: started again, this waits for the one that is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh
[ $# -gt 2 ] || fail "want bash launch/tpu_vm.sh SHARE MOUNT mrpo train ..."
share=$1 mount=$2
shift 2
UV=0.9.30 # brings a newer Python
site=https://packages.cloud.google.com/apt
key=/usr/share/keyrings/cloud.google.asc

apt() { # waits for the updates that a new VM makes
  step sudo apt-get -o DPkg::Lock::Timeout=600 -y "$@"
}
install_gcsfuse() {
  step sudo curl -fsSL -o "$key" "$site/doc/apt-key.gpg"
  step sudo bash -c ". /etc/os-release; echo \"deb [signed-by=$key] $site \
gcsfuse-\$VERSION_CODENAME main\" > /etc/apt/sources.list.d/gcsfuse.list"
  apt update
  apt install gcsfuse
}
mount_share() {
  step sudo mkdir -p "$mount"
  case $share in
    gs://*)
      command -v gcsfuse >/dev/null || install_gcsfuse
      step sudo chown "$(id -un)" "$mount"
      # A checkpoint is complete when its folder gets its name.
      step gcsfuse --implicit-dirs --rename-dir-limit=100000 \
        "${share#gs://}" "$mount"
      ;;
    *)
      apt install nfs-common
      step sudo mount -t nfs "$share" "$mount"
      [ -w "$mount" ] || step sudo chmod 1777 "$mount" # a new one is root's
      ;;
  esac
}
work() {
  [ "$share" = none ] || mountpoint -q "$mount" || mount_share
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    step python3 -m pip install --quiet --user "uv==$UV"
    step ~/.local/bin/uv python install 3.12
    export PYTHON=~/.local/bin/python3.12
  fi
  [ "$share" = none ] || # on the share: it outlives the slice
    export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$mount/xla}
  exec bash launch/worker.sh tpu,hub,tensorboard,gcs "$@"
}

[ -z "${DRY_RUN-}" ] || work "$@"
exec 9> ~/mrpo.lock
if flock --nonblock 9; then
  rm -f ~/mrpo.exit
  {
    trap '' HUP && set +e
    (set -e && work "$@")
    echo $? > ~/mrpo.exit
  } > ~/mrpo.log 2>&1 < /dev/null 3>&1 &
fi
exec 9>&- # the run holds it
flock ~/mrpo.lock tail -n 20 ~/mrpo.log
exit "$(cat ~/mrpo.exit || echo 255)" # 255: the VM went down meanwhile
