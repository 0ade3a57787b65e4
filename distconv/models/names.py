"""Names of source tensors against rules: the alternative that a layer uses, and the reason for an unused tensor.

Owns the filling of placeholders, and the patterns made from them. Never sees shapes or tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from distconv.models.definition import Definition, Ignored
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes


def filled(pattern: str, layer: int | None, expert: int | None, item: int | None) -> str:
    """The pattern with the given numbers in place of `{layer}`, `{expert}` and `{item}`."""
    for placeholder, number in (("{layer}", layer), ("{expert}", expert), ("{item}", item)):
        if number is not None:
            pattern = pattern.replace(placeholder, str(number))
    return pattern


def by_spelling(names: Iterable[str], spelled: Callable[[str], str], where: str) -> tuple[dict[str, str], list[str]]:
    """The names in `where` by their spelling in a definition, and a problem for each that is there twice."""
    found: dict[str, str] = {}
    problems = []
    for name in names:
        other = found.setdefault(spelled(name), name)
        if other != name:
            problems.append(f"{where}: {other} and {name} are two spellings of the same tensor; remove one")
    return found, problems


def matching(names: str) -> re.Pattern[str]:
    """The expression of a pattern of names, in which `*` stands for any characters."""
    return re.compile(re.escape(names).replace(r"\*", ".*"))


def layers_of(rule: Rule, definition: Definition, sizes: Sizes, count: int) -> Iterable[tuple[int | None, int | None]]:
    """Pairs of item and layer of the parameters of a rule, whose modality has `count` layers.

    Raises:
        InputError: the list of layers in config.json names a layer twice, or one beyond `count`.
    """
    if rule.layers is not None:
        return enumerate(sizes.numbers(definition.lists[rule.layers], count))
    if "layer" in rule.placeholders:
        return ((None, layer) for layer in range(count))
    return ((None, None),)


def experts_of(rule: Rule, definition: Definition, sizes: Sizes) -> Iterable[int | None]:
    """The experts of the parameters of a rule in one layer; a single `None` for a rule without experts.

    Raises:
        InputError: config.json lacks the number of experts, or has more layers and experts than any model.
    """
    if "expert" not in rule.placeholders:
        return (None,)
    if definition.experts is not None and definition.adapters != "only" and "layer" in rule.placeholders:
        sizes.check_combinations(definition.modalities[rule.modality], definition.experts)
    return range(definition.expert_count(sizes) or 0)


# Scores an alternative's rules in a layer: whether all required tensors are present, how many are, further criteria.
Score = Callable[[Sequence[Rule], "int | None"], "tuple[int, ...]"]


class Choices:
    """The alternative of every `one_of` that a layer uses: the one with the highest score, the first of equals."""

    def __init__(self, rules: Iterable[Rule], score: Score) -> None:
        self._score = score
        self._groups: dict[str, dict[str, list[Rule]]] = {}
        for rule in rules:
            if rule.choice is not None:
                group, name = rule.choice
                self._groups.setdefault(group, {}).setdefault(name, []).append(rule)
        self._known: dict[tuple[str, int | None], str | None] = {}
        self._equals: dict[tuple[str, int | None], list[str]] = {}

    def uses(self, rule: Rule, layer: int | None) -> bool:
        """Whether the layer uses the rule's alternative; true for a rule outside of all alternatives."""
        if rule.choice is None:
            return True
        group, name = rule.choice
        if (group, layer) not in self._known:
            scores = {each: self._score(rules, layer) for each, rules in self._groups[group].items()}
            best = max(scores, key=lambda each: scores[each])
            self._known[group, layer] = None if rule.may_be_absent and not scores[best][1] else best
            self._equals[group, layer] = [each for each in scores if scores[each] == scores[best]]
        return self._known[group, layer] == name

    def equals(self, rule: Rule, layer: int | None) -> list[str]:
        """The names of the rule's alternatives if the layer uses it and others score as high; else none."""
        if rule.choice is None or not self.uses(rule, layer):
            return []
        found = self._equals[rule.choice[0], layer]
        return found if len(found) > 1 else []

    def unclear(self, rule: Rule, layer: int | None) -> list[str]:
        """The names of the rule's alternatives if the layer has no tensor of any of them; else none."""
        if rule.choice is None:
            return []
        group = self._groups[rule.choice[0]]
        return [] if any(self._score(rules, layer)[1] for rules in group.values()) else list(group)


