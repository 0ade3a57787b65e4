"""The command line as Hydra composes it: validated options, and model definitions by name.

Owns all uses of Hydra, and calls a function for every job of a command line. Prints nothing, and knows no processes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from distconv.cli.plain import Job
from distconv.cli.rejections import in_own_words
from distconv.cli.show import lose_reader
from distconv.cli.values import (
    literal,
    with_expanded_paths,
    with_group_as_value,
    with_literal_path,
    without_wrapping,
)
from distconv.errors import InputError
from distconv.formats.registry import Options
from distconv.models.library import Library

if TYPE_CHECKING:
    from importlib.abc import Traversable

# Flags with which Hydra runs no job.
_COMMANDS = ("hydra_help", "cfg", "info", "shell_completion")


def run_command_line(job: Job, *, quiet: bool) -> None:
    """Run every job of the command line; `quiet`: discard the output of Hydra.

    Raises:
        InputError: a command line or file that Hydra cannot compose, or options that are wrong.
        SystemExit: a command of Hydra itself, such as to print the configuration, is done.
        Exception: the first error of a job.
    """
    failures: list[Exception] = []
    begun = 0

    def task(content: DictConfig) -> None:
        nonlocal begun
        begun += 1
        try:
            library = _library()
            _check_named(library, overrides)
            job(*_parsed(content), library)
        except Exception as error:  # noqa: BLE001 - Hydra would print it in its own words
            failures.append(error)

    # Hydra's documented switch: it raises its own errors, too.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    flags = _flags(sys.argv[1:])
    sweeps = flags.multirun and not any(getattr(flags, each) for each in _COMMANDS)
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(_silence())
        overrides = _arrange_words(stack)
        try:
            with in_own_words(overrides):
                hydra.main(version_base="1.3", config_path="pkg://distconv.conf", config_name="config")(task)()
        except BrokenPipeError:
            # From the output of Hydra, such as the configuration; errors of jobs are kept in the task.
            lose_reader()
    if failures:
        raise failures[0]
    if sweeps and not begun:
        raise InputError(f"--multirun {' '.join(overrides)}: means no job: a list of values is empty; nothing to do")


def _arrange_words(stack: contextlib.ExitStack) -> Sequence[str]:
    """Put the flags in `sys.argv` before the options, the only order that Hydra understands; returns the options.

    Paths are quoted for Hydra's grammar, except with `--multirun`, where a value may be a list. With `--multirun`, the
    files that Hydra writes go to a temporary directory, removed with `stack`.
    """
    words = sys.argv[1:]
    found = _flags(words)
    overrides: list[str] = found.overrides
    config_dir = None if found.config_dir is None else Path(found.config_dir)
    _check_named(Library.of_package(config_dir), overrides)
    for word in overrides:
        words.remove(word)
    if found.multirun:
        words.append(f"hydra.sweep.dir={literal(stack.enter_context(tempfile.TemporaryDirectory()))}")
    else:
        overrides = [with_literal_path(word) for word in overrides]
    overrides = [with_group_as_value(word) for word in overrides]
    sys.argv[1:] = [*words, *overrides]
    return overrides


def _flags(words: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line as Hydra reads them.

    Raises:
        InputError: a flag without its value, or with another one than it may have.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return get_args_parser().parse_intermixed_args(words)
    except SystemExit:
        raise InputError(said.getvalue().strip().rpartition("error: ")[2]) from None


def _parsed(content: DictConfig) -> tuple[Options, tuple[str, Mapping[str, Any]] | None]:
    """The options, and name and content of the chosen model definition, `None` without one."""
    plain = with_expanded_paths(without_wrapping(_plain(content)))
    model = plain.pop("model", None)
    if model is None:
        return Options.from_content(plain), None
    name = HydraConfig.get().runtime.choices.get("model")
    if name is None:
        raise InputError("model: give one definition, +model=NAME; model.KEY=… then changes it")
    if not isinstance(model, Mapping):
        raise InputError(f"model definition {name}: expected a mapping, found {model!r}")
    return Options.from_content(plain), (name.removesuffix(".yaml"), model)


def _plain(content: Any) -> dict[str, Any]:
    with in_own_words(()):
        plain = OmegaConf.to_container(content, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _library() -> Library:
    """The model definitions on Hydra's search path."""
    places: Mapping[str, Callable[[str], Traversable]] = {"pkg": files, "file": Path}
    sources = HydraConfig.get().runtime.config_sources
    return Library([places[each.schema](each.path) for each in sources if each.schema in places])


def _check_named(library: Library, overrides: Sequence[str]) -> None:
    """Check every definition that a `+model` option names, in lists and quotes, too.

    Hydra itself would take the first of two with one name, and expand aliases without a limit.
    """
    values = " ".join(each.partition("=")[2] for each in overrides if each.startswith(("+model=", "+model@")))
    for name in library.names():
        if re.search(rf"(?<![\w.-]){re.escape(name)}(?:\.yaml)?(?![\w.-])", values):
            library.check(name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
