"""The experts of a layer, packed: how many tensors there are, which dims they have, and in which order.

Owns the forms that programs hold experts in, each as tables over one form, and the way from any of them to any other:
the inverse of one table, substituted into another. Knows no name and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from distconv.tensors.compose import merge_dims, substitute
from distconv.tensors.virtual import VirtualTensor, chunk, invert, permute, select, whole

GATE, UP, DOWN, GATE_UP = "gate", "up", "down", "gate_up"
# A tensor of the experts of a layer: the number of the expert, `None` for a tensor of all of them, and what it is.
Part = tuple["int | None", str]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ExpertSizes:
    """The number of experts of a layer, the hidden size of the model, and the width of one expert."""

    experts: int
    hidden: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How all experts of a layer are packed, which as linear weights are `[experts, out, in]`.

    `transposed`: `[experts, in, out]`; `joined`: gate and up are one tensor, gate first along the out dim;
    `alternating`: their rows alternate there; `flattened`: the first two dims are one.
    """

    transposed: bool
    joined: bool = True
    alternating: bool = False
    flattened: bool = False

    def __str__(self) -> str:
        """The dims of gate and up, or of gate, in words: E experts, hidden size h, width I of an expert."""
        out = "2I" if self.joined else "I"
        first, second = ("h", out) if self.transposed else (out, "h")
        dims = f"[E*{first}, {second}]" if self.flattened else f"[E, {first}, {second}]"
        return f"{dims}{', gate and up alternating' if self.alternating else ''}"


# One tensor for each expert and part of it.
Form = Packing | None


def form_words(form: Form) -> str:
    """A form in words."""
    return "one tensor each" if form is None else str(form)


def parts_of(form: Form, sizes: ExpertSizes) -> Mapping[Part, Shape]:
    """The tensors of a layer in a form, with their shapes."""
    if form is not None:
        return {part: table.shape for part, table in _tables(form, sizes, "uint8").items()}
    # There may be thousands of them, and they need no table.
    shapes = {GATE: (sizes.width, sizes.hidden), UP: (sizes.width, sizes.hidden), DOWN: (sizes.hidden, sizes.width)}
    return {(expert, what): shape for expert in range(sizes.experts) for what, shape in shapes.items()}


def sizes_of(packing: Packing, shapes: Mapping[Part, Shape]) -> ExpertSizes | None:
    """The sizes of experts whose tensors, by part, are so packed; nothing if these cannot be."""
    outer = shapes.get((None, GATE_UP if packing.joined else GATE), ())
    down = shapes.get((None, DOWN), ())
    rank = 2 if packing.flattened else 3
    if len(outer) != rank or len(down) != rank:
        return None
    # Whatever is flattened, the last dims are whole.
    if packing.transposed:
        hidden, width = down[-1], outer[-1] // (2 if packing.joined else 1)
        rows = width
    else:
        hidden, width = outer[-1], down[-1]
        rows = hidden
    experts = (down[0] // rows if rows else 0) if packing.flattened else down[0]
    sizes = ExpertSizes(experts=experts, hidden=hidden, width=width)
    return sizes if experts and parts_of(packing, sizes) == dict(shapes) else None


def rearranged(source: Form, wanted: Form, sizes: ExpertSizes, dtype: str) -> Mapping[Part, VirtualTensor]:
    """The tensors of the form `wanted` over those of the form `source`, operands in the order of `parts_of`.

    Raises:
        ValueError: gate and up alternate in one of them only.
    """
    if _alternates(source) != _alternates(wanted):
        raise ValueError("gate and up alternate in one of them, and follow each other in the other")
    tables = _tables(source, sizes, dtype)
    shapes = [(dtype, table.shape) for table in _stacked(sizes, dtype)]
    over_source = invert(list(tables.values()), shapes)
    return {part: substitute(table, over_source) for part, table in _tables(wanted, sizes, dtype).items()}


def _alternates(form: Form) -> bool:
    return form is not None and form.alternating


def _stacked(sizes: ExpertSizes, dtype: str) -> tuple[VirtualTensor, VirtualTensor]:
    """The experts as linear weights, one over the other, which all forms are told from: `[gate; up]`, and down."""
    experts, hidden, width = sizes.experts, sizes.hidden, sizes.width
    return whole(dtype, (experts, 2 * width, hidden), 0), whole(dtype, (experts, hidden, width), 1)


def _tables(form: Form, sizes: ExpertSizes, dtype: str) -> dict[Part, VirtualTensor]:
    """The tensors of a form over the stacked experts."""
    gate_up, down = _stacked(sizes, dtype)
    if form is None:
        parts: dict[Part, VirtualTensor] = {}
        for expert in range(sizes.experts):
            gate, up = chunk(select(gate_up, 0, expert), 2)
            parts |= {(expert, GATE): gate, (expert, UP): up, (expert, DOWN): select(down, 0, expert)}
        return parts
    if form.joined:
        parts = {(None, GATE_UP): gate_up}
    else:
        gate, up = chunk(gate_up, 2, dim=1)
        parts = {(None, GATE): gate, (None, UP): up}
    parts[None, DOWN] = down
    return {part: _packed(form, table) for part, table in parts.items()}


def _packed(form: Packing, table: VirtualTensor) -> VirtualTensor:
    if form.transposed:
        table = permute(table, (0, 2, 1))
    return merge_dims(table, 0) if form.flattened else table


def with_alternation(form: Form, like: Form) -> Form:
    """A form whose rows of gate and up are in the order of another one; shapes do not show it."""
    return form if form is None else replace(form, alternating=_alternates(like))
