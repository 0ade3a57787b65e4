"""The experts of a model under published names: found, their packing detected by shape, and rearranged.

Owns the detection, which looks at all tensors of a layer and at the configuration and never at names alone, since one
name holds several layouts. Reads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from distconv.errors import InputError, counted, named, raise_if
from distconv.models.dialect import ExpertModule
from distconv.models.language_model import text_part
from distconv.models.packing import (
    DOWN,
    GATE,
    GATE_UP,
    UP,
    ExpertSizes,
    Form,
    Packing,
    Part,
    Shape,
    form_words,
    parts_of,
    rearranged,
    sizes_of,
    with_alternation,
)
from distconv.models.sizes import OTHER_CONFIG
from distconv.tensors.compose import renumbered, substitute
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import Copy, VirtualTensor

# What fields are called over the releases of transformers.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_HIDDEN = ("hidden_size",)
_WIDTH = ("moe_intermediate_size", "intermediate_size")
# A layer of experts: its module, and its number.
Layer = tuple[ExpertModule, int]


@dataclass(frozen=True, kw_only=True)
class ConfiguredSizes:
    """What a configuration, in the file `where`, says of the sizes of experts; `None` for what it does not say."""

    experts: int | None
    hidden: int | None
    width: int | None
    where: str

    def agrees(self, sizes: ExpertSizes) -> bool:
        """Whether it says nothing else than `sizes`."""
        pairs = ((self.experts, sizes.experts), (self.hidden, sizes.hidden), (self.width, sizes.width))
        return all(said is None or said == found for said, found in pairs)

    def __str__(self) -> str:
        """The sizes in words, as far as they are known."""
        known = (("E", self.experts), ("h", self.hidden), ("I", self.width))
        return ", ".join(f"{name} = {'not said' if size is None else size}" for name, size in known)


def configured_sizes(config: Mapping[str, Any], where: str) -> ConfiguredSizes:
    """The sizes of the experts of the language model that a configuration is of, in the spellings of all releases."""
    text = text_part(config)

    def size(*names: str) -> int | None:
        return next((text[name] for name in names if type(text.get(name)) is int and text[name] > 0), None)

    return ConfiguredSizes(experts=size(*_EXPERTS), hidden=size(*_HIDDEN), width=size(*_WIDTH), where=where)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The modules of the experts of a model, and what its configuration says of their sizes."""

    modules: tuple[ExpertModule, ...]
    configured: ConfiguredSizes
    # A dialect by name, and how it packs them, where the user named it.
    dialect: tuple[str, Form] | None = None

    def given(self, name: str, form: Form) -> Experts:
        """The experts of a source in a dialect; packed ones that it does not say, or that it packs so, are accepted."""
        return replace(self, dialect=None if form is None else (name, form))

    def layers(self, names: Iterable[str]) -> dict[Layer, dict[Part, str]]:
        """The names of tensors of experts, by layer and part."""
        layers: dict[Layer, dict[Part, str]] = {}
        for name in names:
            for module in self.modules:
                if (found := module.find(name)) is not None:
                    layers.setdefault((module, found[0]), {})[found[1]] = name
        return layers

    def forms(self, shapes: Mapping[str, Shape | None]) -> dict[Layer, Form]:
        """How the experts are packed in each layer, by the names and shapes of tensors.

        Where shapes are not known, packed experts are taken to be as they are published, or, of a model that is
        published with one tensor each, as transformers 5 saves them: linear weights, stacked.

        Raises:
            InputError: every layer whose tensors are no complete experts of the sizes that the configuration says, or
                fit two layouts.
        """
        problems: list[str] = []
        forms: dict[Layer, Form] = {}
        for layer, parts in self.layers(shapes).items():
            known = {part: shape for part, name in parts.items() if (shape := shapes[name]) is not None}
            if len(known) < len(parts):
                joined = (None, GATE_UP) in parts
                stacked = Packing(transposed=False, joined=joined)
                packed = any(expert is None for expert, _ in parts)
                forms[layer] = (layer[0].published or stacked) if packed else None
                continue
            try:
                forms[layer], _ = self._form(layer, parts, known)
            except InputError as error:
                problems += error.problems
        raise_if(problems)
        return forms

    def respelled(self, tensors: Sequence[NamedTensor], wanted: Callable[[Layer, Form], Form]) -> list[NamedTensor]:
        """The tensors, with the experts of each layer in the form that `wanted` gives for the one that they are in.

        Raises:
            InputError: as `forms`; or a form that they cannot be brought to.
        """
        by_name = {each.name: each for each in tensors}
        layers = self.layers(by_name)
        replaced: dict[str, list[NamedTensor]] = {}
        known: dict[object, list[tuple[Part, VirtualTensor, tuple[int, ...]]]] = {}
        problems: list[str] = []
        for layer, parts in layers.items():
            try:
                shapes = {part: by_name[name].tensor.shape for part, name in parts.items()}
                form, sizes = self._form(layer, parts, shapes)
                target = with_alternation(wanted(layer, form), form)
                if target != form:
                    ordered = [by_name[parts[part]] for part in parts_of(form, sizes)]
                    first, *others = parts.values()
                    replaced[first] = _rearranged(layer, ordered, form, target, sizes, known)
                    replaced |= {other: [] for other in others}
            except InputError as error:
                problems += error.problems
        raise_if(problems)
        return [each for tensor in tensors for each in replaced.get(tensor.name, (tensor,))]

    def _form(self, layer: Layer, parts: Mapping[Part, str], shapes: Mapping[Part, Shape]) -> tuple[Form, ExpertSizes]:
        """The form of the experts of a layer, and their sizes."""
        if all(expert is not None for expert, _ in parts):
            return None, self._sizes_of_single(layer, parts, shapes)
        names = set(parts)
        apart = {(None, GATE), (None, UP)}
        # Where neither is there, what is missing is one tensor, as programs pack experts.
        joined = (None, GATE_UP) in names or not names & apart
        expected = {(None, GATE_UP) if joined else each for each in apart} | {(None, DOWN)}
        if names != expected:
            missing = [layer[0].name(layer[1], part) for part in expected - names]
            beside = [parts[part] for part in names - expected]
            raise InputError(
                f"the experts of layer {layer[1]} are not complete: missing: {named(sorted(missing)) or 'nothing'}"
                + (f"; beside them: {named(sorted(beside))}" if beside else "")
                + f"; {OTHER_CONFIG}"
            )
        alternating = layer[0].published is not None and layer[0].published.alternating
        fitting = []
        for transposed, flattened in product((True, False), (False, True)):
            form = Packing(transposed=transposed, joined=joined, alternating=alternating, flattened=flattened)
            sizes = sizes_of(form, shapes)
            if sizes is not None and self.configured.agrees(sizes):
                fitting.append((form, sizes))
        found = " and ".join(f"{parts[part]} has shape {list(shapes[part])}" for part in sorted(parts, key=str))
        says = f"{self.configured.where} says {self.configured} (experts, hidden size, width of an expert)"
        if self.dialect is not None:
            name, given = self.dialect
            given_too = [each for each in fitting if each[0] == given]
            if fitting and not given_too:
                raise InputError(
                    f"{found}: {fitting[0][0]}, but source_dialect={name} has {form_words(given)}; leave it out"
                )
            fitting = given_too
        if not fitting:
            raise InputError(f"{found}: experts in no known layout of these sizes: {says}; {OTHER_CONFIG}")
        if len(fitting) > 1:
            fits = " and ".join(str(form) for form, _ in fitting)
            raise InputError(f"{found}: fits {fits}: {says}; give source_dialect=NAME, the program that wrote it")
        return fitting[0]

    def _sizes_of_single(self, layer: Layer, parts: Mapping[Part, str], shapes: Mapping[Part, Shape]) -> ExpertSizes:
        """The sizes of experts that are one tensor each, all of one shape and none missing."""
        count = self.configured.experts or 1 + max(expert or 0 for expert, _ in parts)
        gates = Counter(shapes[part] for part in parts if part[1] in (GATE, UP) and len(shapes[part]) == 2)
        if not gates:
            raise InputError(
                f"the experts of layer {layer[1]} have no gate and up of two dims: {named(parts.values())}; "
                f"{OTHER_CONFIG}"
            )
        # What most are like is right: an odd one is named, not all others.
        ((width, hidden), _), *_ = gates.most_common()
        sizes = ExpertSizes(experts=count, hidden=hidden, width=width)
        expected = parts_of(None, sizes)
        missing = [layer[0].name(layer[1], part) for part in expected if part not in parts]
        problems = []
        if missing:
            problems.append(
                f"{counted(len(missing), 'tensor')} of the {count} experts of layer {layer[1]} "
                f"missing: {named(missing)}"
            )
        if further := [name for part, name in parts.items() if part not in expected]:
            problems.append(f"{self.configured.where} says {count} experts, but there is {named(further)}")
        problems += [
            f"{name} has shape {list(shapes[part])}, expected {list(expected[part])} as the other experts"
            for part, name in parts.items()
            if part in expected and shapes[part] != expected[part]
        ]
        if not problems and not self.configured.agrees(sizes):
            problems.append(
                f"{parts[0, GATE]} has shape {[width, hidden]}, but {self.configured.where} says {self.configured}"
            )
        raise_if(problems)
        return sizes


