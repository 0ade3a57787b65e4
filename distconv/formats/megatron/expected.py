"""The Hugging Face checkpoint that a Megatron source stands for: its tensors, before anything is known of their files.

Owns what has to be found out for it: which alternative a layer is, which optional parameters there are, and the sizes
that config.json does not tell. Pure; binding the result, and comparing it with the files, is left to others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence

from distconv.errors import InputError, raise_if
from distconv.formats.megatron.contents import Holdings
from distconv.layout.layout import CompleteLayout
from distconv.models.bind import ParameterKey
from distconv.models.definition import PROJECTOR, Definition
from distconv.models.names import Choices, Score, experts_of, filled, layers_of
from distconv.models.rules import ANY, TEXT, Rule
from distconv.models.sizes import Sizes
from distconv.models.vocabulary import SIZE_NAME, has_vocabulary
from distconv.tensors.stored import SourceFile, SourceIndex, StoredTensor

Shape = tuple[int, ...]
LeftOut = Callable[[Rule], str | None]

# A tensor of the checkpoint that is to be made lies in no file yet.
NOWHERE = SourceFile("", 0)
# The size by which definitions call the number of attention heads of a language model.
_HEADS = "heads"


def unless_absent(definition: Definition, holdings: Holdings, left_out: LeftOut) -> LeftOut:
    """`left_out`, also for the parts of a model that are left out as a whole: a modality, a projector, base weights."""
    held = [rule for rule in definition.rules if rule.target in holdings.examples]
    modalities = {rule.modality for rule in held}
    projectors = {rule.modality for rule in held if rule.section == PROJECTOR}
    base = definition.adapters is None or any(not rule.is_adapter for rule in held)

    def reason(rule: Rule) -> str | None:
        if (wanted := left_out(rule)) is not None:
            return wanted
        if rule.modality not in modalities:
            return f"the files hold nothing of the {rule.modality} modality"
        if rule.section == PROJECTOR and rule.modality not in projectors:
            return f"the files hold no {rule.modality} projector"
        return None if base or rule.is_adapter else "the files hold adapters alone"

    return reason


def draw(
    definition: Definition,
    sizes: Sizes,
    layout: CompleteLayout,
    holdings: Holdings,
    left_out: LeftOut,
    *,
    names: Collection[str],
    without_head: bool,
    where: str,
) -> tuple[SourceIndex, Sizes]:
    """The index of the checkpoint that the source stands for, and the sizes that it has.

    `names` are those of the reference checkpoint: they tell alternatives apart that are the same on the Megatron side.
    `without_head`: a head in the files is a copy of the embedding.

    Raises:
        InputError: parameters of which no size is known, because no file holds them or their shapes do not fit.
    """
    drawing = _Drawing(definition, sizes, layout, holdings, left_out, frozenset(map(definition.spelled, names)), where)
    head = None if definition.tied is None else definition.tied.head
    tied = TEXT in layout.stages and definition.is_tied(sizes)
    for rule in definition.rules:
        if left_out(rule) is None and not (rule.target == head and without_head):
            drawing.add(rule, optional=rule.optional or (tied and rule.target == head))
    raise_if(list(drawing.problems))
    return SourceIndex(directory=where, tensors=drawing.tensors), drawing.sizes


class _Drawing:
    """The tensors so far, and what is wrong with them."""

    def __init__(
        self,
        definition: Definition,
        sizes: Sizes,
        layout: CompleteLayout,
        holdings: Holdings,
        left_out: LeftOut,
        names: Collection[str],
        where: str,
    ) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self.problems: dict[str, None] = {}
        self._definition = definition
        self._layout = layout
        self._holdings = holdings
        self._where = where
        self._choices = Choices(definition.rules, _by_parameters(holdings, names))
        self._shapes: dict[tuple[Rule, Shape | None], tuple[Shape, ...] | None] = {}
        self.sizes = sizes
        if rows := self._vocabulary(rule for rule in definition.rules if left_out(rule) is None):
            self.sizes = sizes.having(**{SIZE_NAME: rows})

    def _vocabulary(self, rules: Iterable[Rule]) -> int | None:
        """The number of rows that the files have: it need not be that of config.json."""
        for rule in rules:
            if has_vocabulary(rule):
                size = self._layout.tensor_parallel_size(rule.modality)
                place = self._holdings.examples.get(rule.target)
                if place is not None and (full := self._holdings.full_shape(rule, place, size)):
                    return full[0]
        return None

    def add(self, rule: Rule, *, optional: bool) -> None:
        """Add the sources of a rule, for all the layers and experts that have it."""
        uses = [use for use in self._uses(rule) if self._choices.uses(rule, use[1])]
        held, packed = self._holdings.pieces, rule.packs_experts
        if optional and not any((rule.target, layer, expert) in held for _, layer, expert in uses):
            return
        for item, layer, expert in uses:
            if packed and expert:
                continue
            place = (rule.target, layer, expert)
            model = place if place in held else self._holdings.examples.get(rule.target, place)
            full = self._holdings.full_shape(rule, model, self._layout.tensor_parallel_size(rule.modality))
            if (rule, full) not in self._shapes:
                self._shapes[rule, full] = source_shapes(rule, full, self.sizes)
            shapes = self._shapes[rule, full]
            if shapes is None:
                found = "no file holds it" if full is None else f"shape {list(full)} fits no {rule.operator}"
                name = filled(rule.target, layer, expert, None)
                self.problems[f"{self._where}: {name}: {found} of {rule.where}"] = None
                continue
            dtype = next((piece.dtype for piece in held.get(model, {}).values()), "bfloat16")
            for source, shape in zip(rule.sources, shapes, strict=True):
                name = filled(source.name, layer, expert, item)
                self.tensors[name] = StoredTensor(name, dtype, shape, NOWHERE, 0)

    def _uses(self, rule: Rule) -> Iterator[tuple[int | None, int | None, int | None]]:
        """Item, layer and expert of each parameter of a rule."""
        definition, sizes = self._definition, self.sizes
        if definition.adapters == "only":
            count = sum(map(sum, self._layout.stages[rule.modality]))
        else:
            count = sizes.count(definition.modalities[rule.modality])
        layers = layers_of(rule, definition, sizes, count)
        experts = experts_of(rule, definition, sizes)
        return ((item, layer, expert) for item, layer in layers for expert in experts)


def _by_parameters(holdings: Holdings, names: Container[str]) -> Score:
    """The score of an alternative by how much it explains of what there is, then by its names in the reference."""

    def score(rules: Sequence[Rule], layer: int | None) -> tuple[bool, int, int]:
        complete, present, called = True, 0, 0
        for rule in rules:
            place: ParameterKey = (rule.target, layer, 0 if "expert" in rule.placeholders else None)
            there = place in holdings.pieces
            complete = complete and (there or rule.optional)
            present += there
            called += sum(filled(source.name, layer, 0, None) in names for source in rule.sources)
        return complete, present, called

    return score


def source_shapes(rule: Rule, full: Shape | None, sizes: Sizes) -> tuple[Shape, ...] | None:
    """The shapes of a rule's sources, where the parameter has the shape `full`; nothing if they cannot be told.

    Raises:
        InputError: a size that config.json lacks.
    """
    known = [[None if dim == ANY else sizes.get(dim) for dim in source.dims] for source in rule.sources]
    first = 1 if rule.packs_experts else 0
    if any(None in dims for dims in known):
        if full is None or any(len(dims) != len(full) + first for dims in known):
            return None
        if rule.operator == "transpose":
            full = full[::-1]
        for dims in known:
            dims[first + 1 :] = [
                found if size is None else size for found, size in zip(full[1:], dims[first + 1 :], strict=True)
            ]
        if not _share_rows(rule, full[0], known, first, sizes):
            return None
    return tuple(tuple(size for size in dims if size is not None) for dims in known)


def _share_rows(rule: Rule, rows: int, known: list[list[int | None]], dim: int, sizes: Sizes) -> bool:
    """Fill in the number of rows of each source that is not known; whether that comes out even."""
    weights, copies = [1] * len(known), [1] * len(known)
    if rule.operator in ("qkv_group", "qzv_group") and all(dims[dim] is None for dims in known):
        groups = sizes.get(rule.operator_sizes[0])
        weights = [_heads(rule, sizes), *[groups] * (len(known) - 1)]
    if rule.operator == "qzv_group":
        # Zeros stand for k.
        copies = [1, 2]
    rest, parts = rows, 0
    for dims, weight, times in zip(known, weights, copies, strict=True):
        size = dims[dim]
        if size is None:
            parts += weight * times
        else:
            rest -= size * times
    if not parts:
        return True
    share, uneven = divmod(rest, parts)
    for dims, weight in zip(known, weights, strict=True):
        dims[dim] = share * weight if dims[dim] is None else dims[dim]
    return share > 0 and not uneven


def _heads(rule: Rule, sizes: Sizes) -> int:
    try:
        return sizes.get(_HEADS)
    except KeyError:
        raise InputError(
            f"{rule.where}: {rule.target}: the files do not tell how many rows of it are q; the model definition "
            f"needs the number of attention heads as a size named {_HEADS}, or sizes instead of {ANY}"
        ) from None
