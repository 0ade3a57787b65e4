#!/usr/bin/env bash
# A whole job on one machine: make a checkpoint, convert it on four processes, look at the result, prove it.
# launch/demo.sh [MEGABYTES]; everything stays in demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf demo
mkdir demo
export OMP_NUM_THREADS=1

run() { printf '\n$ %s\n' "$*"; "$@"; }

job=(+model=qwen2vl source=demo/Qwen2-VL target=demo/megatron
     layout.tp=2 'layout.stages.text=[1,3,3,2]' 'layout.stages.vision=[6,0,0,0]')

run python benchmarks/synthetic.py demo/Qwen2-VL --size-mb "${1:-400}" --layers 9 --vision-layers 6
run torchrun --nproc-per-node 4 -m distconv "${job[@]}" report=demo/report.json plan_html=demo/plan.html
printf '\n$ find demo/megatron -type f\n'
find demo/megatron -type f | sort
run torchrun --nproc-per-node 4 -m distconv "${job[@]}" action=verify
printf '\n'
python - <<'PYTHON'
import torch

content = torch.load("demo/megatron/release/mp_rank_01_003/model_optim_rng.pt", weights_only=True)
print("mp_rank_01_003 as the training program reads it, checkpoint_version", content["checkpoint_version"])
for name, tensor in content["model"].items():
    print(f"  {str(tuple(tensor.shape)):16} {name}")
PYTHON
printf '\nProved: demo/megatron holds byte for byte what demo/Qwen2-VL says (a picture is in demo/plan.html); for your own model:
  %s --nproc-per-node 4 -m distconv source=/path/to/model target=/path/to/result layout.tp=2 layout.pp=2
' "$(command -v torchrun)"
