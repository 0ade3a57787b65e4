"""From facts to a plan: the pure part of a job, with equal results on every process.

Owns the combination of a source in one format with a result in another. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distconv.formats.base import FileFormat, Source
from distconv.formats.records import Plan
from distconv.formats.registry import Options, format_named
from distconv.layout.partition import balanced_ranges
from distconv.planning.bind_published import bind_published
from distconv.planning.facts import Facts
from distconv.tensors.replicas import Replica


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A source, the plan of the result that is made from it, and the format of its files.

    `not_checked`: in words, what of the source nothing is known of that it could be compared with; `notes`: sentences
    about source and result; `compared`: stored tensors that are compared, beside those of the source and of what is
    left out.
    """

    source: Source
    plan: Plan
    files: FileFormat
    notes: tuple[str, ...]
    not_checked: tuple[str, ...] = ()
    compared: tuple[Replica, ...] = ()

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """What is stored more than once: in the source, and of what the result leaves out."""
        left_out = (each for left in self.plan.unconverted for each in left.replicas)
        return (*self.source.replicas, *left_out, *self.compared)

    def shares_of_replicas(self, processes: int) -> list[Sequence[Replica]]:
        """The stored replicas to be compared, divided over processes by bytes."""
        replicas = self.replicas
        parts = balanced_ranges([each.nbytes for each in replicas], processes)
        return [replicas[part.start : part.stop] for part in parts]


def plan_job(options: Options, facts: Facts) -> Planned:
    """Plan a job.

    Raises:
        InputError: all problems of the source, the definition or the layout, one kind at a time.
    """
    model = facts.bound_model()
    source = format_named(facts.kind).source(options, facts.source, model)
    target = format_named(options.target_format)
    result = target.plan(options, source, model)
    planned = Planned(source=source, plan=result.plan, files=result.files, notes=(*source.notes, *result.notes))
    if not target.is_published(options):
        return planned
    published = source.published()
    return replace(
        planned,
        not_checked=bind_published(published, options, model, facts.source.directory),
        notes=(*source.notes, *published.notes, *result.notes),
        compared=published.replicas,
    )
