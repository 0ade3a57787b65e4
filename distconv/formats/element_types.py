"""The element types of a result: which tensors are cast to which type, which stay as they are, and why.

Owns the options `dtype` and `keep_dtype`, what a definition and a reference say about types, and their order: what the
user keeps stays as it is; then a type that is asked for, or the reference's; and where a type is asked for, what the
reference keeps in float32, or where none says, the definition, is never rounded. A format applies it to the tensors
that it is about to place, when everything else about them is decided, and what is stored twice has been compared as it
is stored. Casts nothing: a table whose type is another than that of its sources says it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from distconv.errors import InputError, counted, named, raise_if
from distconv.formats.config_dtypes import PLAIN, main_dtype, named_dtypes, says_quantised
from distconv.formats.model import Model
from distconv.models.names import filled, layers_of, matching
from distconv.models.parameters import Binding, Parameter, Recipe
from distconv.models.rules import Rule
from distconv.options import KEEP, REFERENCE, CommonOptions
from distconv.tensors.dtypes import FLOATING, ITEM_SIZE
from distconv.tensors.stored import NamedTensor, StoredTensor
from distconv.tensors.virtual import VirtualTensor
from distconv.words import binary

# The options that a format takes for its results if it applies `ElementTypes`.
CAST_OPTIONS = ("dtype", "keep_dtype", "dtype_overflow")
_ADVICE = "give dtype=bfloat16, float16 or float32"
# What holds all numbers of a type, itself included.
_WIDER = {
    "float16": ("float16", "float32", "float64"),
    "bfloat16": ("bfloat16", "float32", "float64"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}


@dataclass(frozen=True, kw_only=True)
class Casts:
    """What of a result is cast: tensors and bytes as written, by types before and after; names kept, by reason."""

    dtype: str = KEEP
    cast: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The casts as plain data, for the report; what overflows is found when data is moved."""
        return {
            "dtype": self.dtype,
            "cast": [
                {"from": old, "to": new, "tensors": tensors, "bytes": nbytes}
                for (old, new), (tensors, nbytes) in self.cast.items()
            ],
            "kept": [{"reason": reason, "names": list(names)} for reason, names in self.kept.items()],
            "overflowed": [],
        }


