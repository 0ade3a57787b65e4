"""Looking at the source: everything that planning needs to know, read once by rank 0.

Owns which files of a source directory are looked at, and the choice of the model definition by what the checkpoint says
it is. Reads headers and JSON only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.adapters import CONFIG_NAME
from distconv.catalogue import Definitions, Head
from distconv.config import JobConfig
from distconv.errors import InputError
from distconv.facts import Checkpoint, Facts
from distconv.jsonfile import read_object
from distconv.source_directory import check_directory, read_directory


def inspect(config: JobConfig, chosen: tuple[str, Mapping[str, Any]] | None, definitions: Definitions) -> Facts:
    """The facts of a job; `chosen` is the name and content of the definition that the user named.

    Raises:
        InputError: a directory that is not a checkpoint, or no definition for it.
    """
    if config.text_source is not None and config.text_source.resolve() == config.source.resolve():
        raise InputError(f"text_source={config.text_source}: is the same directory as source; leave it out")
    if chosen is not None and chosen[1].get("adapters") == "only":
        if config.text_source is not None:
            raise InputError(
                f"text_source={config.text_source}: +model={chosen[0]} converts adapters alone; leave it out"
            )
        return Facts(source=_adapter(config.source), text_source=None, model=chosen[0], definition=chosen[1])
    source = _checkpoint(config.source, "source")
    text_source = None if config.text_source is None else _checkpoint(config.text_source, "text_source")
    if chosen is None:
        recognised = _recognised(source, definitions.heads())
        chosen = recognised, definitions.compose(recognised)
    name, content = chosen
    expected = content.get("model_types") or []
    found = source.config.get("model_type")
    if expected and found not in expected:
        raise InputError(
            f"{config.source}/config.json: says model_type {found!r}, but +model={name} is for {', '.join(expected)}; "
            f"leave +model out to have it chosen, or, if this is such a model, add model.model_types=[{found}]"
        )
    return Facts(source=source, text_source=text_source, model=name, definition=content)


def _adapter(directory: Path) -> Checkpoint:
    check_directory(directory, "source")
    config = read_object(directory / CONFIG_NAME, "the rank and the target modules of the adapter")
    return Checkpoint(index=read_directory(directory, adapter=True), config=config)


def _checkpoint(directory: Path, key: str) -> Checkpoint:
    check_directory(directory, key)
    if not (directory / "config.json").exists() and (directory / CONFIG_NAME).exists():
        raise InputError(
            f"{key}={directory}: holds an adapter ({CONFIG_NAME}); name the model that it is for: +model=NAME_lora"
        )
    config = read_object(directory / "config.json", f"the sizes of the model in {key}")
    return Checkpoint(index=read_directory(directory), config=config)


def _recognised(source: Checkpoint, definitions: Mapping[str, Head]) -> str:
    where = f"{source.index.directory}/config.json"
    model_type = source.config.get("model_type")
    if model_type is None:
        raise InputError(f"{where}: has no model_type; name the model with +model=NAME: {', '.join(definitions)}")
    known: dict[str, str] = {}
    for name, content in definitions.items():
        if content.get("variant_of") is None:
            known.update(dict.fromkeys(content.get("model_types") or (), name))
    if not isinstance(model_type, str) or model_type not in known:
        near = difflib.get_close_matches(str(model_type), known, 1)
        hint = f"; the nearest is {near[0]!r} (+model={known[near[0]]})" if near else ""
        raise InputError(
            f"{where}: model_type {model_type!r} is of no model definition{hint}; known: {', '.join(sorted(known))}"
        )
    return known[model_type]
