"""What is on disk is enough to know how far a commit has come, and each step is durable before the next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from distconv.commit import swap as swap_module
from distconv.commit.swap import Swap, prepare, unfinished
from distconv.errors import InputError
from tests.unit.commit.targets import OTHER_ITERATION, TRACKER, plant, result, tree

OLD = {f"release/{name}": text for name, text in result("old").items()}
NEW = {f"release/{name}": text for name, text in result("new").items()}


class Calls:
    """The system calls that make names, and make them durable, in order; they are really made."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self._directory = directory
        fsync, rename, exchange = os.fsync, os.rename, swap_module.exchange

        def observed_fsync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            held = "/" if path.is_dir() else f" of {os.fstat(descriptor).st_size} bytes"
            self.made.append(f"fsync {self._name(path)}{held}")
            fsync(descriptor)

        def observed_rename(old: Path, new: Path) -> None:
            self.made.append(f"rename {self._name(old)} {self._name(new)}")
            rename(old, new)

        def observed_exchange(one: Path, other: Path) -> bool:
            done = exchange(one, other)
            self.made.append(f"exchange {self._name(one)} {self._name(other)}{'' if done else ': cannot'}")
            return done

        monkeypatch.setattr(os, "fsync", observed_fsync)
        monkeypatch.setattr(os, "rename", observed_rename)
        monkeypatch.setattr(swap_module, "exchange", observed_exchange)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._directory))


@pytest.fixture
def work(tmp_path) -> Path:
    """A directory of work in which a new result is ready."""
    path = tmp_path / ".job"
    plant(path / "new", result("new"))
    return path


def publish(work: Path, iteration: str | None = "release", *, durable: bool = False) -> Swap:
    swap = prepare(work, "release", iteration, durable=durable)
    swap.publish(durable=durable)
    return swap


PREPARED = [
    "fsync .job/new/",
    "fsync .job/tracker of 7 bytes",
    "fsync .job/commit.begun of {journal} bytes",
    "rename .job/commit.begun .job/commit.json",
    "fsync .job/",
    "fsync ./",
]
SETTLED = ["fsync ./", "fsync .job/"]
FOLLOWED = ["rename .job/tracker latest_checkpointed_iteration.txt", *SETTLED]


@pytest.mark.parametrize(
    ("old", "able", "steps"),
    [
        ({}, True, ["rename .job/new release", *SETTLED, *FOLLOWED]),
        ({**OLD, TRACKER: "10"}, True, ["exchange .job/new release", *SETTLED, *FOLLOWED]),
        ({**OLD, TRACKER: "release"}, True, ["exchange .job/new release", *SETTLED]),
        (
            {**OLD, TRACKER: "10"},
            False,
            [
                "exchange .job/new release: cannot",
                "rename release .job/replaced",
                "rename .job/new release",
                *SETTLED,
                *FOLLOWED,
            ],
        ),
    ],
    ids=["fresh", "exchange", "the tracker stays", "renames"],
)
def test_each_step_is_durable_before_the_next(tmp_path, work, monkeypatch, old, able, steps):
    plant(tmp_path, old)
    if not able:
        monkeypatch.setattr(swap_module, "exchange", Mock(return_value=False))
    calls = Calls(tmp_path, monkeypatch)
    swap = publish(work, durable=True)
    size = (work / "commit.json").stat().st_size
    assert calls.made == [*(each.format(journal=size) for each in PREPARED), *steps]
    calls.made.clear()
    swap.conclude(durable=True)
    # The last one: nobody continues what was made there.
    assert calls.made == [*SETTLED, "fsync .job/"]
    assert {name: text for name, text in tree(tmp_path, hidden=False).items() if name != "release/"} == {
        **NEW,
        TRACKER: "release",
    }


def test_taking_back_is_durable_before_the_journal_is_removed(tmp_path, work, monkeypatch):
    plant(tmp_path, {**OLD, TRACKER: "10"})
    swap = prepare(work, "release", "release", durable=True)
    os.rename(tmp_path / "release", work / "replaced")
    calls = Calls(tmp_path, monkeypatch)
    monkeypatch.setattr(Path, "unlink", lambda path, **_: calls.made.append(f"unlink {path.relative_to(tmp_path)}"))
    swap.conclude(durable=True)
    assert calls.made == ["rename .job/replaced release", *SETTLED, "unlink .job/commit.json"]


def test_a_commit_in_a_hurry_makes_nothing_durable(tmp_path, work, monkeypatch):
    plant(tmp_path, OLD)
    calls = Calls(tmp_path, monkeypatch)
    publish(work).conclude(durable=False)
    assert [each for each in calls.made if each.startswith("fsync")] == []


