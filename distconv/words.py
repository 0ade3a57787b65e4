"""Numbers of bytes, tables and folded lines as text, for plans and results. Prints nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

# Columns of a terminal.
_WIDTH = 80


def binary(nbytes: float) -> str:
    """A number of bytes for a person."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.rjust) -> str:
    """Rows of cells in columns of equal width, indented."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def folded(label: str, text: str) -> list[str]:
    """A text behind a label, in lines of the width of a terminal where its words allow that."""
    lines = textwrap.wrap(text, _WIDTH - len(label), break_long_words=False, break_on_hyphens=False) or [""]
    return [label + lines[0], *(" " * len(label) + line for line in lines[1:])]
