"""The provenance of a result: the model definition, and the Hugging Face directory that it was made from.

Owns `distconv.json` beside the tensors of an iteration, which supplies the defaults of a conversion back. Never
trusted: names in it are checked like options, and the report says that they come from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from distconv.errors import InputError
from distconv.formats.jsonfile import read_object

PROVENANCE_NAME = "distconv.json"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The name of a model definition, and the absolute path of a Hugging Face directory; `None` if unknown."""

    model: str | None = None
    reference: str | None = None


def provenance_of(model: str | None, reference: Path | None) -> Provenance:
    """The provenance of a result of this model definition, with its reference."""
    return Provenance(model=model, reference=None if reference is None else str(reference.resolve()))


def read_provenance(directory: Path) -> Provenance:
    """Read the provenance in the directory of an iteration, an empty one without a file.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / PROVENANCE_NAME
    if not path.exists():
        return Provenance()
    content = read_object(path, "what the checkpoint was made from")
    known = {key: content.get(key) for key in ("model", "reference")}
    for key, value in known.items():
        if value is not None and not isinstance(value, str):
            raise InputError(f"{path}: {key}: expected text, found {value!r}; remove the file, or mend it")
    return Provenance(**known)


def write_provenance(directory: Path, provenance: Provenance) -> dict[str, int]:
    """Write the provenance; file name → size in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    return {
        PROVENANCE_NAME: (directory / PROVENANCE_NAME).write_bytes(
            (json.dumps(asdict(provenance), indent=2) + "\n").encode()
        )
    }
