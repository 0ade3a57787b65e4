"""The names of Megatron-side tensors against the rules of a definition.

Owns the way from a name in a file to the target of a rule and the numbers of layer and expert in it, as they are local
to the file. It knows neither shapes nor layouts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from distconv.models.rules import Rule

_DIGITS = re.compile(r"\d+|\{\w+\}")


@dataclass(frozen=True, slots=True)
class Local:
    """What a name in a file stands for: a target, of which there are one or more rules, a layer and an expert."""

    target: str
    layer: int | None
    expert: int | None


class Targets:
    """The targets of rules, to be found by the names that files have for them."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self._rules.setdefault(rule.target, []).append(rule)
        self._patterns: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        for target in self._rules:
            self._patterns.setdefault(_skeleton(target), []).append((_pattern(target), target))
        self._known: dict[str, Local | None] = {}

    def rules(self, target: str) -> list[Rule]:
        """The rules of a target: alternatives, if there is more than one."""
        return self._rules[target]

    def find(self, name: str) -> Local | None:
        """What a name stands for; nothing if no rule knows it."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Local | None:
        for pattern, target in self._patterns.get(_skeleton(name), ()):
            if match := pattern.fullmatch(name):
                numbers = {key: int(number) for key, number in match.groupdict().items()}
                return Local(target, numbers.get("layer"), numbers.get("expert"))
        return None


def _skeleton(name: str) -> str:
    """A name without its numbers and placeholders, so that few patterns need to be tried."""
    return _DIGITS.sub("#", name)


def _pattern(target: str) -> re.Pattern[str]:
    pattern = re.escape(target)
    for placeholder in ("layer", "expert"):
        first, *rest = pattern.split(re.escape(f"{{{placeholder}}}"))
        if rest:
            pattern = first + rf"(?P<{placeholder}>0|[1-9][0-9]{{0,5}})" + f"(?P={placeholder})".join(rest)
    return re.compile(pattern)
