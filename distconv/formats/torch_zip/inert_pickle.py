"""Reading a pickle as data: an unpickler that builds plain values and stand-ins for everything else.

Owns that a pickle of strangers can only be read or be refused: nothing that it names is imported or called, and reading
it takes time and memory like its length. `pickle.Unpickler` alone does not see to that: it makes room for as many
remembered values as a number in the file says, and tuples of tuples as a key overflow its stack, or take for ever.
Nor are there numbers whose products, or whose digits, take longer than it took to read them: those are stand-ins, too.
What the stand-ins for known names are is the business of those who read a format.
"""

from __future__ import annotations

import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

_WORDS = 200
# More bits than any number that is read, or that states of random generators have.
_LARGEST_BITS = 256


class StandIn:
    """The base of objects in place of those that a pickle describes; no other object receives a pickled state."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class Inert(StandIn):
    """The stand-in for an unknown class or function of a pickle: accepts all arguments and items, and keeps none."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Ignore an item of a list of a foreign class."""

    def extend(self, items: object) -> None:
        """Ignore items of a list of a foreign class."""

    def add(self, item: object) -> None:
        """Ignore an item of a set."""


class Namespace(StandIn):
    """The stand-in for a namespace, such as that of the arguments of training: its attributes by name."""

    def __init__(self, *_: object, **__: object) -> None:
        self.values: Mapping[Any, Any] = {}

    def __setstate__(self, state: object) -> None:
        """Keep the attributes."""
        if isinstance(state, dict):
            self.values = state


def _bounded(code: int) -> Callable[[Any], None]:
    """The instruction of a number, which gives a stand-in for one that is too large."""
    load = pickle._Unpickler.dispatch[code]  # noqa: SLF001 - as below

    def bounded(unpickler: Any) -> None:
        load(unpickler)
        if unpickler.stack[-1].bit_length() > _LARGEST_BITS:
            unpickler.stack[-1] = Inert()

    return bounded


# Written in Python, it remembers values in a dictionary, and lets single instructions be replaced.
class InertUnpickler(ABC, pickle._Unpickler):  # noqa: SLF001 - public as pickle.Unpickler where there is no C
    """An unpickler without imports; subclasses have `find_class`, and `persistent_load` for persistent ids."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    _file_read: Callable[[int], bytes]
    _file_readline: Callable[[], bytes]

    def load(self) -> Any:
        """What the pickle describes."""
        # Without the layer for frames, which only say how much to read at once, and which costs a third of the time.
        self.read = self._file_read
        self.metastack: list[list[Any]] = []
        self.stack = []
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            while code := read(1):
                dispatch[code[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]  # noqa: SLF001 - as above
            return stop.value
        raise EOFError("it does not end")

    @abstractmethod
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for the class or function `name` of `module`."""

    def readline(self) -> bytes:
        """A line with its end; half a name is another one."""
        line = self._file_readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends within a line")
        return line

    def _frame(self) -> None:
        self.read(8)

    def _bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(length)))

    def _empty_set(self) -> None:
        self.stack.append(Inert())

    def _frozen_set(self) -> None:
        self.pop_mark()
        self.stack.append(Inert())

    def _dictionary(self) -> None:
        items = self.pop_mark()
        self.stack.append(dict(zip(map(_key, items[::2]), items[1::2], strict=True)))

    def _item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def _items(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if type(key) is str else _key(key)] = value

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,  # noqa: SLF001 - as above
        **{code[0]: _bounded(code[0]) for code in (pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4)},
        pickle.FRAME[0]: _frame,
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.EMPTY_SET[0]: _empty_set,
        pickle.FROZENSET[0]: _frozen_set,
        pickle.DICT[0]: _dictionary,
        pickle.SETITEM[0]: _item,
        pickle.SETITEMS[0]: _items,
        pickle.BUILD[0]: _build,
    }


def first_words(error: Exception) -> str:
    """The beginning of an error's text, for a message: errors about a pickle may quote all of it."""
    return f"{type(error).__name__}: {error!s:.{_WORDS}}"


def _key(key: Any) -> Any:
    """A key of a dictionary; refuses types whose hash may take for ever, which no format uses as keys."""
    return Inert() if type(key) is tuple and any(isinstance(each, tuple) for each in key) else key
