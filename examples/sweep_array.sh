#!/bin/bash
# The sweep of a profile as a SLURM array: `sbatch examples/sweep_array.sh` from the repository's folder.
# Each task trains one share of the runs, a core a run; a share that was cut off goes on when its task is submitted again.
# Submit `tying-utils sweep --profile laptop` after them, for example with --dependency=afterok:JOB: that call measures.
#SBATCH --job-name=tying-sweep
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue

set -euo pipefail
# Runs, token caches and results: a folder that all nodes see, on a file system with locks.
export TYING_HOME=${TYING_HOME:-$SLURM_SUBMIT_DIR}
export OMP_NUM_THREADS=1

# One interpreter for all tasks: the corpus "python" is its standard library, and its version is part of every run's key.
exec .venv/bin/tying-utils sweep --profile "${PROFILE:-laptop}" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
