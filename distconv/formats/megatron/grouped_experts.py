"""Grouped experts: one tensor of a rank for all its experts, with each matrix transposed, as a tensor for each.

Owns the form of Megatron-core's grouped matrix products before Transformer Engine: bytes `[experts, columns, rows]`,
declared with the dim that is cut times the experts. Both ways: an index without groups, and entries with them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from distconv.errors import raise_if
from distconv.formats.megatron.index import MegatronIndex, RankFile
from distconv.formats.megatron.names import Targets
from distconv.formats.records import Entry
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.models.bind import whole_parameter
from distconv.models.definition import Definition
from distconv.models.parameter_dialect import GROUPED
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes
from distconv.tensors.compose import renumbered
from distconv.tensors.cuts import TENSOR_PARALLEL_RULES
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.virtual import VirtualTensor, concat, permute, replaced


@dataclass(frozen=True, slots=True)
class GroupedExperts(Entry):
    """The experts of a rank in one tensor; the file says another shape than `[experts * columns, rows]`."""

    declared: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that its file says."""
        return self.declared


def ungrouped(index: MegatronIndex, definition: Definition, sizes: Sizes, expert_tp: int | None) -> MegatronIndex:
    """The index with a tensor for each expert, where one holds those of a rank, transposed: a view of its bytes.

    `expert_tp`: the pieces of each expert, where they are given; otherwise as many as tensor parallel ranks.

    Raises:
        InputError: tensors of grouped experts of other shapes than config.json tells.
    """
    rules = {rule.target.removesuffix(GROUPED): rule for rule in definition.rules if rule.target.endswith(GROUPED)}
    if not rules:
        return index
    targets = Targets(replace(rule, target=target) for target, rule in rules.items())
    ranks = expert_tp or max(file.rank[0] for file in index.files) + 1
    problems: list[str] = []
    parts: dict[tuple[str, str, tuple[int, ...]], list[tuple[tuple[int, ...], tuple[int, ...], int]]] = {}

    def split(file: RankFile) -> RankFile:
        tensors: dict[tuple[str, str], ArchivedTensor] = {}
        for (key, name), tensor in file.tensors.items():
            local = targets.find(name)
            if local is None:
                tensors[key, name] = tensor
                continue
            at = local.target, tensor.dtype, tensor.shape
            try:
                if at not in parts:
                    parts[at] = _parts(rules[local.target], tensor, sizes, definition.expert_count(sizes) or 0, ranks)
            except ValueError as error:
                problems.append(f"{file.file.path}: {key}/{name} {error}")
                continue
            if not tensor.is_contiguous:
                problems.append(f"{file.file.path}: {key}/{name} is not contiguous; save it again as one that is")
            for number, (shape, strides, offset) in enumerate(parts[at]):
                part = ArchivedTensor(tensor.dtype, shape, strides, tensor.offset + offset)
                tensors[key, f"{name}[{number}]"] = part
        return replace(file, tensors=tensors)

    files = tuple(map(split, index.files))
    raise_if(problems)
    return replace(index, files=files)


def _parts(
    rule: Rule, tensor: ArchivedTensor, sizes: Sizes, experts: int, ranks: int
) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Shape, strides and offset in bytes of each expert in a tensor of those of a rank.

    Raises:
        ValueError: its shape is another than that of some experts of all.
    """
    full = whole_parameter(rule, sizes).shape
    dim = TENSOR_PARALLEL_RULES[rule.tensor_parallel].dim_of(full)
    assert dim is not None
    shape = replaced(full, dim, full[dim] // ranks)
    held = tensor.shape[1 - dim] // shape[dim] if shape[dim] else 0
    if full[dim] % ranks or held < 1 or experts % held or tensor.shape != grouped_shape(shape, dim, held):
        raise ValueError(
            f"has shape {list(tensor.shape)}, expected {list(grouped_shape(shape, dim, 1))}, dim {1 - dim} times the "
            f"experts of a rank ({rule.where}); where experts are cut into other pieces, give source_layout.expert_tp"
        )
    rows, columns = shape
    step = rows * columns * ITEM_SIZE[tensor.dtype]
    return [(shape, (1, rows), number * step) for number in range(held)]


def grouped_shape(shape: tuple[int, ...], dim: int, experts: int) -> tuple[int, ...]:
    """The shape that a tensor of transposed matrices of `experts` is declared with; `dim` of a matrix is cut.

    Its elements are those of `[experts, columns, rows]`.
    """
    rows, columns = shape
    return (columns, rows * experts) if dim == 0 else (columns * experts, rows)


def grouped(parts: Sequence[tuple[Entry, Rule]]) -> Iterator[Entry]:
    """The entries of a file, those of experts that are one tensor as one; each part with its rule.

    Experts of one layer follow each other, in their order.
    """
    tables: dict[tuple[int, ...], VirtualTensor] = {}
    for name, run in groupby(parts, lambda part: _name_of_group(part[0].name)):
        (entry, rule), *others = run
        if entry.name == name:
            yield entry
            yield from (each for each, _ in others)
            continue
        experts = [entry, *(each for each, _ in others)]
        key = tuple(id(each.tensor) for each in experts)
        if key not in tables:
            counts = [len(each.sources) for each in experts]
            starts = [sum(counts[:number]) for number in range(len(counts))]
            turned = [permute(each.tensor, (1, 0)) for each in experts]
            tables[key] = concat([renumbered(each, start) for each, start in zip(turned, starts, strict=True)])
        dim = TENSOR_PARALLEL_RULES[rule.tensor_parallel].dim_of(entry.tensor.shape)
        assert dim is not None
        yield GroupedExperts(
            tuple(source for each in experts for source in each.sources),
            tables[key],
            name,
            key=entry.key,
            group=entry.group,
            declared=grouped_shape(entry.tensor.shape, dim, len(experts)),
        )


def _name_of_group(name: str) -> str:
    return name.rpartition("[")[0] if name.endswith("]") else name
