"""What a result consists of is on disk before it gets its name, and so is the name itself; there is room for it before.

The calls that make it so are watched, not replaced: at each of them, what the file system is told to keep is what is in
the file, or in the directory, at that moment. What later differs from it could be lost with the power.
"""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distconv.errors import InputError
from tests.checkpoints import load_case, write_header, write_source
from tests.here import run_here

TRACKER = "latest_checkpointed_iteration.txt"
# Jobs that write all formats, each from another one.
JOBS = {
    "megatron": {"source": "model", "layout__tp": 2, "layout__pp": 2},
    "dcp": {"source": "model", "target_format": "dcp"},
    "hf": {"source": "trained", "target_format": "hf"},
}
Content = str | Mapping[str, int]


@dataclass(frozen=True)
class Kept:
    """A call that makes a file or a directory durable: the inode, what it held, and the inodes of watched names."""

    inode: int
    content: Content
    named: Mapping[Path, int | None]


@dataclass
class Disk:
    """What the file system was told to keep, in the order of the calls."""

    watched: list[Path]
    calls: list[Kept] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, descriptor: int) -> None:
        with self.lock:
            path = Path(f"/proc/self/fd/{descriptor}").resolve()
            named = {each: inode(each) for each in self.watched}
            self.calls.append(Kept(os.fstat(descriptor).st_ino, content(path), named))

    def named_at(self, path: Path) -> int:
        """The number of the first call at which the file or directory at `path` had that name."""
        return next(number for number, each in enumerate(self.calls) if each.named[path] == inode(path))

    def assert_kept_before(self, path: Path, number: int) -> None:
        kept = [each.content for each in self.calls[:number] if each.inode == inode(path)]
        assert kept, f"{path} was not made durable"
        assert kept[-1] == content(path), f"{path} was made durable before it was complete"

    def assert_name_kept_after(self, path: Path, number: int, before: int | None = None) -> None:
        names = [each.content for each in self.calls[number:before] if each.inode == inode(path.parent)]
        assert any(not isinstance(each, str) and each.get(path.name) == inode(path) for each in names), path


def inode(path: Path) -> int | None:
    return os.lstat(path).st_ino if os.path.lexists(path) else None


def content(path: Path) -> Content:
    """The names in a directory, with their inodes; the sum of the bytes of a file."""
    if stat.S_ISDIR(path.stat().st_mode):
        return {each.name: each.lstat().st_ino for each in path.iterdir()}
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model with a side file deep in it, and what it is for training."""
    directory = tmp_path_factory.mktemp("durable")
    model = write_source(directory / "model", load_case("qwen2vl__tp1_pp1"))
    (model / "more" / "deeper").mkdir(parents=True)
    (model / "more" / "deeper" / "notes.txt").write_text("a side file")
    run_here(source=str(model), target=str(directory / "trained"))
    return directory


def result_of(target: Path, form: str) -> Path:
    return target if form == "hf" else target / "release"


def watch(monkeypatch: pytest.MonkeyPatch, *names: Path) -> Disk:
    disk = Disk(list(names))
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda descriptor, real=real: (disk.keep(descriptor), real(descriptor))[1])
    return disk


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("form", JOBS)
def test_everything_is_kept_before_its_name_and_every_name_after(sources, tmp_path, monkeypatch, form, replaces):
    target = tmp_path / "new" / "directories" / "result"
    result, tracker = result_of(target, form), target / TRACKER
    job = {**JOBS[form], "source": str(sources / JOBS[form]["source"]), "target": str(target)}
    if replaces:
        run_here(**job)
        if form != "hf":
            tracker.write_text("1000")
    disk = watch(monkeypatch, result, tracker)

    run_here(**job, overwrite=replaces)

    begun = disk.named_at(result)
    for path in (result, *result.rglob("*")):
        disk.assert_kept_before(path, begun)
    disk.assert_name_kept_after(result, begun)
    if form != "hf":
        assert tracker.read_text() == "release"
        disk.assert_name_kept_after(result, begun, before=disk.named_at(tracker))
        disk.assert_kept_before(tracker, disk.named_at(tracker))
        disk.assert_name_kept_after(tracker, disk.named_at(tracker))
    if not replaces:
        for made in (parent for parent in result.parents if tmp_path in parent.parents):
            disk.assert_name_kept_after(made, 0)


def test_nothing_is_waited_for_without_fsync(sources, tmp_path, monkeypatch):
    disk = watch(monkeypatch)
    run_here(source=str(sources / "model"), target=str(tmp_path / "result"), io__fsync=False)
    assert disk.calls == []


def test_room_is_what_is_free_not_what_there_is(tmp_path):
    """With a source of holes that is as large as the disk. Were it not refused, no large file could be written."""
    source = tmp_path / "source"
    source.mkdir()
    space = os.statvfs(tmp_path)
    write_header(source / "model.safetensors", {"w": ("uint8", [space.f_blocks, space.f_frsize])})
    (source / "config.json").write_text("{}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(InputError, match=r"needs [\d,]+ bytes, but only [\d,]+ are free on its file system"):
            run_here(source=str(source), target=str(tmp_path / "target"), target_format="dcp", naming="hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["source"]
