"""JSON objects in files of users and of other programs. Owns the errors about them; never trusts their structure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distconv.errors import InputError, reading


def read_object(path: Path, purpose: str) -> dict[str, Any]:
    """Read the JSON object in a file; `purpose` says in errors what a missing file is for.

    Raises:
        InputError: the file is missing, unreadable, not JSON, or not an object.
    """
    with reading(path, f"no such file; it is needed for {purpose}"):
        text = path.read_bytes()
    return parse_object(text, str(path))


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`; `where` names it in errors.

    Raises:
        InputError: not JSON, a key twice in one object, or not an object.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"key given twice: {', '.join(twice[:5])}")
    return result
