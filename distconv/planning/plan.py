"""From facts to a plan: the pure part of a job, with equal results on every process.

Owns the combination of a source in one format with a result in another. Reads nothing.
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
    """A bound source, the plan of its result, and the structure of the result's files."""

    source: Source
    plan: Plan
    files: FileFormat

    def shares_of_replicas(self, processes: int) -> list[Sequence[Replica]]:
        """The replicas in the source, divided over processes by bytes."""
        replicas = self.source.replicas
        parts = balanced_ranges([each.nbytes for each in replicas], processes)
        return [replicas[part.start : part.stop] for part in parts]


def plan_job(options: Options, facts: Facts) -> Planned:
    """Plan a job.

    Raises:
        InputError: all problems of the source, the definition or the layout, one kind at a time.
    """
    model = facts.bound_model()
    source = format_named(facts.kind).source(options, facts.source, model)
    result = format_named(options.target_format).plan(options, source, model)
    return Planned(source=source, plan=result.plan, files=result.files)
