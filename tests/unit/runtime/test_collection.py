"""The collector of cyclic garbage is paused, and is afterwards as it was, whatever happens."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from distconv.runtime.collection import uncollected


@pytest.fixture(params=[True, False], ids=["on", "off"])
def collecting(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the collector is on before."""
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()


def test_it_is_paused_and_then_as_before(collecting):
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() == collecting


def test_a_failure_does_not_leave_it_off(collecting):
    with pytest.raises(ZeroDivisionError), uncollected():
        raise ZeroDivisionError
    assert gc.isenabled() == collecting
