"""A target that belongs to one job: the lock, the hidden directory that is written, and the commit.

Owns the life of both, from the check of the target to the end of the job, and what is true of the target whenever that
ends. All of it is used by rank 0 alone. Nothing looks finished before `commit`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from distconv.commit.adoption import adopt, of_worth
from distconv.commit.journal import Description, Finished, describe_work, finished_in
from distconv.commit.lock import Lock, take
from distconv.commit.modes import Modes
from distconv.commit.recovery import left_over, recover, remove
from distconv.commit.swap import NEW, TRACKER, prepare, unfinished
from distconv.commit.target import Target, check_result
from distconv.commit.written import check_written
from distconv.errors import DistconvError, InputError, JobError, LostError, SpoiledError
from distconv.runtime.durability import synchronise_directory

_ATTEMPTS = 10


class Staging:
    """A context in which a target can be claimed, written and committed; leaving it lets go of what is not committed.

    `tell` gets what a user should know, `undisturbed` surrounds what signals should not cut in two. Without it, a job
    that is interrupted there still loses nothing: its order, and the next start, are enough. `modes` are those of
    the result, of its tracker and of the directories that are made for it. `finished`: what an earlier job has
    finished of the result, by path, after `claim`.
    """

    def __init__(
        self,
        target: Target,
        *,
        tell: Callable[[str], object] = lambda _: None,
        undisturbed: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        modes: Modes | None = None,
    ) -> None:
        self._target = target
        self._modes = modes or Modes()
        self._tell = tell
        self._undisturbed = undisturbed
        self._area = target.area
        self._work = self._area.work(secrets.token_hex(4))
        self._lock: Lock | None = None
        self._claimed = False
        self._is_spoiled = False
        self.finished: Mapping[str, Finished] = {}
        self._created: list[Path] = []
        self._durable = True
        self._is_asked = False
        self.committed = False

    @property
    def path(self) -> Path:
        """Where the files are written; no user looks there."""
        return self._work / NEW

    @property
    def account(self) -> str:
        """What is true of the target after leaving, in words."""
        result, work = self._target.result, self._work
        if self.committed:
            rest = f"; {work} is left of what it replaced, action=clean removes it" if self._is_work_left() else ""
            return f"{result} is in place and complete{rest}"
        if not self._is_work_left():
            return "nothing was left in the target"
        if self._is_untouched():
            kept = len(self._kept())
            left = left_over(work, kept) if kept else f"{work} is left, action=clean removes it"
            return f"{result} is as it was; {left}"
        return (
            f"{result} could neither be put in place nor be taken back: keep {work}, which has the rest; the next job "
            "with this target, or action=clean, takes it back"
        )

    def claim(self, description: Description, *, overwrite: bool) -> None:
        """Take the target for this job, put right what jobs left there that died in a commit, and check what is there.

        What an earlier job with an equal description has finished becomes this one's.

        Raises:
            InputError: another job is at work there; what is there is in the way (see `check_result`), or was begun in
                another way; a directory cannot be made, or an unfinished commit not be concluded.
        """
        self._is_asked = True
        try:
            if not self._area.is_used():
                # Then there is nothing to put right, and a refusal leaves no trace.
                check_result(self._target, overwrite=overwrite)
            with self._undisturbed():
                self._take()
            found = self._area.works()
        except OSError as error:
            self._release()
            raise self._not_writable(error) from None
        for work in found:
            for note in recover(work):
                self._tell(note)
        self._description = description
        try:
            left = of_worth([work for work in found if work.exists()])
            check_result(self._target, overwrite=overwrite)
            self.finished = adopt(left, self._work, description, self._target.result, self._tell)
        except OSError as error:
            raise self._not_writable(error) from None

    def begin(self, *, durable: bool) -> Path:
        """Make the directory in which the files are written, unless that of an earlier job is continued.

        Raises:
            InputError: it cannot be made.
        """
        if not self.finished:
            try:
                self.path.mkdir(parents=True)
                describe_work(self._work, self._description, durable=durable)
            except OSError as error:
                raise self._not_writable(error) from None
        return self.path

    def commit(self, files: Mapping[str, int], *, durable: bool) -> None:
        """Give the result its name, replacing an older one, and write the tracker. `files` gives path → size in bytes.

        Raises:
            JobError: a file is not as its writer left it, because the processes do not see the same file system; or a
                name could not be given: then the target is as it was, or the message says what it is.
        """
        check_written(self.path, files)
        self._durable = durable
        try:
            with self._undisturbed():
                self._publish()
        except OSError as error:
            raise JobError(self._failed(error)) from error
        self.committed = True
        self._leave()

    def close(self) -> None:
        """Remove what this job created and has neither committed nor finished; `account` says what is true then."""
        try:
            self._leave()
        finally:
            self._release()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close, whatever has happened.

        Raises:
            KeyboardInterrupt: the job was interrupted; its text is the account.
            JobError: it failed after the commit; its text is the account, too.
        """
        self._is_spoiled = isinstance(error, SpoiledError)
        try:
            with self._undisturbed():
                self.close()
        except KeyboardInterrupt:
            # Another error is the cause of the end, and more worth telling.
            if error is None:
                raise self._told(KeyboardInterrupt()) from None
        finally:
            self._release()
        if isinstance(error, KeyboardInterrupt):
            raise self._told(error) from error
        if self.committed and isinstance(error, DistconvError):
            failure = LostError if isinstance(error, LostError) else JobError
            raise failure(f"{error}; {self.account}") from error
        if (self.committed and error is not None) or (self._is_asked and self._is_work_left()):
            self._tell(self.account)

    def _told(self, interruption: KeyboardInterrupt) -> KeyboardInterrupt:
        """An interruption with the account at the end of its text, on the process that knows it."""
        said = [*map(str, interruption.args), *([self.account] if self._is_asked else [])]
        return KeyboardInterrupt(*(["; ".join(said)] if said else []))

    def _take(self) -> None:
        """Take the lock, and make the directories that are missing.

        Raises:
            InputError: another job has it.
        """
        self._claimed = True
        for attempt in range(_ATTEMPTS):
            try:
                self._make_directories()
                found = take(self._area.lock, self._work.name)
            except FileNotFoundError:
                # Another job ended meanwhile, and removed a directory that it had made.
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            if isinstance(found, Lock):
                self._lock = found
                return
            doubt = "" if found.certain else f" (if it has ended, remove {self._area.lock})"
            raise InputError(
                f"target={self._target.directory}: another job is at work there: {found}{doubt}; wait for its end, or "
                "choose another directory"
            )

    def _make_directories(self) -> None:
        for path in (*reversed(self._area.home.parents), self._area.home):
            if not path.is_dir():
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    self._created.append(path)
                    self._modes.set_directory(path)

    def _publish(self) -> None:
        self._modes.set_below(self.path)
        swap = prepare(self._work, self._target.place.name, self._target.iteration, durable=self._durable)
        if self._target.iteration is not None:
            self._modes.set_file(self._work / TRACKER)
        if self._durable:
            for created in self._created:
                synchronise_directory(str(created.parent))
        swap.publish(durable=self._durable)

    def _failed(self, error: OSError) -> str:
        """Take a commit back that failed; what is true then."""
        result = self._target.result
        with contextlib.suppress(OSError, InputError):
            swap = unfinished(self._work)
            if swap is not None and swap.is_complete():
                self.committed = True
                return f"{result}: is in place and complete, but cannot be made durable: {error.strerror}"
            if swap is not None:
                swap.take_back(durable=self._durable)
        rest = "" if self._is_untouched() else f"; {self.account}"
        return f"{result}: could not be put in place: {error.strerror}{rest}"

    def _is_work_left(self) -> bool:
        """Whether the directory of work is there; where the system cannot tell, it may be."""
        try:
            os.lstat(self._work)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def _is_untouched(self) -> bool:
        """Whether what this job did not commit has left the target as it was."""
        try:
            swap = unfinished(self._work)
        except InputError:
            return False
        return swap is None or swap.is_back()

    def _leave(self) -> None:
        """Conclude the commit, if one has begun, and remove the directory of work unless it can be continued.

        What cannot be removed stays.
        """
        with contextlib.suppress(OSError, InputError):
            swap = unfinished(self._work)
            if swap is not None:
                self.committed |= swap.is_complete()
                swap.conclude(durable=self._durable)
            if self.committed or not self._kept():
                remove(self._work)

    def _kept(self) -> Mapping[str, Finished]:
        """What is finished and worth being continued."""
        return {} if self._is_spoiled else finished_in(self._work)

    def _release(self) -> None:
        """Remove the lock and, unless they have a result by now, the directories that this job made."""
        if not self._claimed:
            return
        if self._lock is not None:
            self._lock.release()
        with contextlib.suppress(OSError):
            for path in reversed(self._created):
                if path.exists() and not self.committed:
                    path.rmdir()
        self._created.clear()
        self._claimed = False

    def _not_writable(self, error: OSError) -> InputError:
        return InputError(f"target={self._target.directory}: cannot be written: {error.strerror}: {error.filename}")
