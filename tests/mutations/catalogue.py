"""The mutations of `mutations.yaml`: small wrong changes of the code, and the tests that must notice each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutations.yaml")


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """The text `old`, which stands once in `file`, replaced by `new`; `tests` are paths below `tests/`."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old!r} -> {self.new!r}"

    def applied(self, text: str) -> str:
        """The content of the file with the mutation.

        Raises:
            ValueError: the old text does not stand there once.
        """
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: {self.old!r} stands there {found} times, expected once")
        return text.replace(self.old, self.new)


def mutations() -> Iterator[Mutation]:
    """All mutations, in the order of the list."""
    for entry in yaml.safe_load(LIST.read_text()):
        for change in entry["changes"]:
            tests = change.get("tests", entry["tests"])
            yield Mutation(file=entry["file"], old=change["old"], new=change["new"], tests=tuple(tests))
