#!/usr/bin/env bash
#SBATCH --job-name=distconv
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=2
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=distconv-%j.log
##SBATCH --partition=… --account=…
# Slurm, on any number of nodes:
#   sbatch --nodes=4 launch/slurm.sh source=… target=… layout.tp=8
# START says who starts the processes of a node: srun (as usual), torchrun, or srun with an MPI for which there is an
# mpi4py, by its name for --mpi (pmix, pmi2). HEAD and PORT: where they meet, if not the first node and a port by job.
# Two minutes before its time is over a job is asked to end, and goes back into the queue to be continued, at most
# RESTARTS times; so it does if a node fails.
set -euo pipefail
# module load python
run=()
# With pyxis and enroot these are options of srun, with apptainer it is a program in front:
# run=(--container-image="$HOME/distconv.sqsh" --container-mounts=/ckpt:/ckpt)
# run=(apptainer exec --bind /ckpt "$HOME/distconv.sif")

read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${HEAD:-$first}" MASTER_PORT="${PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
case ${START:-srun} in
srun)
    step=(--mpi=none --cpus-per-task="$SLURM_CPUS_PER_TASK")
    program=(python -m distconv)
    ;;
torchrun)
    step=(--mpi=none --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
    step+=(--cpus-per-task="$((SLURM_NTASKS_PER_NODE * SLURM_CPUS_PER_TASK))")
    # The number of a node is known only there.
    # shellcheck disable=SC2016
    program=(bash -c 'exec torchrun --node-rank "$SLURM_NODEID" "$@"' torchrun)
    program+=(--nproc-per-node "$SLURM_NTASKS_PER_NODE" --nnodes "$SLURM_JOB_NUM_NODES" --rdzv-id "$SLURM_JOB_ID")
    program+=(--master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" -m distconv)
    ;;
*)
    step=(--mpi="$START" --cpus-per-task="$SLURM_CPUS_PER_TASK")
    program=(python -m mpi4py -m distconv)
    ;;
esac

# srun itself would answer SIGTERM by killing the processes.
over=
trap 'over=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 "${step[@]}" "${run[@]}" "${program[@]}" "$@" &
status=0
wait "$!" || status=$?
if [[ $over ]]; then
    # The signal has ended the first wait.
    status=0
    wait "$!" || status=$?
    if ((status && ${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-10})); then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
