"""Binding: the rules of a model definition applied to the stored tensors of a checkpoint.

Owns the unsplit Megatron-side parameters, as virtual tensors over stored ones. Binding is total: every source tensor is
used by a rule, or left out for a reason that the report names; every rule finds its sources, of the expected shape and
element type, or is marked optional. Knows no layout and reads no data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod

from distconv.errors import InputError, counted, named, raise_if
from distconv.models.adapters import named_adapters_problem
from distconv.models.definition import Definition
from distconv.models.names import (
    Choices,
    Explanations,
    by_sources,
    by_spelling,
    experts_of,
    filled,
    layer_count,
    layers_of,
    pattern_of,
)
from distconv.models.parameters import Binding, Parameter, Recipe, Unconverted, target_name
from distconv.models.rules import ANY, Rule
from distconv.models.sizes import OTHER_CONFIG, Sizes
from distconv.models.wrappers import wrapping_problem
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.operators import OPERATORS
from distconv.tensors.replicas import replicas_of
from distconv.tensors.stored import Assembled, SourceIndex, StoredTensor
from distconv.tensors.virtual import VirtualTensor, select, whole

_UNKNOWN = f"{OTHER_CONFIG} to leave tensors out, name them under ignored in a definition of your own"


def bind(definition: Definition, sizes: Sizes, index: SourceIndex, left_out: Callable[[Rule], str | None]) -> Binding:
    """Bind the rules of a definition to an index; `left_out` gives the reason why a rule is unwanted, or `None`.

    Raises:
        InputError: every source tensor that is missing, unknown, or of the wrong shape or element type, by name.
    """
    names, problems = by_spelling(index.tensors, definition.spelled, index.directory)
    stored = {name: index.tensors[own] for name, own in names.items()}
    reasons = {rule: left_out(rule) for rule in definition.rules}
    wanted = [rule for rule in definition.rules if reasons[rule] is None]
    quantised = _quantised(wanted, stored)
    modalities = sorted({rule.modality for rule in wanted})
    counts: Mapping[str, int] = {}
    try:
        counts = {modality: layer_count(definition, modality, sizes, wanted, stored) for modality in modalities}
    except InputError as error:
        problems += error.problems
    raise_if(problems)
    tied_head = None
    if definition.tied is not None and "text" in modalities and definition.is_tied(sizes):
        tied_head = definition.tied.head
    parameters: list[Parameter] = []
    owners: dict[str, Rule] = {}
    missing: dict[str, list[str]] = {}
    unsized = False
    chosen = Choices(definition.rules, by_sources(stored))
    for rule in wanted:
        try:
            applied = _apply(rule, definition, sizes, stored, chosen, counts)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            unsized = True
            continue
        problems += [
            f"source tensor {name} is used by {owners[name].where} and by {rule.where}: a tensor has one rule"
            for name in sorted(applied.used & owners.keys())
        ]
        owners |= dict.fromkeys(applied.used, rule)
        parameters += applied.parameters
        problems += applied.wrong
        if applied.used or not (rule.optional or rule.target == tied_head):
            missing.setdefault(rule.modality, []).extend(applied.missing)

    explain = Explanations(definition, reasons, sizes)
    unconverted, unused = _left_out(definition, explain, stored, owners)
    unknown: dict[str, list[str]] = {}
    for name in unused:
        if not (unsized and explain.fits(name)) and name.rpartition(".")[0] not in quantised:
            unknown.setdefault(explain.problem(name), []).append(stored[name].name)
    problems += _missing(missing, {rule.modality for rule in owners.values()}, index.directory)
    left_over = [
        *_of_quantised(quantised.values(), index.directory),
        *_unknown(unknown, lambda name: explain.fits(name) and name not in stored, definition, index.directory),
    ]
    # First, since tensors missing in many layers would fill the screen.
    raise_if(left_over + problems)
    return Binding(
        parameters=tuple(parameters),
        unconverted=tuple(unconverted),
        layers={modality: count for modality, count in counts.items() if count},
        experts=definition.expert_count(sizes) if any(each.expert is not None for each in parameters) else None,
        tied=tied_head is not None,
        adapters=definition.adapters == "only",
    )


def _left_out(
    definition: Definition,
    explain: Explanations,
    stored: Mapping[str, StoredTensor],
    owners: Container[str],
) -> tuple[list[Unconverted], list[str]]:
    """The tensors that no rule uses, and the names of those among them that nothing leaves out."""
    found: list[Unconverted] = []
    unused = []
    copied = {each.name: each for each in definition.copied if each.of in owners}
    for name in sorted(name for name in stored if name not in owners):
        # An `ignored` pattern may be spelled as the definition's names are, or as the checkpoint's.
        reason = explain.reason(name) or explain.reason(stored[name].name)
        if name in copied:
            found.append(_copy(stored[name], stored[copied[name].of], copied[name].reason))
        elif reason is not None:
            found.append(Unconverted(tensor=stored[name], reason=reason))
        else:
            unused.append(name)
    return found, unused


def _copy(copy: StoredTensor, original: StoredTensor, reason: str) -> Unconverted:
    """A tensor that is left out as it is a copy; raises `InputError` where it cannot be, from its shape or type."""
    if (copy.dtype, copy.shape) != (original.dtype, original.shape):
        raise InputError(
            f"{copy.file.path}: {copy.name} is {copy.dtype} {list(copy.shape)}, {original.name} is {original.dtype} "
            f"{list(original.shape)}: {reason}; {OTHER_CONFIG}"
        )
    one, other = (Assembled((each,), whole(each.dtype, each.shape)) for each in (original, copy))
    return Unconverted(
        tensor=copy, reason=reason, replicas=tuple(replicas_of(one, other, f"of which it must be a copy: {reason}"))
    )


def _unknown(
    unknown: Mapping[str, list[str]], is_missing: Callable[[str], bool], definition: Definition, where: str
) -> Iterator[str]:
    """The problems of unknown tensors, by what they are; raises `InputError` where they have one cause."""
    names = [name for names in unknown.values() for name in names]
    cause = named_adapters_problem(names) or wrapping_problem(names, is_missing, definition)
    if cause is not None:
        raise InputError(f"{where}: {cause}")
    for what, names in unknown.items():
        yield f"{where}: {counted(len(names), 'source tensor')} {what}: {named(names, 8)}; {_UNKNOWN}"


def _missing(missing: Mapping[str, list[str]], held: Collection[str], where: str) -> Iterator[str]:
    """The problems of missing tensors; one for all of a modality of which nothing is there, if there is of another."""
    for modality, problems in missing.items():
        if modality in held or not held or len(problems) < 2:
            yield from (f"{each}; {OTHER_CONFIG}" for each in problems)
        else:
            others = ",".join(sorted(held))
            yield (
                f"{where}: holds nothing of the {modality} modality: {problems[0]}, and so are {len(problems) - 1} "
                f"more; if that is right, select=[{others}] converts the rest"
            )


@dataclass(kw_only=True)
class _Applied:
    """The parameters of one rule, the names of used sources, and problems: absent (`missing`) and `wrong` sources."""

    parameters: list[Parameter] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def _apply(
    rule: Rule,
    definition: Definition,
    sizes: Sizes,
    stored: Mapping[str, StoredTensor],
    chosen: Choices,
    counts: Mapping[str, int],
) -> _Applied:
    applied = _Applied()
    layers = layers_of(rule, definition, sizes, counts[rule.modality])
    used = [(item, layer) for item, layer in layers if chosen.uses(rule, layer)]
    if not used:
        return applied
    expected = [tuple(None if dim == ANY else sizes.get(dim) for dim in source.dims) for source in rule.sources]
    packed = rule.packs_experts
    recipes: dict[tuple[object, ...], Recipe] = {}
    for (item, layer), expert in product(used, experts_of(rule, definition, sizes)):
        names = [filled(source.name, layer, expert, item) for source in rule.sources]
        present = [stored[name] for name in names if name in stored]
        applied.used.update(name for name in names if name in stored)
        if len(present) < len(names):
            if not packed or expert == 0:
                unclear = chosen.unclear(rule, layer)
                where = f"{rule.where}, one of {', '.join(unclear)}" if unclear else rule.where
                needed_for = f"{target_name(rule, layer, expert)} is made from it ({where})"
                absent = [name for name in names if name not in stored]
                applied.missing += [f"source tensor {name} is missing: {needed_for}" for name in absent]
            continue
        if not packed or expert == 0:
            applied.wrong += _unexpected(rule, present, expected, sizes)
        if applied.wrong:
            continue
        slice_of = expert if packed else None
        shapes = tuple(tensor.shape for tensor in present)
        key = (present[0].dtype, shapes, slice_of)
        if key not in recipes:
            try:
                recipes[key] = make_recipe(rule, present[0].dtype, shapes, sizes, slice_of)
            except InputError as error:
                found = f"{present[0].file.path}: {named(each.name for each in present)}"
                applied.wrong += [f"{found}: {problem}" for problem in error.problems]
                continue
        applied.parameters.append(Parameter(recipes[key], tuple(present), layer, expert))
    return applied


def _quantised(rules: list[Rule], stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """The tensors of other element types, by module: what else a module has, such as scales, goes with them."""
    known = pattern_of(rules)
    found = {name: each for name, each in stored.items() if each.dtype not in FLOATING and known.fullmatch(name)}
    return {name.rpartition(".")[0]: each for name, each in found.items()}


def _of_quantised(found: Iterable[StoredTensor], where: str) -> Iterator[str]:
    if described := named((f"{each.name} is {each.dtype}" for each in found), 3):
        yield (
            f"{where}: {described}, expected one of {', '.join(FLOATING)}; of quantised weights, config.json must say "
            "how they are, and dtype=bfloat16, float16 or float32 what to make of them"
        )


def _unexpected(
    rule: Rule, tensors: list[StoredTensor], expected: list[tuple[int | None, ...]], sizes: Sizes
) -> Iterator[str]:
    for tensor, shape, pattern in zip(tensors, expected, rule.sources, strict=True):
        fits = [size in (None, found) for size, found in zip(shape, tensor.shape, strict=False)]
        if len(tensor.shape) != len(shape) or not all(fits):
            dims = ", ".join(sizes.origin(dim) for dim in pattern.dims)
            sought = [ANY if size is None else size for size in shape]
            yield (
                f"{tensor.file.path}: {tensor.name} has shape {list(tensor.shape)}, expected {sought}: "
                f"{dims} ({rule.where}); {OTHER_CONFIG}"
            )
    if len({tensor.dtype for tensor in tensors}) > 1:
        described = ", ".join(f"{tensor.name} is {tensor.dtype}" for tensor in tensors)
        where = f"{tensors[0].file.path}: sources of one parameter"
        yield f"{where} differ in element type: {described} ({rule.where}); save them with one"


def whole_parameter(rule: Rule, sizes: Sizes) -> VirtualTensor:
    """The unsplit parameter of a rule all of whose sizes are in `config.json`, as an operand of its own.

    Raises:
        InputError: a size that is missing, or that the rule's operator cannot take.
    """
    if any(ANY in source.dims for source in rule.sources):
        raise InputError(
            f"{rule.target} ({rule.where}): no field of config.json says its size, and no tensor shows it; give a "
            "source, or a reference, that holds it"
        )
    shapes = tuple(tuple(map(sizes.get, source.dims)) for source in rule.sources)
    tensor = make_recipe(rule, "uint8", shapes, sizes, 0 if rule.packs_experts else None).tensor
    return whole(tensor.dtype, tensor.shape)


def make_recipe(
    rule: Rule, dtype: str, shapes: tuple[tuple[int, ...], ...], sizes: Sizes, expert: int | None
) -> Recipe:
    """The recipe of a rule for sources of these shapes; raises `InputError` if the rule's operator cannot take them."""
    operands = [whole(dtype, shape, number) for number, shape in enumerate(shapes)]
    if expert is not None:
        operands = [select(operand, 0, expert) for operand in operands]
    if rule.has_equal_sources and len({operand.shape[:1] for operand in operands}) > 1:
        raise InputError(
            f"{rule.target} ({rule.where}): tp rule {rule.tensor_parallel} takes its sources for equal parts, but they "
            f"have {' and '.join(str(operand.shape[0]) for operand in operands)} rows"
        )
    arguments = [sizes.divisor(size) for size in rule.operator_sizes]
    try:
        tensor = OPERATORS[rule.operator].apply(*operands, *arguments)
    except ValueError as error:
        given = ", ".join(sizes.origin(size) for size in rule.operator_sizes)
        raise InputError(f"{rule.target} ({rule.where}): operator {rule.operator} with {given}: {error}") from None
    unit = None if rule.unit is None else (sizes.divisor(rule.unit), sizes.origin(rule.unit))
    dims = tuple(sizes.origin(dim) for source in rule.sources for dim in source.dims)
    others = 0 if expert is None else sum(prod(shape) - prod(shape) // shape[0] for shape in shapes)
    return Recipe(rule=rule, tensor=tensor, source_shapes=shapes, unit=unit, dims=dims, unused=others)
