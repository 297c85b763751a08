#!/bin/bash
# Prepare large data on sixteen GPUs with SLURM:  sbatch examples/cluster/prepare.sh RECIPE [options of actwam prepare]
#
# Sixteen tasks that know nothing of one another share the work through the folder --cache, which all must see. They come
# and go as there is room: one that is stopped costs the piece that it was at. Train with the same --cache afterwards, or
# put `sbatch --dependency=afterok:JOB examples/cluster/slurm.sh ... --cache CACHE` in the queue right away.
#SBATCH --job-name=actwam-prepare
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue

set -euo pipefail
srun actwam prepare "$@" --device cuda
