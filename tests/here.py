"""Jobs in this process, without the command line: composing its configuration takes longer than a tiny job."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import yaml

from distconv.cli.show import Reporter
from distconv.formats.registry import Options
from distconv.job import run_job
from distconv.models.library import Definitions
from distconv.runtime.processes import SingleProcess
from tests.configuration import content
from tests.megatron_sources import definition_content

NAMES = [path.name[:-5] for path in (files("distconv.conf") / "model").iterdir() if path.name.endswith(".yaml")]


def run_here(*options: str, **changes: Any) -> None:
    """Run a job with options of the command line, and changes such as `layout__tp=2`; raises what is wrong."""
    given = {**changed(options), **changes}
    name = given.pop("model", None)
    chosen = None if name is None else (name, definition_content(name))
    definitions = Definitions(heads=lambda: {key: definition_content(key) for key in NAMES}, compose=definition_content)
    run_job(Options.from_content(content(**given)), chosen, definitions, SingleProcess(), Reporter(rank=1))


def changed(options: Iterable[str]) -> dict[str, Any]:
    """Options of the command line, as changes of the configuration."""
    pairs = (option.removeprefix("+").split("=", 1) for option in options)
    return {key.replace(".", "__"): yaml.safe_load(value) for key, value in pairs}
