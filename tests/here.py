"""Jobs in this process, without the command line: composing its configuration takes longer than a tiny job."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from distconv.errors import JobError
from distconv.formats.registry import Options
from distconv.job import run_job
from distconv.models.library import Library
from distconv.observer import Observer, Outcome
from distconv.runtime.processes import SingleProcess
from tests.checkpoints import load_case, write_source
from tests.configuration import content

LIBRARY = Library.of_package()


def outcome_here(*options: str, **changes: Any) -> Outcome:
    """The outcome of a job with options of the command line, and changes such as `layout__tp=2`; raises errors."""
    given = {**changed(options), **changes}
    name = given.pop("model", None)
    chosen = None if name is None else (name, LIBRARY.content(name))
    return run_job(Options.from_content(content(**given)), chosen, LIBRARY, SingleProcess(), Observer())


def run_here(*options: str, **changes: Any) -> None:
    """Run such a job; raises what is wrong, differences too."""
    outcome = outcome_here(*options, **changes)
    if outcome.differences:
        raise JobError("\n".join(outcome.differences))


def in_every_format(directory: Path) -> Path:
    """The directory, with a small model in it: published (hf), of Megatron ranks (mm), and a DCP (dcp)."""
    published = str(write_source(directory / "hf", load_case("qwen2vl__tp1_pp1")))
    run_here(source=published, target=str(directory / "mm"))
    run_here(source=published, target=str(directory / "dcp"), target_format="dcp")
    return directory


def changed(options: Iterable[str]) -> dict[str, Any]:
    """Options of the command line, as changes of the configuration."""
    pairs = (option.removeprefix("+").split("=", 1) for option in options)
    return {key.replace(".", "__"): yaml.safe_load(value) for key, value in pairs}
