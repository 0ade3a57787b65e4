"""Model definitions: the rules of one family, parsed from its YAML file under `conf/model/`.

Owns the vocabulary of that file and every check that can be made without a checkpoint. It never looks at a checkpoint
and never runs an operator.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distconv.errors import InputError, raise_if
from distconv.operators import OPERATORS
from distconv.sizes import SizeSpec
from distconv.tensor_parallel import TENSOR_PARALLEL_RULES

STAGES = ("first", "last", "every", "layer")
PLACEHOLDERS = ("layer", "expert")
PROJECTOR = "projector"
FLOATING = ("float64", "float32", "float16", "bfloat16")
_ALTERNATIVES = re.compile(r"\{([\w.]+(?:,[\w.]+)+)\}")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class SourcePattern:
    """A source tensor of a rule: its name, with placeholders, and the names of the sizes of its dims."""

    name: str
    dims: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """How one Megatron-side parameter is made, cut and placed. `modality` and `section` say where the rule stands."""

    modality: str
    section: str
    target: str
    sources: tuple[SourcePattern, ...]
    operator: str
    operator_sizes: tuple[str | int, ...]
    tensor_parallel: str
    unit: str | int | None
    stage: str
    optional: bool

    @property
    def where(self) -> str:
        """How messages speak of the rule."""
        return f"rule {self.modality}.{self.section}"

    @property
    def placeholders(self) -> frozenset[str]:
        """The placeholders of its target."""
        return frozenset(_PLACEHOLDER.findall(self.target))


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The head that equals the embedding when `flag` holds; both by their target names."""

    flag: SizeSpec
    embedding: str
    head: str


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Source tensors left out on purpose: a name pattern with `*`, and why."""

    names: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A model definition, complete and consistent in itself."""

    name: str
    model_types: tuple[str, ...]
    variant_of: str | None
    renamed_prefixes: tuple[tuple[str, str], ...]
    sizes: Mapping[str, SizeSpec]
    modalities: Mapping[str, str]
    experts: str | None
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
        "modalities",
        "experts",
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
        except (ValueError, TypeError) as error:
            problems.append(f"{where}: sizes.{size}: {error}")
    for size, spec in sizes.items():
        problems += [
            f"{where}: sizes.{size}: no size {item!r}"
            for item in (*spec.product, *spec.quotient)
            if isinstance(item, str) and item not in size_names
        ]

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
                    rules += _rules(str(modality), str(section), entry, size_names)
                except InputError as error:
                    problems += [f"{at}: {problem}" for problem in error.problems]
    targets = [rule.target for rule in rules]
    twice = sorted({target for target in targets if targets.count(target) > 1})
    problems += [f"{where}: two rules for the target {target}" for target in twice]

    tied = None
    if content.get("tied") is not None:
        try:
            entry = _mapping(content, "tied")
            tied = Tied(flag=SizeSpec.parse(entry["flag"]), embedding=entry["embedding"], head=entry["head"])
            problems += [
                f"{where}: tied: no rule for the target {target}"
                for target in (tied.embedding, tied.head)
                if target not in targets
            ]
        except (KeyError, ValueError, TypeError) as error:
            problems.append(f"{where}: tied: expected flag, embedding and head ({error})")
    ignored = []
    for entry in content.get("ignore") or ():
        try:
            ignored.append(Ignored(names=entry["names"], reason=entry["reason"]))
        except (KeyError, TypeError):
            problems.append(f"{where}: ignore: expected {{names: …, reason: …}}, found {entry!r}")
    raise_if(problems)
    return Definition(
        name=name,
        model_types=tuple(content.get("model_types") or ()),
        variant_of=content.get("variant_of"),
        renamed_prefixes=tuple((old, new) for old, new in content.get("renamed_prefixes") or ()),
        sizes=sizes,
        modalities=modalities,
        experts=experts,
        tied=tied,
        rules=tuple(rules),
        ignored=tuple(ignored),
    )


def unknown_keys(content: Mapping[Any, Any], known: Collection[str]) -> list[str]:
    """A problem for each key that is not known, with the nearest one that is."""
    problems = []
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            problems.append(f"unknown key {key!r}{hint}")
    return problems


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise InputError(f"model definition: {key}: expected a mapping, found {value!r}")
    return value


