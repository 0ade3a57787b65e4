"""The layout in arguments of Megatron, as a script gives them or a checkpoint holds them.

Owns the names of the arguments, and the stages that they mean. Source: `megatron/training/arguments.py` of Megatron-LM
(core 0.12 to 0.19), and of MindSpeed-LLM for `num_layer_list`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distconv.errors import shown
from distconv.layout.layout import StageRows, stage_rows
from distconv.models.rules import TEXT
from distconv.training.told import Told

# Arguments that are sizes of a layout.
_SIZES = {
    "tensor_model_parallel_size": "tp",
    "expert_model_parallel_size": "ep",
    "expert_tensor_parallel_size": "expert_tp",
    "pipeline_model_parallel_size": "pp",
    "virtual_pipeline_model_parallel_size": "vpp",
    "num_virtual_stages_per_pipeline_rank": "vpp",
}
# Other numbers.
_LAYERS, _PER_STAGE = "num_layers", "num_layers_per_virtual_pipeline_stage"
_FIRST, _LAST = "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"
_LIST = "num_layer_list"
_HETEROGENEOUS = "hetero_parallel"
# Stages, or layers on them, that these arguments say in ways that are not read.
_STAGES_OTHERWISE = (
    "pipeline_model_parallel_layout",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "standalone_embedding_stage",
    "noop_layers",
)
_EXPERTS_OTHERWISE = "moe_tp_extend_ep"
# A model of several modules has its layers in a file of its own; what the arguments say of layers is a placeholder.
_MODEL_FILE = "mm_model"
_NUMBERS = (*_SIZES, _LAYERS, _PER_STAGE, _FIRST, _LAST)
# All that is read.
NAMES = frozenset({*_NUMBERS, _LIST, _HETEROGENEOUS, *_STAGES_OTHERWISE, _EXPERTS_OTHERWISE, _MODEL_FILE})
_INTEGER = re.compile(r"[0-9]{1,9}")


def layout_of_arguments(where: str, values: Mapping[str, Any], unread: Mapping[str, str] | None = None) -> Told:
    """The layout that arguments say, by their names with underscores; values are numbers, or texts as in a script.

    `unread`: argument → what of it cannot be read, in words.
    """
    problems = {_key(name): what for name, what in (unread or {}).items()}
    numbers: dict[str, int] = {}
    for name in _NUMBERS:
        value = values.get(name)
        if value is None or name in (unread or {}):
            continue
        number = int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value
        if type(number) is int and number > 0:
            numbers[name] = number
        else:
            problems[_key(name)] = f"{_flag(name)} {shown(value)}, expected a positive integer"
    found: dict[str, Any] = {key: numbers[name] for name, key in _SIZES.items() if name in numbers}
    for name in _STAGES_OTHERWISE:
        if values.get(name):
            problems[f"stages.{TEXT}"] = f"{_flag(name)}, which is not read"
    if values.get(_EXPERTS_OTHERWISE):
        problems["ep"] = f"{_flag(_EXPERTS_OTHERWISE)}, which gives experts to other ranks and is not read"
    stages = _stages(values, numbers, found, problems) if not values.get(_MODEL_FILE) else None
    if stages is not None:
        found |= {f"stages.{TEXT}": stages, "pp": len(stages[0]), "vpp": len(stages)}
    return Told(where=where, values=found, heterogeneous=bool(values.get(_HETEROGENEOUS)), unread=problems)


def _stages(
    values: Mapping[str, Any], numbers: Mapping[str, int], found: Mapping[str, Any], problems: dict[str, str]
) -> StageRows | None:
    """The text layers of the stages, where arguments alone say them; `problems` gets what contradicts."""
    pp, layers = found.get("pp", 1), numbers.get(_LAYERS)
    key = f"stages.{TEXT}"
    if values.get(_LIST):
        parts = str(values[_LIST]).split(",")
        if all(map(_INTEGER.fullmatch, parts)) and len(parts) % pp == 0:
            return stage_rows(list(map(int, parts)), pp)
        problems[key] = f"{_flag(_LIST)} {values[_LIST]}, expected one number for each stage of {pp} pipeline ranks"
        return None
    vpp = found.get("vpp", 1)
    if (per_stage := numbers.get(_PER_STAGE)) is not None and "vpp" not in found:
        if layers is None or layers % (pp * per_stage):
            problems["vpp"] = f"{_flag(_PER_STAGE)} {per_stage}, which does not divide {_flag(_LAYERS)} {layers} / {pp}"
            return None
        vpp = layers // pp // per_stage
    if layers is None or pp * vpp == 1 or key in problems:
        return None
    ends = {end: numbers[name] for end, name in ((0, _FIRST), (-1, _LAST)) if name in numbers}
    inner, others = layers - sum(ends.values()), pp - len(ends)
    if (ends and (vpp > 1 or pp == 1)) or inner < 0 or (inner % (others * vpp) if others else inner):
        words = ", ".join([f"{_flag(_LAYERS)} {layers}", *(_flag(name) for name in (_FIRST, _LAST) if name in numbers)])
        problems[key] = f"{words}, which do not divide over {pp * vpp} stages"
        return None
    counts = [inner // (others * vpp) if others else 0] * (pp * vpp)
    for end, count in ends.items():
        counts[end] = count
    return stage_rows(counts, pp)


def _key(name: str) -> str:
    return _SIZES.get(name) or ("vpp" if name == _PER_STAGE else f"stages.{TEXT}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flags() -> Iterator[tuple[str, str]]:
    """The flags of a script that are read, with the names of their arguments."""
    yield from ((_flag(name).removeprefix("--"), name) for name in sorted(NAMES))
