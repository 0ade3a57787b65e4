"""The text of a job on the terminal: progress, plans, results, errors. The only module that prints.

Owns the wording of results, except for the lines of their formats. Decides nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from distconv.cli.bar import Bar
from distconv.cli.campaign_text import campaign_text
from distconv.cli.diff_text import diff_text
from distconv.cli.flags import Loudness
from distconv.cli.models_text import skeleton_words
from distconv.cli.phases_text import phases_text
from distconv.cli.plan_text import plan_text
from distconv.cli.regularly import Regularly
from distconv.cli.terminal import coloured, visible
from distconv.errors import JobError, counted, joined, named, printable, system_problem
from distconv.formats.registry import format_named
from distconv.observer import Everywhere, Observer, Outcome
from distconv.runtime.elastic import tell_agent
from distconv.runtime.interruption import undisturbed
from distconv.words import binary, folded, table

_TERMINAL_SECONDS, _LOG_SECONDS = 0.1, 10
_COLUMN = 9
_BY_SOURCE = "byte for byte what the source says"


class Reporter(Observer):
    """Prints for rank 0; silent on the other processes."""

    def __init__(self, rank: int) -> None:
        self._speaks = rank == 0
        self.loudness = Loudness.USUAL
        self._bar: Bar | None = None
        self._drawing: Regularly | None = None
        self._width = 0

    def say(self, text: str) -> None:
        """Print what is not an error, unless errors alone are wanted; raises as `answer` does."""
        if self.loudness > Loudness.QUIET:
            self.answer(text)

    def detail(self, text: str) -> None:
        """Print what is wanted with `--verbose` alone, if there is any; raises as `answer` does."""
        if text and self.loudness >= Loudness.VERBOSE:
            self.answer(text)

    def answer(self, text: str) -> None:
        """Print to standard output; a reader that has left, such as `head`, misses the rest.

        Raises:
            JobError: standard output cannot be written.
        """
        if not self._speaks:
            return
        try:
            print(visible(text), flush=True)
        except BrokenPipeError:
            lose_reader()
        except OSError as error:
            lose_reader()
            raise JobError(system_problem("standard output", error)) from error

    def complain(self, text: str) -> None:
        """Print to standard error; where that is not possible, the exit status must do."""
        if self._speaks:
            with suppress(OSError):
                print(coloured(visible(text), sys.stderr, os.environ), file=sys.stderr, flush=True)

    def fail(self, text: str) -> None:
        """Print why this process ends with a failure, and leave it for the report of the launcher, which comes last."""
        said = f"distconv: {text}"
        self.complain(said)
        tell_agent(visible(said) if self._speaks else None, os.environ)

    def planned(self, report: Mapping[str, Any]) -> None:
        """Print the plan in short."""
        self.say(plan_text(report, full=False) + "\n")

    def begin(self, phase: str, nbytes: int, everywhere: Everywhere) -> None:  # noqa: ARG002 - of the interface
        """Show a bar for all processes; in a log file, where a bar would be noise, a line now and then."""
        if self._speaks and self.loudness > Loudness.QUIET:
            on_terminal = sys.stderr.isatty()
            self._bar = Bar(phase, everywhere, start=time.monotonic(), cells=on_terminal)
            self._draw(self._bar.line(time.monotonic()), last=False)
            self._drawing = Regularly(self._redraw, _TERMINAL_SECONDS if on_terminal else _LOG_SECONDS)

    def advance(self, nbytes: int) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.advance(nbytes, time.monotonic())

    def end(self, *, is_complete: bool) -> None:
        """Leave the bar as it is at the end."""
        if self._drawing is not None:
            self._drawing.stop()
        if self._bar is not None:
            self._draw(self._bar.last_line(time.monotonic(), is_complete=is_complete), last=True)
        self._bar, self._drawing, self._width = None, None, 0

    def _redraw(self) -> None:
        """Draw the bar as it is now, also when this process itself has nothing to do any more."""
        if self._bar is not None:
            self._draw(self._bar.line(time.monotonic()), last=False)

    def _draw(self, line: str, *, last: bool) -> None:
        """Draw a line of the bar over the one before, as far as it fits; a log gets one below the other."""
        over, end = ("\r", "\n" if last else "") if sys.stderr.isatty() else ("", "\n")
        line = line[: shutil.get_terminal_size().columns - 1] if over else line
        try:
            print(f"{over}{line:{self._width}}", end=end, file=sys.stderr, flush=True)
            self._width = len(line) if over else 0
        except OSError:
            # The disk of a log is full: the job goes on without a bar.
            self._bar = None

    def note(self, text: str) -> None:
        """Print it."""
        self.say(f"note: {text}")

    def checkpoint(self, source: str, target: str, number: int, count: int) -> None:
        """Print its place among them."""
        self.say(f"{number} of {count}: {source} to {target}")

    def ended(self, outcome: Outcome | None, why: str | None) -> None:
        """Print the outcome, or why there is none."""
        if outcome is None:
            self.complain(f"distconv: {why}\n")
        elif not outcome.differences:
            self.detail(phases_text(outcome.report))
            self.say(f"{f'skipped: {why}' if outcome.skipped else outcome_text(outcome)}\n")

    def all_ended(self, report: Mapping[str, Any]) -> None:
        """Print a table of all."""
        self.say(campaign_text(report))

    def undisturbed(self) -> AbstractContextManager[None]:
        """Hold SIGTERM and SIGINT back meanwhile."""
        return undisturbed()


def lose_reader() -> None:
    """Discard standard output, also what is buffered, after its reader has left; that is no failure."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def inspection_text(report: Mapping[str, Any], *, tensors: bool) -> str:
    """The description of a directory for a person; with `tensors`, a table of them."""
    family = report["model"] or (f"like {named(report['resembles'])}" if report["resembles"] else "unknown")
    found = report["source_layout"] or report["source_names"]
    lines = [f"format   {report['title'] or 'unknown'}"]
    if report["iterations"]:
        lines.append(f"holds    {named(report['iterations'])}")
    if report["iteration"]:
        lines.append(f"here     iteration {report['iteration']}")
    if report["bytes"] is not None:
        kinds = [f"{kind} ({counted(each['tensors'], 'tensor')})" for kind, each in report["dtypes"].items()]
        lines += [
            f"model    {family}" + (f"; model_type {report['model_type']}" if report["model_type"] else ""),
            *([f"follows  {report['reference']}"] if report["reference"] else []),
            *(format_named(report["source_format"]).source_words(report) if found else []),
            *([f"ranks    {ranks}"] if (ranks := report.get("ranks")) and not found else []),
            *([f"size     {report['parameters']:,} parameters"] if report["parameters"] is not None else []),
            f"stored   {binary(report['bytes'])}: {', '.join(kinds) or 'nothing'}",
        ]
    lines += [f"record   {_record_words(record)}"] if (record := report["record"]) else []
    lines += [f"problem  {line}" for line in joined(report["problems"]).splitlines()]
    lines += [f"note     {line}" for line in joined(report["notes"]).splitlines()]
    source = f"source   {report['source']}"
    lines = [source, *(part for line in lines for part in folded(line[:_COLUMN], line[_COLUMN:]))]
    if tensors and report["tensors"]:
        rows = [[printable(file), printable(name), dtype, str(shape)] for file, name, dtype, shape in report["tensors"]]
        lines += ["", table([["file", "tensor", "type", "shape"], *rows], align=str.ljust)]
    return "\n".join(lines)


