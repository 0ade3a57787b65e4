"""The options that a format takes. Owns the record of a format's own; that they are heeded, `registry` checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Takes:
    """The options that apply to a source, to a result, or to either in a format, besides the options of every job.

    `target` maps an option to its condition, as `KEY=VALUE`, empty for none. `refusals`: the reason in words why an
    option does not apply to a result in the format, by option; without one, messages name the formats that take it.
    `again`: those with which a source in the same format is converted, besides element types.
    """

    source: frozenset[str] = frozenset()
    target: Mapping[str, str] = field(default_factory=dict)
    either: frozenset[str] = frozenset()
    refusals: Mapping[str, str] = field(default_factory=dict)
    again: frozenset[str] = frozenset()


def refusals_of_whole_tensors(name: str) -> Mapping[str, str]:
    """The `refusals` of a format, by its name, that holds whole tensors under published names."""
    return {"layout": f"target_format={name} holds whole tensors; leave it out"}
