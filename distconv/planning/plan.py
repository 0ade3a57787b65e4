"""From facts to a plan: the pure part of a job, with equal results on every process.

Owns the combination of a source in one format with a result in another. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distconv.formats.base import FileFormat, Published, Source
from distconv.formats.element_types import Casts
from distconv.formats.records import Plan
from distconv.formats.registry import Options, format_named
from distconv.layout.layout import CompleteLayout
from distconv.layout.partition import balanced_ranges
from distconv.models.parameters import Binding
from distconv.planning.bind_published import bind_published
from distconv.planning.facts import Facts
from distconv.planning.fit_vocabulary import fit_vocabulary
from distconv.tensors.replicas import Replica


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A source, the plan of the result that is made from it, and the format of its files.

    `not_checked`: in words, what of the source nothing is known of that it could be compared with; `notes`: sentences
    about source and result; `padding`: what the plan takes for equal; where it is not, the plan is another one.
    `casts`: what is cast; `dialect` and `layout` are those of a `PlannedResult`.
    """

    source: Source
    plan: Plan
    files: FileFormat
    notes: tuple[str, ...]
    not_checked: tuple[str, ...] = ()
    padding: tuple[Replica, ...] = ()
    casts: Casts = field(default_factory=Casts)
    dialect: str | None = None
    layout: CompleteLayout | None = None

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """What is stored more than once: in the source, and of what the result leaves out."""
        left_out = (each for left in self.plan.unconverted for each in left.replicas)
        return (*self.source.replicas, *left_out)


def shares_of(replicas: Sequence[Replica], processes: int) -> list[Sequence[Replica]]:
    """What is stored more than once, divided over processes by bytes."""
    parts = balanced_ranges([each.nbytes for each in replicas], processes)
    return [replicas[part.start : part.stop] for part in parts]


def plan_job(options: Options, facts: Facts) -> Planned:
    """Plan a job.

    Raises:
        InputError: all problems of the source, the definition or the layout, one kind at a time.
    """
    model = facts.bound_model()
    source = facts.bound(options, model)
    notes = (*facts.notes, *source.notes, *(() if model.reference is None else model.reference.notes))
    target = format_named(options.target_format)
    if not target.is_published(options):
        result = target.plan(options, source, model, facts.iteration)
        return Planned(
            source=source,
            plan=result.plan,
            files=result.files,
            notes=(*notes, *result.notes),
            casts=result.casts,
            dialect=result.dialect,
            layout=result.layout,
        )
    fitted = fit_vocabulary(source.published(), options, model)
    result = target.plan(options, _Fitted(source, fitted.published), model, facts.iteration)
    return Planned(
        source=source,
        plan=result.plan,
        files=result.files,
        not_checked=bind_published(fitted.published, options, model, facts.source.directory),
        notes=(*notes, *fitted.notes, *result.notes),
        padding=fitted.padding,
        casts=result.casts,
        dialect=result.dialect,
        layout=result.layout,
    )


class _Fitted(Source):
    """A source whose published tensors have the rows of the vocabulary that the result has."""

    def __init__(self, source: Source, published: Published) -> None:
        self.replicas, self.notes = source.replicas, source.notes
        self._source, self._published = source, published

    def parameters(self) -> Binding:
        return self._source.parameters()

    def published(self) -> Published:
        return self._published

    def summary(self) -> dict[str, Any]:
        return self._source.summary()
