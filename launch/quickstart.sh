#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fresh machine -> environment -> the main job on embedded human preferences.
#   bash launch/quickstart.sh [workdir]
# Running it again repeats nothing that is finished.
set -euo pipefail
workdir=${1:-/tmp/mrpo_quickstart}
[[ $workdir = /* ]] || workdir=$PWD/$workdir
[[ $workdir != *,* ]] || { # it separates the arguments of a config
  echo "error: $workdir has a comma; name another folder" >&2
  exit 2
}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh tensorboard

export HF_HUB_OFFLINE=1 # from here on nothing uses the network
config=configs/quickstart.py
models=$workdir/models

for name in sft-base sft-second; do
  echo "== $name"
  mrpo train --config=$config:$name --workdir="$workdir/$name"
  [ -d "$models/$name" ] ||
    mrpo export --workdir="$workdir/$name" --to="$models/$name"
done
for name in dpo mrpo; do
  echo "== $name"
  mrpo train --config="$config:$name,models=$models" --workdir="$workdir/$name"
done

echo
mrpo report --workdir="$workdir"
echo "
Small models, minutes of training: this shows that the machine runs, not which
method is better.  Accuracy and margin are on held-out pairs, against the
supervised start.
Results: $workdir/results.json
Runs:    $workdir/{sft-base,sft-second,dpo,mrpo}   (metrics.jsonl, checkpoints)
Models:  $models/{sft-base,sft-second}             (Hugging Face folders)
${SECONDS} seconds"
