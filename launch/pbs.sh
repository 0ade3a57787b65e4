#!/usr/bin/env bash
#PBS -N distconv
#PBS -S /bin/bash
#PBS -j oe
#PBS -r y
#PBS -V
# PBS (OpenPBS, PBS Professional, Torque) with any MPI. It submits itself, with every word as it is:
#   launch/pbs.sh -l select=4:ncpus=16:mpiprocs=8 -l walltime=02:00:00 -- source=… target=… layout.tp=8
# What stands before -- goes to qsub; Torque has -l nodes=4:ppn=8 instead of select. At the end of its time PBS asks the
# job to end; the same command continues it then.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [[ -z ${PBS_NODEFILE:-} ]]; then
    options=()
    for ((i = 1; i <= $#; i++)); do
        if [[ ${!i} == -- ]]; then
            options=("${@:1:i-1}")
            shift "$i"
            break
        fi
    done
    printf -v command '%q ' "$here/${0##*/}" "$@"
    printf '%s\n' '#!/bin/bash' "$(grep '^#PBS' "$0")" "exec $command" | qsub "${options[@]}"
    exit
fi

# module load openmpi python
cd "$PBS_O_WORKDIR"
# One line for each process.
PROCESSES=$(wc -l <"$PBS_NODEFILE")
export PROCESSES
exec "$here/mpirun.sh" --hostfile "$PBS_NODEFILE" -- "$@"
