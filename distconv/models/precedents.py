"""What known definitions have for tensors of the same names: precedents for the rules of a model that is unknown.

Owns when a rule of a definition is a precedent, and which definition is followed. Sees names, never a checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from distconv.models.anatomy import Anatomy, module_of
from distconv.models.definition import Definition
from distconv.models.grouping import Group
from distconv.models.rules import TEXT, Rule, SourcePattern
from distconv.models.sizes import SizeSpec

# The share of the names of a modality with which a definition is followed though others have other rules for them.
_ENOUGH = 0.75
_NUMBERS = ("{layer}", "{next}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Precedent:
    """A rule of a definition, and the groups of tensors that stand in the places of its sources."""

    definition: str
    rule: Rule
    groups: tuple[Group, ...]

    @property
    def decision(self) -> tuple[object, ...]:
        """What a person would have to decide without it; a cut that may be uneven is no other one."""
        rule = self.rule
        cut = rule.tensor_parallel.removesuffix("_uneven")
        return self.spelling, rule.operator, rule.operator_sizes, cut, rule.unit

    @property
    def spelling(self) -> str:
        """The target, in layers of the text without the module that these are in."""
        rule = self.rule
        return (rule.target.partition("{layer}")[2] if rule.modality == TEXT else "") or rule.target


class Precedents:
    """The precedents for the names of a checkpoint in known definitions, those of the most similar ones first."""

    def __init__(self, definitions: Iterable[Definition], names: Anatomy) -> None:
        self._names = names
        self._definitions = {each.name: each for each in definitions}
        self._found = {name: list(_precedents(each, names)) for name, each in self._definitions.items()}
        self._covered = {
            (definition, modality): {
                group.name for each in found if each.rule.modality == modality for group in each.groups
            }
            for definition, found in self._found.items()
            for modality in names.main
        }

    def ranked(self, modality: str) -> list[Definition]:
        """The definitions, those first that know most names of a modality; of equals those that know most names of all.

        Of equals among these, the one that has least beside.
        """

        def known(definition: Definition) -> tuple[int, int, int]:
            counts = {each: len(self._covered[definition.name, each]) for each in self._names.main}
            return -counts.get(modality, 0), -sum(counts.values()), len(definition.rules)

        return sorted(self._definitions.values(), key=known)

    def sizes(self) -> Iterator[tuple[str, SizeSpec]]:
        """Anatomy and specs of the sizes that precedents use, and are derived from; of the most similar ones first."""
        for modality in self._names.main:
            for definition in self.ranked(modality):
                used = dict.fromkeys([definition.modalities.get(modality, "")])
                for each in self._found[definition.name]:
                    if each.rule.modality == modality:
                        used |= dict.fromkeys(_sizes_of(each.rule))
                pending = [name for name in used if name in definition.sizes]
                for name in pending:
                    spec = definition.sizes[name]
                    pending += [each for each in spec.of if isinstance(each, str) and each not in pending]
                    yield name, spec

    def chosen(self, modality: str) -> Iterator[tuple[Precedent, list[Precedent]]]:
        """The precedents of a modality, each group in one, and with each those that decide otherwise.

        A definition that knows most names is followed in all; of others, what they decide otherwise is to be told.
        """
        names = self._names.of(modality)
        # Encoders of like names are built in different ways.
        enough = _ENOUGH if modality == TEXT else 1
        used: set[str] = set()
        for definition in self.ranked(modality):
            covered = self._covered.get((definition.name, modality), set())
            is_followed = len(covered & names) >= enough * len(names)
            own = [each for each in self._found[definition.name] if each.rule.modality == modality]
            for each in sorted(own, key=lambda each: -len(each.groups)):
                own_names = {group.name for group in each.groups}
                if own_names & used:
                    continue
                used |= own_names
                yield each, [] if is_followed else self._otherwise(each)

    def _otherwise(self, chosen: Precedent) -> list[Precedent]:
        """The precedents for the groups of a precedent that decide otherwise, one for each decision."""
        names = {group.name for group in chosen.groups}
        others: dict[tuple[object, ...], Precedent] = {}
        for found in self._found.values():
            for each in found:
                if each.rule.modality == chosen.rule.modality and names == {group.name for group in each.groups}:
                    others.setdefault(each.decision, each)
        others.pop(chosen.decision, None)
        return list(others.values())


def _precedents(definition: Definition, names: Anatomy) -> Iterator[Precedent]:
    for rule in definition.rules:
        base = base_of(definition, rule.modality)
        groups = [_group_of(source, rule, base, names) for source in rule.sources]
        found = [each for each in groups if each is not None]
        if len(found) < len(groups) or len({each.name for each in found}) < len(found):
            continue
        alike = {(each.stack, each.layers) for each in found}
        dims = all(len(each.shape) == len(source.dims) for each, source in zip(found, rule.sources, strict=True))
        if len(alike) == 1 and dims and (rule.layers is not None) == (found[0].stack in names.items):
            yield Precedent(definition=definition.name, rule=rule, groups=tuple(found))


def _group_of(source: SourcePattern, rule: Rule, base: str | None, names: Anatomy) -> Group | None:
    """The group in the place of a source; `base`: the module in which its definition has the layers."""
    for number in _NUMBERS:
        if f".{number}." in source.name:
            group = names.layered.get((rule.modality, source.name.partition(f".{number}.")[2]))
            is_further = group is not None and group.name in names.further
            return group if is_further == (number == "{next}") else None
    own = names.base(rule.modality)
    if base is not None and rule.modality in names.main and source.name.startswith(base):
        return names.others.get(own + source.name.removeprefix(base))
    ends = [each for each in names.others if f".{each}".endswith(f".{source.name}") or source.name.endswith(f".{each}")]
    return names.others[ends[0]] if len(ends) == 1 else None


def _sizes_of(rule: Rule) -> Iterator[str]:
    """The names of the sizes in a rule."""
    dims = (dim for source in rule.sources for dim in source.dims)
    yield from (each for each in (*dims, *rule.operator_sizes, rule.unit) if isinstance(each, str))


def base_of(definition: Definition, modality: str) -> str | None:
    """The module in which a definition has the layers of a modality, with a dot behind it; `None` without layers."""
    stacks = Counter(
        source.name.partition(".{layer}.")[0]
        for rule in definition.rules
        for source in rule.sources
        if rule.modality == modality and ".{layer}." in source.name
    )
    return module_of(stacks.most_common(1)[0][0]) if stacks else None
