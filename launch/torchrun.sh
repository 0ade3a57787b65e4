#!/usr/bin/env bash
# One machine, or one call per machine of a small cluster without a scheduler.
#   one machine:      PROCESSES=8 launch/torchrun.sh source=… target=… layout.tp=8
#   every machine:    NODES=4 NODE=0..3 HEAD=first-host PROCESSES=8 launch/torchrun.sh …
# source and target must be on a file system that all machines share.
set -euo pipefail
exec torchrun \
    --nproc-per-node "${PROCESSES:-4}" \
    --nnodes "${NODES:-1}" \
    --node-rank "${NODE:-0}" \
    --master-addr "${HEAD:-127.0.0.1}" \
    --master-port "${PORT:-29500}" \
    -m distconv "$@"
