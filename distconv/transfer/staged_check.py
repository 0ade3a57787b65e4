"""The check of a staged result before its commit, on all processes, through the reader of the programs that use it.

Owns who checks what, and in which order. How a file is compared, `read_back` knows. Never writes, never commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from distconv.errors import SpoiledError, joined
from distconv.formats.base import FileFormat
from distconv.formats.readers import Reader
from distconv.formats.records import OutputFile, Plan
from distconv.runtime.agreement import on_all
from distconv.runtime.processes import Processes
from distconv.tensors.stored import SourceFile
from distconv.transfer.phases import Phases
from distconv.transfer.surroundings import compare_beside


@dataclass(frozen=True, kw_only=True)
class StagedCheck:
    """What is checked of a plan, by the processes that wrote the files of these `shares`, and with what reader."""

    plan: Plan
    form: FileFormat
    reader: Reader
    shares: Sequence[Sequence[OutputFile]]

    def run(
        self,
        directory: Path,
        beside: Callable[[], Mapping[str, bytes | SourceFile]],
        processes: Processes,
        phases: Phases,
    ) -> list[Any]:
        """Check the files below a directory, and those beside the tensors; the measurements of all processes.

        `beside` gives the latter, as `FileFormat.beside`; one process asks for them.

        Raises:
            SpoiledError: what is not as the plan says, on every process.
        """
        # Here, since whoever checks nothing needs no numpy.
        from distconv.transfer.read_back import read_back, read_beside  # noqa: PLC0415

        # Half the ranks further is another node, if there are several: what a node remembers of its own files proves
        # nothing of what others will read.
        turn = (processes.rank + processes.size // 2) % processes.size
        files, means = self.shares[turn], phases.means

        def bytes_beside() -> list[str]:
            return [] if turn else compare_beside(self.form, directory, beside(), means.sources).differences

        def read() -> list[str]:
            found = read_back(self.plan, files, directory, self.reader, means)
            return found if turn else [*read_beside(directory, self.reader), *found]

        # Before anything is read that a reader would execute, such as the pickle of a DCP.
        _, found = on_all(processes, bytes_beside, lambda lines: lines, "comparing what is beside the tensors")
        self._check(found, phases)
        own, of_all = (sum(file.nbytes for file in each) for each in (files, chain(*self.shares)))
        share = self.shares[processes.rank]
        found, measured = phases.run("verifying", share, own, of_all, read, counted_as="verifying")
        self._check(found, phases)
        return measured

    def _check(self, found: Sequence[Sequence[str]], phases: Phases) -> None:
        """Raise what was found, unless the reason is a source that has changed."""
        # What is wrong with a file is found by all who read parts of it.
        if differences := list(dict.fromkeys(line for each in found for line in each)):
            phases.check_sources()
            raise SpoiledError(f"verify=true: the result is not what its source says\n{joined(differences)}")