def as_published(layer: Layer, _: Form) -> Form:
    """The form in which the experts of a layer are published."""
    return layer[0].published


def _rearranged(
    layer: Layer,
    tensors: Sequence[NamedTensor],
    form: Form,
    target: Form,
    sizes: ExpertSizes,
    known: dict[object, list[tuple[Part, VirtualTensor, tuple[int, ...]]]],
) -> list[NamedTensor]:
    """The tensors of a layer in another form; layers that are stored alike share their tables in `known`."""
    if any(each.low_rank is not None for each in tensors):
        raise InputError(
            f"{tensors[0].name}: adapters of experts are not merged where these are brought from {form_words(form)} to "
            f"{form_words(target)}; give a reference that holds them as the source does"
        )
    dtypes = sorted({each.tensor.dtype for each in tensors})
    if len(dtypes) > 1 or dtypes[0] not in FLOATING:
        raise InputError(
            f"{tensors[0].name}: the experts of layer {layer[1]} are {' and '.join(dtypes)}; only experts of one type, "
            f"and not quantised, are brought from {form_words(form)} to {form_words(target)}"
        )
    # By the identity of the tables, which are few: their hash would cover every copy.
    key = (form, target, *((id(each.tensor), len(each.sources)) for each in tensors))
    if key not in known:
        parts, count = [], 0
        for each in tensors:
            parts.append(renumbered(each.tensor, count))
            count += len(each.sources)
        try:
            tables = rearranged(form, target, sizes, dtypes[0])
        except ValueError as error:
            raise InputError(
                f"{tensors[0].name}: {form_words(form)} cannot become {form_words(target)}: {error}; give another "
                "dialect"
            ) from None
        known[key] = [(part, *_used(substitute(table, parts))) for part, table in tables.items()]
    sources = [stored for each in tensors for stored in each.sources]
    return [
        replace(
            tensors[0],
            sources=tuple(sources[number] for number in used),
            tensor=table,
            name=layer[0].name(layer[1], part),
        )
        for part, table, used in known[key]
    ]


def _used(tensor: VirtualTensor) -> tuple[VirtualTensor, tuple[int, ...]]:
    """A tensor over the operands alone that it reads, and their former numbers."""
    used = tuple(sorted({copy.operand for copy in tensor.copies}))
    numbers = {old: new for new, old in enumerate(used)}
    copies = tuple(
        Copy(numbers[copy.operand], copy.source_start, copy.target_start, copy.shape, copy.dims)
        for copy in tensor.copies
    )
    return VirtualTensor(tensor.dtype, tensor.shape, copies), used
