"""Names against rules: which alternative a layer uses, and why a source tensor is left over.

Owns the filling of placeholders and the patterns made of them. Decides nothing about shapes, and makes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from distconv.models.definition import Definition, Ignored
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes


def filled(pattern: str, layer: int | None, expert: int | None, item: int | None) -> str:
    """A name with its placeholders filled."""
    for placeholder, number in (("{layer}", layer), ("{expert}", expert), ("{item}", item)):
        if number is not None:
            pattern = pattern.replace(placeholder, str(number))
    return pattern


def layers_of(rule: Rule, definition: Definition, sizes: Sizes, count: int) -> Iterable[tuple[int | None, int | None]]:
    """Item and layer of each parameter of a rule, of whose modality there are `count` layers.

    Raises:
        InputError: the list of layers in config.json does not go with that.
    """
    if rule.layers is not None:
        return enumerate(sizes.numbers(definition.lists[rule.layers], count))
    if "layer" in rule.placeholders:
        return ((None, layer) for layer in range(count))
    return ((None, None),)


def experts_of(rule: Rule, definition: Definition, sizes: Sizes) -> Iterable[int | None]:
    """The expert of each parameter of a rule in one layer; one without a number where the rule is not for experts.

    Raises:
        InputError: config.json does not say how many experts there are, or says more than any model has.
    """
    if "expert" not in rule.placeholders:
        return (None,)
    if definition.experts is not None and definition.adapters != "only" and "layer" in rule.placeholders:
        sizes.check_combinations(definition.modalities[rule.modality], definition.experts)
    return range(definition.expert_count(sizes) or 0)


# Of the rules of an alternative and a layer: whether all that must be there is there, how much is, what else tells.
Score = Callable[[Sequence[Rule], "int | None"], "tuple[int, ...]"]


class Choices:
    """Which alternative each layer uses, for every `one_of`: the first of those with the highest score."""

    def __init__(self, rules: Iterable[Rule], score: Score) -> None:
        self._score = score
        self._groups: dict[str, dict[str, list[Rule]]] = {}
        for rule in rules:
            if rule.choice is not None:
                group, name = rule.choice
                self._groups.setdefault(group, {}).setdefault(name, []).append(rule)
        self._known: dict[tuple[str, int | None], str | None] = {}

    def uses(self, rule: Rule, layer: int | None) -> bool:
        """Whether the layer uses the alternative that the rule belongs to; always, for a rule that is in none."""
        if rule.choice is None:
            return True
        group, name = rule.choice
        if (group, layer) not in self._known:
            scores = {each: self._score(rules, layer) for each, rules in self._groups[group].items()}
            best = max(scores, key=lambda each: scores[each])
            self._known[group, layer] = None if rule.may_be_absent and not scores[best][1] else best
        return self._known[group, layer] == name

    def unclear(self, rule: Rule, layer: int | None) -> list[str]:
        """The names of the alternatives, where the layer has nothing of any of them."""
        if rule.choice is None:
            return []
        group = self._groups[rule.choice[0]]
        return [] if any(self._score(rules, layer)[1] for rules in group.values()) else list(group)


def by_sources(stored: Container[str]) -> Score:
    """The score of an alternative by its sources: without a missing one, or else the one of which most is there."""

    def score(rules: Sequence[Rule], layer: int | None) -> tuple[bool, int]:
        sources = [source for rule in rules if not rule.optional for source in rule.sources]
        present = sum(filled(source.name, layer, 0, None) in stored for source in sources)
        return present == len(sources), present

    return score


class Explanations:
    """Why a source tensor that no wanted rule used is left out, or what is wrong with it."""

    def __init__(self, definition: Definition, reasons: Mapping[Rule, str | None], sizes: Sizes) -> None:
        groups: dict[str | None, list[Rule]] = {}
        for rule, reason in reasons.items():
            groups.setdefault(reason, []).append(rule)
        self._wanted = pattern_of(groups.pop(None, []))
        self._left_out = [(reason, pattern_of(rules)) for reason, rules in groups.items()]
        self._ignored = [(entry.reason, _ignored(entry, sizes)) for entry in definition.ignored]
        self._definition = definition.name

    def reason(self, name: str) -> str | None:
        """Why the tensor is left out on purpose; nothing if it is not."""
        for reason, pattern in self._left_out:
            if pattern.fullmatch(name):
                return reason
        return next((reason for reason, pattern in self._ignored if pattern.fullmatch(name)), None)

    def fits(self, name: str) -> bool:
        """Whether the name is like those of a wanted rule."""
        return self._wanted.fullmatch(name) is not None

    def problem(self, name: str) -> str:
        """What is wrong with a tensor that is not left out on purpose."""
        if self.fits(name):
            return "fitting a rule, but not the number of layers or experts in config.json, or what the layer is"
        return f"that no rule of model definition {self._definition} knows"


def pattern_of(rules: Iterable[Rule]) -> re.Pattern[str]:
    """What the names of the sources of these rules look like."""
    names = sorted({source.name for rule in rules for source in rule.sources})
    return re.compile("|".join(re.sub(r"\\{\w+\\}", r"\\d+", re.escape(name)) for name in names) or r"(?!)")


def layers_named(rules: Iterable[Rule], names: Iterable[str]) -> dict[str, int]:
    """By modality, how many layers there are at least for the names of its last one."""
    patterns = {
        re.compile(re.escape(source.name).replace(r"\{layer\}", r"(\d+)")): rule.modality
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
    """Number of layers: what the configuration says; adapters know no more than the layers they are on."""
    if definition.adapters != "only":
        return sizes.count(definition.modalities[modality])
    return layers_named((rule for rule in rules if rule.modality == modality), names).get(modality, 0)


def _ignored(entry: Ignored, sizes: Sizes) -> re.Pattern[str]:
    """The pattern of names that an entry leaves out."""
    pattern = re.escape(entry.names).replace(r"\*", ".*")
    if entry.layers is not None:
        first, count = (sizes.count(size) for size in entry.layers)
        numbers = "|".join(str(layer) for layer in range(first, first + count))
        pattern = pattern.replace(re.escape("{layer}"), f"(?:{numbers})")
    return re.compile(pattern)
