"""Reading JSON objects that users and other programs wrote.

Never trusts their structure. Owns that they cost time and memory like their length, and that a number in them can be
calculated with and printed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, reading
from distconv.formats.lfs import POINTER, is_pointer
from distconv.runtime.identity import read_whole
from distconv.tensors.stored import SourceFile

# What to do about a file that is damaged.
AGAIN = "download or copy the file again"
# Digits of an integer; a length that means no limit has 31.
_LONGEST_NUMBER = 100


def read_object(path: Path, purpose: str, seen: list[SourceFile] | None = None) -> dict[str, Any]:
    """Read the JSON object in a file; `purpose` says in errors what a missing file is for.

    The identity of a file on which a job relies is added to `seen`.

    Raises:
        InputError: the file is missing, unreadable, not JSON, or not an object.
    """
    with reading(path, f"no such file; it is needed for {purpose}"):
        text, file = read_whole(path)
    if is_pointer(text):
        raise InputError(f"{path}: {POINTER}")
    if seen is not None:
        seen.append(file)
    return parse_object(text, str(path))


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`; `where` names it in errors.

    Raises:
        InputError: not JSON, a key twice in one object, a number of more than 100 digits, or not an object.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}; {AGAIN}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key given twice: {named(twice)}")
    return result


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits: {digits[:10]}…")
    return int(digits)
