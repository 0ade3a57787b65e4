"""The tensor parallel size of every modality of a Megatron source, from the shapes of its pieces.

Owns the count of tensors that fit a size, and the options required where the shapes do not determine it. Pure; never
rejects single tensors that do not fit, which the comparison with a plan does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from distconv.errors import InputError, counted, raise_if
from distconv.formats.megatron.index import Tensors
from distconv.formats.megatron.names import Targets
from distconv.formats.megatron.ranks import RankGrid
from distconv.layout.layout import coordinates
from distconv.layout.request import SourceLayout
from distconv.models.bind import make_recipe
from distconv.models.rules import ANY, TEXT, Rule
from distconv.models.sizes import Sizes
from distconv.models.vocabulary import SIZE_NAME
from distconv.tensors.cuts import TENSOR_PARALLEL_RULES, TensorParallelRule
from distconv.tensors.operators import OPERATORS
from distconv.tensors.virtual import VirtualTensor, whole

Shape = tuple[int, ...]

# The sizes beyond the number of ranks that are tried: so many times its double.
_DOUBLED = 7


@dataclass(kw_only=True)
class _Evidence:
    """Counts of cut tensors: `fitting` by tensor parallel size, of `known` and of `unknown` unsplit shape.

    `beyond`: those that are pieces of a size larger than the number of ranks, by that size.
    """

    fitting: Counter[int] = field(default_factory=Counter)
    beyond: Counter[int] = field(default_factory=Counter)
    known: int = 0
    unknown: int = 0

    def size(self, ranks: int) -> int | None:
        """The size that most tensors fit, the largest of equals; `None` without tensors of known shape."""
        if not self.known:
            return None
        return max(self.fitting, key=lambda size: (self.fitting[size], size), default=ranks)


def tensor_parallel_sizes(
    grid: RankGrid, targets: Targets, sizes: Sizes, modalities: Iterable[str], given: SourceLayout, where: str
) -> tuple[int, Mapping[str, int], int | None]:
    """The tensor parallel size of the language model, the other ones of encoders by modality, and that of experts.

    The last is `None` where it is that of the language model.

    Raises:
        InputError: options that must be given because the shapes do not determine a size; a size that is not the given
            one; more ranks than pieces.
    """
    ranks = grid.tensor_ranks
    whole_model, of_experts = (
        _evidence(grid, targets, sizes, experts=False),
        _evidence(grid, targets, sizes, experts=True),
    )
    evidence = {modality: each for modality, each in {**of_experts, **whole_model}.items() if ranks > 1}
    modalities = list(modalities)
    raise_if(list(_missing_ranks(whole_model, ranks, where)))
    found: dict[str, int | None] = {}
    problems = []
    for modality in modalities:
        seen = evidence.get(modality, _Evidence())
        key = "source_layout.tp" if modality == TEXT else f"source_layout.modality_tp.{modality}"
        wanted = given.tp if modality == TEXT else given.modality_tp.get(modality)
        size = seen.size(ranks) if ranks > 1 else 1
        if size is not None and wanted not in (None, size):
            problems.append(
                f"{key}={wanted}: the {modality} tensors in {where} are cut into {size} pieces; leave it out"
            )
        if size is None:
            size = wanted or (given.tp if seen.unknown else None)
        if size is None and seen.unknown:
            size = ranks if len(modalities) == 1 else None
            if size is None:
                problems.append(
                    f"{where}: there are {ranks} tensor parallel ranks, and nothing tells whether the {modality} "
                    f"tensors are cut into as many pieces; give {key}"
                )
        found[modality] = size
    raise_if(problems)
    tp = found.get(TEXT) or (given.tp if given.tp is not None and TEXT not in found else ranks)
    others = {modality: size for modality, size in found.items() if modality != TEXT and size not in (None, tp)}
    largest = max(tp, *(size for size in others.values() if size), 1)
    if largest < ranks:
        # Only a modality without any cut tensor can have required so many ranks.
        uncut = next((modality for modality, size in found.items() if size is None and modality != TEXT), None)
        if uncut is None:
            raise InputError(
                f"{where}: has {ranks} tensor parallel ranks, but with the sizes in config.json its tensors are cut "
                f"into {largest} pieces at most; is this the reference of the model?"
            )
        others[uncut] = ranks
    expert_tp = _expert_size(of_experts.get(TEXT, _Evidence()), grid, tp, given, where)
    return tp, {modality: size for modality, size in others.items() if size is not None}, expert_tp


def _missing_ranks(evidence: Mapping[str, _Evidence], ranks: int, where: str) -> Iterator[str]:
    """The problems of modalities all of whose tensors are pieces of more ranks than there are."""
    for modality, seen in evidence.items():
        sizes = [size for size, count in seen.beyond.items() if count == seen.known]
        if sizes:
            yield (
                f"{where}: has {counted(ranks, 'tensor parallel rank')}, but its {modality} tensors are pieces of "
                f"{min(sizes)}: the directories of the others are missing"
            )


def _expert_size(seen: _Evidence, grid: RankGrid, tp: int, given: SourceLayout, where: str) -> int | None:
    """The tensor parallel size of experts, `None` where it is `tp`.

    Raises:
        InputError: it is not the given one; directories are missing, or not, for experts that are cut so.
    """
    size = seen.size(grid.tensor_ranks)
    found = tp if size is None or seen.fitting[size] < seen.known else size
    if given.expert_tp not in (None, found):
        raise InputError(
            f"source_layout.expert_tp={given.expert_tp}: the experts in {where} are cut into {found} pieces; "
            "leave it out"
        )
    pairs = {(tp_rank, ep_rank) for tp_rank, _, ep_rank in grid.files}
    if found == tp and len(pairs) == grid.tensor_ranks * grid.ep:
        return None
    if pairs != coordinates(grid.tensor_ranks, grid.ep, found):
        raise InputError(
            f"{where}: its experts are cut into {found} pieces, the other {TEXT} tensors into {tp}; the directories "
            "there are not those of such ranks"
        )
    return found


def _evidence(grid: RankGrid, targets: Targets, sizes: Sizes, *, experts: bool) -> Mapping[str, _Evidence]:
    """The evidence by modality, of experts or of all other tensors."""
    ranks = grid.tensor_ranks
    candidates = [size for size in range(1, ranks + 1) if ranks % size == 0]
    larger = [ranks * 2**doubled for doubled in range(1, _DOUBLED)]

    @cache
    def pieces(rule: Rule, found: Shape, *, more: bool) -> Mapping[int, list[Shape]] | None:
        """Size → shapes of the pieces by rank, given the shape of one piece; `None` for an unknown unsplit shape.

        `more`: for sizes larger than the number of ranks.
        """
        full = _full(rule, sizes, found)
        if full is None:
            return None
        unit = None if rule.unit is None else sizes.get(rule.unit)
        shapes = {}
        for size in larger if more else candidates:
            try:
                cut = _cut_of(rule).cut(full, size, unit)
            except ValueError:
                continue
            shapes[size] = [cut[rank % size].shape for rank in range(ranks)]
        return shapes

    evidence: dict[str, _Evidence] = {}
    for others in _tensors_by_rank(grid, experts=experts):
        for place, tensor in next(iter(others.values())).items():
            local = targets.find(place[1])
            shapes = {rank: each[place].shape for rank, each in others.items() if place in each}
            if local is None or len(shapes) < len(others):
                continue
            rules = [rule for rule in targets.rules(local.target) if _cut_of(rule).dim_of(tensor.shape) is not None]
            if not rules or ("expert" in rules[0].placeholders) != experts:
                continue
            seen = evidence.setdefault(rules[0].modality, _Evidence())
            known = [by_size for rule in rules if (by_size := pieces(rule, tensor.shape, more=False)) is not None]
            seen.known += bool(known)
            seen.unknown += not known
            fitting = _fitting(known, shapes)
            seen.fitting.update(fitting)
            if not fitting:
                beyond = (pieces(rule, tensor.shape, more=True) for rule in rules)
                seen.beyond.update(_fitting([each for each in beyond if each is not None], shapes))
    return evidence


def _tensors_by_rank(grid: RankGrid, *, experts: bool) -> Iterator[Mapping[int, Tensors]]:
    """The tensors of each tensor parallel rank, for every pipeline rank, of experts for every expert parallel one, too.

    What is no expert is the same on all of these; not every pair of ranks need be there.
    """
    for pp_rank in range(grid.pp):
        whole: dict[int, Tensors] = {}
        for ep_rank in range(grid.ep):
            found = {
                rank: file.tensors
                for rank in range(grid.tensor_ranks)
                if (file := grid.files.get((rank, pp_rank, ep_rank))) is not None
            }
            whole = {**found, **whole}
            if experts or len(found) == grid.tensor_ranks:
                yield found
        if not experts and len(grid.files) < grid.tensor_ranks * grid.pp * grid.ep:
            yield dict(sorted(whole.items()))


def _fitting(known: Iterable[Mapping[int, list[Shape]]], shapes: Mapping[int, Shape]) -> set[int]:
    return {
        size
        for by_size in known
        for size, expected in by_size.items()
        if all(expected[rank] == shape for rank, shape in shapes.items())
    }


def _cut_of(rule: Rule) -> TensorParallelRule:
    return TENSOR_PARALLEL_RULES[rule.tensor_parallel]


def _full(rule: Rule, sizes: Sizes, found: Shape) -> VirtualTensor | None:
    """The unsplit parameter of a rule, with the uncut dims of a piece; `None` if its other dims are unknown."""
    cut = _cut_of(rule).dim
    unknown = {number for source in rule.sources for number, dim in enumerate(source.dims) if dim in (ANY, SIZE_NAME)}
    if cut in unknown or (
        unknown and not (OPERATORS[rule.operator].is_identity and len(found) == len(rule.sources[0].dims))
    ):
        return None
    try:
        shapes = tuple(
            tuple(found[number] if number in unknown else sizes.get(dim) for number, dim in enumerate(source.dims))
            for source in rule.sources
        )
        recipe = make_recipe(rule, "uint8", shapes, sizes, 0 if rule.packs_experts else None)
    except InputError:
        return None
    return whole(recipe.tensor.dtype, recipe.tensor.shape)
