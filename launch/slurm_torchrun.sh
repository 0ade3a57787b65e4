#!/usr/bin/env bash
#SBATCH --job-name=distconv
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
#SBATCH --output=distconv-%j.log
# sbatch launch/slurm_torchrun.sh source=… target=… layout.tp=8: one torchrun per node, PROCESSES processes each.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun --kill-on-bad-exit=1 torchrun \
    --nproc-per-node "${PROCESSES:-8}" \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head:${PORT:-29500}" \
    -m distconv "$@"
