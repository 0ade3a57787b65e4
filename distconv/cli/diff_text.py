"""The text of a comparison of two checkpoints, for a person.

Owns its wording, in the width of a terminal. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from distconv.errors import counted, named, printable
from distconv.formats.registry import format_named
from distconv.words import binary, folded

# Tensors of a kind, and notes, that are shown; the others are counted.
SHOWN = 16
_LARGEST = float("inf")


def diff_text(report: Mapping[str, Any]) -> str:
    """What two checkpoints have in common, and where they differ: the largest differences first."""
    tensors, processes = report["tensors"], report["processes"]
    equal = tensors["in_both"] - tensors["different"]
    seconds = max(each["seconds"]["transfer"] for each in processes)
    sides = ((side, format_named(report[f"{side}_format"]).title) for side in ("source", "target"))
    lines = [
        *(line for side, title in sides for line in folded(f"{side}   ", printable(f"{report[side]}, {title}"))),
        f"model    {report['model'] or 'any: by published names, without a definition'}",
        *folded(
            "both     ",
            f"{counted(tensors['in_both'], 'tensor')} in both, {equal} of them equal; compared "
            f"{binary(report['bytes'])} on {counted(len(processes), 'process', 'processes')} in {seconds:.1f} s",
        ),
    ]
    for side in ("source", "target"):
        lines += _section(f"only in the {side}", report[f"only_in_{side}"], _alone)
    same = [each for each in report["different"] if _differs_in_type_alone(each)]
    others = [each for each in report["different"] if not _differs_in_type_alone(each)]
    lines += _section("different", sorted(others, key=_how_different), _different)
    lines += _of_other_types(same)
    lines += _section("copies that differ", report["copies"], lambda line: folded("  ", printable(line)))
    notes = report["notes"]
    lines += ["", *(line for note in notes[:SHOWN] for line in folded("note: ", printable(note)))] if notes else []
    return "\n".join(lines)


def _section(title: str, found: Sequence[Any], words: Callable[[Any], Iterable[str]]) -> Iterator[str]:
    if not found:
        return
    yield from ("", f"{title}: {len(found)}")
    for each in found[:SHOWN]:
        yield from words(each)
    if len(found) > SHOWN:
        yield f"  … and {len(found) - SHOWN} more; report=FILE lists all"


def _differs_in_type_alone(entry: Mapping[str, Any]) -> bool:
    return bool(entry["differing"] == 0 and entry["source"]["shape"] == entry["target"]["shape"])


def _of_other_types(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tensors that differ in nothing but their type, by types."""
    names: dict[tuple[str, str], list[str]] = {}
    for each in entries:
        names.setdefault((each["source"]["dtype"], each["target"]["dtype"]), []).append(each["name"])
    if names:
        yield from ("", f"of another type, with equal elements: {len(entries)}")
    for (one, other), alike in names.items():
        yield from folded("  ", f"{one} in the source, {other} in the target: {named(alike, 2)}")


def _alone(entry: Mapping[str, Any]) -> Iterable[str]:
    return folded("  ", f"{printable(entry['name'])}  {_form(entry)}")


def _different(entry: Mapping[str, Any]) -> Iterator[str]:
    """A tensor with what is different of it, each on a line of its own."""
    yield f"  {printable(entry['name'])}"
    source, target = entry["source"], entry["target"]
    if source != target:
        yield from folded("      ", f"{_form(source)} in the source, {_form(target)} in the target")
    compared, differing = entry["compared"], entry["differing"]
    if compared is None:
        yield "      not compared element by element"
        return
    of = f"of the {compared:,} elements compared" if source["shape"] != target["shape"] else f"of {compared:,} elements"
    if not differing:
        yield f"      none {of} differs"
        return
    largest = entry["largest"]
    if largest is None:
        where = f"the first at {entry['first']}"
    else:
        apart = _number(largest["difference"])
        pair = f"{_number(largest['source'])} and {_number(largest['target'])}"
        where = f"largest difference {apart} at {largest['index']}: {pair}"
    yield from folded("      ", f"{differing:,} {of} {'differs' if differing == 1 else 'differ'}; {where}")


def _how_different(entry: Mapping[str, Any]) -> tuple[bool, float]:
    """The sort key: those of other shapes first, then those whose elements are farthest apart."""
    largest = entry["largest"]
    apart = float(largest["difference"]) if largest else 0.0 if entry["differing"] == 0 else _LARGEST
    return entry["source"]["shape"] == entry["target"]["shape"], -apart


def _form(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']} {entry['shape']}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
