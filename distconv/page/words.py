"""What the page and its picture have in common: escaped text, names in a row, ranks in a row.

Owns the escaping: whatever a report holds, such as the name of a file, is text on the page and never markup.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence

from distconv.errors import printable

_RUNS_SHOWN = 4


def escaped(text: object) -> str:
    """A text as it stands in markup, also in an attribute; what cannot be seen is spelled out."""
    return html.escape(printable(str(text)))


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Numbers in ascending order: `0–3, 7`."""
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in _runs(ranks))


def names_in_words(names: Sequence[str], places: Mapping[str, int]) -> str:
    """Names of files; those that follow each other in `places` by the first and the last of them."""
    ordered = sorted(names, key=places.__getitem__)
    by_place = {places[name]: name for name in ordered}
    found = [
        by_place[first] if first == last else f"{by_place[first]} … {by_place[last]} ({last - first + 1} files)"
        for first, last in _runs(list(by_place))
    ]
    more = [f"and {len(found) - _RUNS_SHOWN + 1} more places"] if len(found) > _RUNS_SHOWN else []
    return ", ".join([*found[: _RUNS_SHOWN - 1], *more] if more else found)


def common_ending(names: Sequence[str]) -> str:
    """What several names have in common behind what tells them apart, from a `-`, `.` or `_` on; or nothing."""
    if len(names) < 2:
        return ""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, names), strict=False))
    common = "".join(letters[0] for letters in same)[::-1]
    begins = [at for at, letter in enumerate(common) if letter in "-._"]
    return common[begins[0] :] if begins else ""


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers in ascending order as first and last of those that follow each other."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs
