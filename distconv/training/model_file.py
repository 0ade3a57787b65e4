"""The layout in a model file of MindSpeed-MM (`--mm-model`): layers of the stages of every module.

Owns the places of the modules in it. Source: `examples/*/model*.json` of MindSpeed-MM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distconv.errors import InputError, shown
from distconv.layout.request import StageLists
from distconv.models.rules import TEXT
from distconv.training.told import Told

_STAGES = "pipeline_num_layers"
# Modality → the module with its layers, and the part of the file that has its tensor parallel size.
MODULES = {
    TEXT: ("text_decoder", ""),
    "vision": ("image_encoder.vision_encoder", "image_encoder"),
    "audio": ("audio_encoder.audio_encoder", "audio_encoder"),
}


def layout_of_model_file(where: str, content: Mapping[str, Any]) -> Told:
    """The layout that a model file says.

    Raises:
        InputError: it has no module of a model; lists that are no layers of stages.
    """
    modules = {modality: _part(content, place) for modality, (place, _) in MODULES.items()}
    if not any(modules.values()):
        places = ", ".join(place for place, _ in MODULES.values())
        raise InputError(f"{where}: is no model file of MindSpeed-MM: it has none of {places}; give one that has")
    values: dict[str, Any] = {}
    unread = {}
    kind = StageLists()
    for modality, module in modules.items():
        stages = module.get(_STAGES)
        if stages is None:
            continue
        key, place = f"stages.{modality}", f"{MODULES[modality][0]}.{_STAGES}"
        if not kind.fits(stages):
            unread[key] = f"{place}={shown(stages)}, expected {kind.expected}"
            continue
        values[key] = kind.held(stages)
        if modality == TEXT:
            values |= {"pp": len(values[key][0]), "vpp": len(values[key])}
    return Told(where=where, values=values, encoder_tp=dict(_encoder_tp(content)), unread=unread)


def stages_key(modality: str) -> str:
    """The dotted path of the stage list of a modality in a model file."""
    return f"{MODULES[modality][0]}.{_STAGES}"


def _encoder_tp(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for modality, (_, place) in MODULES.items():
        size = _part(content, place).get("tp") if place else None
        if type(size) is int and size > 0:
            yield modality, size


def _part(content: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    part: Any = content
    for name in path.split("."):
        part = part.get(name) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else {}
