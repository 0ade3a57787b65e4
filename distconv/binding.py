"""Binding: a model definition meets the tensors of a checkpoint.

Turns the source index into the full, unsplit Megatron-side parameters as virtual tensors. Binding is total: every
source tensor is used by a rule, or left out for a reason that the report names; every rule finds its sources, of the
expected shape and element type, or is marked optional. It knows no layout and reads no data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product

from distconv.definition import FLOATING, Definition
from distconv.dtypes import ITEM_SIZE
from distconv.errors import InputError, named, raise_if
from distconv.operators import OPERATORS
from distconv.rules import Rule
from distconv.sizes import Sizes
from distconv.source import SourceIndex, StoredTensor
from distconv.virtual import VirtualTensor, whole


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """A rule applied to sources of given shapes: one virtual tensor, shared by all layers that look alike.

    `unit` is the number of units (heads, groups) that a tensor-parallel cut must keep whole, with how messages speak
    of it; `dims` is how they speak of the sizes of the sources. Compared and hashed by identity, so that everything
    derived from a recipe is derived once.
    """

    rule: Rule
    tensor: VirtualTensor
    source_shapes: tuple[tuple[int, ...], ...]
    unit: tuple[int, str] | None
    dims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A full Megatron-side parameter: a recipe, the stored tensors that are its operands, and its global numbers."""

    recipe: Recipe
    sources: tuple[StoredTensor, ...]
    layer: int | None = None
    expert: int | None = None

    @property
    def name(self) -> str:
        """Its name with global layer and expert numbers."""
        return target_name(self.recipe.rule, self.layer, self.expert)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the unsplit parameter."""
        return self.recipe.tensor.elements * ITEM_SIZE[self.recipe.tensor.dtype]


@dataclass(frozen=True, kw_only=True)
class Unconverted:
    """A source tensor that is left out on purpose, and why."""

    tensor: StoredTensor
    reason: str


@dataclass(frozen=True, kw_only=True)
class Binding:
    """The parameters of a model, the source tensors left out, and the facts that a layout needs to know.

    `layers` gives the number of layers of each modality that is converted; `experts` the number of experts of a
    mixture, `None` for a dense model; `tied` whether the head equals the embedding.
    """

    parameters: tuple[Parameter, ...]
    unconverted: tuple[Unconverted, ...]
    layers: Mapping[str, int]
    experts: int | None
    tied: bool

    def and_text_from(self, other: Binding) -> Binding:
        """A binding with the language model of another one."""
        return Binding(
            parameters=self.parameters + other.parameters,
            unconverted=self.unconverted + other.unconverted,
            layers={**self.layers, **other.layers},
            experts=other.experts,
            tied=other.tied,
        )


def bind(definition: Definition, sizes: Sizes, index: SourceIndex, left_out: Callable[[Rule], str | None]) -> Binding:
    """Bind the rules of a definition to an index; `left_out` gives the reason why a rule is not wanted, if it is not.

    Raises:
        InputError: every source tensor that is missing, unknown, or of the wrong shape or element type, by name.
    """
    problems: list[str] = []
    stored = _canonical(definition, index, problems)
    reasons = {rule: left_out(rule) for rule in definition.rules}
    wanted = [rule for rule in definition.rules if reasons[rule] is None]
    modalities = {rule.modality for rule in wanted}
    tied = False
    if definition.tied is not None and definition.rule_for(definition.tied.head) in wanted:
        tied = sizes.flag(definition.tied.flag)
    parameters: list[Parameter] = []
    used: set[str] = set()
    for rule in wanted:
        optional = rule.optional or (tied and definition.tied is not None and rule.target == definition.tied.head)
        try:
            applied = _apply(rule, definition, sizes, stored)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        used |= applied.used
        parameters += applied.parameters
        problems += applied.wrong
        if applied.used or not optional:
            problems += applied.missing

    explain = _Explanations(definition, reasons)
    unconverted = []
    unknown: dict[str, list[str]] = {}
    for name in sorted(set(stored) - used):
        reason = explain.reason(name)
        if reason is None:
            unknown.setdefault(explain.problem(name), []).append(stored[name].name)
        else:
            unconverted.append(Unconverted(tensor=stored[name], reason=reason))
    for what, names in unknown.items():
        problems.append(f"{index.directory}: {len(names)} source tensors {what}: {named(names, 8)}")
    raise_if(problems)
    return Binding(
        parameters=tuple(parameters),
        unconverted=tuple(unconverted),
        layers={modality: sizes.get(definition.modalities[modality]) for modality in sorted(modalities)},
        experts=sizes.get(definition.experts) if definition.experts is not None else None,
        tied=tied,
    )


def target_name(rule: Rule, layer: int | None, expert: int | None) -> str:
    """The rule's target with its placeholders filled."""
    return _filled(rule.target, layer, expert)


def _filled(pattern: str, layer: int | None, expert: int | None) -> str:
    if layer is not None:
        pattern = pattern.replace("{layer}", str(layer))
    return pattern if expert is None else pattern.replace("{expert}", str(expert))


