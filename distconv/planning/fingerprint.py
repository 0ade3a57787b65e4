"""The description of what a job makes, by which a later one knows that it would make the same.

Owns what has to be equal for that. Reads nothing: what is known of the source is what the plan was made with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

from distconv.commit.journal import Description
from distconv.formats.records import Plan
from distconv.formats.registry import Options
from distconv.planning.facts import Facts
from distconv.tensors.stored import SourceFile
from distconv.version import VERSION

_DIGEST_BYTES = 16


def described(options: Options, facts: Facts, plan: Plan, result: str) -> Description:
    """The description of a result of this name, made by this plan."""
    return Description(
        result=result,
        version=VERSION,
        directories={key: os.path.abspath(path) for key, path in facts.directories(options).items()},
        options={"model": facts.model, **dict(_dotted(options.shaping()))},
        definitions=_digest(
            [facts.definition, facts.dialects, None if facts.scaling is None else facts.scaling.to_json()]
        ),
        sources={each.path: _identity(each) for each in facts.looked_at},
        files=_digest([[file.path, file.nbytes] for file in plan.files]),
    )


def _identity(file: SourceFile) -> list[Any]:
    """What a file must be again; not its inode, which another process, or a copy, has otherwise."""
    return [file.size, file.mtime_ns, None if file.header is None else file.header.digest]


def _dotted(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of groups by their dotted keys."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _digest(data: Any) -> str:
    return blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=_DIGEST_BYTES).hexdigest()
