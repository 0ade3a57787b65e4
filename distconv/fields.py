"""Options as fields of frozen records: kind, default and words of an option, and the checks of its values.

Owns the kinds of values, and the message about a value of another kind, with its dotted key. Knows no option, and no
configuration file.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from distconv.errors import InputError, raise_if, shown, unknown_keys

_METADATA = "option"
T = TypeVar("T")
R = TypeVar("R", bound="Record")


class Kind(ABC, Generic[T]):
    """A kind of option values; `example` stands for a value in the help, such as DIR, unless the default does."""

    example: str = ""

    @abstractmethod
    def read(self, key: str, value: Any) -> T:
        """Check the value of option `key` and convert it to the type in records.

        Raises:
            InputError: a value of another kind; the message has the dotted key, the value, and the expected kind.
        """


class Value(Kind[T]):
    """A kind of single values."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """The expected values in words, after "expected"."""

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind."""

    def held(self, value: Any) -> T:
        """Convert a value of this kind to the type in records."""
        return value  # type: ignore[no-any-return]  # unless a subclass says otherwise, T is the type of what fits

    def read(self, key: str, value: Any) -> T:
        """Check and convert a value."""
        if not self.fits(value):
            raise InputError(f"{key}={shown(value)}: expected {self.expected}")
        return self.held(value)


@dataclass(frozen=True)
class Truth(Value[bool]):
    """True or false."""

    expected = "true or false"

    def fits(self, value: Any) -> bool:
        """Whether the value is true or false."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Integer(Value[int]):
    """Integers in a range."""

    largest: int
    smallest: int = 1
    example = "N"

    @property
    def expected(self) -> str:
        """The range in words."""
        return f"an integer from {self.smallest} to {self.largest}"

    def fits(self, value: Any) -> bool:
        """Whether the value is an integer in the range."""
        return type(value) is int and self.smallest <= value <= self.largest


@dataclass(frozen=True)
class Number(Value[float]):
    """Positive numbers."""

    expected = "a positive number"
    example = "N"

    def fits(self, value: Any) -> bool:
        """Whether the value is a positive, finite number."""
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


@dataclass(frozen=True)
class Text(Value[str]):
    """Any text."""

    example: str
    expected = "text; the empty text is written ''"

    def fits(self, value: Any) -> bool:
        """Whether the value is text."""
        return isinstance(value, str)


@dataclass(frozen=True)
class Texts(Value[tuple[str, ...]]):
    """Lists of texts that are not empty; `what` they are, in words."""

    what: str
    example: str

    @property
    def expected(self) -> str:
        """The list in words."""
        return f"a list of {self.what}, such as {self.example}"

    def fits(self, value: Any) -> bool:
        """Whether the value is a list of such texts."""
        return isinstance(value, (list, tuple)) and all(isinstance(each, str) and each for each in value)

    def held(self, value: Any) -> tuple[str, ...]:
        """The list as a tuple."""
        return tuple(value)


@dataclass(frozen=True)
class FilePath(Value[Path]):
    """Paths, of directories or files; nothing in them is expanded."""

    example: str
    expected = "a path"

    def fits(self, value: Any) -> bool:
        """Whether the value is a path, or the text of one."""
        return isinstance(value, (str, os.PathLike)) and value != ""

    def held(self, value: Any) -> Path:
        """The value as a path."""
        return Path(value)


@dataclass(frozen=True)
class Choice(Value[str]):
    """One of several names; `words`: name → words about it, empty for none, or a function that returns them."""

    words: Mapping[str, str] | Callable[[], Mapping[str, str]]

    @property
    def choices(self) -> Mapping[str, str]:
        """Name → words about it."""
        return self.words() if callable(self.words) else self.words

    @property
    def expected(self) -> str:
        """The names in words."""
        return f"one of {', '.join(self.choices)}"

    def fits(self, value: Any) -> bool:
        """Whether the value is one of the names."""
        return isinstance(value, str) and value in self.choices


@dataclass(frozen=True)
class ByName(Kind[Mapping[str, T]]):
    """A mapping from some of `names`, such as modalities, to values of `kind`."""

    kind: Kind[T]
    names: Sequence[str]

    def read(self, key: str, value: Any) -> dict[str, T]:
        """The values that are not `None`, by name."""
        if not isinstance(value, Mapping):
            raise InputError(_no_group(key, value, self.names))
        problems = [f"{key}: {problem}" for problem in unknown_keys(value, self.names)]
        found = {}
        for name in self.names:
            if value.get(name) is not None:
                try:
                    found[name] = self.kind.read(f"{key}.{name}", value[name])
                except InputError as error:
                    problems += error.problems
        raise_if(problems)
        return found


@dataclass(frozen=True, kw_only=True)
class Option(Generic[T]):
    """An option: its kind, its default, and its words, with code in `backticks`.

    `unset`: the meaning, in words, of a default that is `None` or empty.
    """

    kind: Kind[T]
    default: T | None
    words: str
    unset: str = ""

    def read(self, key: str, value: Any) -> T | None:
        """Check and convert a value; `None` is a value if it is the default.

        Raises:
            InputError: a value of another kind.
        """
        return None if value is None and self.default is None else self.kind.read(key, value)


def option(kind: Kind[T], default: T | None, words: str, *, unset: str = "") -> Any:
    """A field of a record that is an option; the arguments are those of `Option`."""
    metadata = {_METADATA: Option(kind=kind, default=default, words=words, unset=unset)}
    if isinstance(default, dict):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A group of options; their dotted keys begin with `GROUP`, if it is not empty.

    A record checks its values when it is made, and converts them by their kinds: texts to paths, lists to tuples.

    Raises:
        InputError: all problems of the values.
    """

    GROUP: ClassVar[str] = ""

    def __post_init__(self) -> None:
        problems, wrong = [], set()
        for name, each in options_of(type(self)).items():
            try:
                held = each.read(f"{self.GROUP}.{name}" if self.GROUP else name, getattr(self, name))
            except InputError as error:
                problems += error.problems
                wrong.add(name)
                held = each.default
            object.__setattr__(self, name, held)
        raise_if([*problems, *self.contradictions(wrong)])

    def contradictions(self, wrong: Collection[str]) -> Iterator[str]:  # noqa: ARG002 - for those that have some
        """Contradictions between options, in words; options in `wrong` have their defaults here."""
        yield from ()

    def given(self) -> list[str]:
        """The keys of the options with other values than their defaults, in order; a group is one of them."""
        return [key for key, each in options_of(type(self)).items() if getattr(self, key) != each.default]

    @classmethod
    def from_content(cls: type[R], content: Mapping[str, Any]) -> R:
        """The record with the content of a configuration: key → value, or a mapping for a group.

        Raises:
            InputError: every unknown key, with the nearest known one, and all problems of the values.
        """
        known = options_of(cls)
        prefix = f"{cls.GROUP}: " if cls.GROUP else ""
        problems = [prefix + problem for problem in unknown_keys(content, known)]
        try:
            record = cls(**{key: value for key, value in content.items() if key in known})
        except InputError as error:
            raise InputError([*problems, *error.problems]) from None
        raise_if(problems)
        return record


