"""How long the phases of a job took, for a person.

Owns its wording. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distconv.words import table


def phases_text(report: Mapping[str, Any]) -> str:
    """A table of the phases of a job: the seconds of the fastest and the slowest process, and its rank; or nothing."""
    processes: Sequence[Mapping[str, Any]] = [each for each in report.get("processes") or () if "seconds" in each]
    phases = dict.fromkeys(phase for each in processes for phase in each["seconds"])
    rows = []
    for phase in phases:
        took = [(each["seconds"][phase], each["rank"]) for each in processes if phase in each["seconds"]]
        (fastest, _), (slowest, rank) = min(took), max(took)
        rows.append([phase, f"{fastest:.2f} s", f"{slowest:.2f} s", str(rank)])
    return table([["phase", "fastest", "slowest", "its rank"], *rows]) if rows else ""
