#!/usr/bin/env bash
# MPI on one machine or, with a host file, on many; mpi4py must be built for the MPI that mpirun belongs to.
#   PROCESSES=16 launch/mpirun.sh --hostfile hosts -- source=… target=… layout.tp=8
# What stands before -- goes to mpirun. Eight processes on each host: Open MPI has --map-by ppr:8:node, MPICH and Intel
# MPI -ppn 8; more than there are cores: Open MPI has --map-by :OVERSUBSCRIBE. A line of the host file: Open MPI reads
# `node1 slots=8`, the others `node1:8`. Open MPI refuses root, unless OMPI_ALLOW_RUN_AS_ROOT=1 and
# OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 are exported.
# `-m mpi4py` ends all processes when one fails unexpectedly.
set -euo pipefail
# module load openmpi python

options=()
for ((i = 1; i <= $#; i++)); do
    if [[ ${!i} == -- ]]; then
        options=("${@:1:i-1}")
        shift "$i"
        break
    fi
done
# Open MPI would bind each process, with all its threads, to one core.
if [[ ${options[*]} != *--bind-to* && $(mpirun --version) == *"Open MPI"* ]]; then
    options+=(--bind-to none)
fi
# By its path: on other hosts the shell that starts it may not know this environment.
exec mpirun -n "${PROCESSES:-4}" "${options[@]}" "$(command -v python)" -m mpi4py -m distconv "$@"
