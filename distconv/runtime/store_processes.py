"""Processes that share torch's key-value store, as `torchrun` starts them.

Owns the keys in the store. `torch.distributed` is imported for its store alone, and only here; no process group is
made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from distconv.errors import JobError, LauncherError, LostError
from distconv.runtime.clerk import FAREWELL_SECONDS
from distconv.runtime.processes import PATIENCE, left, packed, unpacked
from distconv.runtime.progress import Beat
from distconv.runtime.watched_processes import WatchedProcesses

# How long torch may wait for the store; whether that is too long, the clerk decides.
_FOR_EVER = timedelta(days=7)
_PAUSE_SECONDS = 0.1
_MASTER = "MASTER_ADDR and MASTER_PORT must be an address of the first node that all nodes reach, and a free port"
# In the place of the beat of a process that has left.
_GONE = b"gone"


class StoreProcesses(WatchedProcesses):
    """Processes with a store, which rank 0 or the launcher hosts."""

    def __init__(self, rank: int, size: int, patience: float = PATIENCE) -> None:
        super().__init__(rank, size, patience)
        self._seen: set[int] = set()
        # Before the thread needs it: an import that is interrupted there would be of no use to anybody.
        from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415 - only where torchrun started the job

        self._rendezvous = rendezvous
        silence = self._watch.silence()
        try:
            while not self._connect():
                if self._watch.is_too_long(silence):
                    raise LostError(self._watch.sentence([0]))
                time.sleep(_PAUSE_SECONDS)
        except BaseException:
            self._clerk.stop()
            raise

    def _connect(self) -> bool:
        """Connect to the store; whether rank 0 is there.

        Raises:
            LauncherError: the environment lacks the address of the store, or rank 0 cannot host it.
        """
        try:
            self._store = self._clerk.ask(self._opened)
            # A restarted job of an elastic agent must not see the keys of the attempt before it, nor a second job of
            # one program those of the first.
            attempt = f"distconv/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
            jobs = self._clerk.ask(lambda: self._store.add(f"{attempt}/jobs/{self.rank}", 1))
            self._prefix = f"{attempt}/{jobs}"
            here = f"{self._prefix}/here"
            if self.rank == 0:
                self._set(here, b"1")
            if not self._clerk.wait(partial(self._is_set, here), self._watch.seconds_to_arrive):
                raise LostError(self._watch.sentence([0]))
        except ValueError as error:
            raise LauncherError(f"the processes cannot find each other: {error}; {_MASTER}") from None
        except LostError as error:
            if error.__cause__ is None:
                raise
            if self.rank == 0:
                raise LauncherError(
                    f"the processes cannot find each other: {_first_line(error.__cause__)}; {_MASTER}"
                ) from error
            # A store that rank 0 hosted for the job before was still there, and has gone with it.
            return False
        self._clerk.begin_to_beat(self._beat)
        return True

    def _opened(self) -> Any:
        return next(self._rendezvous("env://", self.rank, self.size, timeout=_FOR_EVER))[0]

    def end_if_stuck(self, tell: Callable[[str], None]) -> None:
        """The launcher ends the others."""

        def end(sentence: str) -> None:
            self._clerk.wait_for_turn(self.rank)
            # The store may be what is lost.
            with suppress(RuntimeError):
                if self._is_abandoned():
                    os._exit(JobError.exit_status)
                self._store.set(self._abandoned, packed(left(self.rank, sentence)))
            tell(sentence)
            os._exit(JobError.exit_status)

        self._clerk.end_if_stuck(end)

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        key = self._next()
        if self.rank == 0:
            self._set(key, packed(value))
        return self._get(key)

    def collect(self, value: Any) -> list[Any]:
        """Every process's value."""
        key = self._next()
        self._set(f"{key}/{self.rank}", packed(value))
        everyone = None
        if self.rank == 0:
            everyone = [self._get(f"{key}/{rank}") for rank in range(self.size)]
        return list(self.share(everyone))

    def raise_alarm(self) -> None:
        """Set a key that the others look for."""
        self._set(self._alarm, b"1")

    def alarmed(self) -> bool:
        """Whether the key is set."""
        self._clerk.check()
        return self._clerk.ask(partial(self._is_set, self._alarm))

    def close(self, patience: float | None = None) -> None:
        """Rank 0 may host the store, so it leaves last."""
        if patience is not None:
            self._clerk.leave()
        spoken = f"{self._prefix}/spoken"
        if self.rank == 0:
            self._set(spoken, b"1")
        self._clerk.wait(partial(self._is_set, spoken), patience)
        self._clerk.ask(self._go)
        if self.rank == 0:
            self._clerk.wait(lambda: self._count_gone(0) >= self.size, patience)
        self._clerk.stop()

    def desert(self, reason: str) -> None:
        """Abandon the job; rank 0 may host the store, so it waits a while for the others to hear of it."""
        self._clerk.leave()
        heard = self.size - len(self._watch.look())
        # The store may be what is lost.
        with suppress(LostError):
            self._say_that_it_leaves(reason)
            if self.rank == 0:
                self._clerk.wait(lambda: self._count_gone(0) >= heard, FAREWELL_SECONDS)
        self._clerk.stop()

    def _say_that_it_leaves(self, reason: str) -> None:
        self._set(self._abandoned, packed(left(self.rank, reason)))
        self.raise_alarm()
        self._set(f"{self._prefix}/spoken", b"1")
        self._clerk.ask(self._go)

    def abort(self) -> None:
        """The launcher ends the others when this process exits."""

    def _get(self, key: str) -> Any:
        # Not `get`, which waits inside of torch for a key that is not there.
        self._clerk.wait(lambda: self._is_set(key) or self._is_abandoned())
        if not self._clerk.ask(partial(self._is_set, key)):
            raise JobError(unpacked(self._clerk.ask(partial(self._store.get, self._abandoned))))
        return unpacked(self._clerk.ask(partial(self._store.get, key)))

    def _set(self, key: str, value: bytes) -> None:
        self._clerk.ask(partial(self._store.set, key, value))

    @property
    def _abandoned(self) -> str:
        """The key under which a process says that it leaves."""
        return f"{self._prefix}/abandoned"

    @property
    def _alarm(self) -> str:
        """The key of the alarm; nobody goes on to the next exchange while another one still works before it."""
        return f"{self._prefix}/{self._number}/alarm"

    def _next(self) -> str:
        self._number += 1
        return f"{self._prefix}/{self._number}"

    # What follows is called by the clerk alone.

    def _is_set(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _is_abandoned(self) -> bool:
        return self._is_set(self._abandoned)

    def _count_gone(self, more: int) -> int:
        return int(self._store.add(f"{self._prefix}/gone", more))

    def _go(self) -> None:
        self._store.set(self._beat_of(self.rank), _GONE)
        self._count_gone(1)

    def _beat(self) -> None:
        beat = self.progress.beat()
        if beat != self._published:
            self._store.set(self._beat_of(self.rank), packed(beat.to_json()))
            self._published = beat
        # Many are read in one call, but only those that are there: torch waits for one that is not.
        unseen = (rank for rank in self._watch.ranks if rank not in self._seen)
        self._seen.update(rank for rank in unseen if self._is_set(self._beat_of(rank)))
        seen = [rank for rank in self._watch.ranks if rank in self._seen]
        for rank, data in zip(seen, self._store.multi_get(list(map(self._beat_of, seen))) if seen else [], strict=True):
            if data == _GONE:
                self._watch.forget(rank)
            else:
                self._watch.hear(rank, Beat.from_json(unpacked(data)))

    def _beat_of(self, rank: int) -> str:
        return f"{self._prefix}/beat/{rank}"

    def _broken(self, error: Exception) -> str:
        return (
            f"the connection to rank 0 is broken ({_first_line(error)}): rank 0, or the launcher on its host, has ended"
        )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
