#!/usr/bin/env bash
#SBATCH --job-name=distconv
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=2
#SBATCH --time=02:00:00
#SBATCH --output=distconv-%j.log
# sbatch launch/slurm_srun.sh source=… target=… layout.tp=8: srun starts every process, without torchrun.
# With MPI (MPI=pmix or MPI=pmi2, and an mpi4py for it) the processes find each other through it, else through the
# first node's port.
set -euo pipefail
if [[ -n ${MPI:-} ]]; then
    exec srun --kill-on-bad-exit=1 --mpi="$MPI" python -m mpi4py -m distconv "$@"
fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT="${PORT:-29500}"
exec srun --kill-on-bad-exit=1 --mpi=none python -m distconv "$@"
