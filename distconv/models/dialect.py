"""Dialects of published names: how a program names and packs the tensors of the models of some types.

Owns the records, and the parsing of a file under `conf/dialect/`. A dialect is told as a difference from what is
published; what it says of a model of no type that it knows is nothing. It never sees a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distconv.errors import raise_if, unknown_keys
from distconv.models.packing import DOWN, GATE, GATE_UP, UP, Form, Packing, Part

PUBLISHED = "published"
_LAYER = "{layer}"
_PARTS = (GATE, UP, DOWN)
# The pattern of the beginning of a name, and what takes its place.
_Exchange = tuple["re.Pattern[str]", str]
_PACKINGS = ("transposed", "joined", "alternating", "flattened")


@dataclass(frozen=True, kw_only=True)
class ExpertModule:
    """The experts of a layer in published names: their module, which has a `{layer}`, and how they are published.

    `parts`: what gate, up and down of one expert are called.
    """

    module: str
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    published: Form = None

    def name(self, layer: int, part: Part) -> str:
        """The name of a tensor of a layer."""
        expert, what = part
        module = self.module.replace(_LAYER, str(layer))
        if expert is None:
            return f"{module}.{what}_proj"
        return f"{module}.{expert}.{self.parts[_PARTS.index(what)]}.weight"

    def find(self, name: str) -> tuple[int, Part] | None:
        """The layer and the part of a tensor of such a name; nothing if it is another tensor's."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        if match["packed"]:
            return int(match["layer"]), (None, match["packed"])
        return int(match["layer"]), (int(match["expert"]), _PARTS[self.parts.index(match["part"])])

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        module = re.escape(self.module).replace(re.escape(_LAYER), r"(?P<layer>\d+)")
        part = "|".join(map(re.escape, self.parts))
        packed = "|".join((GATE_UP, *_PARTS))
        return re.compile(rf"{module}\.(?:(?P<packed>{packed})_proj|(?P<expert>\d+)\.(?P<part>{part})\.weight)")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Tensors that a program does not hold: a pattern of published names with `*`, and the reason."""

    names: str
    reason: str

    def covers(self, name: str) -> bool:
        """Whether a tensor of this published name is left out."""
        return _fits(self.names, name)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What a dialect says of one model type.

    `names`: pairs of the beginning of a published name, and of the name that is held; the first that fits is taken.
    `experts`: how they are held, where `says_experts`. `modules`: where they are in published names, if it says so.
    `float32`: patterns, with `*`, of the published names of what is held in float32 whatever the model is in.
    """

    names: tuple[tuple[str, str], ...] = ()
    says_experts: bool = False
    experts: Form = None
    left_out: tuple[LeftOut, ...] = ()
    float32: tuple[str, ...] = ()
    modules: tuple[ExpertModule, ...] = ()

    def held(self, name: str) -> str:
        """The name that a published tensor is held under; one that is told to be held already stays."""
        return name if self.tells(name) > 0 else _exchanged(name, self._there)

    def published(self, name: str) -> str:
        """The name that a tensor held under `name` is published under; one that is told to be published stays."""
        return name if self.tells(name) < 0 else _exchanged(name, self._back)

    def tells(self, name: str) -> int:
        """1 for a name that begins as one that is held, -1 as a published one, 0 if it may be both.

        The longer beginning decides, since one of a held name may begin with that of the published one.
        """
        held, published = (
            max((match.end() for each, _ in pairs if (match := each.match(name)) is not None), default=-1)
            for pairs in (self._back, self._there)
        )
        return (held > published) - (held < published)

    def is_in_float32(self, name: str) -> bool:
        """Whether a published tensor is held in float32, whatever the others are."""
        return any(_fits(pattern, name) for pattern in self.float32)

    def is_told_by(self, names: Iterable[str]) -> bool:
        """Whether some of these names begin as held ones, and none as a published one."""
        told = set(map(self.tells, names))
        return 1 in told and -1 not in told

    @cached_property
    def _there(self) -> list[_Exchange]:
        return [(_beginning(old), new) for old, new in self.names]

    @cached_property
    def _back(self) -> list[_Exchange]:
        return [(_beginning(new), old) for old, new in self.names]

    def why_left_out(self, name: str) -> str | None:
        """The reason why a published tensor is not held; nothing if it is."""
        return next((each.reason for each in self.left_out if each.covers(name)), None)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A way to name and pack published tensors.

    `words`: what it is, after "tensors"; `prefix`: what every name has in front; `writes_head`: the head of a tied
    model is held, too; `holdings`: what it says, by model type.
    """

    name: str
    words: str
    prefix: str = ""
    writes_head: bool = False
    holdings: Mapping[str, Holding] = field(default_factory=dict)

    def holding(self, model_type: object) -> Holding | None:
        """What it says of models of a type; nothing if it does not know the type."""
        return self.holdings.get(model_type) if isinstance(model_type, str) else None


def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None


def _exchanged(name: str, pairs: Sequence[_Exchange]) -> str:
    for old, new in pairs:
        if (match := old.match(name)) is not None:
            layer = match.groupdict().get("layer")
            return (new if layer is None else new.replace(_LAYER, layer)) + name[match.end() :]
    return name


def _beginning(pattern: str) -> re.Pattern[str]:
    """The pattern of names that begin so."""
    return re.compile(re.escape(pattern).replace(re.escape(_LAYER), r"(?P<layer>\d+)"))


def parse_dialect(name: str, content: Mapping[str, Any], where: str) -> Dialect:
    """The dialect in the content of the file `where`.

    Raises:
        InputError: every key that is unknown, and every value that is not as expected.
    """
    problems = list(unknown_keys(content, ("words", "prefix", "tied_head", "families")))
    words, prefix = content.get("words", f"as in {name}"), content.get("prefix", "")
    problems += [
        f"{key}: expected text, found {value!r}"
        for key, value in (("words", words), ("prefix", prefix))
        if not isinstance(value, str)
    ]
    if content.get("tied_head", "auto") not in ("auto", "write"):
        problems.append(f"tied_head: expected auto or write, found {content['tied_head']!r}")
    holdings: dict[str, Holding] = {}
    families = content.get("families", [])
    if not isinstance(families, list) or not all(isinstance(each, Mapping) for each in families):
        problems.append("families: expected a list of mappings, each with model_types")
        families = []
    for number, family in enumerate(families, 1):
        parser = _Parser(f"families: entry {number}", problems)
        types, holding = parser.model_types(family), parser.holding(family)
        problems += [f"families: {each} has two entries" for each in types if each in holdings]
        holdings |= dict.fromkeys(types, holding)
    raise_if([f"{where}: {each}" for each in problems])
    return Dialect(
        name=name, words=words, prefix=prefix, writes_head=content.get("tied_head") == "write", holdings=holdings
    )


class _Parser:
    """Parses one family, and collects what is wrong."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self._where, self._problems = where, problems

    def model_types(self, family: Mapping[str, Any]) -> list[str]:
        types = family.get("model_types")
        if not isinstance(types, list) or not types or not all(isinstance(each, str) for each in types):
            self._wrong("model_types: expected a list of model types")
            return []
        return types

    def holding(self, family: Mapping[str, Any]) -> Holding:
        for problem in unknown_keys(family, ("model_types", "names", "experts", "leave_out", "float32", "published")):
            self._wrong(problem)
        return Holding(
            names=tuple(self._names(family.get("names", []))),
            says_experts="experts" in family,
            experts=self._form(family.get("experts"), "experts"),
            left_out=tuple(self._left_out(family.get("leave_out", []))),
            float32=tuple(self._patterns(family.get("float32", []))),
            modules=tuple(self._modules(family.get("published", []))),
        )

    def _names(self, pairs: Any) -> Iterator[tuple[str, str]]:
        for pair in self._list(pairs, "names"):
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
                self._wrong(f"names: expected [published beginning, held beginning], found {pair!r}")
            elif pair[0].count(_LAYER) > 1 or pair[0].count(_LAYER) != pair[1].count(_LAYER):
                self._wrong(f"names: {pair}: expected one {_LAYER} in both or in none")
            else:
                yield pair[0], pair[1]

    def _left_out(self, entries: Any) -> Iterator[LeftOut]:
        for entry in self._list(entries, "leave_out"):
            if (
                not isinstance(entry, Mapping)
                or entry.keys() != {"names", "reason"}
                or not all(isinstance(each, str) for each in entry.values())
            ):
                self._wrong(f"leave_out: expected names and a reason, found {entry!r}")
            else:
                yield LeftOut(**entry)

    def _patterns(self, entries: Any) -> Iterator[str]:
        for entry in self._list(entries, "float32"):
            if isinstance(entry, str):
                yield entry
            else:
                self._wrong(f"float32: expected a pattern of published names, found {entry!r}")

    def _modules(self, entries: Any) -> Iterator[ExpertModule]:
        for entry in self._list(entries, "published"):
            if not isinstance(entry, Mapping):
                self._wrong(f"published: expected a mapping, found {entry!r}")
                continue
            for problem in unknown_keys(entry, ("module", "parts", "packed")):
                self._wrong(f"published: {problem}")
            module, parts = entry.get("module"), entry.get("parts", list(ExpertModule.parts))
            if not isinstance(module, str) or module.count(_LAYER) != 1:
                self._wrong(f"published: module: expected a name with one {_LAYER}, found {module!r}")
            elif not isinstance(parts, list) or not len(parts) == len({*map(str, parts)}) == 3:
                self._wrong(f"published: parts: expected the names of gate, up and down, found {parts!r}")
            else:
                gate, up, down = map(str, parts)
                form = self._form(entry.get("packed"), "published: packed")
                yield ExpertModule(module=module, parts=(gate, up, down), published=form)

    def _form(self, value: Any, key: str) -> Form:
        """How experts are packed; nothing, or `one_each`: they are not."""
        if value is None or value == "one_each":
            return None
        if not isinstance(value, Mapping) or "transposed" not in value:
            self._wrong(f"{key}: expected one_each, or a mapping with transposed, found {value!r}")
            return None
        for problem in unknown_keys(value, _PACKINGS):
            self._wrong(f"{key}: {problem}")
        given = {each: value[each] for each in _PACKINGS if each in value}
        for each, flag in given.items():
            if not isinstance(flag, bool):
                self._wrong(f"{key}.{each}: expected true or false, found {flag!r}")
                return None
        return Packing(**given)

    def _list(self, value: Any, key: str) -> list[Any]:
        if isinstance(value, list):
            return value
        self._wrong(f"{key}: expected a list, found {value!r}")
        return []

    def _wrong(self, problem: str) -> None:
        self._problems.append(f"{self._where}: {problem}")
