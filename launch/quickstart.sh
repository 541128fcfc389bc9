#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fresh machine -> environment -> the main job on embedded human preferences.
#   bash launch/quickstart.sh [workdir]
# Running it again repeats nothing that is finished.
set -euo pipefail
# shellcheck source=launch/job.sh
source "$(dirname "${BASH_SOURCE[0]}")/job.sh" /tmp/mrpo_quickstart "$@"
source launch/environment.sh tensorboard,plot

export HF_HUB_OFFLINE=1 # from here on nothing uses the network
config=configs/quickstart.py
models=$workdir/models

for name in sft-base sft-second; do
  train "$config:$name" "$name"
  [ -d "$models/$name" ] ||
    mrpo export --workdir="$workdir/$name" --to="$models/$name"
done
for name in dpo mrpo; do
  train "$config:$name,models=$models" "$name"
done

said() { # what a model says, a file of JSON lines
  mrpo generate "$1" --prompts=launch/quickstart_prompts.jsonl --to="$2" \
    --temperature=0.7 --max_new_tokens=40 >/dev/null
}
echo "== samples"
said --model="$models/sft-base" "$workdir/said-before.jsonl"
said --workdir="$workdir/mrpo" "$workdir/said-after.jsonl"
python -c 'import json, sys
before, after = ([*map(json.loads, open(f, encoding="utf-8"))] for f in sys.argv[1:])
for one, other in zip(before, after, strict=True):
  print("prompt:", one["prompt"][-1]["content"])
  print("sft-base:", " ".join(one["response"].split()))
  print("mrpo:    ", " ".join(other["response"].split()))' \
  "$workdir"/said-{before,after}.jsonl

echo
mrpo report --workdir="$workdir"
echo "
Small models, minutes of training: this shows that the machine runs, not which
method is better.  Accuracy and margin are on held-out pairs, against the
supervised start.
Results: $workdir/results.json, report.html
Runs:    $workdir/{sft-base,sft-second,dpo,mrpo}   (metrics.jsonl, checkpoints)
Models:  $models/{sft-base,sft-second}             (Hugging Face folders)
${SECONDS} seconds"
