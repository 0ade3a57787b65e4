"""Where a result appears: staging directories, and the commit that gives everything its final name.

Owns every name that the job creates or replaces in the target directory. All of it is called by rank 0 alone. Files are
written below a hidden staging directory beside the result; nothing looks finished before `commit`, and the tracker
comes last.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distconv.errors import InputError, JobError, system_problem
from distconv.formats.iterations import TRACKER_NAME, iteration_name
from distconv.runtime.regular_files import read_file
from distconv.transfer.files import synchronise_directory

_PREFIX = ".distconv-"
_DISCARD_ATTEMPTS = 10
_DISCARD_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a result goes: an iteration below `directory`, or with `None` that directory itself.

    `marks` are files of which a directory that is a result itself has at least one.
    """

    directory: Path
    iteration: str | None
    marks: tuple[str, ...] = ()

    @property
    def result(self) -> Path:
        """The directory that will hold the files."""
        return self.directory / (iteration_name(self.iteration or "") or "")

    @property
    def home(self) -> Path:
        """The directory in which the result gets its name; what is begun is kept there, too."""
        return self.result.parent

    @property
    def tracker(self) -> Path | None:
        """The file that points to the iteration."""
        return None if self.iteration is None else self.directory / TRACKER_NAME


def check_present(target: Target) -> None:
    """Raise `InputError` unless there is a result to verify."""
    if not target.result.is_dir():
        raise InputError(f"target={target.directory}: holds no {target.result.name} to verify")


def wrong_tracker(target: Target) -> list[str]:
    """The difference of a tracker that does not name the result, in words."""
    if target.tracker is None or target.iteration is None:
        return []
    try:
        found = read_file(target.tracker)
    except OSError as error:
        return [system_problem(f"{target.tracker}: expected {target.iteration!r}, cannot be read", error)]
    if found == target.iteration.encode():
        return []
    return [f"{target.tracker}: expected {target.iteration!r}, found {found.decode(errors='replace')!r:.80}"]


def check_target(target: Target, sources: Mapping[str, Path], *, overwrite: bool, needed: int) -> None:
    """Check that the result can be written, without touching anything. `needed` is in bytes.

    Raises:
        InputError: the target is in a source or a source in it, exists without `overwrite`, is something else than a
            result, cannot be written, or its disk is too small.
    """
    try:
        os.stat(target.directory)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"target={target.directory}: cannot be looked at: {error.strerror}") from None
    directory = target.directory.resolve()
    for key, source in sources.items():
        resolved = source.resolve()
        if directory == resolved or resolved in directory.parents:
            raise InputError(f"target={target.directory}: is inside {key}={source}; choose a directory outside of it")
        result = target.result.resolve()
        if result == resolved or result in resolved.parents:
            raise InputError(f"{key}={source}: is inside {target.result}, which this job would replace")
    if target.directory.exists() and not target.directory.is_dir():
        raise InputError(f"target={target.directory}: exists and is not a directory")
    if not overwrite:
        check_absent(target)
    elif target.iteration is None and directory.exists() and not (_is_empty(directory) or _is_marked(target)):
        raise InputError(
            f"target={target.directory}: holds no {' or '.join(target.marks)}: it is no result, and all that is in it "
            "would be deleted; choose another directory, or empty it"
        )
    parent = next(path for path in (directory, *directory.parents) if path.exists())
    if not parent.is_dir():
        raise InputError(f"target={target.directory}: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise InputError(f"target={target.directory}: no permission to write in {parent}")
    space = os.statvfs(parent)
    free = space.f_bavail * space.f_frsize
    if free < needed:
        raise InputError(
            f"target={target.directory}: needs {needed:,} bytes, but only {free:,} are free on its file system"
        )


def check_absent(target: Target) -> None:
    """Raise `InputError` if there is a result; asked again at commit, since another job may have been faster."""
    for existing in (target.result, target.tracker):
        if existing is None or not existing.exists() or (existing == target.directory and _is_empty(existing)):
            continue
        raise InputError(
            f"target={target.directory}: {existing.name} is already there; choose another directory, or "
            "overwrite=true to replace it"
        )


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_marked(target: Target) -> bool:
    return any((target.directory / name).exists() for name in target.marks)


def leftovers(target: Target) -> list[Path]:
    """Staging directories of jobs that were killed, or are still running."""
    return sorted(target.home.glob(f"{_PREFIX}*"))


class Staging:
    """A staging directory of this job alone."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._created: list[Path] = []
        try:
            for path in (*reversed(target.home.parents), target.home):
                if not path.exists():
                    path.mkdir()
                    self._created.append(path)
            self._directory = target.home / f"{_PREFIX}{secrets.token_hex(4)}"
            self.path = self._directory / target.result.name
            self.path.mkdir(parents=True)
        except OSError as error:
            self.discard()
            raise InputError(
                f"target={target.directory}: cannot be written: {error.strerror}: {error.filename}"
            ) from None

    def commit(self, files: Mapping[str, int], *, durable: bool) -> None:
        """Give the result its name, replacing an older one, and write the tracker. `files` gives path → size in bytes.

        Raises:
            JobError: a file is not as its writer left it, because the processes do not see the same file system; or a
                name could not be given. Then the target is as it was.
        """
        for path, size in files.items():
            try:
                found = os.stat(self.path / path).st_size
            except OSError:
                found = None
            if found != size:
                raise JobError(
                    f"{self.path / path}: its writer left {size} bytes, the first process finds "
                    f"{'no file' if found is None else found}; target must be on a file system that all nodes share"
                )
        undo: list[Callable[[], object]] = []
        try:
            self._publish(undo, durable=durable)
        except OSError as error:
            for step in reversed(undo):
                step()
            raise JobError(f"{self._target.result}: could not be put in place: {error.strerror}") from error
        self._created.clear()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _publish(self, undo: list[Callable[[], object]], *, durable: bool) -> None:
        """Rename everything to its final name; `undo` gets what takes each step back."""

        def rename(old: Path, new: Path) -> None:
            old.rename(new)
            undo.append(lambda: new.rename(old))

        def settle(directory: Path) -> None:
            if durable:
                synchronise_directory(str(directory))

        target = self._target
        settle(self.path)
        if target.result.exists():
            rename(target.result, self._directory / "replaced")
        rename(self.path, target.result)
        tracker = self._directory / TRACKER_NAME
        if target.iteration is not None:
            with tracker.open("w") as stream:
                stream.write(target.iteration)
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
        settle(target.home)
        for created in self._created:
            settle(created.parent)
        if target.tracker is None:
            return
        if target.tracker.exists():
            # It is replaced in one step, so that a program that reads it finds the old one or the new one.
            replaced = self._directory / "replaced_tracker"
            shutil.copyfile(target.tracker, replaced)
            published = target.tracker
            undo.append(lambda: replaced.rename(published))
            tracker.rename(target.tracker)
        else:
            rename(tracker, target.tracker)
        settle(target.home)

    def discard(self) -> None:
        """Remove everything that this job created."""
        if hasattr(self, "_directory"):
            for _ in range(_DISCARD_ATTEMPTS):
                shutil.rmtree(self._directory, ignore_errors=True)
                if not self._directory.exists():
                    break
                # Another process that is being ended may still have added a file.
                time.sleep(_DISCARD_PAUSE_SECONDS)
        for path in reversed(self._created):
            try:
                path.rmdir()
            except OSError:
                break
        self._created.clear()
