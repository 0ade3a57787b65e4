"""A pickle of strangers is read or refused, in time and memory like its length, and reaches nothing but stand-ins."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
from typing import Any

import pytest

from distconv.formats.torch_zip.inert_pickle import Inert, InertUnpickler, StandIn, first_words

MEBIBYTE = 1 << 20


class Kept(StandIn):
    """Keeps its state."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class Plain:
    """Of the program, not of a pickle."""


class Unpickler(InertUnpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ARG002 - of the interface
        return {"kept": Kept, "plain": Plain}.get(name) or type(name, (Inert,), {})


def read(data: bytes) -> Any:
    return Unpickler(io.BytesIO(data)).load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_as_they_were(protocol):
    content = {
        "numbers": [1, -7, 1 << 70, 2.5, True, None],
        "text": "né",
        "bytes": (b"", b"abc"),
        (0, "x"): {1: {}, 2: []},
        "array": bytearray(b"abc"),
    }
    content["numbers"] += [content["text"]] * 300
    found = read(pickle.dumps(content, protocol))
    if protocol < 5:
        # Calls of a class, then.
        assert isinstance(found.pop("array"), Inert)
        del content["array"]
    if protocol < 3:
        assert {type(each) for each in found.pop("bytes")} <= {Inert, *Inert.__subclasses__()}
        del content["bytes"]
    assert found == content


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_part_of_a_pickle_is_refused_and_names_nothing_else(protocol):
    """Wherever it ends: half a name would be said to be a foreign one."""

    class Collecting(Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found.add((module, name))
            return super().find_class(module, name)

    data, found = pickle.dumps([Plain(), "a text", 1 << 70, b"bytes", 2.5, "another"], protocol), set()
    Collecting(io.BytesIO(data)).load()
    known = set(found)
    for end in range(len(data)):
        with pytest.raises((EOFError, ValueError, IndexError, struct.error, pickle.UnpicklingError)):
            Collecting(io.BytesIO(data[:end])).load()
    assert (__name__, "Plain") in known
    assert found == known


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_sets_keep_nothing(protocol):
    found = read(pickle.dumps([{1, 2}, frozenset({(1, (2, 3))}), set(), 7], protocol))
    assert [isinstance(each, Inert) for each in found] == [True, True, True, False]


def test_only_stand_ins_are_given_a_state():
    assert read(b"\x80\x02cm\nkept\n)R}X\x01\x00\x00\x00aK\x01sb.").state == {"a": 1}
    plain = read(b"\x80\x02cm\nplain\n)R}X\x01\x00\x00\x00aK\x01sb.")
    assert not vars(plain)
    read(b"\x80\x02cm\nplain\nN}X\x01\x00\x00\x00aK\x01s\x86b.")
    assert not hasattr(Plain, "a")


@pytest.mark.parametrize(
    "data",
    [
        b"K\x01r" + struct.pack("<I", 1 << 26) + b".",
        b"K\x01p" + b"%d\n." % (1 << 40),
        b"\x96" + struct.pack("<Q", 1 << 30) + b".",
        b"\x8e" + struct.pack("<Q", 1 << 40) + b".",
        b"\x95" + struct.pack("<Q", 1 << 40) + b"K\x01.",
    ],
    ids=["remembered as number 2^26", "as number 2^40", "a long bytearray", "long bytes", "a long frame"],
)
def test_a_number_in_the_file_takes_no_memory(data):
    tracemalloc.start()
    try:
        assert read(data) == 1
    except (EOFError, pickle.UnpicklingError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEBIBYTE


@pytest.mark.parametrize(
    "key",
    [b")" + b"\x85" * 1_000_000, b")q\x00" + b"h\x00\x86q\x00" * 100],
    ids=["a million deep", "2^100 wide"],
)
@pytest.mark.parametrize("entry", [b"}%sNs.", b"}(%sNu.", b"(%sNd."], ids=["item", "items", "dictionary"])
def test_tuples_of_tuples_as_keys_are_not_followed(key, entry):
    (found,) = read(b"\x80\x02" + entry % key)
    assert isinstance(found, Inert)


def test_an_error_that_cites_the_file_is_cut_short():
    with pytest.raises(ValueError, match="could not convert string to float") as caught:
        read(b"F" + b"x" * MEBIBYTE + b"\n.")
    words = first_words(caught.value)
    assert words.startswith("ValueError: could not convert string to float: b'xxx")
    assert len(words) < 250