def _canonical(definition: Definition, index: SourceIndex, problems: list[str]) -> dict[str, StoredTensor]:
    """The stored tensors by the spelling of their names that the definition uses."""
    stored: dict[str, StoredTensor] = {}
    for name, tensor in index.tensors.items():
        spelling = name
        for old, new in definition.renamed_prefixes:
            if name.startswith(old):
                spelling = new + name[len(old) :]
                break
        other = stored.setdefault(spelling, tensor)
        if other is not tensor:
            problems.append(f"{index.directory}: {other.name} and {name} are two spellings of the same tensor")
    return stored


@dataclass(kw_only=True)
class _Applied:
    """What one rule found: its parameters, the source names it used, and its problems."""

    parameters: list[Parameter] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def _apply(rule: Rule, definition: Definition, sizes: Sizes, stored: Mapping[str, StoredTensor]) -> _Applied:
    layers: Iterable[int | None] = (None,)
    experts: Iterable[int | None] = (None,)
    if "layer" in rule.placeholders:
        layers = range(sizes.get(definition.modalities[rule.modality]))
    if "expert" in rule.placeholders and definition.experts is not None:
        experts = range(sizes.get(definition.experts))
    expected = [tuple(sizes.get(dim) for dim in source.dims) for source in rule.sources]
    recipes: dict[str, Recipe] = {}
    applied = _Applied()
    for layer, expert in product(layers, experts):
        names = [_filled(source.name, layer, expert) for source in rule.sources]
        present = [stored[name] for name in names if name in stored]
        applied.used.update(name for name in names if name in stored)
        if len(present) < len(names):
            applied.missing += [
                f"source tensor {name} is missing: {target_name(rule, layer, expert)} is made from it ({rule.where})"
                for name in names
                if name not in stored
            ]
            continue
        wrong = list(_unexpected(rule, present, expected, sizes))
        applied.wrong += wrong
        if wrong:
            continue
        dtype = present[0].dtype
        if dtype not in recipes:
            recipes[dtype] = _recipe(rule, dtype, expected, sizes)
        applied.parameters.append(Parameter(recipes[dtype], tuple(present), layer, expert))
    return applied


def _unexpected(
    rule: Rule, tensors: list[StoredTensor], expected: list[tuple[int, ...]], sizes: Sizes
) -> Iterator[str]:
    for tensor, shape, pattern in zip(tensors, expected, rule.sources, strict=True):
        if tensor.shape != shape:
            dims = ", ".join(sizes.origin(dim) for dim in pattern.dims)
            yield (
                f"{tensor.file.path}: {tensor.name} has shape {list(tensor.shape)}, expected {list(shape)}: "
                f"{dims} ({rule.where})"
            )
        if tensor.dtype not in FLOATING:
            yield (
                f"{tensor.file.path}: {tensor.name} is {tensor.dtype}, expected one of {', '.join(FLOATING)}; "
                "quantised checkpoints cannot be converted"
            )
    if len({tensor.dtype for tensor in tensors}) > 1:
        described = ", ".join(f"{tensor.name} is {tensor.dtype}" for tensor in tensors)
        yield f"{tensors[0].file.path}: sources of one parameter differ in element type: {described} ({rule.where})"


def _recipe(rule: Rule, dtype: str, shapes: list[tuple[int, ...]], sizes: Sizes) -> Recipe:
    operands = [whole(dtype, shape, number) for number, shape in enumerate(shapes)]
    arguments = [sizes.get(size) for size in rule.operator_sizes]
    try:
        tensor = OPERATORS[rule.operator].apply(*operands, *arguments)
    except ValueError as error:
        given = ", ".join(sizes.origin(size) for size in rule.operator_sizes)
        raise InputError(f"{rule.target} ({rule.where}): operator {rule.operator} with {given}: {error}") from None
    unit = None if rule.unit is None else (sizes.get(rule.unit), sizes.origin(rule.unit))
    dims = tuple(sizes.origin(dim) for source in rule.sources for dim in source.dims)
    return Recipe(rule=rule, tensor=tensor, source_shapes=tuple(shapes), unit=unit, dims=dims)


class _Explanations:
    """Why a source tensor that no wanted rule used is left out, or what is wrong with it."""

    def __init__(self, definition: Definition, reasons: Mapping[Rule, str | None]) -> None:
        groups: dict[str | None, list[Rule]] = {}
        for rule, reason in reasons.items():
            groups.setdefault(reason, []).append(rule)
        self._wanted = _pattern(groups.pop(None, []))
        self._left_out = [(reason, _pattern(rules)) for reason, rules in groups.items()]
        self._ignored = definition.ignored
        self._definition = definition.name

    def reason(self, name: str) -> str | None:
        """Why the tensor is left out on purpose; nothing if it is not."""
        for reason, pattern in self._left_out:
            if pattern.fullmatch(name):
                return reason
        return next((entry.reason for entry in self._ignored if fnmatchcase(name, entry.names)), None)

    def problem(self, name: str) -> str:
        """What is wrong with a tensor that is not left out on purpose."""
        if self._wanted.fullmatch(name):
            return "beyond the number of layers or experts that config.json gives"
        return f"that no rule of model definition {self._definition} knows"


def _pattern(rules: list[Rule]) -> re.Pattern[str]:
    names = sorted({source.name for rule in rules for source in rule.sources})
    return re.compile("|".join(re.sub(r"\\{\w+\\}", r"\\d+", re.escape(name)) for name in names) or r"(?!)")