@dataclass(frozen=True)
class Group(Kind[R]):
    """A group of options: a record, or a mapping that is its content."""

    record: type[R]

    def read(self, key: str, value: Any) -> R:
        """The record."""
        if isinstance(value, self.record):
            return value
        if not isinstance(value, Mapping):
            raise InputError(_no_group(key, value, list(options_of(self.record))))
        return self.record.from_content(value)


def options_of(record: type[Record]) -> dict[str, Option[Any]]:
    """Key → option of a record, in order; a group counts as one option."""
    return {each.name: each.metadata[_METADATA] for each in fields(record) if _METADATA in each.metadata}


def keys_of(record: type[Record], prefix: str = "") -> Iterator[tuple[str, Option[Any]]]:
    """All dotted keys with their options, in order, including those of groups and of mappings by name."""
    for name, each in options_of(record).items():
        if isinstance(each.kind, Group):
            yield from keys_of(each.kind.record, f"{prefix}{name}.")
        elif isinstance(each.kind, ByName):
            yield from ((f"{prefix}{name}.{last}", each) for last in each.kind.names)
        else:
            yield prefix + name, each


def _no_group(key: str, value: Any, names: Sequence[str]) -> str:
    return f"{key}={shown(value)}: expected a group of options: {', '.join(names)}; give {key}.{names[0]}=…"
