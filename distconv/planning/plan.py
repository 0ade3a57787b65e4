"""From facts to a plan: the pure middle of a job, the same on every process.

Owns the meeting of a source of one format with a result of another. Facts come in as plain data that rank 0 shared;
nothing is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distconv.formats.base import FileFormat, Source
from distconv.formats.records import Plan
from distconv.formats.registry import Options, format_named
from distconv.formats.replicas import Replica
from distconv.layout.partition import balanced_ranges
from distconv.planning.facts import Facts


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A source, the plan of the result that is made from it, and the format of its files."""

    source: Source
    plan: Plan
    files: FileFormat

    def shares_of_replicas(self, processes: int) -> list[Sequence[Replica]]:
        """The stored replicas to be compared, divided over processes by bytes."""
        replicas = self.source.replicas
        parts = balanced_ranges([each.nbytes for each in replicas], processes)
        return [replicas[part.start : part.stop] for part in parts]


def plan_job(options: Options, facts: Facts) -> Planned:
    """The plan of a job.

    Raises:
        InputError: everything wrong with the source, the definition or the layout, one kind at a time.
    """
    model = facts.bound_model()
    source = format_named(facts.kind).source(options, facts.source, model)
    result = format_named(options.target_format).plan(options, source, model)
    return Planned(source=source, plan=result.plan, files=result.files)
