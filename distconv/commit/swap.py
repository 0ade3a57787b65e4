"""The change of a target from an older result, or none, to a new one, in steps that a restart can undo.

Owns the order of system calls of a commit, and what a directory of work says of it. The commit point is the last
rename: of the result, or of the tracker where that changes. Before it, what is on disk is enough to put everything
back; after it, only what was replaced remains to be removed. No result is ever deleted here.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from distconv.commit.exchange import exchange
from distconv.commit.journal import forget_description
from distconv.errors import InputError
from distconv.formats.iterations import TRACKER_NAME
from distconv.runtime.durability import synchronise_directory

# In a directory of work. An exchange leaves the older result under the name of the new one.
NEW, REPLACED, TRACKER, JOURNAL = "new", "replaced", "tracker", "commit.json"


@dataclass(frozen=True, kw_only=True)
class Intent:
    """The content of a journal: name of the result, iteration of the tracker, and the inodes of the two results."""

    name: str
    iteration: str | None
    new: int
    replaced: int | None


class Swap:
    """A commit that has begun and is not known to be complete: its journal is on disk."""

    def __init__(self, work: Path, intent: Intent) -> None:
        """`work` is the directory of work, which is beside the result."""
        self._intent = intent
        self._new, self._replaced, self._own_tracker = work / NEW, work / REPLACED, work / TRACKER
        self._journal = work / JOURNAL
        self._home = work.parent
        self._tracker = self._home / TRACKER_NAME
        self.result = self._home / intent.name

    def publish(self, *, durable: bool) -> None:
        """Give everything its final name.

        Raises:
            OSError: a step failed; `is_complete` tells on which side of the commit point.
        """
        if self._intent.replaced is None:
            os.rename(self._new, self.result)
        elif not exchange(self._new, self.result):
            os.rename(self.result, self._replaced)
            os.rename(self._new, self.result)
        self.settle(durable=durable)
        if not self._tracker_is_right():
            os.rename(self._own_tracker, self._tracker)
            self.settle(durable=durable)

    def is_complete(self) -> bool:
        """Whether the commit point has been passed."""
        tracker_was_moved = not os.path.lexists(self._own_tracker)
        return _inode(self.result) == self._intent.new and (tracker_was_moved or self._tracker_is_right())

    def take_back(self, *, durable: bool) -> None:
        """Put everything back as it was before the commit, which is not complete.

        Raises:
            OSError: a step failed; it can be tried again.
            InputError: somebody has changed the result meanwhile, so that it is not known what is whose.
        """
        found = _inode(self.result)
        if os.path.lexists(self._new) and not os.path.lexists(self._replaced):
            if self._intent.replaced is not None and found not in (None, self._intent.replaced):
                self._exchange_back(found)
        elif not os.path.lexists(self._new) and found is not None:
            if found != self._intent.new or os.path.lexists(self._replaced) != (self._intent.replaced is not None):
                raise self._unclear()
            os.rename(self.result, self._new)
        if os.path.lexists(self._replaced):
            if os.path.lexists(self.result):
                raise self._unclear()
            os.rename(self._replaced, self.result)
        self.settle(durable=durable)

    def is_back(self) -> bool:
        """Whether the result is the one that was there before the commit."""
        untouched = os.path.lexists(self._new) and not os.path.lexists(self._replaced)
        return untouched and _inode(self.result) == self._intent.replaced

    def conclude(self, *, durable: bool) -> None:
        """Make a commit that is complete durable, take any other back, and remove the journal.

        What is left of one that is complete, such as the older result, nobody must take for what was finished.

        Raises:
            OSError: a step failed; it can be tried again.
            InputError: as `take_back`.
        """
        if self.is_complete():
            self.settle(durable=durable)
            forget_description(self._journal.parent, durable=durable)
        else:
            self.take_back(durable=durable)
        self._journal.unlink(missing_ok=True)

    def settle(self, *, durable: bool) -> None:
        """Make the names durable that have been given so far.

        Raises:
            OSError: that failed.
        """
        if durable:
            synchronise_directory(str(self._home))
            synchronise_directory(str(self._new.parent))

    def _exchange_back(self, found: int) -> None:
        if found != self._intent.new:
            raise self._unclear()
        if not exchange(self._new, self.result):
            # They were exchanged on another machine: on to where renames would have led.
            os.rename(self._new, self._replaced)
            os.rename(self.result, self._new)

    def _tracker_is_right(self) -> bool:
        if self._intent.iteration is None:
            return True
        try:
            return self._tracker.read_bytes() == self._intent.iteration.encode()
        except FileNotFoundError:
            return False

    def _unclear(self) -> InputError:
        there = ", ".join(str(path) for path in (self.result, self._new, self._replaced) if os.path.lexists(path))
        return InputError(
            f"{self._new.parent}: a job was killed while it put {self.result} in place, and somebody has changed that "
            f"since; there are {there}; give the one that you want the name {self.result}, then remove {self._journal}"
        )


def prepare(work: Path, name: str, iteration: str | None, *, durable: bool) -> Swap:
    """Write down what is about to be done, and everything that it takes space for.

    Raises:
        OSError: that failed; nothing has been changed.
    """
    result, journal = work.parent / name, work / JOURNAL
    if durable:
        synchronise_directory(str(work / NEW))
    if iteration is not None:
        _write(work / TRACKER, iteration.encode(), durable=durable)
    new = _inode(work / NEW)
    assert new is not None
    intent = Intent(name=name, iteration=iteration, new=new, replaced=_inode(result))
    begun = journal.with_suffix(".begun")
    _write(begun, json.dumps(asdict(intent)).encode(), durable=durable)
    os.rename(begun, journal)
    if durable:
        for directory in (work, work.parent):
            synchronise_directory(str(directory))
    return Swap(work, intent)


def unfinished(work: Path) -> Swap | None:
    """The commit that a directory of work has begun, if there is one.

    Raises:
        InputError: its journal is damaged.
    """
    journal = work / JOURNAL
    try:
        content = json.loads(journal.read_bytes())
        intent = Intent(**{key: content[key] for key in ("name", "iteration", "new", "replaced")})
        if Path(intent.name).name != intent.name:
            raise ValueError(f"{intent.name!r} is no name")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{journal}: cannot be read ({error}): a job was killed while it put a result in place; look what is in "
            f"{work.parent} and in {work}, give what you want its name, then remove {journal}"
        ) from None
    return Swap(work, intent)


def _write(path: Path, content: bytes, *, durable: bool) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())


def _inode(path: Path) -> int | None:
    """The inode of a name itself; it stays when the name changes."""
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None
