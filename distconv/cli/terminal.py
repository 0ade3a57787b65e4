"""What standard output and standard error are: a terminal that shows colours, a log, or a reader that has left.

Owns what may be sent to them. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from distconv.errors import printable

_NAME = "distconv:"
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def visible(text: str) -> str:
    """A text of lines as a terminal may get it."""
    return "\n".join(map(printable, text.split("\n")))


def coloured(text: str, stream: TextIO, environment: Mapping[str, str]) -> str:
    """An error with the program's name in red, on a terminal that has colours, unless `NO_COLOR` is set."""
    has_colours = stream.isatty() and environment.get("TERM", "dumb") != "dumb" and not environment.get("NO_COLOR")
    if not has_colours or not text.startswith(_NAME):
        return text
    return f"{_RED}{_NAME}{_PLAIN}{text.removeprefix(_NAME)}"
