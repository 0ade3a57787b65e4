#!/usr/bin/env bash
# MPI on one machine or, with a host file, on many; mpi4py must be built for the MPI that mpirun belongs to.
#   PROCESSES=16 launch/mpirun.sh --hostfile hosts -- source=… target=… layout.tp=8
# What stands before -- goes to mpirun. `-m mpi4py` ends all processes when one fails unexpectedly.
set -euo pipefail
options=()
while (($#)) && [[ $* == *" -- "* || $1 == -- ]]; do
    [[ $1 == -- ]] && { shift; break; }
    options+=("$1")
    shift
done
exec mpirun -n "${PROCESSES:-4}" "${options[@]}" python -m mpi4py -m distconv "$@"
