"""The jobs of several sources: each with its own target, reference, report and page, made by names.

Owns the placeholders `{name}` and `{parent}`, and the checks that no job takes or changes what is another's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path, PurePath
from typing import Any

from distconv.errors import raise_if
from distconv.formats.registry import Options

_PLACEHOLDER = re.compile(r"\{[^{}/]*\}")
_NAMES = ("{name}", "{parent}")
# Options with placeholders.
_NAMED = ("target", "reference", "report", "plan_html")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One of several sources, with the paths of its job; `report` is `None` where all have one report together."""

    source: str
    target: str
    reference: str | None
    report: str | None
    plan_html: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The paths as plain data."""
        return asdict(self)

    def places(self) -> dict[str, Path]:
        """The directories of its job, by option."""
        paths = {"source": self.source, "target": self.target, "reference": self.reference}
        return {key: Path(path) for key, path in paths.items() if path is not None}

    def options(self, of_all: Options) -> Options:
        """The options of its job, made of those of all."""
        return replace(
            of_all,
            source=Path(self.source),
            target=Path(self.target),
            reference=None if self.reference is None else Path(self.reference),
            report=None if self.report is None else Path(self.report),
            plan_html=None if self.plan_html is None else Path(self.plan_html),
            sources=None,
            watch=False,
        )


def has_own_reports(options: Options) -> bool:
    """Whether every job writes a report of its own, rather than all of them one."""
    return options.report is not None and any(name in str(options.report) for name in _NAMES)


def checkpoints(options: Options, sources: Iterable[str], before: Collection[Checkpoint] = ()) -> list[Checkpoint]:
    """The sources with the paths of their jobs; `before`: those of the same command whose jobs have run.

    Raises:
        InputError: a placeholder that stands for nothing; jobs that would write to one place, or of which one would
            change what another one reads.
    """
    templates = {key: str(path) for key in _NAMED if (path := getattr(options, key)) is not None}
    raise_if(
        [
            f"{key}={template}: {each} stands for nothing; with sources there are {' and '.join(_NAMES)}"
            for key, template in templates.items()
            for each in dict.fromkeys(_PLACEHOLDER.findall(template))
            if each not in _NAMES
        ]
    )
    if not has_own_reports(options):
        templates.pop("report", None)
    found = []
    for source in sources:
        paths = {key: _filled(template, source) for key, template in templates.items()}
        found.append(
            Checkpoint(
                source=source,
                target=paths["target"],
                reference=paths.get("reference"),
                report=paths.get("report"),
                plan_html=paths.get("plan_html"),
            )
        )
    raise_if(list(dict.fromkeys(_collisions([*before, *found]))))
    return found


def _filled(template: str, source: str) -> str:
    path = PurePath(os.path.abspath(source))
    values: Mapping[str, str] = dict(zip(_NAMES, (path.name, path.parent.name), strict=True))
    # In one pass: a name may have braces, too.
    return _PLACEHOLDER.sub(lambda match: values[match[0]], template)


def _collisions(jobs: Collection[Checkpoint]) -> Iterator[str]:
    """Pairs of jobs that must not both run, in words."""
    for keys in (("target",), ("report", "plan_html")):
        first: dict[str, Checkpoint] = {}
        # That a job names one file twice is told by its own check.
        for job, key in product(jobs, keys):
            path = getattr(job, key)
            if path is None or (other := first.setdefault(os.path.realpath(path), job)) is job:
                continue
            if other.source == job.source:
                yield f"sources: {job.source} is there twice; name it once"
                continue
            names = " or ".join(_NAMES)
            yield f"{key}={path}: would be that of {other.source} and of {job.source}; tell them apart by {names}"
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    targets = {os.path.realpath(job.target): job for job in jobs}
    for place, job in targets.items():
        for outer in _way(place):
            if (source := sources.get(outer)) not in (None, job.source):
                yield f"target={job.target}: is inside of the source {source}; choose a place outside of all sources"
            if outer != place and outer in targets:
                owned = f"{targets[outer].target}, the target of another source"
                yield f"target={job.target}: is inside of {owned}; choose targets beside each other"
    for place, source in sources.items():
        for outer in _way(place):
            if (owner := targets.get(outer)) is not None and owner.source != source and outer not in sources:
                inside = f"{source} is inside of {owner.target}, the target of {owner.source}"
                yield f"sources: {inside}; choose a target that holds no source"


def _way(path: str) -> list[str]:
    """A path and every directory on the way to it."""
    return [path, *map(str, PurePath(path).parents)]
