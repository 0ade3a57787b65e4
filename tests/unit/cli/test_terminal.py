"""Colours are for terminals; a name in a file never reaches them as a command."""

from __future__ import annotations

import io

import pytest

from distconv.cli.terminal import coloured


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "has_colour"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_the_name_of_the_program_is_red_on_terminals_that_want_it(stream, environment, has_colour):
    expected = "\x1b[31mdistconv:\x1b[0m no" if has_colour else "distconv: no"
    assert coloured("distconv: no", stream, environment) == expected
    assert coloured("note: distconv: no", stream, environment) == "note: distconv: no"
