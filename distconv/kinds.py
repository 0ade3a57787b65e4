"""The kinds of single option values: what fits, what is expected in words, and the type that records hold.

Owns the message about a value of another kind, with its dotted key. Knows no option.
"""

from __future__ import annotations

import difflib
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, TypeVar

from distconv.errors import InputError, shown

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_SIZE = re.compile(rf"(?P<number>[0-9]{{1,15}}(?:\.[0-9]{{1,15}})?) ?(?P<unit>{'|'.join(_UNITS)})", re.IGNORECASE)
_OCTAL = re.compile(r"[0-7]{3,5}")
_LAST_ITERATION = 10**12 - 1
_ITERATION = re.compile(r"[1-9][0-9]{0,11}")
T = TypeVar("T")


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

    def hint(self, value: Any) -> str:  # noqa: ARG002 - for those that have one
        """What a value of another kind may have been meant for, in words; empty if nothing is near."""
        return ""

    def held(self, value: Any) -> T:
        """Convert a value of this kind to the type in records."""
        return value  # type: ignore[no-any-return]  # unless a subclass says otherwise, T is the type of what fits

    def read(self, key: str, value: Any) -> T:
        """Check and convert a value."""
        if not self.fits(value):
            hint = self.hint(value)
            raise InputError(f"{key}={shown(value)}: expected {self.expected}{f'; {hint}' if hint else ''}")
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
class Mode(Value[str]):
    """Permissions in octal digits, with which the owner has what is `needed`; held as four or more digits.

    A number of bits would be read as digits when a record is made of another one.
    """

    needed: int
    largest: int
    example = "MODE"

    @property
    def expected(self) -> str:
        """The range in digits, and what the owner needs."""
        return f"octal permissions up to {self.largest:o}, with {self.needed:o} for the owner"

    def fits(self, value: Any) -> bool:
        """Whether the value has octal digits, and the owner what is needed."""
        if type(value) not in (int, str) or not _OCTAL.fullmatch(str(value)):
            return False
        bits = int(str(value), 8)
        return bits & self.needed == self.needed and bits <= self.largest

    def held(self, value: Any) -> str:
        """The digits."""
        return f"{int(str(value), 8):04o}"


@dataclass(frozen=True)
class Bytes(Value[int]):
    """Sizes in bytes: a positive integer, or a text of a positive number and a decimal or binary unit."""

    expected = "a positive size in bytes, such as 5GB, 500MB or 2GiB"
    example = "5GB"

    def fits(self, value: Any) -> bool:
        """Whether the value is a size of at least one byte."""
        if isinstance(value, str):
            return _SIZE.fullmatch(value) is not None and self.held(value) > 0
        return type(value) is int and value > 0

    def held(self, value: Any) -> int:
        """The size in bytes, rounded down."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value)
        assert match is not None
        return int(Decimal(match["number"]) * _UNITS[match["unit"].upper()])


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
class Several(Value[tuple[str, ...]]):
    """Lists, of one or more, out of some texts; `what` they are, in words."""

    what: str
    texts: tuple[str, ...]
    example: str

    @property
    def expected(self) -> str:
        """The list in words."""
        return f"a list of {self.what} out of {', '.join(self.texts)}, such as {self.example}"

    def fits(self, value: Any) -> bool:
        """Whether the value is a list of some of them."""
        return isinstance(value, (list, tuple)) and len(value) > 0 and all(each in self.texts for each in value)

    def held(self, value: Any) -> tuple[str, ...]:
        """The list as a tuple."""
        return tuple(value)


@dataclass(frozen=True)
class Iteration(Value[str]):
    """`release`, or the number of an iteration; held as text."""

    expected = f"release, or an integer from 1 to {_LAST_ITERATION}"
    example = "N"

    def fits(self, value: Any) -> bool:
        """Whether the value is the word or such a number."""
        if isinstance(value, str):
            return value == "release" or _ITERATION.fullmatch(value) is not None
        return type(value) is int and 1 <= value <= _LAST_ITERATION

    def held(self, value: Any) -> str:
        """The word, or the digits."""
        return str(value)


@dataclass(frozen=True)
class Choice(Value[str]):
    """One of several names; `words`: name → words about it, empty for none, or a function that returns them.

    `elsewhere`: what others call them → name, likewise; for hints alone.
    """

    words: Mapping[str, str] | Callable[[], Mapping[str, str]]
    elsewhere: Mapping[str, str] | Callable[[], Mapping[str, str]] = field(default_factory=dict)

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

    def hint(self, value: Any) -> str:
        """The name that was meant, in the words of others or misspelt."""
        if not isinstance(value, str):
            return ""
        word = value.lower().replace("-", "_")
        elsewhere = self.elsewhere() if callable(self.elsewhere) else self.elsewhere
        near = difflib.get_close_matches(word, [*self.choices, *elsewhere], 1)
        return f"did you mean {elsewhere.get(near[0], near[0])}?" if near else ""


@dataclass(frozen=True)
class Switch(Choice):
    """`true`, `false`, or another name for what decides between them; held as text."""

    def fits(self, value: Any) -> bool:
        """Whether the value is true, false or one of the names."""
        return super().fits(self.held(value) if isinstance(value, bool) else value)

    def held(self, value: Any) -> str:
        """The name."""
        return str(value).lower() if isinstance(value, bool) else str(value)
