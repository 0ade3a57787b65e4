"""Options as fields of frozen records: kind, default and words of an option, and records of options.

Owns the reading of records from the content of a configuration, and their dotted keys. Knows no option, and no
configuration file.
"""

from __future__ import annotations

import keyword
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

from distconv.errors import InputError, raise_if, shown, unknown_keys
from distconv.kinds import Kind
from distconv.path_kinds import FilePath

_METADATA = "option"
T = TypeVar("T")
R = TypeVar("R", bound="Record")


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

    `unset`: the meaning, in words, of a default that is `None` or empty, and `neutral` the value that means the same.
    `of_run`: it says how a job runs, and its result is the same with any value.
    """

    kind: Kind[T]
    default: T | None
    words: str
    unset: str = ""
    neutral: T | None = None
    of_run: bool = False

    def read(self, key: str, value: Any) -> T | None:
        """Check and convert a value; `None` is a value if it is the default.

        Raises:
            InputError: a value of another kind.
        """
        return None if value is None and self.default is None else self.kind.read(key, value)


def option(
    kind: Kind[T], default: T | None, words: str, *, unset: str = "", neutral: T | None = None, of_run: bool = False
) -> Any:
    """A field of a record that is an option; the arguments are those of `Option`."""
    made = Option(kind=kind, default=default, words=words, unset=unset, neutral=neutral, of_run=of_run)
    metadata = {_METADATA: made}
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
                held = each.read(f"{self.GROUP}.{name}" if self.GROUP else name, self.value(name))
            except InputError as error:
                problems += error.problems
                wrong.add(name)
                held = each.default
            object.__setattr__(self, _attribute(name), held)
        raise_if([*problems, *self.contradictions(wrong)])

    def contradictions(self, wrong: Collection[str]) -> Iterator[str]:  # noqa: ARG002 - for those that have some
        """Contradictions between options, in words; options in `wrong` have their defaults here."""
        yield from ()

    def value(self, key: str) -> Any:
        """The value of an option; one whose key is a word of Python is an attribute with an underscore behind it."""
        return getattr(self, _attribute(key))

    def given(self) -> list[str]:
        """The keys of the options with other values than their defaults, in order; a group is one of them."""
        known = options_of(type(self)).items()
        return [key for key, each in known if self.value(key) not in (each.default, each.neutral)]

    def shaping(self) -> dict[str, Any]:
        """The given options that shape the result, as plain data: neither those of the run, nor paths."""
        known = options_of(type(self))
        shaping = (key for key in self.given() if not known[key].of_run and not isinstance(known[key].kind, FilePath))
        return {key: _plain(self.value(key)) for key in shaping}

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
            record = cls(**{_attribute(key): value for key, value in content.items() if key in known})
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
    return {each.name.rstrip("_"): each.metadata[_METADATA] for each in fields(record) if _METADATA in each.metadata}


def keys_of(record: type[Record], prefix: str = "") -> Iterator[tuple[str, Option[Any]]]:
    """All dotted keys with their options, in order, including those of groups and of mappings by name."""
    for name, each in options_of(record).items():
        if isinstance(each.kind, Group):
            yield from keys_of(each.kind.record, f"{prefix}{name}.")
        elif isinstance(each.kind, ByName):
            yield from ((f"{prefix}{name}.{last}", each) for last in each.kind.names)
        else:
            yield prefix + name, each


def _attribute(key: str) -> str:
    """The name of the field for an option."""
    return f"{key}_" if keyword.iskeyword(key) else key


def _plain(value: Any) -> Any:
    """The value of an option as it would be after a way through JSON."""
    if isinstance(value, Record):
        return value.shaping()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _no_group(key: str, value: Any, names: Sequence[str]) -> str:
    return f"{key}={shown(value)}: expected a group of options: {', '.join(names)}; give {key}.{names[0]}=…"
