"""What became of several checkpoints: done, skipped, or failed and why; and the report of all of them.

Owns the form of that report, and the exit status that follows. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distconv.campaign.names import Checkpoint
from distconv.errors import InputError, UnfinishedError, counted, named
from distconv.formats.registry import Options
from distconv.observer import Outcome

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A checkpoint whose job has ended; `refused`: before it wrote anything.

    `why` says it in words, where nothing was done; `done` is the outcome of the job, where it did not fail by an error.
    """

    checkpoint: Checkpoint
    outcome: str
    why: str | None = None
    refused: bool = False
    done: Outcome | None = None

    @property
    def differences(self) -> Sequence[str]:
        """Those that a verification found."""
        return () if self.done is None else self.done.differences

    def to_json(self) -> dict[str, Any]:
        """The entry of the report."""
        return {
            "source": self.checkpoint.source,
            "target": self.checkpoint.target,
            "outcome": self.outcome,
            "why": self.why,
            "differences": list(self.differences),
            "report": None if self.done is None else self.done.report,
        }

    def to_plain(self) -> dict[str, Any]:
        """All but the checkpoint as plain data, for other processes; `from_plain` reads it."""
        done = None if self.done is None else dict(vars(self.done))
        return {"outcome": self.outcome, "why": self.why, "refused": self.refused, "done": done}

    @staticmethod
    def from_plain(checkpoint: Checkpoint, data: Mapping[str, Any]) -> Ended:
        """What became of a checkpoint, as another process has told."""
        done = None if data["done"] is None else Outcome(**data["done"])
        return Ended(checkpoint=checkpoint, **{**data, "done": done})


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


def ended_with(checkpoint: Checkpoint, outcome: Outcome) -> Ended:
    """A checkpoint whose job has an outcome; differences count as a failure."""
    if outcome.differences:
        why = counted(len(outcome.differences), "difference")
        return Ended(checkpoint=checkpoint, outcome=FAILED, why=why, done=outcome)
    word = SKIPPED if outcome.skipped else DONE
    return Ended(checkpoint=checkpoint, outcome=word, why=outcome.skipped, done=outcome)


def failed(checkpoint: Checkpoint, error: Exception) -> Ended:
    """A checkpoint whose job raised an error."""
    return Ended(checkpoint=checkpoint, outcome=FAILED, why=str(error), refused=isinstance(error, InputError))