def test_a_result_without_a_tracker_has_none_made(tmp_path, work):
    publish(work, None)
    assert not (work / "tracker").exists()
    assert not (tmp_path / TRACKER).exists()


def at(path: Path) -> str | None:
    return (path / "mp_rank_00" / "file.pt").read_text() if path.exists() else None


@pytest.mark.parametrize("able", [True, False])
def test_what_was_exchanged_comes_back_where_nothing_can_be_exchanged(tmp_path, work, monkeypatch, able):
    """By a machine that sees the same file system in another way."""
    plant(tmp_path, {**OLD, TRACKER: "10"})
    swap = prepare(work, "release", "release", durable=False)
    assert swap_module.exchange(work / "new", tmp_path / "release")
    assert (swap.is_complete(), swap.is_back()) == (False, False)
    if not able:
        monkeypatch.setattr(swap_module, "exchange", Mock(return_value=False))
    swap.take_back(durable=False)
    assert (at(tmp_path / "release"), at(work / "new"), at(work / "replaced")) == ("old", "new", None)
    assert swap.is_back()


@pytest.mark.parametrize("old", [{}, OLD])
def test_a_commit_that_has_not_begun_to_rename_is_taken_back_by_nothing(tmp_path, work, old):
    plant(tmp_path, old)
    swap = prepare(work, "release", "release", durable=False)
    before = tree(tmp_path)
    assert (swap.is_complete(), swap.is_back()) == (False, True)
    swap.take_back(durable=False)
    assert tree(tmp_path) == before


def test_a_tracker_that_training_has_moved_on_does_not_undo_a_commit(tmp_path, work):
    swap = publish(work)
    plant(tmp_path, OTHER_ITERATION)
    assert swap.is_complete()


def test_a_tracker_that_somebody_wrote_completes_a_commit(tmp_path, work):
    swap = prepare(work, "release", "release", durable=False)
    os.rename(work / "new", tmp_path / "release")
    assert not swap.is_complete()
    (tmp_path / TRACKER).write_text("release")
    assert swap.is_complete()


def somebodys(tmp_path: Path) -> None:
    plant(tmp_path, {f"release/{name}": text for name, text in result("somebody's").items()})


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        # From where, to where, before somebody makes a result of his own.
        pytest.param([("release", "old-2")], ["release", "new"], id="before the exchange, or after it"),
        pytest.param([("release", "replaced")], ["release", "new", "replaced"], id="between the renames"),
        pytest.param(
            [("release", "replaced"), ("new", "elsewhere")], ["release", "replaced"], id="after both renames, replaced"
        ),
    ],
)
def test_what_somebody_has_changed_is_left_to_people(tmp_path, work, names, kept):
    plant(tmp_path, OLD)
    swap = prepare(work, "release", "release", durable=False)
    for old, new in names:
        os.rename((tmp_path if old == "release" else work) / old, work / new)
    somebodys(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        swap.take_back(durable=False)
    there = ", ".join(str((tmp_path if name == "release" else work) / name) for name in kept)
    assert f"there are {there}; give the one that you want the name {tmp_path}/release, then" in str(caught.value)
    assert tree(tmp_path) == before
    assert at(tmp_path / "release") == "somebody's"


def test_a_new_result_that_is_the_only_one_left_is_not_taken_away(tmp_path, work):
    """Somebody has removed what was replaced."""
    plant(tmp_path, {**OLD, TRACKER: "10"})
    swap = prepare(work, "release", "release", durable=False)
    assert swap_module.exchange(work / "new", tmp_path / "release")
    os.rename(work / "new", tmp_path / "thrown away")
    with pytest.raises(InputError, match="somebody has changed that since"):
        swap.take_back(durable=False)
    assert at(tmp_path / "release") == "new"


def test_somebodys_result_where_there_was_none_is_not_ours(tmp_path, work):
    swap = prepare(work, "release", "release", durable=False)
    somebodys(tmp_path)
    swap.take_back(durable=False)
    assert at(tmp_path / "release") == "somebody's"


def test_a_journal_is_read_again(tmp_path, work):
    assert unfinished(work) is None
    plant(tmp_path, OLD)
    publish(work, "10")
    swap = unfinished(work)
    assert swap is not None
    assert swap.result == tmp_path / "release"
    assert swap.is_complete()
    swap.conclude(durable=False)
    assert unfinished(work) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", "7", '{"name": 7}', "names"])
def test_a_damaged_journal_is_left_to_people(work, content):
    """A name that leads elsewhere is damage, too."""
    if content == "names":
        content = json.dumps({"name": "../../etc", "iteration": None, "new": 1, "replaced": None})
    (work / "commit.json").write_text(content)
    with pytest.raises(InputError, match=r"commit\.json: cannot be read .* then remove .*commit\.json"):
        unfinished(work)
