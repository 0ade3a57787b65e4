"""Where a result goes, and whether it may go there.

Owns the names that a job gives in the target directory, and the checks of a target. Touches nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distconv.commit.area import Area
from distconv.errors import InputError, reading
from distconv.formats.iterations import TRACKER_NAME, iteration_name
from distconv.runtime.containment import is_inside, is_mount_point


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a result goes: an iteration below the directory that the user named, or (`None`) that directory itself.

    `marks` are files of which an existing result has one; without any, every directory passes for a result.
    `readers_names`: patterns of names that readers take for a part of it.
    """

    directory: Path
    iteration: str | None
    marks: tuple[str, ...] = ()
    readers_names: tuple[str, ...] = ()

    @property
    def result(self) -> Path:
        """The directory that will hold the files, as the user named it."""
        return self.directory / (iteration_name(self.iteration or "") or "")

    @property
    def home(self) -> Path:
        """The directory in which the result gets its name; no part of it is a symbolic link."""
        directory = Path(os.path.realpath(self.directory))
        return directory if self.iteration is not None else directory.parent

    @property
    def place(self) -> Path:
        """The result in its home."""
        return self.home / (iteration_name(self.iteration or "") or os.path.basename(os.path.realpath(self.directory)))

    @property
    def area(self) -> Area:
        """The hidden names of jobs with this target."""
        return Area(home=self.home, name=self.place.name if self.iteration is None else None)

    @property
    def tracker(self) -> Path | None:
        """The file that points to the iteration."""
        return None if self.iteration is None else self.directory / TRACKER_NAME


def check_target(target: Target, sources: Mapping[str, Path]) -> None:
    """Check that a result can be written there, whatever is there now; `sources` by option.

    Raises:
        InputError: the target is in a source or a source in it, by whatever path; it is no directory, is a mount point,
            or cannot be written.
    """
    try:
        os.stat(target.directory)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"target={target.directory}: cannot be looked at: {error.strerror}") from None
    for key, source in sources.items():
        if is_inside(target.directory, source):
            raise InputError(f"target={target.directory}: is inside {key}={source}; choose a directory outside of it")
        if is_inside(source, target.result):
            raise InputError(
                f"{key}={source}: is inside {target.result}, which this job would replace; choose another target"
            )
    for existing in (target.directory, target.result):
        if os.path.exists(existing) and not os.path.isdir(existing):
            what = "" if existing == target.directory else f"{existing.name} "
            raise InputError(f"target={target.directory}: {what}exists and is not a directory; choose another one")
    if os.path.isdir(target.place):
        _check_replaceable(target, sources)
    parent = _existing(target)
    if not parent.is_dir():
        raise InputError(f"target={target.directory}: {parent} is not a directory; choose a target in one")
    if not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise InputError(f"target={target.directory}: no permission to write in {parent}; choose another directory")


def check_space(target: Target, needed: int) -> None:
    """Raise `InputError` unless so many bytes are free on the file system of a target."""
    space = os.statvfs(_existing(target))
    free = space.f_bavail * space.f_frsize
    # A file system that does not tell its size tells zeros.
    if space.f_blocks and free < needed:
        raise InputError(
            f"target={target.directory}: needs {needed:,} bytes, but only {free:,} are free on its file system; "
            "free some, or choose another directory"
        )


def check_present(target: Target) -> None:
    """Raise `InputError` unless there is a result."""
    if not target.result.is_dir():
        raise InputError(
            f"target={target.directory}: holds no {target.result.name} to verify; give the target of the conversion"
        )


def check_result(target: Target, *, overwrite: bool) -> None:
    """Check that the result may get its name; asked again at commit, since another program may have been faster.

    Raises:
        InputError: there is a result without `overwrite`, or with it something else than a result.
    """
    place, tracker = target.place, target.tracker
    if overwrite:
        if os.path.isdir(place) and not _is_empty(place) and not _has_mark(target):
            raise InputError(
                f"target={target.directory}: holds no {' or '.join(target.marks)}: it is no result, and all that is in "
                "it would be deleted; choose another directory, or empty it"
            )
        return
    for existing in (place, tracker):
        if existing is None or not os.path.lexists(existing) or (tracker is None and _is_empty(existing)):
            continue
        raise InputError(
            f"target={target.directory}: {existing.name} is already there; choose another directory, or "
            "overwrite=true to replace it"
        )


def _check_replaceable(target: Target, sources: Mapping[str, Path]) -> None:
    """Whether the directory that is there can be replaced, and nothing of a source with it."""
    for key, source in sources.items():
        with reading(source):
            links = list(_links(source))
        for path in links:
            if is_inside(path, target.place):
                raise InputError(
                    f"{key}={source}: {path} leads into {target.result}, which this job would replace; choose another "
                    "target"
                )
    if is_mount_point(target.place):
        raise InputError(
            f"target={target.directory}: {target.result} is a mount point, which nothing can replace; choose a "
            "directory in it"
        )
    if not os.access(target.place, os.R_OK | os.W_OK | os.X_OK):
        raise InputError(
            f"target={target.directory}: no permission to replace {target.result}; choose another directory"
        )


def _existing(target: Target) -> Path:
    """The directory, on the way to a result, in which the first one would have to be made."""
    return next(path for path in (target.home, *target.home.parents) if os.path.exists(path))


def _links(directory: Path) -> Iterable[Path]:
    """The symbolic links below a directory; raises `OSError` where it cannot be listed."""

    def raised(error: OSError) -> None:
        raise error

    return (
        path
        for parent, directories, files in os.walk(directory, onerror=raised)
        for name in (*directories, *files)
        if (path := Path(parent, name)).is_symlink()
    )


def _is_empty(path: Path) -> bool:
    return os.path.isdir(path) and not os.listdir(path)


def _has_mark(target: Target) -> bool:
    return not target.marks or any((target.place / name).exists() for name in target.marks)
