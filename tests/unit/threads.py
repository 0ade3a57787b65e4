"""Processes of a job as threads of this process: real concurrency, plain JSON data, and no launcher."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distconv.runtime.processes import Processes
from distconv.runtime.progress import Progress

# A phase that leaves the others waiting shows as a broken barrier after this time.
PATIENCE_SECONDS = 5.0


class World:
    """What the threads share."""

    def __init__(self, size: int, patience: float = PATIENCE_SECONDS) -> None:
        self.size = size
        self.alarm = threading.Event()
        self._barrier = threading.Barrier(size, timeout=patience)
        self._told: list[str] = [""] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Everyone's values."""
        self._told[rank] = json.dumps(value)
        self._barrier.wait()
        told = list(self._told)
        self._barrier.wait()
        return [json.loads(each) for each in told]


class ThreadProcesses:
    """One of them."""

    def __init__(self, world: World, rank: int) -> None:
        self.rank = self.world_rank = rank
        self.size = world.size
        self.progress = Progress()
        self._world = world

    def be_patient(self, seconds: float) -> None:
        pass

    def begin_to_move(self) -> None:
        pass

    def moved_elsewhere(self) -> int:
        return 0

    def share(self, value: Any) -> Any:
        return self._world.exchange(self.rank, value)[0]

    def collect(self, value: Any) -> list[Any]:
        return self._world.exchange(self.rank, value)

    def raise_alarm(self) -> None:
        self._world.alarm.set()

    def alarmed(self) -> bool:
        return self._world.alarm.is_set()

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def on_threads(count: int, run: Callable[[int], Any]) -> list[Any]:
    """Run on so many threads at once: by rank, what each returned or raised."""

    def outcome(rank: int) -> Any:
        try:
            return run(rank)
        except Exception as error:  # noqa: BLE001 - it is the outcome that the caller looks at
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(outcome, range(count)))


def as_processes(count: int, run: Callable[[Processes], Any], *, patience: float = PATIENCE_SECONDS) -> list[Any]:
    """Run as so many processes: by rank, what each returned or raised."""
    world = World(count, patience)
    return on_threads(count, lambda rank: run(ThreadProcesses(world, rank)))
