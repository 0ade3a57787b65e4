"""The table of several checkpoints, for a person.

Owns its wording. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distconv.errors import printable
from distconv.words import table


def campaign_text(report: Mapping[str, Any]) -> str:
    """The table of all checkpoints: source, what became of it, and where it is or why it is not there."""
    rows = [[printable(each["source"]), each["outcome"], _said(each)] for each in report["checkpoints"]]
    if not rows:
        return "no checkpoint"
    counts = ", ".join(f"{report[outcome]} {outcome}" for outcome in ("done", "skipped", "failed"))
    again = report["failed"] and report["action"] == "convert"
    rest = "; the same command tries again what failed" if again else ""
    return table([["checkpoint", "outcome", ""], *rows], align=str.ljust) + f"\n{counts}{rest}"


def _said(entry: Mapping[str, Any]) -> str:
    """Where the result is, or the first line of why it is not."""
    if entry["outcome"] != "failed":
        return printable(entry["target"])
    first, *more = str(entry["why"]).splitlines() or [""]
    return printable(first) + (f" (and {len(more)} more)" if more else "")
