"""What became of several checkpoints: done, skipped, or failed and why; and the report of all of them.

Owns the form of that report, and the exit status that follows. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distconv.campaign.names import Checkpoint
from distconv.errors import InputError, UnfinishedError, counted, named
from distconv.formats.registry import Options

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A checkpoint whose job has ended; `refused`: before it wrote anything.

    `why` says it in words, where nothing was done; `report` is that of the job, where it was planned at least;
    `differences` are those of a verification.
    """

    checkpoint: Checkpoint
    outcome: str
    why: str | None = None
    refused: bool = False
    report: Mapping[str, Any] | None = None
    differences: Sequence[str] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The entry of the report."""
        return {
            "source": self.checkpoint.source,
            "target": self.checkpoint.target,
            "outcome": self.outcome,
            "why": self.why,
            "differences": list(self.differences),
            "report": self.report,
        }


def report_of(options: Options, ended: Sequence[Ended]) -> dict[str, Any]:
    """The report of all, as plain data."""
    counts = {outcome: sum(each.outcome == outcome for each in ended) for outcome in (DONE, SKIPPED, FAILED)}
    return {
        "action": options.action,
        "sources": options.sources,
        "target": str(options.target),
        **counts,
        "checkpoints": [each.to_json() for each in ended],
    }


def failure_of(options: Options, ended: Sequence[Ended]) -> UnfinishedError | None:
    """The one error for all that failed otherwise than by differences; `None` if there is none."""
    failed = [each for each in ended if each.outcome == FAILED and not each.differences]
    if not failed:
        return None
    sources = named(each.checkpoint.source for each in failed)
    text = f"{len(failed)} of {counted(len(ended), 'checkpoint')} failed: {sources}"
    return UnfinishedError(text, report_of(options, ended), refused=all(each.refused for each in ended))


def exit_status_of(options: Options, ended: Sequence[Ended]) -> int:
    """The exit status of what has ended so far."""
    failure = failure_of(options, ended)
    return 0 if failure is None else failure.exit_status


def failed(checkpoint: Checkpoint, error: Exception) -> Ended:
    """A checkpoint whose job raised an error."""
    return Ended(checkpoint=checkpoint, outcome=FAILED, why=str(error), refused=isinstance(error, InputError))
