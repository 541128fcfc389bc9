#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# GPU nodes under Slurm; from the repository, on a disk that all nodes share:
#   sbatch launch/slurm.sh mrpo train --config=... --workdir=...
# Flags of sbatch go before the script and win over these:
#SBATCH --job-name=mrpo
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=TERM@120
# One process for each GPU (ntasks-per-node = gpus-per-node): jax finds the
# processes and their GPUs in Slurm's variables.  Two minutes before the time is
# up, and at a preemption, Slurm sends SIGTERM to the processes, not to this
# shell; mrpo saves, worker.sh makes that exit code 75, and the job goes back
# into the queue, where the same command resumes.
# Of setup.py: cuda for CUDA 13, cuda12 for older drivers, and what configs need.
EXTRA=${EXTRA-cuda,hub,tensorboard}
# DRY_RUN=1 prints the commands instead.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR-.}" # Slurm runs a copy of this file
[ -f launch/common.sh ] || {
  echo "error: $PWD is not the repository; submit from there" >&2
  exit 2
}
source launch/common.sh
SLURM_JOB_ID=${SLURM_JOB_ID-${DRY_RUN:+JOB}}
[ $# -gt 0 ] || fail "no command; want sbatch launch/slurm.sh mrpo train ..."
[ -n "$SLURM_JOB_ID" ] || fail "no Slurm job; want sbatch launch/slurm.sh $*"

# Once, before all processes want it.
# shellcheck disable=SC2016 # the inner shell expands it
step bash -c 'set -euo pipefail; source launch/environment.sh "$1"' bash "$EXTRA"
code=0
# Each process ends by itself: the first must not cut short how others save.
step srun --kill-on-bad-exit=0 --gpu-bind=none \
  "--cpus-per-task=${SLURM_CPUS_PER_TASK-1}" \
  bash launch/worker.sh "$EXTRA" "$@" || code=$?
[ "$code" != 75 ] || step scontrol requeue "$SLURM_JOB_ID"
exit "$code"
