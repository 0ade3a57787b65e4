"""Model definitions: the rules of one family, parsed from its YAML file under `conf/model/`.

Owns the vocabulary of that file and every check that can be made without a checkpoint. It never looks at a checkpoint
and never runs an operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distconv.adapters import ADAPTERS, rules_of_adapters, rules_with_adapters
from distconv.errors import InputError, raise_if, unknown_keys
from distconv.rules import Rule, parse_rules
from distconv.sizes import SizeSpec

PROJECTOR = "projector"
FLOATING = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The head that equals the embedding when `flag` holds; both by their target names."""

    flag: SizeSpec
    embedding: str
    head: str


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Source tensors left out on purpose: a name pattern with `*`, and why.

    With `layers` (the names of two sizes, first and count) the pattern has a `{layer}`, which must be one of those.
    """

    names: str
    reason: str
    layers: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A model definition, complete and consistent in itself."""

    name: str
    model_types: tuple[str, ...]
    variant_of: str | None
    renamed_prefixes: tuple[tuple[str, str], ...]
    sizes: Mapping[str, SizeSpec]
    lists: Mapping[str, SizeSpec]
    modalities: Mapping[str, str]
    experts: str | None
    adapters: str | None
    tied: Tied | None
    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...]

    def rule_for(self, target: str) -> Rule:
        """The rule of a target name."""
        return next(rule for rule in self.rules if rule.target == target)


def parse_definition(name: str, content: Mapping[str, Any]) -> Definition:
    """The definition in a composed YAML file.

    Raises:
        InputError: every problem of the file together, each with the rule it is in.
    """
    problems: list[str] = []
    where = f"model definition {name}"
    known = (
        "model_types",
        "variant_of",
        "renamed_prefixes",
        "sizes",
        "lists",
        "modalities",
        "experts",
        "adapters",
        "tied",
        "rules",
        "ignore",
    )
    problems += [f"{where}: {problem}" for problem in unknown_keys(content, known)]

    sizes: dict[str, SizeSpec] = {}
    size_names = [str(size) for size in _mapping(content, "sizes")]
    for size, value in _mapping(content, "sizes").items():
        try:
            sizes[str(size)] = SizeSpec.parse(value)
        except ValueError as error:
            problems.append(f"{where}: sizes.{size}: {error}")
    for size, spec in sizes.items():
        problems += [
            f"{where}: sizes.{size}: no size {item!r}"
            for item in spec.of
            if isinstance(item, str) and item not in size_names
        ]

    lists: dict[str, SizeSpec] = {}
    for name_of_list, value in (content.get("lists") or {}).items():
        try:
            lists[str(name_of_list)] = SizeSpec.parse(value)
        except ValueError as error:
            problems.append(f"{where}: lists.{name_of_list}: {error}")

    modalities: dict[str, str] = {}
    for modality, value in _mapping(content, "modalities").items():
        layers = value.get("layers") if isinstance(value, Mapping) else None
        if layers not in size_names:
            problems.append(f"{where}: modalities.{modality}.layers: expected the name of a size, found {layers!r}")
        modalities[str(modality)] = str(layers)
    experts = content.get("experts")
    if experts is not None and experts not in size_names:
        problems.append(f"{where}: experts: expected the name of a size, found {experts!r}")

    rules: list[Rule] = []
    for modality, sections in _mapping(content, "rules").items():
        if modality not in modalities:
            problems.append(f"{where}: rules.{modality}: no such modality; known: {', '.join(modalities)}")
            continue
        for section, entries in sections.items():
            for number, entry in enumerate(entries or ()):
                at = f"{where}: rules.{modality}.{section}[{number}]"
                try:
                    rules += parse_rules(str(modality), str(section), number, entry, size_names, lists)
                except InputError as error:
                    problems += [f"{at}: {problem}" for problem in error.problems]
    targets: dict[str, list[Rule]] = {}
    for rule in rules:
        if any(not rule.excludes(other) for other in targets.get(rule.target, ())):
            problems.append(f"{where}: two rules for the target {rule.target}")
        targets.setdefault(rule.target, []).append(rule)

    adapters = content.get("adapters")
    if adapters is not None and adapters not in ADAPTERS:
        problems.append(f"{where}: adapters: expected one of {', '.join(ADAPTERS)}, found {adapters!r}")
    tied = None
    if content.get("tied") is not None and adapters != "only":
        try:
            entry = _mapping(content, "tied")
            tied = Tied(
                flag=SizeSpec.parse(entry["flag"], entry.get("within")),
                embedding=entry["embedding"],
                head=entry["head"],
            )
            problems += [
                f"{where}: tied: no rule for the target {target}"
                for target in (tied.embedding, tied.head)
                if target not in targets
            ]
        except (KeyError, ValueError) as error:
            problems.append(f"{where}: tied: expected flag, embedding and head: {error}")
    ignored = []
    for entry in content.get("ignore") or ():
        try:
            layers = tuple(entry["layers"]) if "layers" in entry else None
            ignored.append(Ignored(names=entry["names"], reason=entry["reason"], layers=layers))
        except (KeyError, TypeError):
            problems.append(f"{where}: ignore: expected {{names: …, reason: …}}, found {entry!r}")
    raise_if(problems)
    if adapters is not None:
        rules = list(rules_with_adapters(rules) if adapters == "beside" else rules_of_adapters(rules))
    return Definition(
        name=name,
        model_types=tuple(content.get("model_types") or ()),
        variant_of=content.get("variant_of"),
        renamed_prefixes=tuple((old, new) for old, new in content.get("renamed_prefixes") or ()),
        sizes=sizes,
        lists=lists,
        modalities=modalities,
        experts=experts,
        adapters=adapters,
        tied=tied,
        rules=tuple(rules),
        ignored=tuple(ignored),
    )


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise InputError(f"model definition: {key}: expected a mapping, found {value!r}")
    return value
