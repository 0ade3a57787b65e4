"""A bar says how much is done, how fast, and how long the rest will take, as often as it is asked to."""

from __future__ import annotations

from distconv.cli.bar import Bar

MIB = 2**20


def test_a_line_is_due_at_once_and_then_after_each_pause():
    bar = Bar("writing", 100, start=5.0, pause=10)
    due = [moment for moment in (5.0, 5.1, 14.9, 15.0, 15.1, 30.0) if bar.advance(1, moment) is not None]
    assert due == [5.0, 15.0, 30.0]


def test_what_a_line_says():
    bar = Bar("writing", 300 * MIB, start=0, pause=1)
    assert bar.advance(0, 0.0) == "writing:   0% |                    | 0 B of 300.0 MiB [00:00, 0 B/s]"
    assert (
        bar.advance(100 * MIB, 50.0)
        == "writing:  33% |######              | 100.0 MiB of 300.0 MiB [00:50<01:40, 2.0 MiB/s]"
    )
    bar.advance(200 * MIB, 50.5)
    assert bar.line(7261.0).startswith("writing: 100% |####################| 300.0 MiB of 300.0 MiB [2:01:01<00:00, ")


def test_a_phase_of_nothing_is_done():
    assert (
        Bar("writing", 0, start=0, pause=1).line(0.5)
        == "writing: 100% |####################| 0 B of 0 B [00:00, 0 B/s]"
    )


def test_not_all_is_done_before_all_is_done():
    bar = Bar("writing", 1000, start=0, pause=1)
    bar.advance(999, 1)
    assert bar.line(1).startswith("writing:  99% |################### |")
