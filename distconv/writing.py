"""Writing a planned result, on all processes: what is not finished yet, what is beside it, and its commit.

Owns the order of these phases and what passes between them. Neither plans nor tells the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distconv.commit.journal import Finished, Journal
from distconv.commit.staging import Staging
from distconv.commit.target import Target, check_result
from distconv.errors import LostError
from distconv.formats.readers import Reader
from distconv.formats.records import FilePart, OutputFile, Plan, Written
from distconv.formats.registry import Options
from distconv.planning.assign import assign, assign_parts, gains_by_parts
from distconv.planning.plan import Planned
from distconv.runtime.agreement import on_all, on_first
from distconv.runtime.measurement import peak_resident_bytes
from distconv.runtime.processes import Processes
from distconv.transfer.continuing import proved
from distconv.transfer.parts import WrittenPart, create_shared, finished_files, may_be_shared, write_parts
from distconv.transfer.phases import Phases
from distconv.transfer.staged_check import StagedCheck
from distconv.transfer.write import add_to, write_beside, write_files

_PREPARING = "preparing the target"


def left_of(plan: Plan, finished: Collection[str]) -> list[OutputFile]:
    """The files of a plan that are not finished."""
    return [file for file in plan.files if file.path not in finished]


def may_share(options: Options, files: Sequence[OutputFile], directory: Path, processes: Processes) -> bool:
    """Whether several processes write one of these files: where that helps, and all of them see that it is safe.

    The host of an export sees a file system of its own where others see NFS.
    """
    if not gains_by_parts(options, files, processes.size):
        return False
    _, answers = on_all(processes, lambda: may_be_shared(directory, options.io), lambda answer: answer, _PREPARING)
    return all(answers)


@dataclass(kw_only=True)
class Writing:
    """The writing of a planned result, which is checked through `reader` before its commit, if there is one.

    `continued`: the number, and the bytes of tensor data, of the files that an earlier job had finished, if one had.
    """

    options: Options
    planned: Planned
    processes: Processes
    phases: Phases
    reader: Reader | None = None
    continued: dict[str, int] | None = field(default=None, init=False)

    def run(
        self,
        staging: Staging,
        target: Target,
        record: Callable[[Mapping[str, Written]], Mapping[str, bytes]],
        check_values: Callable[[], object],
    ) -> list[Any]:
        """Write and commit the files of a claimed target; the measurements of all processes.

        `record` gives, for all files of the result, the one that names them; `check_values` raises where values of the
        result are refused.

        Raises:
            DistconvError: the failure of any process, as the same error on every process.
        """
        processes, io, means = self.processes, self.options.io, self.phases.means
        plan, form = self.planned.plan, self.planned.files
        directory = Path(on_first(processes, lambda: str(staging.begin(durable=io.fsync)), _PREPARING))
        journal = Journal(directory.parent, processes.rank, durable=io.fsync)
        try:
            kept = self._kept(staging, directory)
            files = left_of(plan, kept)
            shared = may_share(self.options, files, directory, processes)
            done, measured = self._write(directory, assign_parts(plan, files, processes.size, shared=shared), journal)
            written = time.monotonic()
            check_values()
            done |= kept

            def finish() -> list[dict[str, Written]]:
                beside = write_beside(directory, form.beside(), means.sources, io)
                return [beside, write_beside(directory, record(done | beside), means.sources, io)]

            def commit() -> None:
                check_result(target, overwrite=self.options.overwrite)
                everything = done | _gathered(finished)
                staging.commit({path: each.nbytes for path, each in everything.items()}, durable=io.fsync)

            finished = on_first(processes, finish, "writing what is beside the tensors")
            if self.reader is not None:
                named = done | _gathered(finished[:1])
                shares = assign_parts(plan, plan.files, processes.size, shared=shared)
                check = StagedCheck(plan=plan, form=form, reader=self.reader, shares=shares)
                measured = check.run(directory, lambda: {**form.beside(), **record(named)}, processes, self.phases)
            self.phases.check_sources()
            on_first(processes, commit, "putting the result in place")
        except LostError as error:
            if processes.rank == 0:
                raise
            raise LostError(f"{error}\nwhat rank 0 had begun may be left in {directory.parent}") from error
        if processes.rank == 0:
            first = measured[0]
            first["seconds"]["commit"] = time.monotonic() - written - first["seconds"].get("verifying", 0)
            # Finishing a result can need more memory than writing its files.
            first["peak_bytes"] = peak_resident_bytes()
        return measured

    def _write(
        self, directory: Path, shares: Sequence[Sequence[OutputFile]], journal: Journal
    ) -> tuple[dict[str, Written], list[Any]]:
        """Write the files that processes have, some only parts; all that are written, and the measurements of all."""
        processes, plan, form, means = self.processes, self.planned.plan, self.planned.files, self.phases.means
        own = shares[processes.rank]
        parts = [each for each in own if isinstance(each, FilePart)]
        files = [each for each in own if not isinstance(each, FilePart)]
        shared = any(isinstance(each, FilePart) for share in shares for each in share)
        if shared:
            on_all(processes, lambda: create_shared(plan, parts, directory, form), lambda _: None, "creating files")
        values, measured = self.phases.run(
            "writing",
            own,
            sum(file.nbytes for file in own),
            sum(file.nbytes for share in shares for file in share),
            lambda: [
                write_files(plan, files, directory, form, means, journal),
                write_parts(plan, parts, directory, form, means),
            ],
        )
        done = _gathered([whole for whole, _ in values])
        if shared:
            done |= self._finish_shared(directory, [told for _, told in values], journal)
        return done, measured

    def _finish_shared(self, directory: Path, told: Sequence[Any], journal: Journal) -> dict[str, Written]:
        """Put files together of which processes have told what they wrote, which rank 0 enters into its journal."""

        def finish() -> dict[str, Written]:
            parts = [{path: WrittenPart(*each) for path, each in of_one.items()} for of_one in told]
            finished = finished_files(directory, parts, durable=self.options.io.fsync)
            add_to(journal, finished)
            return {path: each.written for path, each in finished.items()}

        return _gathered([on_first(self.processes, finish, "putting the parts of files together")])

    def _kept(self, staging: Staging, directory: Path) -> dict[str, Written]:
        """The files that an earlier job has finished, by path, and that need not be written again."""
        told = on_first(
            self.processes, lambda: {path: each.to_json() for path, each in staging.finished.items()}, _PREPARING
        )
        finished = {path: Finished.from_json(each) for path, each in told.items()}
        files = [file for file in self.planned.plan.files if file.path in finished]
        if not files:
            return {}
        share = assign(files, self.processes.size)[self.processes.rank]
        values, _ = self.phases.run(
            "checking what is finished",
            share,
            sum(finished[file.path].written.nbytes for file in share),
            sum(finished[file.path].written.nbytes for file in files),
            lambda: proved(directory, finished, share, self.phases.means),
            counted_as="checking",
        )
        kept = _gathered(values)
        self.continued = {"files": len(kept), "bytes": sum(file.nbytes for file in files if file.path in kept)}
        return kept


def _gathered(values: list[Any]) -> dict[str, Written]:
    """The files that all processes have told of."""
    return {path: Written(*each) for value in values for path, each in value.items()}
