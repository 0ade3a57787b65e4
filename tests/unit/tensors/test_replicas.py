"""Two tensors are compared piece by piece, whatever pieces they are stored in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distconv.tensors.replicas import as_padding, replicas_of
from distconv.tensors.stored import Assembled, SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, concat, narrow, whole
from tests.unit.reference import evaluate

ROWS, COLUMNS = 6, 4
CONTENT = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)


def in_rows(*lengths: int) -> tuple[VirtualTensor, list[np.ndarray[Any, Any]]]:
    pieces = np.split(CONTENT, np.cumsum(lengths)[:-1])
    tables = [whole("float32", piece.shape, number) for number, piece in enumerate(pieces)]
    return concat(tables), pieces


def in_storage_of_more() -> tuple[VirtualTensor, list[np.ndarray[Any, Any]]]:
    stored = np.vstack([CONTENT, CONTENT])
    return narrow(whole("float32", stored.shape), 0, ROWS, ROWS), [stored]


FORMS = {"whole": in_rows(ROWS), "in two": in_rows(2, 4), "in three": in_rows(1, 4, 1), "in more": in_storage_of_more()}


def assembled(table: VirtualTensor, pieces: list[np.ndarray[Any, Any]]) -> Assembled:
    file = SourceFile("/x", 1 << 20)
    return Assembled(
        tuple(
            StoredTensor(str(number), "float32", each.shape, file, 64 * number) for number, each in enumerate(pieces)
        ),
        table,
    )


@pytest.mark.parametrize("copy", FORMS)
@pytest.mark.parametrize("original", FORMS)
def test_all_elements_of_a_copy_are_compared_with_those_of_its_original(original, copy):
    held = [list(pieces) for _, pieces in (FORMS[original], FORMS[copy])]
    one, other = assembled(*FORMS[original]), assembled(*FORMS[copy])
    for row, column in np.ndindex(ROWS, COLUMNS):
        changed = [each.copy() for each in held[1]]
        (place,) = [(piece, spot) for piece, spot in places(FORMS[copy][0], row, column)]
        changed[place[0]][place[1]] = -1
        differing = [
            replica
            for replica in replicas_of(one, other, "")
            if not np.array_equal(
                evaluate(replica.original.tensor, held[0]),
                evaluate(replica.copy.tensor, [changed[int(replica.copy.sources[0].name)]]),
            )
        ]
        assert [each.copy.sources[0].name for each in differing] == [str(place[0])]


def test_equal_pieces_are_equal_and_counted_once():
    for original, copy in ((one, other) for one in FORMS.values() for other in FORMS.values()):
        found = list(replicas_of(assembled(*original), assembled(*copy), "why"))
        assert sum(each.nbytes for each in found) == CONTENT.nbytes
        assert {each.reason for each in found} == {"why"}
        for each in found:
            (stored,) = each.copy.sources
            np.testing.assert_array_equal(
                evaluate(each.original.tensor, original[1]), evaluate(each.copy.tensor, [copy[1][int(stored.name)]])
            )


@pytest.mark.parametrize(
    ("rows", "padding"),
    [
        ([[0, 0]], True),
        ([[0, 1]], False),
        ([[0, 0], [0, 0]], True),
        ([[5, 6], [5, 6], [5, 6]], True),
        ([[5, 6], [5, 6], [5, 7]], False),
        ([[5, 6], [0, 0]], False),
        ([[5, 6], [5, 6], [0, 6]], False),
    ],
)
def test_rows_are_padding_if_they_are_equal_or_a_single_one_zeros(rows, padding):
    stored = np.array([[9, 9], *rows], np.float32)
    table = narrow(whole("float32", stored.shape), 0, 1, len(rows))
    found = list(as_padding(assembled(table, [stored])))
    equal = [
        np.array_equal(evaluate(each.original.tensor, [stored]), evaluate(each.copy.tensor, [stored])) for each in found
    ]
    assert all(equal) == padding


def places(table: VirtualTensor, row: int, column: int) -> list[tuple[int, tuple[int, ...]]]:
    """The stored elements that are at a position of a tensor."""
    return [
        (
            box.operand,
            tuple(
                start + at - low
                for start, at, low in zip(box.source_start, (row, column), box.target_start, strict=True)
            ),
        )
        for box in table.copies
        if all(low <= at < low + size for at, low, size in zip((row, column), box.target_start, box.shape, strict=True))
    ]
