"""What a job tells its user: on the terminal, and as JSON. The only module that prints.

Owns the wording of plans and results and the shape of the JSON report. Decides nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from distconv.errors import InputError, counted, named
from distconv.formats.records import Plan
from distconv.formats.registry import Options
from distconv.layout.layout import shown_stages
from distconv.planning.assign import assign
from distconv.planning.facts import DcpSource, Facts
from distconv.planning.plan import Planned
from distconv.transfer.commit import Target

# Resident set of an interpreter that has imported torch and numpy (CPU build of torch 2.13), measured.
_INTERPRETER_BYTES = 240 * 1024**2
# What the checkpoint package of torch adds to it on rank 0, measured.
_METADATA_BYTES = {"dcp": 64 * 1024**2}
_FILES_SHOWN = 16
_LOG_SECONDS = 10


class Reporter:
    """Prints for rank 0; silent on the other processes."""

    def __init__(self, rank: int) -> None:
        self._speaks = rank == 0
        self._bar: tqdm[NoReturn] | None = None

    def say(self, text: str) -> None:
        """Print to standard output; a reader that has left, such as `head`, misses the rest."""
        if not self._speaks:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            lose_reader()

    def complain(self, text: str) -> None:
        """Print to standard error."""
        if self._speaks:
            print(text, file=sys.stderr, flush=True)

    def start_progress(self, what: str, nbytes: int) -> None:
        """Show a bar for this process's share; in a log file, where a bar would be noise, a line now and then."""
        if self._speaks:
            pause = 0.1 if sys.stderr.isatty() else _LOG_SECONDS
            self._bar = tqdm(total=nbytes, desc=what, unit="B", unit_scale=True, mininterval=pause, maxinterval=pause)

    def progress(self, nbytes: int) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(nbytes)

    def end_progress(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def lose_reader() -> None:
    """Nobody reads standard output any more: what is still buffered goes nowhere, too, and is no failure."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def plan_report(config: Options, planned: Planned, facts: Facts, target: Target) -> dict[str, Any]:
    """The plan as plain data: what `report=FILE` gets, and what `plan_text` shows."""
    plan = planned.plan
    return {
        "action": config.action,
        "source": str(config.source),
        "text_source": None if config.text_source is None else str(config.text_source),
        "target": str(target.directory),
        "target_format": config.target_format,
        "source_format": facts.kind,
        "source_layout": None if planned.source_layout is None else planned.source_layout.to_json(),
        "reference": None if facts.reference is None else facts.reference.directory,
        "model": facts.model,
        "iteration": None if target.iteration is None else target.result.name,
        **plan.summary(),
        "files": [
            {"path": (target.result / file.path).relative_to(target.directory).as_posix(), "bytes": file.nbytes}
            for file in plan.files
        ],
        "not_converted": [
            {
                "directory": str(Path(each.tensor.file.path).parent),
                "name": each.tensor.name,
                "bytes": each.tensor.nbytes,
                "reason": each.reason,
            }
            for each in plan.unconverted
        ],
        "notes": list(planned.notes),
        "source_names": {"naming": facts.source.naming, "prefix": facts.source.prefix}
        if isinstance(facts.source, DcpSource)
        else None,
        "processes": [],
    }


def planned_processes(plan: Plan, count: int, config: Options, reads: Iterable[int]) -> list[dict[str, Any]]:
    """Per process: files, bytes it will read and write, and its projected peak memory in bytes."""
    buffers = 2 * config.io.threads * config.io.buffer_bytes
    return [
        {
            "rank": rank,
            "files": [file.path for file in files],
            "bytes_read": read,
            "bytes_written": sum(file.nbytes for file in files),
            "buffer_bytes": buffers,
            "projected_peak_bytes": _INTERPRETER_BYTES
            + buffers
            + (0 if rank else _METADATA_BYTES.get(config.target_format, 0)),
        }
        for rank, (files, read) in enumerate(zip(assign(plan.files, count), reads, strict=True))
    ]


def plan_text(report: Mapping[str, Any], *, full: bool) -> str:
    """The plan for a person: model and layout, stages, what is left out, and with `full` files and processes."""
    names = report["source_names"]
    result = report["target"] + (f"/{report['iteration']}" if report["iteration"] else "")
    lines = [
        f"model    {report['model'] or 'any; every tensor is written as it is'}",
        f"source   {report['source']}",
        *([f"text     {report['text_source']}"] if report["text_source"] else []),
        *([f"found    {' '.join(_layout_words(report['source_layout']))}"] if report["source_layout"] else []),
        *([f"found    {_names_words(names)}"] if names else []),
        *([f"follows  {report['reference']}"] if report["reference"] else []),
        f"target   {result}",
    ]
    if "layout" in report:
        sizes, *stages = _layout_words(report["layout"])
        lines += [f"layout   {sizes}", *(f"stages   {each}" for each in stages), "", _stage_table(report)]
    if "dcp" in report:
        lines.append(_dcp_line(report))
    if "hf" in report:
        lines.append(f"hf       {report['hf']['tensors']} tensors in {len(report['files'])} files")
        if filled := report["hf"]["filled_from_reference"]:
            lines.append(f"filled   {len(filled)} tensors come from the reference: {named(filled, 3)}")
    reasons: dict[str, list[str]] = {}
    for each in report["not_converted"]:
        reasons.setdefault(each["reason"], []).append(each["name"])
    if reasons:
        lines += ["", "not converted"]
        lines += [
            f"  {counted(len(names), 'tensor')}: {reason}: {named(names, 2)}" for reason, names in reasons.items()
        ]
    lines += ["", *(f"note: {note}" for note in report["notes"][:_FILES_SHOWN])] if report["notes"] else []
    if full:
        files = report["files"]
        lines += ["", f"files    {len(files)}, {binary(sum(file['bytes'] for file in files))} of tensors"]
        lines += [f"  {file['path']}  {binary(file['bytes'])}" for file in files[:_FILES_SHOWN]]
        if len(files) > _FILES_SHOWN:
            lines.append(f"  … and {len(files) - _FILES_SHOWN} more")
        lines += ["", _process_table(report["processes"])]
    return "\n".join(lines)


def _layout_words(layout: Mapping[str, Any]) -> list[str]:
    """The sizes of a layout, then its stages by modality."""
    sizes = f"tp={layout['tp']} pp={layout['pp']} vpp={layout['vpp']} ep={layout['ep']}"
    sizes += "".join(f" {modality} tp={size}" for modality, size in layout["modality_tp"].items())
    if layout["placement"] != "sequential":
        sizes += f" placement={layout['placement']}"
    stages = layout["stages"].items()
    return [sizes, *(f"{modality}={shown_stages(tuple(map(tuple, rows)))}" for modality, rows in stages)]


def _names_words(names: Mapping[str, Any]) -> str:
    return f"{names['naming']} names" + (f" with the prefix {names['prefix']}" if names["prefix"] else "")


def _dcp_line(report: Mapping[str, Any]) -> str:
    dcp = report["dcp"]
    return f"dcp      {dcp['tensors']} tensors in {dcp['chunks']} chunks, {dcp['naming']} names: {dcp['example']} …"


def models_text(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """The model definitions for a person: families, their variants, and the model types that each is for."""
    rows = [["model", "variant of", "for model_type in config.json"]]
    for name in sorted(definitions, key=lambda each: (definitions[each].get("variant_of") or each, each)):
        content = definitions[name]
        types = ", ".join(content.get("model_types") or ())
        if content.get("adapters") == "only":
            types += " (adapters: name it with +model)"
        elif content.get("variant_of") is not None:
            types += " (name it with +model)"
        rows.append([name, content.get("variant_of") or "", types])
    return _table(rows, align=str.ljust)


def result_text(report: Mapping[str, Any]) -> str:
    """What was done, in one line for a person."""
    processes = report["processes"]
    read, written = (sum(each[key] for each in processes) for key in ("bytes_read", "bytes_written"))
    seconds = max(each["seconds"]["transfer"] for each in processes)
    peak = max(each["peak_bytes"] for each in processes)
    nbytes = sum(file["bytes"] for file in report["files"])
    done = f"{counted(len(report['files']), 'file')}, {binary(nbytes)}"
    done = f"verified: {done}, byte for byte what the source says" if report["action"] == "verify" else f"wrote {done}"
    return (
        f"{done}; on {counted(len(processes), 'process', 'processes')} in {seconds:.1f} s "
        f"({binary(nbytes / max(seconds, 1e-9))}/s; read {binary(read)}, wrote {binary(written)}; "
        f"peak memory {binary(peak)} per process)"
    )


def check_report(path: Path) -> None:
    """Check, before anything is done, that the report can be written.

    Raises:
        InputError: it cannot.
    """
    writable = os.access(path if os.path.lexists(path) else path.parent, os.W_OK)
    if not writable or os.path.isdir(path):
        raise InputError(f"report={path}: cannot be written there; give the name of a file in an existing directory")


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"report={path}: cannot be written: {error.strerror}") from None


def binary(nbytes: float) -> str:
    """A number of bytes for a person."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _stage_table(report: Mapping[str, Any]) -> str:
    modalities = list(report["layout"]["stages"])
    rows = [
        ["virtual stage", "pipeline rank", *(f"{modality} layers" for modality in modalities), "parameters", "bytes"]
    ]
    for stage in report["stages"]:
        layers = [str(stage["layers"].get(modality, 0)) for modality in modalities]
        position = [str(stage["virtual_stage"]), str(stage["pipeline_rank"])]
        rows.append([*position, *layers, f"{stage['parameters']:,}", binary(stage["bytes"])])
    return _table(rows)


def _process_table(processes: Sequence[Mapping[str, Any]]) -> str:
    rows = [["process", "files", "reads", "writes", "projected peak memory"]]
    for alike, count in _runs_of_equal(processes):
        ranks = str(alike["rank"]) if count == 1 else f"{alike['rank']}-{alike['rank'] + count - 1}"
        moved = [binary(alike["bytes_read"]), binary(alike["bytes_written"])]
        rows.append([ranks, str(len(alike["files"])), *moved, binary(alike["projected_peak_bytes"])])
    return _table(rows)


def _runs_of_equal(processes: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    runs: list[tuple[Mapping[str, Any], int]] = []
    for each in processes:
        if runs and _load(runs[-1][0]) == _load(each):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((each, 1))
    return runs


def _load(process: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return len(process["files"]), process["bytes_read"], process["bytes_written"], process["projected_peak_bytes"]


def _table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.rjust) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(align(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
