"""The table of several checkpoints."""

from __future__ import annotations

import pytest

from distconv.cli.campaign_text import campaign_text


def report(action="convert", **outcomes):
    entries = [
        {"source": source, "target": f"hf/{source}", "outcome": outcome, "why": "no \x1b room\non the disk"}
        for source, outcome in outcomes.items()
    ]
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in ("done", "skipped", "failed")}
    return {"action": action, **counts, "checkpoints": entries}


def test_each_has_a_row_with_its_target_or_why_it_has_none():
    lines = campaign_text(report(a="done", bb="failed", c="skipped")).splitlines()
    assert [line.split(maxsplit=2) for line in lines[1:4]] == [
        ["a", "done", "hf/a"],
        ["bb", "failed", "no \\x1b room (and 1 more)"],
        ["c", "skipped", "hf/c"],
    ]
    assert lines[4] == "1 done, 1 skipped, 1 failed; the same command tries again what failed"


@pytest.mark.parametrize(("action", "outcome"), [("convert", "done"), ("verify", "failed"), ("plan", "failed")])
def test_nothing_is_to_be_tried_again(action, outcome):
    assert campaign_text(report(action, a=outcome)).splitlines()[-1].endswith(("0 failed", "1 failed"))


def test_a_watch_of_nothing():
    assert campaign_text(report()) == "no checkpoint"