def _record_words(record: Mapping[str, Any]) -> str:
    """What the record of a result says of it."""
    made = f"made by distconv {record['distconv']}" if record["distconv"] else "made by an earlier distconv"
    path = record["source"].get("path")
    source = [f"from {path}"] if path else []
    said = [f"{key} {record[key]}" for key in ("format", "model", "definition", "dialect") if record.get(key)]
    layout = record["layout"] or {}
    cut = [f"{axis}={layout[axis]}" for axis in ("tp", "pp", "vpp", "ep", "expert_tp", "placement") if axis in layout]
    files = [f"{counted(record['files'], 'file')}, {binary(record['bytes'])}"] if record["files"] else []
    return printable("; ".join([" ".join([made, *source]), *said, *filter(None, [" ".join(cut)]), *files]))


def cleaned_text(report: Mapping[str, Any]) -> str:
    """What was removed of what killed jobs had left, and what is a running job's, for a person."""
    lines = [f"note     {note}" for note in report["notes"]]
    lines += [f"removed  {each['path']}  {binary(each['bytes'])}" for each in report["removed"]]
    lines += [f"running  {each['path']}  {binary(each['bytes'])}" for each in report["kept"]]
    return "\n".join(lines) or f"nothing is left of killed jobs in or beside {report['target']}"


def outcome_text(outcome: Outcome, *, tensors: bool = False) -> str:
    """The outcome of a job for a person; with `tensors`, a table of the tensors of a described directory."""
    report = outcome.report
    if report["action"] == "inspect":
        return inspection_text(report, tensors=tensors)
    if report["action"] == "diff":
        return diff_text(report)
    if report["action"] == "skeleton":
        return skeleton_words(report)
    if report["action"] == "clean":
        return cleaned_text(report)
    if report["action"] == "plan":
        return plan_text(report, full=True)
    return "\n".join([_result_line(report), *(f"note: {note}" for note in outcome.notes)])


def _result_line(report: Mapping[str, Any]) -> str:
    processes = report["processes"]
    read, written = (sum(each[key] for each in processes) for key in ("bytes_read", "bytes_written"))
    seconds = max(each["seconds"]["transfer"] for each in processes)
    peak = max(each["peak_bytes"] for each in processes)
    nbytes = sum(file["bytes"] for file in report["files"])
    done = f"{counted(len(report['files']), 'file')}, {binary(nbytes)}"
    if report["action"] == "verify":
        done = f"verified: {done}, {'what the record says' if report['source'] is None else _BY_SOURCE}"
    else:
        done = f"wrote {done}"
    moved = nbytes
    if before := report["continued"]:
        moved -= before["bytes"]
        done += f", of which {counted(before['files'], 'file')}, {binary(before['bytes'])}, had been finished before"
    read_back = max(each["seconds"].get("verifying", 0) for each in processes)
    done += f", verified in {read_back:.1f} s as programs read them" if read_back else ""
    return (
        f"{done}; on {counted(len(processes), 'process', 'processes')} in {seconds:.1f} s "
        f"({_rate(processes, moved)}; read {binary(read)}, wrote {binary(written)}; "
        f"peak memory {binary(peak)} per process)"
    )


def _rate(processes: Sequence[Mapping[str, Any]], moved: int) -> str:
    """The bytes in a second of all processes together, and the slowest of them."""
    took = [(each["seconds"]["transfer"], each["rank"]) for each in processes]
    (least, _), (most, rank) = min(took), max(took)
    rate = f"{binary(moved / max(most, 1e-9))}/s"
    return f"{rate} by all, the slowest was rank {rank}, the fastest took {least:.1f} s" if len(took) > 1 else rate
