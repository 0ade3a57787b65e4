"""Targets, what is in them, and jobs that write to them without converting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distconv.commit.journal import Description
from distconv.commit.staging import Staging
from distconv.commit.target import Target

JOB = Description(result="release", version="1", directories={}, options={}, definitions="", sources={}, files="")
TRACKER = "latest_checkpointed_iteration.txt"
FILE = "mp_rank_00/file.pt"
OTHER_ITERATION = {"iter_0000010/": "", "iter_0000010/x": "training", TRACKER: "10"}


def target(directory: Path, iteration: str | None = "release") -> Target:
    return Target(directory=directory, iteration=iteration)


def tree(directory: Path, *, hidden: bool = True) -> dict[str, str]:
    """The files below a directory with their contents; directories end in a slash."""
    return {
        f"{path.relative_to(directory)}{'/' * path.is_dir()}": "" if path.is_dir() else path.read_text()
        for path in sorted(directory.rglob("*"))
        if hidden or not any(part.startswith(".") for part in path.relative_to(directory).parts)
    }


def plant(directory: Path, content: dict[str, str]) -> None:
    """Make what `tree` describes."""
    for name, text in content.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if name.endswith("/") else path.write_text(text)


def result(text: str) -> dict[str, str]:
    """The tree of a result with one file."""
    return {"mp_rank_00/": "", FILE: text}


def committed(text: str) -> dict[str, str]:
    """The tree of a target directory with a result that the tracker points to."""
    return {
        "release/": "",
        **{f"release/{name}": content for name, content in result(text).items()},
        TRACKER: "release",
    }


def staged(
    found: Target, text: str = "new", *, overwrite: bool = True, **settings: Any
) -> tuple[Staging, dict[str, int]]:
    """A job that has written one file, and what its writer says of it."""
    staging = Staging(found, **settings)
    staging.claim(JOB, overwrite=overwrite)
    return staging, written(staging, text)


def written(staging: Staging, text: str = "new") -> dict[str, int]:
    plant(staging.begin(durable=False), result(text))
    return {FILE: len(text)}


def put(found: Target, text: str, *, durable: bool = False) -> None:
    """A whole job."""
    staging, files = staged(found, text)
    staging.commit(files, durable=durable)
    staging.close()
