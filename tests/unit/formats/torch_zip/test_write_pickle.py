"""What is written is what `pickle` reads, and depends on the values alone."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.torch_zip.write_pickle import Call, Global, Instance, Persistent, dumps

TEXT = st.text(st.characters(codec=None), max_size=4)
INTEGERS = st.integers() | st.sampled_from(
    [sign * (1 << bits) + more for bits in (8, 16, 31, 32, 63, 64, 2031, 2047) for sign in (1, -1) for more in (-1, 0)]
)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=5) | st.lists(inner, max_size=5).map(tuple) | st.dictionaries(TEXT, inner, max_size=5)
    ),
    max_leaves=30,
)


def loads(text: bytes) -> Any:
    return pickle.loads(text)  # noqa: S301 - written here


class Thing:
    def __init__(self) -> None:
        raise AssertionError("made without a call")


@given(VALUES)
def test_plain_values_are_read_as_they_were(value):
    # True equals 1, and 0.0 equals -0.0.
    assert repr(loads(dumps(value))) == repr(value)


@given(st.lists(TEXT, min_size=250, max_size=300, unique=True), st.integers(2, 3))
def test_what_comes_again_is_read_again(texts, times):
    assert loads(dumps(texts * times)) == texts * times


def test_what_comes_again_is_written_once():
    assert len(dumps(["abc" * 1000] * 100)) < 4000
    assert len(dumps([Global("module" * 1000, "name")] * 100)) < 7000


@given(VALUES)
def test_equal_values_are_equal_bytes(value):
    """Whether parts are one object, or equal objects."""
    shared, apart = [value, value], [value, loads(pickle.dumps(value))]
    assert dumps(shared) == dumps(apart)


def test_objects_are_made_by_those_who_read():
    thing = Global(__name__, "Thing")
    value = {
        "call": Call(Global("fractions", "Fraction"), (3, 6)),
        "without": Call(Global("collections", "OrderedDict")),
        "name": thing,
        "empty": Instance(thing),
        "filled": Instance(thing, {"a": (1, [])}),
    }
    found = loads(dumps(value))
    assert found["call"] == Fraction(1, 2)
    assert type(found["without"]) is OrderedDict
    assert found["name"] is Thing
    assert type(found["empty"]) is type(found["filled"]) is Thing
    assert (vars(found["empty"]), vars(found["filled"])) == ({}, {"a": (1, [])})


def test_a_call_is_made_as_often_as_it_stands_there():
    call = Call(Global("collections", "OrderedDict"))
    first, second = loads(dumps([call, call]))
    assert first is not second


def test_a_persistent_object_is_asked_for():
    class Reader(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return "found", pid

    value = [Persistent(("storage", Global("fractions", "Fraction"), 7))]
    assert Reader(io.BytesIO(dumps(value))).load() == [("found", ("storage", Fraction, 7))]


@given(VALUES)
def test_the_protocol_is_2(value):
    operations = list(pickletools.genops(dumps([value, Call(Global("a", "b"), (value,)), Instance(Global("a", "b"))])))
    assert [(operation.name, argument) for operation, argument, _ in operations if operation.name == "PROTO"] == [
        ("PROTO", 2)
    ]
    assert max(operation.proto for operation, _, _ in operations) == 2


@pytest.mark.parametrize("value", [{1}, b"bytes", object(), Thing, 1j])
def test_anything_else_is_refused(value):
    with pytest.raises(TypeError, match=f"found {type(value).__name__}"):
        dumps({"a": [value]})
