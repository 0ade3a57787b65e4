"""The record of a planned result: what `distconv.json` says of its making.

Owns what goes into it: nothing that depends on the run, such as times, hosts or numbers of processes. Writes nothing;
the form of records is that of `formats.provenance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distconv.fields import options_of
from distconv.formats.provenance import Provenance
from distconv.formats.records import Written
from distconv.formats.registry import Options, format_named
from distconv.layout.layout import CompleteLayout
from distconv.layout.request import SourceLayout
from distconv.planning.facts import Facts
from distconv.planning.plan import Planned
from distconv.version import VERSION


def record_of(options: Options, facts: Facts, planned: Planned, files: Mapping[str, Written]) -> Provenance:
    """The record of a planned result; `files`: all of its files, by path below it."""
    read = facts.directories(options)
    # A model made from two directories has neither as its reference, and one that nothing describes has none.
    alone = "text_source" not in read and facts.source.config is not None
    reference = read.get("reference", read["source"] if alone else None)
    source = {"path": str(read["source"].resolve()), "format": facts.kind}
    if format_named(facts.kind).holds_iterations:
        source["iteration"] = facts.iteration
    if options.text_source is not None:
        source["text_source"] = str(options.text_source.resolve())
    return Provenance(
        model=facts.model,
        definition=facts.definition_file,
        reference=None if reference is None else str(reference.resolve()),
        scaling=facts.scaling,
        version=VERSION,
        source=source,
        format=options.target_format,
        dialect=planned.dialect,
        layout=None if planned.layout is None else _as_given(planned.layout),
        options=options.shaping(),
        files=files,
    )


def _as_given(layout: CompleteLayout) -> dict[str, Any]:
    """A layout as keys and values of `source_layout`, without what it leaves open: equal layouts are equally told."""
    known = options_of(SourceLayout)
    others = {modality: size for modality, size in layout.modality_tp.items() if size != layout.tp}
    found = {**layout.to_json(), "modality_tp": others}
    return {key: each for key, each in found.items() if key in known and each is not None}
