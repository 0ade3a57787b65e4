"""The spellings of the published tensors of one model: its dialects, its experts, and the tie of its head.

Owns the choice of a dialect, and the recognition of the one that tensors are in: its names are told by those that are
known, how experts are packed by shapes. Reads nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distconv.errors import InputError
from distconv.models.dialect import PUBLISHED, Dialect, Holding, parse_dialect
from distconv.models.experts import Experts, Layer, configured_sizes
from distconv.models.packing import Form, form_words
from distconv.models.parameter_dialect_file import is_of_parameters

_NOTHING = Holding()


@dataclass(frozen=True, kw_only=True)
class Spellings:
    """The dialects by name, for a model with a configuration in the file `where`."""

    dialects: Mapping[str, Dialect] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @staticmethod
    def parse(contents: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], where: str) -> Spellings:
        """The spellings of a model, from the contents of the files of dialects; those of parameters are left out.

        Raises:
            InputError: every problem of a dialect.
        """
        dialects = {
            name: parse_dialect(name, content["content"], content["path"])
            for name, content in contents.items()
            if not is_of_parameters(content["content"])
        }
        return Spellings(dialects=dialects, config=config, where=where)

    @property
    def model_type(self) -> object:
        """The type of the model."""
        return self.config.get("model_type")

    @cached_property
    def experts(self) -> Experts:
        """Its experts; of the first dialect, the published one before others, that says where they are."""
        holdings = [holding for _, holding in self._holdings() if holding.modules]
        modules = holdings[0].modules if holdings else ()
        return Experts(modules=modules, configured=configured_sizes(self.config, self.where))

    def chosen(self, name: str, key: str) -> tuple[Dialect, Holding]:
        """A dialect by the value of an option, and what it says of the model.

        Raises:
            InputError: there is no such dialect; or it does not say how the experts of the model are held, or nothing
                says what model it is.
        """
        if name not in self.names():
            near = difflib.get_close_matches(name, self.names(), 1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise InputError(f"{key}={name}: no such dialect{hint}; known: {', '.join(self.names())}")
        dialect = self.dialects.get(name) or Dialect(name=name, words="as published")
        holding = dialect.holding(self.model_type)
        has_experts = bool(self.experts.modules) or (self.experts.configured.experts or 0) > 1
        if name != PUBLISHED and not self.config:
            raise InputError(f"{key}={name}: nothing says of what model the tensors are; give reference=DIR")
        if name != PUBLISHED and has_experts and (holding is None or not holding.says_experts):
            raise InputError(
                f"{key}={name}: does not say how the experts of model_type {self.model_type!r} are held; "
                f"{self._which_say() or 'no dialect does'}; a dialect of yours can (--config-dir)"
            )
        return dialect, holding or _NOTHING

    def knows_model(self) -> bool:
        """Whether some dialect says something of the model."""
        return any(True for _ in self._holdings())

    def notes(self, name: str) -> tuple[str, ...]:
        """What is to be said of a result in a dialect."""
        if name == PUBLISHED or self._named(name)[0].holding(self.model_type) is not None:
            return ()
        return (f"dialect {name} says nothing of model_type {self.model_type!r}: its names are as published",)

    def names(self) -> list[str]:
        """The names of all dialects, the published one first."""
        return sorted({PUBLISHED, *self.dialects}, key=lambda each: (each != PUBLISHED, each))

    def namings(self) -> Iterator[tuple[str, Holding]]:
        """The dialects that differ in names, the published one first."""
        known: set[object] = {()}
        yield PUBLISHED, _NOTHING
        for name, holding in self._holdings():
            if holding.names not in known:
                known.add(holding.names)
                yield name, holding

    def naming_of(self, names: Collection[str]) -> tuple[str, Holding]:
        """The dialect that all names of a directory are in, as far as they show it; the published one if they do not.

        It is another one only where some names begin as in that one, and none as in the published one.
        """
        for name, holding in self.namings():
            if holding.is_told_by(names):
                return name, holding
        return PUBLISHED, _NOTHING

    def alternatives(self, names: Iterable[str]) -> set[str]:
        """Published names, and those that the same experts have in other forms."""
        names = set(names)
        found = set(names)
        for (module, layer), parts in self.experts.layers(names).items():
            count = self.experts.configured.experts or 1 + max(expert or 0 for expert, _ in parts)
            found |= {module.name(layer, (None, what)) for what in ("gate_up", "gate", "up", "down")}
            found |= {module.name(layer, (expert, what)) for expert in range(count) for what in ("gate", "up", "down")}
        return found

    def label(self, naming: str, prefix: str, forms: Mapping[Layer, Form]) -> str | None:
        """The dialect of tensors with names as `naming` has them, a prefix, and experts so packed; nothing if none.

        The published one before others; one whose own prefix it is before those that have it not.
        """
        _, names = self._named(naming)
        fitting = [
            name
            for name in self.names()
            for dialect, holding in [self._named(name)]
            if holding.names == names.names and all(self._fits(name, holding, *each) for each in forms.items())
        ]
        exact = [name for name in fitting if self._named(name)[0].prefix == prefix]
        return next(iter((*exact, *fitting)), None)

    def _fits(self, name: str, holding: Holding, layer: Layer, form: Form) -> bool:
        """Whether a dialect holds the experts of a layer in a form."""
        if name == PUBLISHED:
            return layer[0].published == form
        return holding.says_experts and holding.experts == form

    def _named(self, name: str) -> tuple[Dialect, Holding]:
        dialect = self.dialects.get(name) or Dialect(name=name, words="")
        return dialect, dialect.holding(self.model_type) or _NOTHING

    def _holdings(self) -> Iterator[tuple[str, Holding]]:
        for name in self.names():
            dialect = self.dialects.get(name)
            if dialect is not None and (holding := dialect.holding(self.model_type)) is not None:
                yield name, holding

    def _which_say(self) -> str:
        say = [name for name, holding in self._holdings() if holding.says_experts]
        return f"{', '.join(say)} {'does' if len(say) == 1 else 'do'}" if say else ""


def forms_in_words(forms: Mapping[Layer, Form]) -> list[str]:
    """The forms of experts in words, each once."""
    return list(dict.fromkeys(map(form_words, forms.values())))


def dialect_words(names: Mapping[str, Any]) -> str:
    """What the report says of the dialect of a source, as words after "names"."""
    dialect = f", dialect {names['dialect']}" if names["dialect"] else ""
    experts = f", experts {' and '.join(names['experts'])}" if names["experts"] else ""
    return dialect + experts
