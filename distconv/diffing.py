"""Comparing two checkpoints of any formats, tensor by tensor, on all processes.

Owns the order of the comparisons, and the report. Knows no format, and writes nothing but that report.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from distconv.errors import counted
from distconv.formats.registry import Options, tasks
from distconv.layout.partition import balanced_ranges
from distconv.models.library import Library
from distconv.observer import Observer, Outcome
from distconv.planning.choice import Chosen
from distconv.planning.pairing import Form, Match, Pairing, paired
from distconv.planning.plan import shares_of
from distconv.planning.report_file import ReportFile
from distconv.planning.sides import Side, look_at_both
from distconv.runtime.agreement import on_all, on_first, on_first_with_hand_out
from distconv.runtime.collection import uncollected
from distconv.runtime.hand_out import HandOut
from distconv.runtime.launch import cores
from distconv.runtime.processes import Processes
from distconv.tensors.pairs import PairPart, parts_of
from distconv.transfer.phases import Phases
from distconv.transfer.verify import compare_replicas

# The largest part of a tensor, in bytes of either side, that one process compares alone.
_PART_BYTES = 256 * 1024**2


def differences_between(
    options: Options, chosen: Chosen | None, library: Library, processes: Processes, observer: Observer
) -> Outcome:
    """The outcome of `action=diff`: the differences between the checkpoints `source` and `target`, in its report.

    Raises:
        DistconvError: a directory that is no checkpoint, one that is damaged, or a failure of any process; as the same
            error on every process.
    """
    start, lanes = time.monotonic(), options.io.lanes(cores(os.environ))
    seen: list[Side] = []

    def both(hand_out: HandOut) -> list[Any]:
        file = ReportFile(options.report)
        file.check()
        file.check_place({"source": options.source, "target": options.target})
        seen.extend(look_at_both(options, chosen, library, hand_out))
        return [side.to_json() for side in seen]

    with uncollected():
        told = on_first_with_hand_out(processes, both, tasks(), lanes.threads, "reading the headers")
        source, target = seen or [Side.from_json(each, options) for each in told]
        pairing, _ = on_all(processes, lambda: paired(source, target), lambda _: None, "planning")
    looked_at = [*source.facts.looked_at, *target.facts.looked_at]
    phases = Phases(processes, observer, options.io, lanes, lambda: looked_at, time.monotonic() - start)
    with phases.means.sources:
        copies = _copies(pairing, processes, phases)
        found, measured = _compared(pairing, processes, phases)
        phases.check_sources()
    report = _report(options, source, target, pairing, found)
    report |= {"copies": copies, "processes": measured}
    on_first(processes, lambda: ReportFile(options.report).write(report))
    return Outcome(report=report, differences=_sentence(report), notes=report["notes"])


def _compared(pairing: Pairing, processes: Processes, phases: Phases) -> tuple[dict[int, list[Any]], list[Any]]:
    """The differences of matches by their number, as plain data, and the measurements of all processes."""
    # Here, since it needs numpy, which other actions may do without.
    from distconv.tensors.differences import Difference, together  # noqa: PLC0415
    from distconv.transfer.compare_pairs import compare_pairs  # noqa: PLC0415

    numbers = [number for number, match in enumerate(pairing.matches) if match.pair is not None]
    pairs = [match.pair for match in pairing.matches if match.pair is not None]
    parts_of_all = list(parts_of(pairs, _PART_BYTES))
    share = _share(parts_of_all, processes)

    def compare() -> list[Any]:
        return [[number, each.to_json()] for number, each in compare_pairs(share, phases.means).items()]

    own, of_all = (sum(each.nbytes for each in some) for some in (share, parts_of_all))
    values, measured = phases.run("comparing", (), own, of_all, compare)
    parts: dict[int, list[Difference]] = {}
    for number, data in (each for found in values for each in found):
        parts.setdefault(numbers[number], []).append(Difference.from_json(data))
    return {number: together(each).to_json() for number, each in parts.items()}, measured


def _share(parts: Sequence[PairPart], processes: Processes) -> Sequence[PairPart]:
    own = balanced_ranges([each.nbytes for each in parts], processes.size)[processes.rank]
    return parts[own.start : own.stop]


def _copies(pairing: Pairing, processes: Processes, phases: Phases) -> list[str]:
    """The differences among tensors that a side stores several times, of which one is compared with the other side."""
    if not pairing.replicas:
        return []
    replicas = [replica for _, replica in pairing.replicas]
    share = shares_of(replicas, processes.size)[processes.rank]
    values, _ = phases.run(
        "comparing copies",
        (),
        sum(each.nbytes for each in share),
        sum(each.nbytes for each in replicas),
        lambda: compare_replicas(share, phases.means),
        counted_as="comparing",
    )
    return [line for differences in values for line in differences]


def _report(
    options: Options, source: Side, target: Side, pairing: Pairing, found: Mapping[int, list[Any]]
) -> dict[str, Any]:
    """The report, but for measurements; sizes in bytes."""
    different = [
        _difference(match, found.get(number))
        for number, match in enumerate(pairing.matches)
        if number in found or not match.is_alike
    ]
    compared = sum(match.pair.one.nbytes for match in pairing.matches if match.pair is not None)
    return {
        "action": options.action,
        "source": str(options.source),
        "source_format": source.facts.kind,
        "target": str(options.target),
        "target_format": target.facts.kind,
        "model": source.facts.model or target.facts.model,
        "tensors": {"in_both": len(pairing.matches), "different": len(different)},
        "bytes": compared,
        "only_in_source": _alone(pairing.source_alone),
        "only_in_target": _alone(pairing.target_alone),
        "different": different,
        "notes": [*_chosen(source), *_chosen(target), *pairing.notes],
    }


def _chosen(side: Side) -> list[str]:
    """What was chosen or left aside while a side was looked at, and what it was taken to be."""
    reference = side.options.reference
    follows = [] if reference is None else [f"{side.key}: read as the model in {reference}"]
    return [*follows, *(f"{side.key}: {note}" for note in side.facts.notes)]


def _alone(forms: Mapping[str, Form]) -> list[dict[str, Any]]:
    return [{"name": name, **form.to_json()} for name, form in forms.items()]


def _difference(match: Match, found: list[Any] | None) -> dict[str, Any]:
    """A difference as plain data: both forms, how many elements were compared, how many differ, where, and how far."""
    entry: dict[str, Any] = {
        "name": match.name,
        "source": match.source.to_json(),
        "target": match.target.to_json(),
        "compared": None if match.pair is None else match.pair.one.tensor.elements,
        "differing": None if match.pair is None else 0,
        "first": None,
        "largest": None,
    }
    if found is None or match.pair is None:
        return entry
    entry["differing"], first, farthest = found
    entry["first"] = _index(first, match.pair.shape)
    if farthest is not None:
        distance, at, *numbers = farthest
        one, other = map(_number, numbers)
        where = _index(at, match.pair.shape)
        entry["largest"] = {"difference": _number(distance), "index": where, "source": one, "target": other}
    return entry


def _index(position: int, shape: Sequence[int]) -> list[int]:
    """The index of a position in row-major order."""
    index: list[int] = []
    for length in reversed(shape):
        position, rest = divmod(position, length)
        index.append(rest)
    return index[::-1]


def _number(value: float) -> float | str:
    """A number as JSON has it; what is none as text."""
    return value if math.isfinite(value) else str(value)


def _sentence(report: Mapping[str, Any]) -> list[str]:
    """What is different, counted, in a sentence; nothing where nothing is."""
    counts = [
        (len(report["different"]), "tensor differs", "tensors differ"),
        (len(report["only_in_source"]), "is only in the source", "are only in the source"),
        (len(report["only_in_target"]), "is only in the target", "are only in the target"),
        (len(report["copies"]), "copy differs from its original", "copies differ from their originals"),
    ]
    said = [counted(number, one, many) for number, one, many in counts if number]
    return [f"{report['source']} and {report['target']}: {', '.join(said)}"] if said else []
