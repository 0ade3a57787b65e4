"""The lines of a training's configuration that say a layout: flags, and stage lists of a model file.

Owns which of them a program of training takes, by the dialect of its parameters. Source: as `arguments` and
`model_file`; for `--pipeline-model-parallel-layout`, `pipeline_parallel_layer_layout.py` of Megatron-core 0.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distconv.layout.layout import CompleteLayout
from distconv.models.rules import TEXT
from distconv.training.model_file import MODULES, stages_key

# The beginnings of the names of dialects whose programs take the stages from a model file, or have flags of their own.
_MODEL_FILE = "mindspeed_mm"
_MINDSPEED = "mindspeed"


def lines_for(layout: CompleteLayout, dialect: str, *, predicts: bool = False) -> dict[str, Any]:
    """The flags, each with its value, and dotted key → value of the model file, if there is one.

    `predicts`: the model may have layers that predict further tokens, whose stage no flag here says.
    """
    has_file = dialect.startswith(_MODEL_FILE)
    return {
        "flags": [*_sizes(layout, dialect), *(() if has_file or predicts else _stages(layout, dialect))],
        "model_file": dict(_of_modules(layout)) if has_file else {},
    }


def _sizes(layout: CompleteLayout, dialect: str) -> Iterator[str]:
    yield f"--tensor-model-parallel-size {layout.tp}"
    yield f"--pipeline-model-parallel-size {layout.pp}"
    if layout.vpp > 1 and dialect.startswith(_MODEL_FILE):
        yield f"--virtual-pipeline-model-parallel-size {layout.vpp}"
    elif layout.vpp > 1:
        yield f"--num-virtual-stages-per-pipeline-rank {layout.vpp}"
    if layout.ep > 1:
        yield f"--expert-model-parallel-size {layout.ep}"
    if layout.expert_tp is not None:
        yield f"--expert-tensor-parallel-size {layout.expert_tp}"
    if any(size != layout.tp for size in layout.modality_tp.values()):
        yield "--hetero-parallel"


def _stages(layout: CompleteLayout, dialect: str) -> Iterator[str]:
    """The flag for text layers that are not the same on all stages."""
    rows = layout.stages.get(TEXT, ())
    counts = [count for row in rows for count in row]
    if len(set(counts)) < 2 or layout.placement != "sequential":
        return
    if dialect.startswith(_MINDSPEED):
        yield f"--num-layer-list {','.join(map(str, counts))}"
        return
    stages = ["t" * count for count in counts]
    stages[0], stages[-1] = f"E{stages[0]}", f"{stages[-1]}L"
    yield f"--pipeline-model-parallel-layout '{'|'.join(stages)}'"


def _of_modules(layout: CompleteLayout) -> Iterator[tuple[str, Any]]:
    for modality, rows in layout.stages.items():
        stages = [list(row) for row in rows]
        yield stages_key(modality), stages if layout.vpp > 1 else stages[0]
    for modality, size in layout.modality_tp.items():
        if size != layout.tp:
            yield f"{MODULES[modality][1]}.tp", size
