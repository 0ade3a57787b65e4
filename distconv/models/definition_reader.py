"""Reading of a composed definition: its values by key, and what is wrong with them, collected.

Owns how problems are said. Knows no key of a definition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from distconv.errors import unknown_keys

# What a value begins with that a skeleton leaves to a person.
TODO = "TODO"


class DefinitionReader:
    """Reads groups of a definition and collects what is wrong with them; a wrong value reads as a harmless one."""

    def __init__(self, where: str) -> None:
        self.problems: list[str] = []
        self.where = where

    def complain(self, key: str, problem: object) -> None:
        """Add a problem of a key."""
        self.problems.append(f"{self.where}: {key}: {problem}")

    def expect(self, condition: object, key: str, expected: str, found: object) -> bool:
        """Add a problem unless the condition holds, and say whether it does."""
        if not condition:
            self.complain(key, f"expected {expected}, found {found!r}")
        return bool(condition)

    def unknown(self, content: Mapping[Any, Any], known: Collection[str]) -> None:
        """Add the problems of keys that are not known."""
        self.problems += [f"{self.where}: {problem}" for problem in unknown_keys(content, known)]

    def mapping(self, content: Mapping[str, Any], key: str, *, needed: bool = True) -> Mapping[str, Any]:
        """The mapping at a key; empty where it is none, which is a problem if it is there or needed."""
        value = content.get(key)
        if isinstance(value, Mapping):
            return value
        if value is not None or needed:
            self.expect(False, key, "a mapping", value)
        return {}

    def entries(self, content: Mapping[str, Any], key: str, at: str) -> Sequence[Any]:
        """The list at a key; empty where it is none, which is a problem if it is there. `at`: the key in messages."""
        value = content.get(key)
        if value is None:
            return ()
        return value if self.expect(isinstance(value, list), at, "a list", value) else ()

    def names(self, content: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """The names at a key; empty where they are none, which is a problem if they are there."""
        names = self.entries(content, key, key)
        return tuple(names) if self.expect(are_text(names), key, "a list of names", names) else ()


def are_text(values: Sequence[object]) -> bool:
    """Whether all values are text."""
    return all(isinstance(value, str) for value in values)


def undecided(content: Any, at: str = "") -> Iterator[str]:
    """Where in a definition a value is left that a person has to decide, as a skeleton has it; in words."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from undecided(value, f"{at}.{key}" if at else str(key))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from undecided(value, f"{at}[{number}]")
    elif isinstance(content, str) and content.startswith(TODO):
        yield f"{at}: {content}: still to be decided"
