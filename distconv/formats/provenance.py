"""What a result remembers of its making: the model definition, and the Hugging Face directory that it came from.

Owns `distconv.json` beside the tensors of an iteration, so that a conversion back need not be told again. Trusted no
further than as a suggestion: what it names is checked like what a user names, and the report says where it came from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from distconv.errors import InputError
from distconv.formats.jsonfile import read_object

RECORD_NAME = "distconv.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The name of a model definition, and the absolute path of a Hugging Face directory; `None`: not known."""

    model: str | None = None
    reference: str | None = None


def record_of(model: str | None, reference: Path | None) -> Record:
    """The record of a result of this model definition, whose tensors a Hugging Face directory names."""
    return Record(model=model, reference=None if reference is None else str(reference.resolve()))


def read_record(directory: Path) -> Record:
    """The record in a directory, an empty one if there is none.

    Raises:
        InputError: it is there and damaged.
    """
    path = directory / RECORD_NAME
    if not path.exists():
        return Record()
    content = read_object(path, "what the checkpoint was made from")
    known = {key: content.get(key) for key in ("model", "reference")}
    for key, value in known.items():
        if value is not None and not isinstance(value, str):
            raise InputError(f"{path}: {key}: expected text, found {value!r}; remove the file, or mend it")
    return Record(**known)


def record_bytes(record: Record) -> bytes:
    """The content of the record's file."""
    return (json.dumps(asdict(record), indent=2) + "\n").encode()
