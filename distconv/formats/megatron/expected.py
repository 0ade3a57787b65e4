"""The Hugging Face checkpoint expected for a Megatron source: names, shapes and element types of published tensors.

Owns the choices that determine it: the alternative of every layer, the optional parameters, and the sizes that are not
in config.json. Pure; `bind` binds the expected tensors, and compares their plan with the files.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from distconv.errors import raise_if
from distconv.formats.megatron.contents import Contents
from distconv.layout.layout import CompleteLayout
from distconv.models.definition import PROJECTOR, Definition
from distconv.models.names import Choices, Score, experts_of, filled, layers_of
from distconv.models.parameters import ParameterKey
from distconv.models.rules import ANY, TEXT, Rule
from distconv.models.sizes import Sizes
from distconv.models.vocabulary import SIZE_NAME, has_vocabulary
from distconv.tensors.operators import OPERATORS, Rows, RowsUnknownError
from distconv.tensors.stored import NOWHERE, SourceIndex, StoredTensor

Shape = tuple[int, ...]
LeftOut = Callable[[Rule], str | None]

# The name, in definitions, of the size that is the number of attention heads of a language model.
_HEADS = "heads"


def unless_absent(definition: Definition, contents: Contents, left_out: LeftOut) -> LeftOut:
    """`left_out`, extended by the modalities, projectors and base weights of which the files hold no parameter."""
    held = [rule for rule in definition.rules if rule.target in contents.examples]
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


def expected_checkpoint(
    definition: Definition,
    sizes: Sizes,
    layout: CompleteLayout,
    contents: Contents,
    left_out: LeftOut,
    *,
    reference: Mapping[str, Shape | None],
    without_head: bool,
    where: str,
) -> tuple[SourceIndex, Sizes, tuple[str, ...]]:
    """The index of the expected checkpoint, the sizes with the vocabulary of the files, and which names are unclear.

    Names are unclear where alternatives have equal parameters and `reference` names none; the first is taken.

    `reference`: the tensors of the reference model, name → shape, `None` without weights. Names distinguish
    alternatives with equal parameters; shapes give the rows of sources that are one parameter. `without_head`: the
    checkpoint has no head, since a head in the files is a replica of the embedding.

    Raises:
        InputError: every rule whose sources have unknown sizes: no file holds its parameter, or the parameter's shape
            does not fit or does not determine them.
    """
    reference = {definition.spelled(name): shape for name, shape in reference.items()}
    expected = _Expected(definition, sizes, layout, contents, left_out, reference, where)
    head = None if definition.tied is None else definition.tied.head
    tied = TEXT in layout.stages and definition.is_tied(sizes)
    for rule in definition.rules:
        if left_out(rule) is None and not (rule.target == head and without_head):
            expected.add(rule, optional=rule.optional or (tied and rule.target == head))
    raise_if(expected.problems)
    return SourceIndex(directory=where, tensors=expected.tensors), expected.sizes, tuple(expected.unclear)


class _Expected:
    """The expected tensors so far, and the problems of rules."""

    def __init__(
        self,
        definition: Definition,
        sizes: Sizes,
        layout: CompleteLayout,
        contents: Contents,
        left_out: LeftOut,
        reference: Mapping[str, Shape | None],
        where: str,
    ) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self.problems: list[str] = []
        # As keys, since they are the same in all layers.
        self.unclear: dict[str, None] = {}
        self._definition = definition
        self._layout = layout
        self._contents = contents
        self._where = where
        self._reference = reference
        self._choices = Choices(definition.rules, _by_parameters(contents, reference))
        self._shapes: dict[tuple[object, ...], tuple[Shape, ...] | None] = {}
        self.sizes = sizes
        if rows := self._vocabulary(rule for rule in definition.rules if left_out(rule) is None):
            self.sizes = sizes.having(**{SIZE_NAME: rows})

    def _vocabulary(self, rules: Iterable[Rule]) -> int | None:
        """The rows of the vocabulary in the files, which may differ from config.json; `None` without one."""
        for rule in rules:
            if has_vocabulary(rule):
                size = self._layout.tensor_parallel_size(rule.modality)
                place = self._contents.examples.get(rule.target)
                if place is not None and (full := self._contents.full_shape(rule, place, size)):
                    return full[0]
        return None

    def add(self, rule: Rule, *, optional: bool) -> None:
        """Add the sources of a rule for all layers and experts; if `optional`, only if the files hold a parameter."""
        uses = [use for use in self._uses(rule) if self._choices.uses(rule, use[1])]
        held, packed = self._contents.pieces, rule.packs_experts
        asks = len(rule.sources) > 1 and any(ANY in source.dims for source in rule.sources)
        if optional and not any((rule.target, layer, expert) in held for _, layer, expert in uses):
            return
        for item, layer, expert in uses:
            if packed and expert:
                continue
            place = (rule.target, layer, expert)
            model = place if place in held else self._contents.examples.get(rule.target, place)
            if alike := self._choices.equals(rule, layer):
                self.unclear[f"{rule.where}: {' or '.join(alike)}"] = None
            full = self._contents.full_shape(rule, model, self._layout.pieces(rule))
            names = [filled(source.name, layer, expert, item) for source in rule.sources]
            shapes = self._source_shapes(rule, full, names if asks else ())
            if shapes is None:
                continue
            dtype = next((piece.dtype for piece in held.get(model, {}).values()), "bfloat16")
            for name, shape in zip(names, shapes, strict=True):
                self.tensors[name] = StoredTensor(name, dtype, shape, NOWHERE, 0)

    def _source_shapes(self, rule: Rule, full: Shape | None, names: Sequence[str]) -> tuple[Shape, ...] | None:
        """The shapes of a rule's sources, with help of the reference's tensors `names`; `None` adds a problem."""
        reference = tuple(map(self._reference.get, names))
        key = rule, full, reference
        if key not in self._shapes:
            self._shapes[key] = None
            sources = " and ".join(source.name for source in rule.sources)
            at = f"{self._where}: {rule.target}, made of {sources} ({rule.where})"
            try:
                self._shapes[key] = source_shapes(rule, full, self.sizes, reference)
            except RowsUnknownError as error:
                self.problems.append(
                    f"{at}: shape {list(full or ())} does not tell how many rows are of which; give a reference with "
                    f"their weights, or else the model definition needs {error}"
                )
            except ValueError as error:
                other = "; is this the reference of the model?" if any(reference) else ""
                self.problems.append(f"{at}: {error}{other}")
        return self._shapes[key]

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


def _by_parameters(contents: Contents, names: Container[str]) -> Score:
    """The score of an alternative: its required parameters are complete, the number present, the names in `names`."""

    def score(rules: Sequence[Rule], layer: int | None) -> tuple[bool, int, int]:
        complete, present, called = True, 0, 0
        for rule in rules:
            place: ParameterKey = (rule.target, layer, 0 if "expert" in rule.placeholders else None)
            there = place in contents.pieces
            complete = complete and (there or rule.optional)
            present += there
            called += sum(filled(source.name, layer, 0, None) in names for source in rule.sources)
        return complete, present, called

    return score


def source_shapes(
    rule: Rule, full: Shape | None, sizes: Sizes, reference: Sequence[Shape | None] = ()
) -> tuple[Shape, ...]:
    """The shapes of a rule's sources, given the shape `full` of its parameter, `None` if no file holds it.

    `reference`: the shapes of the sources in the reference model, for rows that do not follow otherwise.

    Raises:
        RowsUnknownError: the rows of the sources do not follow.
        ValueError: no file holds the parameter, or no sources result in this shape.
        InputError: a size that config.json lacks.
    """
    known = [[None if dim == ANY else sizes.get(dim) for dim in source.dims] for source in rule.sources]
    if any(None in dims for dims in known):
        if full is None:
            raise ValueError("no file holds it")
        shape = full[::-1] if OPERATORS[rule.operator].transposes else full
        # Dim 0 of packed experts counts the experts; their rows are dim 1.
        at = 1 if rule.packs_experts else 0
        if any(len(dims) != len(shape) + at for dims in known):
            raise ValueError(f"shape {list(full)} does not fit sources of {len(known[0])} dims")
        told = [None if each is None or len(each) != len(known[0]) else each[at] for each in reference]
        rows = _source_rows(rule, shape[0], [dims[at] for dims in known], told or [None] * len(known), sizes)
        for dims, count in zip(known, rows, strict=True):
            others = zip(dims[at + 1 :], shape[1:], strict=True)
            dims[at:] = [count, *(found if size is None else size for size, found in others)]
    if any(None in dims for dims in known):
        raise RowsUnknownError("sizes instead of any")
    return tuple(tuple(size for size in dims if size is not None) for dims in known)


def _source_rows(rule: Rule, rows: int, known: Rows, told: Rows, sizes: Sizes) -> Rows:
    """The rows of the sources of a parameter with `rows` rows: `known` ones, else those `told` by the reference."""
    if None not in known:
        return known
    if rule.has_equal_sources:
        told = [rows // len(known)] * len(known)

    def heads() -> int | None:
        return sizes.get(_HEADS) if rule.modality == TEXT and _HEADS in sizes else None

    found = [other if each is None else each for each, other in zip(known, told, strict=True)]
    return OPERATORS[rule.operator].source_rows(rows, found, [sizes.get(size) for size in rule.operator_sizes], heads)
