"""Which iterations are complete, by the tracker that training writes last."""

from __future__ import annotations

import os

import pytest

from distconv.campaign.trackers import complete
from distconv.errors import InputError

TRACKER = "latest_checkpointed_iteration.txt"
ITERATIONS = ["iter_0000009", "iter_0000010", "iter_0000100", "release"]


@pytest.mark.parametrize(
    ("says", "found"),
    [
        (None, []),
        ("", []),
        ("10", ["iter_0000009", "iter_0000010"]),
        ("10\n", ["iter_0000009", "iter_0000010"]),
        ("100", ["iter_0000009", "iter_0000010", "iter_0000100"]),
        ("release", ["release"]),
        ("rel", []),
        ("8", []),
    ],
)
def test_complete_is_what_the_tracker_names_and_what_was_before(says, found, tmp_path):
    if says is not None:
        (tmp_path / TRACKER).write_text(says)
    paths = [f"{tmp_path}/{name}" for name in ITERATIONS]
    assert complete(paths) == ([f"{tmp_path}/{name}" for name in found], [])


def test_each_run_has_its_own_tracker(tmp_path):
    for run, says in (("a", "10"), ("b", "100")):
        (tmp_path / run).mkdir()
        (tmp_path / run / TRACKER).write_text(says)
    paths = [f"{tmp_path}/{run}/iter_0000100" for run in "ab"]
    assert complete(paths)[0] == paths[1:]


def test_what_is_no_iteration_is_said():
    found, never = complete(["run/tensorboard", "run/iter_10"])
    assert found == []
    assert [each.partition(":")[0] for each in never] == ["run/tensorboard", "run/iter_10"]


def test_a_tracker_that_cannot_be_read_is_an_error(tmp_path):
    os.mkdir(tmp_path / TRACKER)
    with pytest.raises(InputError, match=TRACKER):
        complete([f"{tmp_path}/iter_0000010"])
