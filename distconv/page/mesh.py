"""The picture of a result that is cut by ranks: pipeline stages × tensor ranks, as SVG.

Owns its geometry and its words. Colours are those of `style`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distconv.errors import counted
from distconv.page.style import MODALITY_CLASSES, PICTURE_STYLE
from distconv.page.words import escaped, ranks_in_words
from distconv.words import binary

_GUTTER, _WIDTH, _HEIGHT, _GAP, _LINE = 116, 200, 72, 8, 17
_INNER = _WIDTH - 2 * _GAP
_BAR = 6
# As many as a box has place for.
_LETTERS = 26


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """The files of one tensor and pipeline rank, one per expert parallel rank, and the processes that write them."""

    names: Sequence[str]
    nbytes: Sequence[int]
    writers: Sequence[int]


def mesh_svg(report: Mapping[str, Any], names: Mapping[str, str], writers: Mapping[str, Sequence[int]]) -> str:
    """The picture of a result whose report has `ranks`.

    `names`: path of a file → its name on the page; `writers`: path of a file → ranks of the processes that write it.
    """
    cells = _cells(report, names, writers)
    stages: dict[int, list[Mapping[str, Any]]] = {}
    for stage in report["stages"]:
        stages.setdefault(stage["pipeline_rank"], []).append(stage)
    modalities = list(report["layout"]["stages"])
    classes = {each: MODALITY_CLASSES[min(at, len(MODALITY_CLASSES) - 1)] for at, each in enumerate(modalities)}
    rows, columns = 1 + max(tensor for tensor, _ in cells), sorted(stages)
    headers = {column: list(_header_lines(stages[column], classes)) for column in columns}
    top = 38 + _LINE * max(map(len, headers.values()))
    width, height = _GUTTER + _WIDTH * len(columns), top + _HEIGHT * rows
    largest_stage = max(sum(each["bytes"] for each in stages[column]) for column in columns)
    largest = max(sum(cell.nbytes) for cell in cells.values())
    head = (
        f'<svg class="mesh" xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><title>{escaped(_title(report))}</title><style>{PICTURE_STYLE}</style>'
        f'<rect class="ground" width="{width}" height="{height}"/>'
    )
    parts = [head]
    for at, column in enumerate(columns):
        left = _GUTTER + at * _WIDTH + _GAP
        parts.append(_text(left, 16, "h", f"pipeline rank {column}"))
        parts += _stacked(left, 24, stages[column], classes, largest_stage)
        parts += [_header_line(left, 46 + number * _LINE, *line) for number, line in enumerate(headers[column])]
    for row in range(rows):
        parts.append(_text(_GUTTER - _GAP, top + row * _HEIGHT + 30, "h e", f"tensor rank {row}"))
    for (row, column), cell in sorted(cells.items()):
        at = columns.index(column)
        parts.append(_box(_GUTTER + at * _WIDTH, top + row * _HEIGHT, cell, largest))
    return "".join([*parts, "</svg>"])


def _title(report: Mapping[str, Any]) -> str:
    layout = report["layout"]
    return f"pipeline stages × tensor ranks: {counted(layout['pp'], 'stage')}, tensor parallel size {layout['tp']}"


def _cells(
    report: Mapping[str, Any], names: Mapping[str, str], writers: Mapping[str, Sequence[int]]
) -> dict[tuple[int, int], _Cell]:
    """The cells of the picture by (tensor, pipeline) rank."""
    found: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for file, (tensor, pipeline, _) in zip(report["files"], report["ranks"], strict=True):
        found.setdefault((tensor, pipeline), []).append(file)
    return {
        place: _Cell(
            names=[names[file["path"]] for file in files],
            nbytes=[file["bytes"] for file in files],
            writers=sorted({rank for file in files for rank in writers.get(file["path"], ())}),
        )
        for place, files in found.items()
    }


def _header_lines(stages: Sequence[Mapping[str, Any]], classes: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What a pipeline rank holds: class of a coloured mark, or none, words, and bytes."""
    for stage in stages:
        if len(stages) > 1:
            yield "", f"virtual stage {stage['virtual_stage']}", ""
        for modality, mark in classes.items():
            if nbytes := stage["modality_bytes"].get(modality, 0):
                layers = stage["layers"].get(modality, 0)
                held = counted(layers, "layer") if layers else "no layer"
                yield mark, f"{modality}: {held}", binary(nbytes)
        if not any(stage["modality_bytes"].values()):
            yield "", "nothing", ""


def _header_line(left: int, y: int, mark: str, words: str, size: str) -> str:
    if not mark:
        return _text(left, y, "f", words)
    square = f'<rect class="{mark}" x="{left}" y="{y - 9}" width="9" height="9" rx="2"/>'
    return square + _text(left + 14, y, "", words) + _text(left + _INNER, y, "f e", size)


def _stacked(
    left: int, y: int, stages: Sequence[Mapping[str, Any]], classes: Mapping[str, str], largest: int
) -> Iterator[str]:
    """The bytes of a pipeline rank as a bar of its modalities, as long as they are of those of the largest one."""
    x = float(left)
    for modality, mark in classes.items():
        width = _INNER * sum(each["modality_bytes"].get(modality, 0) for each in stages) / max(largest, 1)
        if width:
            yield f'<rect class="{mark}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'
        x += width


def _box(left: int, top: int, cell: _Cell, largest: int) -> str:
    """One cell: the names, the bytes and the writers of its files."""
    x, whole = left + 2 * _GAP, sum(cell.nbytes)
    name = cell.names[0] if len(cell.names) == 1 else f"{len(cell.names)} files"
    size = binary(whole)
    if len(cell.names) > 1:
        least, most = binary(min(cell.nbytes)), binary(max(cell.nbytes))
        size = f"each {least}" if least == most else f"each ≤ {most}"
    word = "process" if len(cell.writers) == 1 else "processes"
    writers = f"written by {word} {ranks_in_words(cell.writers)}" if cell.writers else ""
    written = writers if len(writers) <= _LETTERS else f"written by {len(cell.writers)} processes"
    told = f"{cell.names[0]}{f' … {cell.names[-1]}' if len(cell.names) > 1 else ''}: {binary(whole)}, {writers}"
    return (
        f"<g><title>{escaped(told)}</title>"
        f'<rect class="c" x="{left + _GAP}" y="{top}" width="{_INNER}" height="{_HEIGHT - _GAP}" rx="6"/>'
        + _text(x, top + 18, "b", _short(name))
        + _text(x, top + 34, "", size)
        + _text(x, top + 50, "f", written)
        + f'<rect class="r" x="{x}" y="{top + 54}" width="{(_INNER - 2 * _GAP) * whole / max(largest, 1):.1f}" '
        'height="4"/></g>'
    )


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"


def _text(x: int, y: int, kind: str, words: str) -> str:
    return f'<text{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} x="{x}" y="{y}">{escaped(words)}</text>'
