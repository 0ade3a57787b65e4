"""The names of tensors in rank files, parsed by the targets of rules.

Owns the mapping from a name in a file to the target of a rule, with the layer and expert numbers local to the file.
Knows neither shapes nor layouts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from distconv.models.rules import Rule

_DIGITS = re.compile(r"\d+|\{\w+\}")


@dataclass(frozen=True, slots=True)
class LocalKey:
    """A parsed name: the target of one or more rules, and the layer and expert numbers local to the file."""

    target: str
    layer: int | None
    expert: int | None


class Targets:
    """The targets of rules, found by names in files."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self._rules.setdefault(rule.target, []).append(rule)
        self._patterns: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        for target in self._rules:
            self._patterns.setdefault(skeleton(target), []).append((_pattern(target), target))
        self._known: dict[str, LocalKey | None] = {}

    def rules(self, target: str) -> list[Rule]:
        """The rules of a target; several are alternatives."""
        return self._rules[target]

    def find(self, name: str) -> LocalKey | None:
        """The parsed name, `None` if no rule has such a target."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> LocalKey | None:
        for pattern, target in self._patterns.get(skeleton(name), ()):
            if match := pattern.fullmatch(name):
                numbers = {key: int(number) for key, number in match.groupdict().items()}
                return LocalKey(target, numbers.get("layer"), numbers.get("expert"))
        return None


def skeleton(name: str) -> str:
    """A name with `#` in place of numbers and placeholders: the key under which few patterns are tried."""
    return _DIGITS.sub("#", name)


def _pattern(target: str) -> re.Pattern[str]:
    pattern = re.escape(target)
    for placeholder in ("layer", "expert"):
        first, *rest = pattern.split(re.escape(f"{{{placeholder}}}"))
        if rest:
            pattern = first + rf"(?P<{placeholder}>0|[1-9][0-9]{{0,5}})" + f"(?P={placeholder})".join(rest)
    return re.compile(pattern)
