"""The rules of a model definition: the parsing and checking of one entry of its YAML file.

Owns the vocabulary of an entry. Never looks at a checkpoint and never runs an operator.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distconv.errors import InputError, raise_if, unknown_keys
from distconv.tensors.cuts import TENSOR_PARALLEL_RULES
from distconv.tensors.operators import OPERATORS, RENAME

# The modalities of a model: the language model, then the encoders.
TEXT = "text"
MODALITIES = (TEXT, "vision", "audio")
STAGES = ("first", "last", "ends", "every", "layer")
PLACEHOLDERS = ("layer", "expert", "item", "next")
_ALTERNATIVES = re.compile(r"\{([\w.?]+(?:,[\w.?]+)+)\}")
# A dim whose size is not in config.json.
ANY = "any"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class SourcePattern:
    """A source tensor of a rule: its name with placeholders, and its dims as names of sizes or integers."""

    name: str
    dims: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """How one Megatron-side parameter is made, cut and placed; `modality` and `section` locate it in the definition.

    `layers`: the name of a list of the only layers with this parameter, which `{item}` counts. `choice`: a group of
    alternatives, and the alternative of this rule; a layer uses exactly one alternative, or none if all its rules
    `may_be_absent`. `is_adapter`: the parameter is a factor of an adapter, not a weight of the model.
    """

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
    layers: str | None = None
    choice: tuple[str, str] | None = None
    may_be_absent: bool = False
    is_adapter: bool = False

    @property
    def where(self) -> str:
        """The place of the rule in its definition, for messages."""
        return f"rule {self.modality}.{self.section}"

    def excludes(self, other: Rule) -> bool:
        """Whether the two rules are of different alternatives of one choice, so that no layer uses both."""
        if self.choice is None or other.choice is None:
            return False
        return self.choice[0] == other.choice[0] and self.choice[1] != other.choice[1]

    @property
    def packs_experts(self) -> bool:
        """Whether the sources are packed experts: dim 0 counts all the experts."""
        return "expert" in self.placeholders and not any("{expert}" in source.name for source in self.sources)

    @property
    def has_equal_sources(self) -> bool:
        """Whether the sources are concatenated, and as many as the equal parts of the cut: gate and up."""
        parts = TENSOR_PARALLEL_RULES[self.tensor_parallel].parts
        return OPERATORS[self.operator].is_sequence and len(self.sources) == parts

    @property
    def source_names(self) -> tuple[str, ...]:
        """The names of its sources, with placeholders."""
        return tuple(source.name for source in self.sources)

    @property
    def placeholders(self) -> frozenset[str]:
        """The placeholders in the target."""
        return frozenset(_PLACEHOLDER.findall(self.target))


def parse_rules(
    modality: str, section: str, position: int, entry: Any, sizes: Collection[str], lists: Collection[str]
) -> Iterator[Rule]:
    """The rules of one entry: one per alternative of `{weight,bias}`, and all rules below a `one_of`.

    `sizes` and `lists` are the definition's names of sizes and of lists of layers.

    Raises:
        InputError: every problem of the entry.
    """
    if not isinstance(entry, Mapping):
        raise InputError(f"expected a rule, found {entry!r}")
    if "one_of" not in entry:
        yield from _parsed(modality, section, entry, sizes, lists)
        return
    alternatives = entry["one_of"]
    if len(entry) > 1 or not isinstance(alternatives, Mapping) or len(alternatives) < 2:
        raise InputError("one_of: expected two or more named lists of rules, and nothing beside")
    problems: list[str] = []
    for name, entries in alternatives.items():
        if not isinstance(entries, list):
            problems.append(f"one_of.{name}: expected a list of rules, found {entries!r}")
            continue
        choice = (f"{modality}.{section}[{position}]", str(name))
        for number, each in enumerate(entries):
            try:
                rules = _parsed(modality, section, each, sizes, lists)
                yield from (replace(rule, choice=choice, may_be_absent=[] in alternatives.values()) for rule in rules)
            except InputError as error:
                problems += [f"one_of.{name}[{number}]: {problem}" for problem in error.problems]
    raise_if(problems)


def _parsed(modality: str, section: str, entry: Any, sizes: Collection[str], lists: Collection[str]) -> Iterator[Rule]:
    if not isinstance(entry, Mapping):
        raise InputError(f"expected a rule, found {entry!r}")
    problems = unknown_keys(entry, ("target", "sources", "operator", "tp", "stage", "layers", "optional"))
    target = entry.get("target")
    if not isinstance(target, str):
        problems.append(f"target: expected a name, found {target!r}")
    sources = _sources(entry.get("sources"), problems)
    operator, operator_sizes = _call("operator", entry.get("operator", RENAME), problems)
    tensor_parallel, units = _call("tp", entry.get("tp"), problems)
    optional = entry.get("optional", False)
    if not isinstance(optional, bool):
        problems.append(f"optional: expected true or false, found {optional!r}")
    # Further checks would only repeat that a value is of the wrong type.
    raise_if(problems)
    rule = Rule(
        modality=modality,
        section=section,
        target=str(target),
        sources=sources,
        operator=operator,
        operator_sizes=operator_sizes,
        tensor_parallel=tensor_parallel,
        unit=units[0] if units else None,
        stage=entry.get("stage", "layer" if "{layer}" in str(target) else ""),
        optional=optional,
        layers=entry.get("layers"),
    )
    raise_if(list(_rule_problems(rule, units, sizes, lists)))
    return _alternatives(rule)


def _sources(value: Any, problems: list[str]) -> tuple[SourcePattern, ...]:
    sources = []
    for source in value if isinstance(value, list) else [value]:
        if isinstance(source, list) and source and isinstance(source[0], str) and all(map(_is_size, source[1:])):
            sources.append(SourcePattern(name=source[0], dims=tuple(source[1:])))
        else:
            problems.append(f"sources: expected [name, size of dim 0, …], found {source!r}")
    return tuple(sources)


def _is_size(value: object) -> bool:
    return isinstance(value, str) or (type(value) is int and value > 0)


def _rule_problems(
    rule: Rule, units: tuple[str | int, ...], sizes: Collection[str], lists: Collection[str]
) -> Iterator[str]:
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
    dims = (dim for source in rule.sources for dim in source.dims if dim != ANY)
    named = [*rule.operator_sizes, *units, *dims]
    unknown = dict.fromkeys(name for name in named if isinstance(name, str) and name not in sizes)
    yield from (f"no size {name!r} under sizes" for name in unknown)
    if rule.stage not in STAGES or (rule.stage == "layer") != ("{layer}" in rule.target):
        yield (
            f"stage: expected first, last, ends or every for a target without {{layer}}, and none with it; "
            f"found {rule.stage or None!r}"
        )
    names = (rule.target, *(source.name for source in rule.sources))
    found = {placeholder for name in names for placeholder in _names(name)}
    yield from (f"unknown placeholder {{{name}}}" for name in sorted(found - set(PLACEHOLDERS)))
    yield from (
        f"{name}: expected placeholders such as {{layer}}, and at one place alternatives such as {{weight,bias}}"
        for name in names
        if not _is_legible(name)
    )
    yield from (
        f"{{{name}}} stands in a source but not in the target"
        for name in sorted(found - set(_names(rule.target)))
        if name in ("layer", "expert", "next")
    )
    if rule.layers is not None and (str(rule.layers) not in lists or "{layer}" not in rule.target):
        yield f"layers: expected the name of a list, for a target with {{layer}}; found {rule.layers!r}"
    if rule.layers is None and "item" in found:
        yield "{item} counts the entries of a list: name it with the key layers"
    if "{layer}" in rule.target and not all("{layer}" in each.name or "{item}" in each.name for each in rule.sources):
        yield "{layer} stands in the target but not in every source"
    if "{next}" in rule.target and not all("{next}" in each.name for each in rule.sources):
        yield "{next} stands in the target but not in every source"


def _is_legible(name: str) -> bool:
    """Whether all braces of a name enclose placeholders or alternatives, the same ones throughout."""
    match = _ALTERNATIVES.search(name)
    rest = name if match is None else name.replace(match[0], "")
    return not set("{}") & set(_PLACEHOLDER.sub("", rest))


def _names(text: str) -> list[str]:
    return _PLACEHOLDER.findall(_ALTERNATIVES.sub("", text))


def _call(key: str, value: Any, problems: list[str]) -> tuple[str, tuple[str | int, ...]]:
    """The name and the sizes in a value: a name alone, or a list of a name and sizes."""
    if value is None:
        return "", ()
    if isinstance(value, str):
        return value, ()
    if isinstance(value, list) and value and isinstance(value[0], str) and all(map(_is_size, value[1:])):
        return value[0], tuple(value[1:])
    problems.append(f"{key}: expected a name, or a list of a name and its sizes, found {value!r}")
    return "", ()


def _alternatives(rule: Rule) -> Iterator[Rule]:
    match = _ALTERNATIVES.search(rule.target)
    if match is None:
        for source in rule.sources:
            if found := _ALTERNATIVES.search(source.name):
                raise InputError(f"{source.name}: {found[0]} stands in a source but not in the target")
        yield replace(rule, tensor_parallel=rule.tensor_parallel or "replicated")
        return
    for number, alternative in enumerate(match[1].split(",")):
        sources = []
        for source in rule.sources:
            found = _ALTERNATIVES.search(source.name)
            if found is None or len(found[1].split(",")) != len(match[1].split(",")):
                raise InputError(f"{source.name}: expected as many alternatives as in the target {rule.target}")
            name = source.name.replace(found[0], found[1].split(",")[number].rstrip("?"))
            # A bias has the first dim of its weight.
            dims = source.dims[:1] if alternative.rstrip("?").endswith("bias") else source.dims
            sources.append(SourcePattern(name=name, dims=dims))
        yield replace(
            rule,
            target=rule.target.replace(match[0], alternative.rstrip("?")),
            optional=rule.optional or alternative.endswith("?"),
            sources=tuple(sources),
            tensor_parallel=rule.tensor_parallel or "replicated",
        )
