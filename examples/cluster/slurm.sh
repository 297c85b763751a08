#!/bin/bash
# Train on two machines of eight GPUs with SLURM:  sbatch examples/cluster/slurm.sh RECIPE [options of actwam train]
#
# Each machine holds a whole copy of the model, cut among its GPUs (--shard 8), so that only gradients go from one to the
# other. A job that was stopped, or lost a machine, is put back in the queue and goes on from its newest checkpoint. OUT,
# the data and the cache must be where all machines see them.
#SBATCH --job-name=actwam
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    -m actwam.cli train "$@" --device cuda --shard 8 --resume &
trap 'scontrol requeue "$SLURM_JOB_ID"' TERM
wait $!