class ElementTypes:
    """The element types of the result of a job, whose names get a `prefix` later.

    Raises:
        InputError: `dtype=reference` where no reference tells types; something of a quantised one is to be filled in,
            and no type says what to make of it.
    """

    def __init__(self, options: CommonOptions, model: Model, prefix: str = "") -> None:
        self._prefix = prefix
        self._dtype = options.dtype
        self._model = model
        self._definition = model.definition
        self._patterns = {each: matching(each) for each in options.keep_dtype or ()}
        self._unmatched = set(self._patterns)
        kept = () if model.definition is None else model.definition.kept
        self._not_rounded = [(matching(each.names), each.reason) for each in kept]
        self._reference = model.reference
        self._cast: dict[tuple[str, str], tuple[int, int]] = {}
        self._kept: dict[str, list[str]] = {}
        self._quantised: dict[str, list[str]] = {}
        self._not_kept: dict[str, list[str]] = {}
        self._unknown: list[str] = []
        # By the identity of the tables, which are few: their hash would cover every copy.
        self._tables: dict[tuple[int, str], tuple[VirtualTensor, VirtualTensor]] = {}
        if self._dtype == REFERENCE:
            raise_if([problem] if (problem := self._untold()) else [])
        elif self._dtype == KEEP and options.fill_from_reference and self._reference and self._reference.quantised:
            raise InputError(
                f"fill_from_reference=true: reference={self._reference.directory} is quantised, and the result is not; "
                f"{_ADVICE}"
            )

    @cached_property
    def _of_reference(self) -> Mapping[str, str]:
        """The types of the reference's weights by the definition's names; without those that are quantised.

        Found on demand: a job without a cast needs none, and spelling all names takes time.
        """
        return {self._spelled(each.name): each.dtype for each in self._weights if each.quantised is None}

    @cached_property
    def _main(self) -> str | None:
        """The type of most of the reference's weights."""
        return main_dtype((each.dtype, each.nbytes) for each in self._weights if each.quantised is None)

    @property
    def _weights(self) -> Iterable[StoredTensor]:
        index = None if self._reference is None else self._reference.index
        return () if index is None else index.tensors.values()

    def of_tensors(self, tensors: Sequence[NamedTensor]) -> tuple[NamedTensor, ...]:
        """Tensors under published names, each of the type that it has in the result.

        Raises:
            InputError: every tensor that is quantised, or whose type nothing tells; patterns that match no tensor.
        """
        if self._dtype == KEEP:
            self._check_plain((each.name, each.sources) for each in tensors)
            return tuple(tensors)
        typed = []
        for each in tensors:
            dtype = self._of(each.name, [each.name], each.tensor, each.sources)
            typed.append(replace(each, tensor=self._retyped(each.tensor, dtype)))
        self._check(each.name for each in tensors)
        return tuple(typed)

    def of_parameters(self, binding: Binding) -> Binding:
        """Parameters, each of the type that it has in the result; `of_tensors` tells the errors."""
        if self._dtype == KEEP:
            self._check_plain((each.name, each.sources) for each in binding.parameters)
            return binding
        # Recipes are one object for each that is given, too.
        recipes: dict[tuple[Recipe, str], Recipe] = {}
        items: dict[Rule, Mapping[int | None, int | None]] = {}
        typed = []
        for each in binding.parameters:
            recipe = each.recipe
            if recipe.rule not in items:
                items[recipe.rule] = self._items(recipe.rule, binding)
            published = _published(each, items[recipe.rule].get(each.layer))
            dtype = self._of(each.name, published, recipe.tensor, each.sources)
            if dtype != recipe.tensor.dtype and (recipe, dtype) not in recipes:
                recipes[recipe, dtype] = replace(recipe, tensor=replace(recipe.tensor, dtype=dtype))
            typed.append(replace(each, recipe=recipes.get((recipe, dtype), recipe)))
        self._check(each.name for each in binding.parameters)
        return replace(binding, parameters=tuple(typed))

    def casts(self) -> Casts:
        """What is cast of the tensors so far."""
        kept = {reason: tuple(names) for reason, names in self._kept.items()}
        return Casts(dtype=self._dtype, cast=dict(self._cast), kept=kept)

    def notes(self, tensors: Sequence[NamedTensor]) -> Iterator[str]:
        """That published tensors are of another type than in the reference, where nobody has asked for one."""
        reference = self._reference
        if self._dtype != KEEP or reference is None:
            return
        found = main_dtype((each.tensor.dtype, each.nbytes) for each in tensors)
        expected = self._main or next(named_dtypes(reference.config), None)
        if expected not in FLOATING or found in (None, expected):
            return
        size = binary(sum(each.nbytes for each in tensors))
        is_plain = not reference.quantised and PLAIN.issuperset(self._of_reference.values())
        option = REFERENCE if is_plain and not self._untold() else expected
        yield (
            f"the result is {found}, {size}, as the source; {reference.directory} is {expected}: dtype={option} makes "
            "it so"
        )

    def _of(self, name: str, published: Sequence[str], tensor: VirtualTensor, sources: Sequence[StoredTensor]) -> str:
        """The type of a tensor of the result, by its name and the published ones of what it is made of."""
        found = tensor.dtype
        quantised = next((each for each in sources if each.quantised is not None), None)
        names = [self._prefix + name, name, *published, *map(self._spelled, published)]
        patterns = [each for each, expression in self._patterns.items() if any(map(expression.fullmatch, names))]
        if patterns:
            self._unmatched.difference_update(patterns)
            if quantised is not None:
                self._not_kept.setdefault(patterns[0], []).append(name)
            self._kept.setdefault(f"keep_dtype={patterns[0]}", []).append(name)
            return found
        if found not in FLOATING:
            if found.startswith("float") or (found not in PLAIN and says_quantised(self._model.config)):
                self._quantised.setdefault(found, []).append(name)
            return found
        if self._dtype == REFERENCE:
            dtype = self._as_in_reference(name, published) or found
        else:
            dtype = self._dtype
            rounds = quantised is None and dtype not in _WIDER[found]
            if rounds and (reason := self._reason_to_keep(names)) is not None:
                self._kept.setdefault(reason, []).append(name)
                return found
        if dtype != found or quantised is not None:
            old = found if quantised is None else quantised.stored_as
            tensors, nbytes = self._cast.get((old, dtype), (0, 0))
            self._cast[old, dtype] = tensors + 1, nbytes + tensor.elements * ITEM_SIZE[dtype]
        return dtype

    def _retyped(self, tensor: VirtualTensor, dtype: str) -> VirtualTensor:
        """The table with another element type: one object for each that is given."""
        if dtype == tensor.dtype:
            return tensor
        given, made = self._tables.setdefault((id(tensor), dtype), (tensor, replace(tensor, dtype=dtype)))
        assert given is tensor
        return made

    def _as_in_reference(self, name: str, published: Sequence[str]) -> str | None:
        """The type that holds all that the reference has of the published tensors; nothing adds a problem."""
        types = {self._of_reference.get(self._spelled(each)) for each in published}
        if None in types and self._definition is not None and self._definition.tied is not None:
            head, embedding = self._definition.tied_sources(self._of_reference)
            if {self._spelled(each) for each in published} == {head}:
                types = {self._of_reference.get(embedding)}
        known = [each for each in types if each in FLOATING]
        if len(known) < len(types) or not known:
            self._unknown.append(name)
            return None
        return known[0] if len(known) == 1 else "float64" if "float64" in known else "float32"

    def _reason_to_keep(self, names: Sequence[str]) -> str | None:
        """Why a tensor is not to be rounded, by the names that it may have; nothing if it may be."""
        listed = (reason for expression, reason in self._not_rounded if any(map(expression.fullmatch, names)))
        reason = next(listed, None)
        told = {self._of_reference[each] for each in names if each in self._of_reference}
        if not told or self._main == "float32":
            return reason
        # Of one family some models are published with all of it rounded, and what was published is known to work.
        return reason or "float32 in the reference, unlike most of it" if "float32" in told else None

    def _spelled(self, name: str) -> str:
        return name if self._definition is None else self._definition.spelled(name)

    def _untold(self) -> str | None:
        """Why `dtype=reference` has no meaning here, if it has none."""
        if self._reference is None:
            return f"dtype={REFERENCE}: there is no reference; {_ADVICE}"
        where = f"reference={self._reference.directory}"
        if not self._of_reference:
            return f"dtype={REFERENCE}: {where} holds no weights, which would tell element types; {_ADVICE}"
        return None

    def _items(self, rule: Rule, binding: Binding) -> Mapping[int | None, int | None]:
        """The position of each layer in the list of a rule that has one."""
        if rule.layers is None:
            return {}
        layers = layers_of(rule, self._model.defined, self._model.sizes, binding.layers[rule.modality])
        return {layer: item for item, layer in layers}

    def _check_plain(self, tensors: Iterable[tuple[str, Sequence[StoredTensor]]]) -> None:
        """Raise `InputError` for tensors that have no type to keep, as those of a quantised reference."""
        if wrong := [name for name, sources in tensors if any(each.quantised is not None for each in sources)]:
            raise InputError(
                f"dtype={KEEP}: {counted(len(wrong), 'tensor')} quantised, and the result is not: {named(wrong)}; "
                f"{_ADVICE}"
            )

    def _check(self, names: Iterable[str]) -> None:
        at = f"dtype={self._dtype}"
        problems = [
            f"{at}: {counted(len(wrong), 'tensor')} of {dtype}, which has no meaning without scales: {named(wrong)}; "
            "keep_dtype=[PATTERN] leaves such tensors as they are"
            for dtype, wrong in self._quantised.items()
        ]
        problems += [
            f"keep_dtype={pattern}: {counted(len(wrong), 'tensor')} that are quantised, and are not with {at}: "
            f"{named(wrong)}; leave the pattern out"
            for pattern, wrong in self._not_kept.items()
        ]
        if self._unknown:
            problems.append(
                f"{at}: {counted(len(self._unknown), 'tensor')} that the reference does not have, or only quantised: "
                f"{named(self._unknown)}; {_ADVICE}"
            )
        some = named(names, 3)
        problems += [
            f"keep_dtype={pattern}: no tensor of the result is called so; they are called {some}"
            for pattern in sorted(self._unmatched)
        ]
        raise_if(problems)


def _published(parameter: Parameter, item: int | None) -> list[str]:
    """The published names of what a parameter is made of, as its definition spells them."""
    sources = parameter.recipe.rule.sources
    return [filled(each.name, parameter.layer, parameter.expert, item) for each in sources]
