"""What a result remembers of its making: the model definition, the directory that it came from, the adapters' scaling.

Owns `distconv.json` beside the tensors of an iteration, so that a conversion back need not be told again. Trusted no
further than as a suggestion: what it names is checked like what a user names, and the report says where it came from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distconv.errors import InputError
from distconv.formats.jsonfile import read_object
from distconv.models.scaling import Scaling
from distconv.tensors.stored import SourceFile

PROVENANCE_NAME = "distconv.json"
_SCALING = "adapters"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The name of a model definition, the absolute path of a Hugging Face directory, a scaling; `None`: not known."""

    model: str | None = None
    reference: str | None = None
    scaling: Scaling | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; the scaling is there only if there are adapters."""
        known = {"model": self.model, "reference": self.reference}
        return known if self.scaling is None else {**known, _SCALING: self.scaling.to_json()}


def provenance_of(model: str | None, reference: Path | None, scaling: Scaling | None) -> Provenance:
    """The record of a result of this model definition, whose tensors a Hugging Face directory names."""
    return Provenance(model=model, reference=None if reference is None else str(reference.resolve()), scaling=scaling)


def read_provenance(directory: Path, seen: list[SourceFile] | None = None) -> Provenance:
    """The record in a directory, an empty one if there is none; the identity of its file is added to `seen`.

    Raises:
        InputError: it is there and damaged.
    """
    path = directory / PROVENANCE_NAME
    if not path.exists():
        return Provenance()
    content = read_object(path, "what the checkpoint was made from", seen)
    known = {key: content.get(key) for key in ("model", "reference")}
    for key, value in known.items():
        if value is not None and not isinstance(value, str):
            raise InputError(f"{path}: {key}: expected text, found {value!r}; remove the file, or mend it")
    scaling = content.get(_SCALING)
    return Provenance(**known, scaling=None if scaling is None else Scaling.parse(scaling, str(path)))


def provenance_bytes(record: Provenance) -> bytes:
    """The content of the record's file."""
    return (json.dumps(record.to_json(), indent=2) + "\n").encode()
