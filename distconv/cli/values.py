"""Reading values of a configuration by dotted key, and the words for what is wrong with them.

Owns the types of values and their ranges. Knows no key but those of layouts, of which there are two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.errors import unknown_keys
from distconv.layout.layout import StageRows
from distconv.models.rules import MODALITIES

# No parallel axis is longer, no vocabulary or number of threads larger; a typing error is.
_LARGEST_AXIS, _LARGEST = 2**16, 2**24


class Reader:
    """Reads values by dotted key and collects what is wrong with them; a wrong value reads as a harmless one."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        # Groups that are no groups: of what they should hold, nothing more is said.
        self._broken: set[str] = set()

    def section(self, content: Mapping[str, Any], key: str, known: tuple[str, ...]) -> Mapping[str, Any]:
        """The group at a key, an empty one if it is none."""
        value = content.get(_last(key))
        if not isinstance(value, Mapping):
            if value is not None or key not in self._broken:
                self._wrong(key, value, f"a group of options: {', '.join(known)}; give {key}.{known[0]}=…")
            self._broken.add(key)
            return {}
        self.problems += [f"{key}: {problem}" for problem in unknown_keys(value, known)]
        return value

    def needed_path(self, content: Mapping[str, Any], key: str, meaning: str, action: str) -> Path:
        """A path that every action but `models` needs."""
        path = self.path(content, key)
        if content.get(key) is None and action != "models":
            self.problems.append(f"{key} is missing: give {key}=DIR, {meaning} (--help lists all options)")
        return path or Path()

    def choice(self, content: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed values."""
        value = content.get(_last(key))
        if value not in allowed:
            self._wrong(key, value, f"one of {', '.join(allowed)}")
            return allowed[0]
        return str(value)

    def size(self, content: Mapping[str, Any], key: str, largest: int = _LARGEST) -> int:
        """A positive integer."""
        value = content.get(_last(key))
        if type(value) is not int or not 1 <= value <= largest:
            self._wrong(key, value, f"an integer from 1 to {largest}")
            return 1
        return value

    def optional_size(self, content: Mapping[str, Any], key: str, largest: int = _LARGEST) -> int | None:
        """A positive integer, or nothing."""
        return None if content.get(_last(key)) is None else self.size(content, key, largest)

    def axis(self, content: Mapping[str, Any], key: str) -> int:
        """The size of a parallel axis."""
        return self.size(content, key, _LARGEST_AXIS)

    def optional_axis(self, content: Mapping[str, Any], key: str) -> int | None:
        """The size of a parallel axis, or nothing."""
        return self.optional_size(content, key, _LARGEST_AXIS)

    def truth(self, content: Mapping[str, Any], key: str) -> bool:
        """True or false."""
        value = content.get(_last(key))
        if not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return value is True

    def optional_number(self, content: Mapping[str, Any], key: str) -> float | None:
        """A positive number, or nothing."""
        value = content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            self._wrong(key, value, "a positive number")
            return None
        return value

    def optional_text(self, content: Mapping[str, Any], key: str) -> str | None:
        """Text, or nothing."""
        value = content.get(key)
        if value is not None and not isinstance(value, str):
            self._wrong(key, value, "text; the empty text is written ''")
            return None
        return value

    def path(self, content: Mapping[str, Any], key: str) -> Path | None:
        """A path, or nothing."""
        value = content.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            self._wrong(key, value, "a path")
            return None
        return None if value is None else Path(value).expanduser()

    def modalities(self, content: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
        """A list of modalities, or nothing."""
        value = content.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not value or any(item not in MODALITIES for item in value):
            self._wrong(key, value, f"a list of modalities out of {', '.join(MODALITIES)}, such as [vision]")
            return None
        return tuple(value)

    def iteration(self, content: Mapping[str, Any], key: str) -> str | None:
        """`release` or a number, as text, or nothing."""
        value = content.get(key)
        if value is None:
            return None
        if value != "release" and (type(value) is not int or value < 1):
            self._wrong(key, value, "release, or a positive integer")
        return str(value)

    def stage_rows(self, content: Mapping[str, Any], key: str) -> StageRows | None:
        """Layers per stage, one row for each virtual stage, or nothing."""
        value = content.get(_last(key))
        if value is None:
            return None
        rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        for row in rows:
            if not isinstance(row, list) or not row or any(type(item) is not int or item < 0 for item in row):
                self._wrong(key, value, "layers per stage, such as [1,10,10,7], or one such list per virtual stage")
                return None
        return tuple(tuple(row) for row in rows)

    def _wrong(self, key: str, value: Any, expected: str) -> None:
        if not any(key.startswith(f"{group}.") for group in self._broken):
            self.problems.append(f"{key}={shown(value)}: expected {expected}")


class LayoutReader:
    """Reads a group of layout keys."""

    def __init__(self, reader: Reader, content: Mapping[str, Any], key: str, more: tuple[str, ...]) -> None:
        self._reader = reader
        self._key = key
        self._group = reader.section(
            content, key, ("tp", "ep", "stages", "pp", "vpp", "modality_tp", "placement", *more)
        )

    def axis(self, name: str) -> int:
        """The size of an axis."""
        return self._reader.axis(self._group, f"{self._key}.{name}")

    def optional_axis(self, name: str) -> int | None:
        """The size of an axis, or nothing."""
        return self._reader.optional_axis(self._group, f"{self._key}.{name}")

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed values."""
        return self._reader.choice(self._group, f"{self._key}.{name}", allowed)

    def optional_choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of the allowed values, or nothing."""
        return None if self._group.get(name) is None else self.choice(name, allowed)

    def stages(self) -> dict[str, StageRows]:
        """The stage lists by modality."""
        key = f"{self._key}.stages"
        stages = self._reader.section(self._group, key, MODALITIES)
        rows = {modality: self._reader.stage_rows(stages, f"{key}.{modality}") for modality in stages}
        return {modality: each for modality, each in rows.items() if each is not None}

    def modality_tp(self) -> dict[str, int]:
        """The sizes by modality."""
        key = f"{self._key}.modality_tp"
        sizes = self._reader.section(self._group, key, MODALITIES[1:])
        found = {modality: self._reader.optional_axis(sizes, f"{key}.{modality}") for modality in sizes}
        return {modality: size for modality, size in found.items() if size is not None}


def _is_more_than_text(text: str) -> bool:
    """Whether text looks like a number, a list or a truth value; it is text because it was in quotes."""
    try:
        return not isinstance(json.loads(text), str)
    except ValueError:
        return False


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, str):
        return f"'{value}'" if _is_more_than_text(value) else value
    return json.dumps(value, separators=(",", ":"), default=str).replace('"', "")
