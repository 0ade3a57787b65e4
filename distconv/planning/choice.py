"""The choice of the model definition of a source: named by the user, by its provenance, or by its configuration.

Owns which of them counts, and what contradicts. Reads no file of a checkpoint.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distconv.errors import InputError
from distconv.formats.base import Opened
from distconv.formats.model import MODEL_CONFIG
from distconv.formats.provenance import PROVENANCE_NAME, Provenance
from distconv.models.adapters import CONFIG_NAME
from distconv.models.library import Library, head_of
from distconv.models.sizes import field_of

# Name and content of a model definition.
Chosen = tuple[str, Mapping[str, Any]]


@dataclass
class Choice:
    """The model definition of a source: named by the user, by its provenance, or by the configuration of the model."""

    library: Library
    chosen: Chosen | None
    opened: Opened
    recorded_in: Path | None = None

    def remember(self, record: Provenance, *, needed: bool) -> None:
        """Take the definition that the provenance of the source names, unless the user named one.

        Raises:
            InputError: there is none of the name, and one is needed.
        """
        if self.chosen is not None or record.model is None:
            return
        path = self.opened.directory / PROVENANCE_NAME
        if record.model in self.library.names():
            self.chosen, self.recorded_in = (record.model, self.library.content(record.model)), path
        elif needed:
            raise InputError(_not_found(record.model, record.definition, path))

    def recognise(self, config: Mapping[str, Any], directory: str, *, needed: bool, is_adapter: bool = False) -> None:
        """Take the definition for the `model_type` of a configuration, or check that the chosen one is for it.

        Raises:
            InputError: no definition is for it, and one is needed; or the chosen one is for another.
        """
        if self.chosen is None:
            if is_adapter:
                raise InputError(
                    f"{directory}: is an adapter, and its {CONFIG_NAME} says no sizes; give the directory of the "
                    "model, or, if adapters are converted, +model=NAME_lora"
                )
            self.chosen = recognised(config, directory, self.library, needed=needed)
        elif is_adapter and self.chosen[1].get("adapters") is None:
            raise InputError(
                f"{directory}: is an adapter, and the source is {self.chosen[0]}, which has none; give the directory "
                "of the model that training began with"
            )
        if self.chosen is not None and not is_adapter:
            self._check(*self.chosen, config.get("model_type"), directory)

    def _check(self, name: str, content: Mapping[str, Any], found: object, directory: str) -> None:
        expected = head_of(content).get("model_types") or []
        if not expected or found in expected:
            return
        says = f"{directory}/{MODEL_CONFIG}: says model_type {found!r}, but "
        if self.recorded_in is not None:
            raise InputError(
                f"{says}{self.recorded_in} says that the source is {name}, which is {', '.join(expected)}; give the "
                "reference of that model"
            )
        raise InputError(
            f"{says}+model={name} is for {', '.join(expected)}; leave +model out to have it chosen, or, if this is "
            f"such a model, add model.model_types=[{found}]"
        )


def _not_found(model: str, file: str | None, record: Path) -> str:
    """That a definition which a record names is not there, and how it is given."""
    where = "" if file is None else f", the definition in {file}"
    directory = "DIR, the directory that has it in model/" if file is None else str(Path(file).parent.parent)
    return (
        f"{record}: says that the source was made as {model}{where}, and no definition of this name is at hand; give "
        f"--config-dir {directory}, or +model=NAME for another one"
    )


def recognised(config: Mapping[str, Any], directory: str, library: Library, *, needed: bool) -> Chosen | None:
    """The definition for the `model_type` of a configuration; `None` without one, `InputError` if it is `needed`."""
    where = f"{directory}/{MODEL_CONFIG}"
    heads = library.heads()
    known: dict[str, str] = {}
    for name, head in heads.items():
        if head.get("variant_of") is None:
            known.update(dict.fromkeys(head.get("model_types") or (), name))
    first = f"action=skeleton source={directory} writes a first definition"
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in known:
        name = known[model_type]
        excluded = [path for path in heads[name].get("unless") or () if field_of(config, path) is not None]
        if not excluded:
            return name, library.content(name)
        if needed:
            raise InputError(
                f"{where}: has {', '.join(excluded)}: {name} is for models without, and no other is for it; {first}"
            )
        return None
    if not needed:
        return None
    if model_type is None:
        raise InputError(f"{where}: has no model_type; name the model with +model=NAME: {', '.join(heads)}")
    near = difflib.get_close_matches(str(model_type), known, 1)
    hint = f"; the nearest is {near[0]!r} (+model={known[near[0]]})" if near else ""
    raise InputError(
        f"{where}: model_type {model_type!r} is of no model definition{hint}; known: {', '.join(sorted(known))}; "
        f"{first}"
    )