def _rules(modality: str, section: str, entry: Any, sizes: Collection[str]) -> Iterator[Rule]:
    """The rules of one entry: one for each alternative of `{weight,bias}`."""
    if not isinstance(entry, Mapping):
        raise InputError(f"expected a rule, found {entry!r}")
    problems = unknown_keys(entry, ("target", "sources", "operator", "tp", "stage", "optional"))
    target = entry.get("target")
    if not isinstance(target, str):
        raise InputError([*problems, f"target: expected a name, found {target!r}"])
    sources = []
    for source in entry.get("sources") or ():
        if not isinstance(source, Sequence) or isinstance(source, str) or not source:
            problems.append(f"sources: expected [name, size of dim 0, …], found {source!r}")
        else:
            sources.append(SourcePattern(name=str(source[0]), dims=tuple(source[1:])))
    operator, operator_sizes = _call(entry.get("operator", "rename"))
    tensor_parallel, units = _call(entry.get("tp"))
    rule = Rule(
        modality=modality,
        section=section,
        target=target,
        sources=tuple(sources),
        operator=operator,
        operator_sizes=operator_sizes,
        tensor_parallel=tensor_parallel,
        unit=units[0] if units else None,
        stage=entry.get("stage", "layer" if "{layer}" in target else ""),
        optional=entry.get("optional", False),
    )
    problems += _rule_problems(rule, units, sizes)
    raise_if(problems)
    return _alternatives(rule)


def _rule_problems(rule: Rule, units: tuple[str | int, ...], sizes: Collection[str]) -> Iterator[str]:
    if rule.operator not in OPERATORS:
        yield f"operator: unknown {rule.operator!r}; known: {', '.join(OPERATORS)}"
    else:
        operator = OPERATORS[rule.operator]
        if len(rule.operator_sizes) != len(operator.sizes):
            yield f"operator: {rule.operator} takes the sizes {list(operator.sizes)}, found {list(rule.operator_sizes)}"
        if len(rule.sources) < 2 if operator.sources is None else len(rule.sources) != operator.sources:
            count = operator.sources or "2 or more"
            yield f"operator: {rule.operator} takes {count} sources, found {len(rule.sources)}"
    if not rule.tensor_parallel:
        if any(len(source.dims) > 1 for source in rule.sources):
            yield (
                f"tp: missing for {rule.target}, which has two or more dims; one of {', '.join(TENSOR_PARALLEL_RULES)}"
            )
    elif rule.tensor_parallel not in TENSOR_PARALLEL_RULES:
        yield f"tp: unknown {rule.tensor_parallel!r}; known: {', '.join(TENSOR_PARALLEL_RULES)}"
    if len(units) > 1:
        yield f"tp: expected a rule and at most one unit, found {list(units)}"
    named = [*rule.operator_sizes, *units, *(dim for source in rule.sources for dim in source.dims)]
    unknown = dict.fromkeys(name for name in named if isinstance(name, str) and name not in sizes)
    yield from (f"no size {name!r} under sizes" for name in unknown)
    if rule.stage not in STAGES or (rule.stage == "layer") != ("{layer}" in rule.target):
        yield (
            f"stage: expected first, last or every for a target without {{layer}}, and none with it; "
            f"found {rule.stage or None!r}"
        )
    found = {name for text in (rule.target, *(source.name for source in rule.sources)) for name in _names(text)}
    yield from (f"unknown placeholder {{{name}}}" for name in sorted(found - set(PLACEHOLDERS)))
    yield from (
        f"{{{name}}} stands in a source but not in the target"
        for name in sorted(found - set(_names(rule.target)))
        if name in PLACEHOLDERS
    )


def _names(text: str) -> list[str]:
    return _PLACEHOLDER.findall(_ALTERNATIVES.sub("", text))


def _call(value: Any) -> tuple[str, tuple[str | int, ...]]:
    """A name alone, or a list of a name and its sizes."""
    if value is None:
        return "", ()
    if isinstance(value, str):
        return value, ()
    return str(value[0]), tuple(value[1:])


def _alternatives(rule: Rule) -> Iterator[Rule]:
    match = _ALTERNATIVES.search(rule.target)
    if match is None:
        yield replace(rule, tensor_parallel=rule.tensor_parallel or "replicated")
        return
    for number, alternative in enumerate(match[1].split(",")):
        sources = []
        for source in rule.sources:
            found = _ALTERNATIVES.search(source.name)
            if found is None or len(found[1].split(",")) != len(match[1].split(",")):
                raise InputError(f"{source.name}: expected as many alternatives as in the target {rule.target}")
            name = source.name.replace(found[0], found[1].split(",")[number])
            # A bias has the first dim of its weight.
            dims = source.dims[:1] if alternative.endswith("bias") else source.dims
            sources.append(SourcePattern(name=name, dims=dims))
        yield replace(
            rule,
            target=rule.target.replace(match[0], alternative),
            sources=tuple(sources),
            tensor_parallel=rule.tensor_parallel or "replicated",
        )
