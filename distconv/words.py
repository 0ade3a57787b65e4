"""Numbers of bytes, tables, folded lines and names by reason, for the text of plans and results. Prints nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

# Columns of a terminal.
_WIDTH = 80
_INDENT, _BETWEEN = "  ", "  "
_WORD = re.compile(r"(\s*)(\S+)")
_LIST_ITEM = re.compile(r"[^,]*,|[^,]+")


def binary(nbytes: float) -> str:
    """A number of bytes for a person."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def names_by_reason(left_out: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Reason → the names of the tensors that a report says are left out for it, in its order."""
    found: dict[str, list[str]] = {}
    for each in left_out:
        found.setdefault(each["reason"], []).append(each["name"])
    return found


def table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.rjust) -> str:
    """Rows of cells in columns of equal width, indented; the first row, where that is too wide, a word a line."""
    rows = rows if _width_of(rows) <= _WIDTH else [*_stacked(rows[0]), *rows[1:]]
    widths = _widths(rows)
    return "\n".join(
        _INDENT + _BETWEEN.join(align(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _width_of(rows: Sequence[Sequence[str]]) -> int:
    widths = _widths(rows)
    return len(_INDENT) + sum(widths) + len(_BETWEEN) * (len(widths) - 1)


def _stacked(cells: Sequence[str]) -> list[list[str]]:
    """Cells as rows of their words, which end in the last row."""
    words = [cell.split() for cell in cells]
    height = max(map(len, words))
    return [list(row) for row in zip(*([*[""] * (height - len(each)), *each] for each in words), strict=True)]


def folded(label: str, text: str) -> list[str]:
    """A text behind a label, in lines of the width of a terminal where its words, and lists in it, allow that."""
    width, lines = _WIDTH - len(label), [""]
    for blanks, word in _WORD.findall(text):
        pieces = _LIST_ITEM.findall(word) if "[" in word and len(word) > width else [word]
        for between, piece in zip([" " * len(blanks), *[""] * len(pieces)], pieces, strict=False):
            if lines[-1] and len(lines[-1] + between + piece) > width:
                lines.append(piece)
            else:
                lines[-1] += between + piece
    return [label + lines[0], *(" " * len(label) + line for line in lines[1:])]
