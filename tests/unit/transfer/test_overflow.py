"""What became infinite is told of all processes together, and refused in float16 unless that is allowed."""

from __future__ import annotations

import pytest

from distconv.errors import JobError
from distconv.transfer.overflow import told_overflow
from distconv.transfer.sinks import Counters

FOUND = [{"float16": {"b: y": 2}}, {}, {"float16": {"a: x": 1}, "bfloat16": {"c: z": 5}}]


def test_what_is_allowed_is_listed_and_told():
    listed, notes = told_overflow(FOUND, allowed=True)
    assert listed == [
        {"dtype": "float16", "tensor": "a: x", "elements": 1},
        {"dtype": "float16", "tensor": "b: y", "elements": 2},
        {"dtype": "bfloat16", "tensor": "c: z", "elements": 5},
    ]
    assert notes == [
        "now infinite: 3 numbers of 2 tensors too large for float16: a: x, b: y",
        "now infinite: 5 numbers of 1 tensor too large for bfloat16: c: z",
    ]
    assert told_overflow([{}, {}], allowed=False) == ([], [])


def test_float16_is_refused_and_its_tensors_are_named():
    with pytest.raises(JobError) as caught:
        told_overflow(FOUND, allowed=False)
    assert str(caught.value) == (
        "dtype: 3 numbers of 2 tensors too large for float16: a: x, b: y; dtype=bfloat16 holds them, "
        "keep_dtype=[PATTERN] leaves such tensors as they are, dtype_overflow=allow makes them infinite"
    )
    assert told_overflow([*FOUND[1:2], {"bfloat16": {"c: z": 5}}], allowed=False)[1]


def test_what_is_counted_of_one_file_is_known_by_its_path():
    counters = Counters(lambda _: None)
    for tensor, elements in (("a/b.pt: w", 1), ("a/b.pt: w", 2), ("a/b.pt2: w", 5), ("a: b.pt: w", 7)):
        counters.add_overflow("float16", tensor, elements)
    counters.add_overflow("bfloat16", "c: w", 9)
    assert counters.overflowed_in("a/b.pt") == {"float16": {"a/b.pt: w": 3}}
    assert counters.overflowed_in("d") == {}
