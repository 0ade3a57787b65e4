"""Writing a pickle that names classes and functions of other packages, without importing them.

Owns the instructions of protocol 2, the one that `torch.save` uses. Equal values become equal bytes: values are
memoised by equality, while `pickle` does so by identity, which differs between processes. Executes nothing, and knows
no format. Instructions: `pickletools` of the standard library.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function, by its module and name."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """The result of a call of a function with these arguments, which the reader makes."""

    function: Global
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """An object of a class, created without arguments; its state is set unless it is `None`."""

    kind: Global
    state: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """An object that the reader of the pickle finds elsewhere, by its persistent id."""

    identifier: tuple[Any, ...]


def dumps(value: Any) -> bytes:
    """The pickle of a value made of None, bool, int, float, str, tuple, list, dict, and of the objects of this module.

    Raises:
        TypeError: the value holds an object of another type.
    """
    writer = _Writer()
    writer.write(value)
    return b"".join((pickle.PROTO, b"\x02", writer.instructions, pickle.STOP))


class _Writer:
    def __init__(self) -> None:
        self.instructions = bytearray()
        # The instruction that fetches a text or global from the memo.
        self._fetch: dict[str | Global, bytes] = {}

    def write(self, value: Any) -> None:
        write = _WRITE.get(type(value))
        if write is None:
            raise TypeError(f"expected plain values, found {type(value).__name__}")
        write(self, value)

    def text(self, value: str) -> None:
        if value in self._fetch:
            self.instructions += self._fetch[value]
        else:
            encoded = value.encode("utf-8", "surrogatepass")
            self._remembered(value, pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded)

    def name(self, value: Global) -> None:
        if value in self._fetch:
            self.instructions += self._fetch[value]
        else:
            self._remembered(value, pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def tuple(self, value: tuple[Any, ...]) -> None:
        if 0 < len(value) <= len(_SHORT_TUPLES):
            self._all(value)
            self.instructions += _SHORT_TUPLES[len(value) - 1]
        elif value:
            self.instructions += pickle.MARK
            self._all(value)
            self.instructions += pickle.TUPLE
        else:
            self.instructions += pickle.EMPTY_TUPLE

    def list(self, value: list[Any]) -> None:
        self.instructions += pickle.EMPTY_LIST + pickle.MARK
        self._all(value)
        self.instructions += pickle.APPENDS

    def dictionary(self, value: dict[Any, Any]) -> None:
        self.instructions += pickle.EMPTY_DICT + pickle.MARK
        for key, item in value.items():
            self.write(key)
            self.write(item)
        self.instructions += pickle.SETITEMS

    def call(self, value: Call) -> None:
        self.name(value.function)
        self.tuple(value.arguments)
        self.instructions += pickle.REDUCE

    def instance(self, value: Instance) -> None:
        self.name(value.kind)
        self.instructions += pickle.EMPTY_TUPLE + pickle.NEWOBJ
        if value.state is not None:
            self.write(value.state)
            self.instructions += pickle.BUILD

    def persistent(self, value: Persistent) -> None:
        self.tuple(value.identifier)
        self.instructions += pickle.BINPERSID

    def plain(self, instruction: bytes) -> None:
        self.instructions += instruction

    def _all(self, values: Any) -> None:
        for value in values:
            self.write(value)

    def _remembered(self, value: str | Global, instruction: bytes) -> None:
        number = len(self._fetch)
        if number < 1 << 8:
            put, fetch, packed = pickle.BINPUT, pickle.BINGET, struct.pack("<B", number)
        else:
            put, fetch, packed = pickle.LONG_BINPUT, pickle.LONG_BINGET, struct.pack("<I", number)
        self._fetch[value] = fetch + packed
        self.instructions += instruction + put + packed


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return pickle.BININT1 + struct.pack("<B", value)
    if 0 <= value < 1 << 16:
        return pickle.BININT2 + struct.pack("<H", value)
    if -1 << 31 <= value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    encoded = pickle.encode_long(value)
    if len(encoded) < 1 << 8:
        return pickle.LONG1 + struct.pack("<B", len(encoded)) + encoded
    return pickle.LONG4 + struct.pack("<i", len(encoded)) + encoded


_SHORT_TUPLES = (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
_WRITE: Mapping[type, Callable[[_Writer, Any], None]] = MappingProxyType(
    {
        type(None): lambda writer, _: writer.plain(pickle.NONE),
        bool: lambda writer, value: writer.plain(pickle.NEWTRUE if value else pickle.NEWFALSE),
        int: lambda writer, value: writer.plain(_integer(value)),
        float: lambda writer, value: writer.plain(pickle.BINFLOAT + struct.pack(">d", value)),
        str: _Writer.text,
        tuple: _Writer.tuple,
        list: _Writer.list,
        dict: _Writer.dictionary,
        Global: _Writer.name,
        Call: _Writer.call,
        Instance: _Writer.instance,
        Persistent: _Writer.persistent,
    }
)
