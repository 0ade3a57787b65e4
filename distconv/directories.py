"""The actions on one directory that need no plan: describing it, a first definition of it, removing what jobs left.

Owns which process does them, and their outcomes. Moves no tensor.
"""

from __future__ import annotations

import os
from typing import Any

from distconv.commit.recovery import clean
from distconv.errors import InputError
from distconv.formats.registry import Options, tasks
from distconv.models.library import Library
from distconv.observer import Outcome
from distconv.planning.choice import Chosen
from distconv.planning.describe import describe
from distconv.planning.draft import check_definition_file, draft, write_definition
from distconv.planning.report_file import ReportFile
from distconv.runtime.agreement import on_first, on_first_with_hand_out
from distconv.runtime.hand_out import HandOut
from distconv.runtime.launch import cores
from distconv.runtime.processes import Processes


def inspected(options: Options, chosen: Chosen | None, library: Library, processes: Processes) -> Outcome:
    """The outcome of `action=inspect`: the description of a directory.

    Raises:
        DistconvError: no such directory, or a report that cannot be written, as the same error on every process.
    """

    def description(hand_out: HandOut) -> dict[str, Any]:
        file = ReportFile(options.report)
        file.check()
        file.check_place({"source": options.source})
        report = describe(options, chosen, library, hand_out)
        file.write(report)
        return report

    threads = options.io.lanes(cores(os.environ)).threads
    report = on_first_with_hand_out(processes, description, tasks(), threads, "reading the headers")
    return Outcome(report=report)


def drafted(options: Options, chosen: Chosen | None, library: Library, processes: Processes) -> Outcome:
    """The outcome of `action=skeleton`: a first definition of a model, in its report and in the file `target`.

    Raises:
        DistconvError: a model that has a definition, a source that is not published, a file that is there already or
            cannot be written, as the same error on every process.
    """

    def drawn_up(hand_out: HandOut) -> dict[str, Any]:
        file = ReportFile(options.report)
        file.check()
        file.check_place({"source": options.source})
        check_definition_file(options)
        report = draft(options, chosen, library, hand_out)
        write_definition(options, report["definition"])
        file.write(report)
        return report

    threads = options.io.lanes(cores(os.environ)).threads
    report = on_first_with_hand_out(processes, drawn_up, tasks(), threads, "reading the headers")
    return Outcome(report=report)


def cleaned(options: Options, processes: Processes) -> Outcome:
    """The outcome of `action=clean`: what killed jobs left in a target is removed; its differences: what stayed.

    Raises:
        DistconvError: no such directory, or a report that cannot be written, as the same error on every process.
    """

    def report() -> dict[str, Any]:
        file = ReportFile(options.report)
        file.check()
        file.check_place({"target": options.target})
        done = clean(options.target)
        if not (done.removed or done.kept or options.target.is_dir()):
            raise InputError(
                f"target={options.target}: no such directory, and no job has left anything beside it; give the target "
                "of the job"
            )
        found = {"action": "clean", "target": str(options.target), **done.summary()}
        file.write(found)
        return found

    found = on_first(processes, report)
    stayed = [f"{each['path']}: could not be removed" for each in found["kept"] if not each["running"]]
    return Outcome(report=found, differences=[*found["notes"], *stayed] if stayed else [], notes=found["notes"])