def by_sources(stored: Container[str]) -> Score:
    """The score of an alternative by its required sources in `stored`: whether all are present, and how many."""

    def score(rules: Sequence[Rule], layer: int | None) -> tuple[bool, int]:
        sources = [source for rule in rules if not rule.optional for source in rule.sources]
        present = sum(filled(source.name, layer, 0, None) in stored for source in sources)
        return present == len(sources), present

    return score


class Explanations:
    """Reasons and problems of source tensors that no wanted rule uses."""

    def __init__(self, definition: Definition, reasons: Mapping[Rule, str | None], sizes: Sizes) -> None:
        groups: dict[str | None, list[Rule]] = {}
        for rule, reason in reasons.items():
            groups.setdefault(reason, []).append(rule)
        self._wanted = pattern_of(groups.pop(None, []))
        self._left_out = [(reason, pattern_of(rules)) for reason, rules in groups.items()]
        self._ignored = [(entry.reason, _ignored(entry, sizes)) for entry in definition.ignored]
        self._definition = definition.name

    def reason(self, name: str) -> str | None:
        """The reason why the tensor is left out on purpose; `None` if it is not."""
        for reason, pattern in self._left_out:
            if pattern.fullmatch(name):
                return reason
        return next((reason for reason, pattern in self._ignored if pattern.fullmatch(name)), None)

    def fits(self, name: str) -> bool:
        """Whether the name matches a source of a wanted rule, whatever its numbers."""
        return self._wanted.fullmatch(name) is not None

    def problem(self, name: str) -> str:
        """The problem, in words, of a tensor that is not left out on purpose."""
        if self.fits(name):
            return "fitting a rule, but not the number of layers or experts in config.json, or what the layer is"
        return f"that no rule of model definition {self._definition} knows"


def pattern_of(rules: Iterable[Rule]) -> re.Pattern[str]:
    """The pattern of the source names of these rules, with any numbers in their placeholders."""
    names = sorted({source.name for rule in rules for source in rule.sources})
    return re.compile("|".join(re.sub(r"\\{\w+\\}", r"\\d+", re.escape(name)) for name in names) or r"(?!)")


def layers_named(rules: Iterable[Rule], names: Iterable[str]) -> dict[str, int]:
    """A lower bound of the number of layers by modality: the highest layer that occurs in the names, plus 1."""
    patterns = {
        re.compile(re.escape(source.name).replace(r"\{layer\}", r"(\d{1,9})")): rule.modality
        for rule in rules
        for source in rule.sources
        if rule.placeholders == {"layer"}
    }
    layers: dict[str, int] = {}
    for name in names:
        for pattern, modality in patterns.items():
            if match := pattern.fullmatch(name):
                layers[modality] = max(layers.get(modality, 0), int(match[1]) + 1)
    return layers


def layer_count(
    definition: Definition, modality: str, sizes: Sizes, rules: Iterable[Rule], names: Iterable[str]
) -> int:
    """The number of layers in the configuration; of adapters without one, a lower bound from their names.

    Raises:
        InputError: as `Sizes.count`.
    """
    if definition.adapters != "only":
        return sizes.count(definition.modalities[modality])
    return layers_named((rule for rule in rules if rule.modality == modality), names).get(modality, 0)


def _ignored(entry: Ignored, sizes: Sizes) -> re.Pattern[str]:
    """The pattern of the names that an entry of `ignored` leaves out."""
    pattern = matching(entry.names).pattern
    if entry.layers is not None:
        first, count = (sizes.count(size) for size in entry.layers)
        numbers = "|".join(str(layer) for layer in range(first, first + count))
        pattern = pattern.replace(re.escape("{layer}"), f"(?:{numbers})")
    return re.compile(pattern)
