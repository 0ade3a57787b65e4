"""Of many boxes, few are compared with another one, and none that overlaps is missed."""

from __future__ import annotations

from random import Random

from distconv.tensors.boxes import Found, most_places, overlap
from distconv.tensors.operators import in_turn
from distconv.tensors.tiling import gaps
from distconv.tensors.virtual import Copy, invert, whole


def copy(start: tuple[int, ...], shape: tuple[int, ...]) -> Copy:
    return Copy(0, start, start, shape, tuple(range(len(shape))))


def test_every_box_that_overlaps_is_near():
    random = Random(0)  # noqa: S311 - no secret
    for _ in range(200):
        boxes = [
            copy((random.randrange(9), random.randrange(9)), (random.randint(1, 4), random.randint(1, 4)))
            for _ in range(12)
        ]
        found = Found(boxes)
        for each in boxes:
            near = found.near(each)
            assert {id(other) for other in found.all if overlap(each, other)} <= {id(other) for other in near}
            found.add(each)
        assert found.all == boxes


def test_boxes_one_after_the_other_are_not_near():
    boxes = [copy((0, row), (5, 1)) for row in range(100)]
    assert most_places(boxes) == 1
    found = Found(boxes)
    for each in boxes:
        assert found.near(each) == []
        found.add(each)


def test_boxes_that_touch_do_not_overlap():
    assert overlap(copy((0, 0), (2, 2)), copy((2, 0), (2, 2))) is None
    assert overlap(copy((0, 0), (3, 2)), copy((2, 1), (2, 2))) == ((2, 1), (1, 1))


def test_numbers_have_one_place():
    boxes = [copy((), ()), copy((), ())]
    found = Found(boxes)
    found.add(boxes[0])
    assert found.near(boxes[1]) == [boxes[0]]
    assert most_places([]) == 0


def test_as_many_rows_in_turn_as_real_models_have_are_inverted():
    """With every row compared with all others this takes minutes."""
    table = in_turn(whole("bfloat16", (12_000, 8)))
    (back,) = invert([table], [("bfloat16", (12_000, 8))])
    assert gaps(back) == 0
