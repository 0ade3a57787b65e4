"""A bar says how much is done on all processes, how fast, and how long the rest will take."""

from __future__ import annotations

from distconv.cli.bar import Bar
from distconv.observer import Everywhere

MIB = 2**20


def bar(total: int, elsewhere: int = 0, *, cells: bool = False) -> Bar:
    return Bar("writing", Everywhere(nbytes=total, elsewhere=lambda: elsewhere), start=5.0, cells=cells)


def test_a_log_has_share_bytes_rate_and_the_time_that_is_left():
    found = bar(300 * MIB)
    assert found.line(5.0) == "writing:   0%, 0 B of 300.0 MiB, 0 B/s"
    found.advance(50 * MIB, 5.0)
    found.advance(50 * MIB, 30.0)
    assert found.line(30.0) == "writing:  33%, 100.0 MiB of 300.0 MiB, 2.0 MiB/s, 01:40 left"


def test_a_terminal_has_a_bar_too():
    found = bar(300 * MIB, cells=True)
    assert found.line(5.0) == "writing:   0% |                    | 0 B of 300.0 MiB, 0 B/s"
    found.advance(100 * MIB, 55.0)
    assert found.line(55.0) == "writing:  33% |######              | 100.0 MiB of 300.0 MiB, 2.0 MiB/s, 01:40 left"


def test_what_others_have_done_counts():
    found = bar(400 * MIB, 100 * MIB)
    found.advance(0, 5.0)
    found.advance(100 * MIB, 105.0)
    assert found.line(105.0) == "writing:  50%, 200.0 MiB of 400.0 MiB, 2.0 MiB/s, 01:40 left"


def test_the_rate_leaves_out_the_time_before_the_first_bytes():
    found = bar(300 * MIB)
    found.advance(10 * MIB, 15.0)
    found.advance(90 * MIB, 60.0)
    assert ", 2.0 MiB/s, " in found.line(60.0)
    # With nothing after them, their own time must do.
    found = bar(300 * MIB)
    found.advance(100 * MIB, 55.0)
    assert ", 2.0 MiB/s, " in found.line(55.0)


def test_at_the_end_all_is_done_also_what_was_not_heard_of():
    found = bar(300 * MIB, 100 * MIB)
    found.advance(100 * MIB, 6.0)
    end = "writing: 100%, 300.0 MiB of 300.0 MiB, 200.0 MiB/s, took 00:02"
    assert found.last_line(7.0, is_complete=True) == end
    assert found.last_line(7.0, is_complete=False).startswith("writing:  66%, 200.0 MiB of 300.0 MiB, ")
    assert found.last_line(7266.0, is_complete=True).endswith(", took 2:01:01")


def test_a_phase_of_nothing_is_done():
    assert bar(0).line(5.5) == "writing: 100%, 0 B of 0 B, 0 B/s"


def test_not_all_is_done_before_all_is_done_and_never_more_than_all():
    found = bar(1000, cells=True)
    found.advance(999, 6)
    assert found.line(6).startswith("writing:  99% |################### |")
    found.advance(999, 7)
    assert found.line(7).startswith("writing: 100% |####################| 1000 B of 1000 B, ")
