"""The door for programs: convert, plan, verify and inspect checkpoints from Python.

Owns how a call becomes a job: options, model definitions, processes, progress. A call prints nothing, touches no signal
handler and no environment variable, and raises the errors that the command line prints. Planning imports neither torch
nor hydra. What happens is logged by the logger `distconv` of the standard library's `logging`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from distconv.errors import DistconvError, InputError
from distconv.formats.registry import Options
from distconv.job import Observer, Outcome, run_job
from distconv.models.library import Library
from distconv.runtime.processes import Processes, connect_to

# A phase in words, the bytes of it that are done on this process, and the bytes in all.
Progress = Callable[[str, int, int], object]
# A path, as text or as an object that has one.
AnyPath = str | os.PathLike[str]


def convert(
    source: AnyPath | None = None,
    target: AnyPath | None = None,
    *,
    model: str | None = None,
    config_dir: AnyPath | None = None,
    options: Options | None = None,
    processes: str | None = None,
    progress: Progress | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Convert a checkpoint; the report as plain data, as `report=FILE` writes it.

    Args:
        source: directory of the checkpoint.
        target: directory that gets the result.
        model: name of a model definition; left out, the configuration of the model or the source's record chooses it.
        config_dir: directory of model definitions of your own, as `--config-dir` of the command line.
        options: all options as a record, instead of `source`, `target` and `given`.
        processes: `None` for this process alone; `"torchrun"`, `"mpi"`, or `"auto"` for either, as the launcher that
            started the program: then all ranks make the call together, and all get the report.
        progress: called with a phase, the bytes of it that are done on this process, and its bytes in all; from
            several threads, one at a time.
        given: options by their names on the command line; groups as mappings or records, such as `layout`.

    Raises:
        InputError: wrong input; nothing has been written. It is a `ValueError`, and has all `problems` of its kind.
        JobError: the input was right and the job failed all the same; no result was left.

    Example:
        >>> from distconv import Layout, convert
        >>> report = convert("/ckpt/Qwen2-VL-7B", "/ckpt/mm", layout=Layout(tp=2, stages={"text": [1, 10, 10, 7]}))
        >>> len(report["files"])
        8
    """
    asked = _options("convert", source, target, options, given)
    return _run(asked, model, config_dir, processes, progress).report


def plan(
    source: AnyPath | None = None,
    target: AnyPath | None = None,
    *,
    model: str | None = None,
    config_dir: AnyPath | None = None,
    options: Options | None = None,
    processes: str | int | None = None,
    **given: Any,
) -> dict[str, Any]:
    """What a conversion would do, as plain data: files, stages, and per process bytes and memory. Writes nothing.

    Arguments and errors are those of `convert`; a number of `processes` plans for so many.

    Example:
        >>> from distconv import Layout, plan
        >>> report = plan("/ckpt/Qwen2-VL-7B", "/ckpt/mm", layout=Layout(tp=2, pp=4))
        >>> report["layout"]["stages"]["text"]
        [[7, 7, 7, 7]]
    """
    if isinstance(processes, int):
        given, processes = {**given, "processes": processes}, None
    return _run(_options("plan", source, target, options, given), model, config_dir, processes, None).report


def verify(
    source: AnyPath | None = None,
    target: AnyPath | None = None,
    *,
    model: str | None = None,
    config_dir: AnyPath | None = None,
    options: Options | None = None,
    processes: str | None = None,
    progress: Progress | None = None,
    **given: Any,
) -> list[str]:
    """Compare an existing result, byte for byte, with what its source says; the differences in words, none if equal.

    Arguments and errors are those of `convert`; a difference is no error.

    Example:
        >>> from distconv import Layout, verify
        >>> verify("/ckpt/Qwen2-VL-7B", "/ckpt/mm", layout=Layout(tp=2, stages={"text": [1, 10, 10, 7]}))
        []
    """
    asked = _options("verify", source, target, options, given)
    return _run(asked, model, config_dir, processes, progress).differences


def inspect(
    directory: AnyPath,
    *,
    model: str | None = None,
    config_dir: AnyPath | None = None,
    reference: AnyPath | None = None,
    iteration: str | int | None = None,
) -> dict[str, Any]:
    """What a checkpoint directory is, as plain data.

    Its format, the family of its model, layout, iterations, parameters, element types and bytes; `problems`: what is
    missing or wrong; `notes`: what is odd; `tensors`: file, name, element type and shape.

    Args:
        directory: the directory of a checkpoint.
        model: name of the model definition, where the directory does not say it.
        config_dir: directory of model definitions of your own.
        reference: the Hugging Face directory of the model that a trained checkpoint came from.
        iteration: of a directory that holds several; left out, the latest.

    Raises:
        InputError: no such directory.

    Example:
        >>> from distconv import inspect
        >>> found = inspect("/ckpt/Qwen2-VL-7B")
        >>> found["source_format"], found["model"], found["problems"]
        ('hf', 'qwen2vl', [])
    """
    given = {"reference": reference, "iteration": iteration}
    return _run(_options("inspect", directory, None, None, given), model, config_dir, None, None).report


def _options(
    action: str, source: AnyPath | None, target: AnyPath | None, options: Options | None, given: Mapping[str, Any]
) -> Options:
    """The options of a call."""
    paths = {key: path for key, path in (("source", source), ("target", target)) if path is not None}
    if options is None:
        return Options.from_content({**paths, **given, "action": action})
    if paths or given:
        raise InputError(f"options: they are all the options; leave out {', '.join([*paths, *given])}")
    return replace(options, action=action)


def _definitions(model: str | None, config_dir: AnyPath | None) -> tuple[Library, tuple[str, Mapping[str, Any]] | None]:
    """The library of model definitions, and name and content of the one that was named."""
    library = Library.of_package(None if config_dir is None else Path(config_dir))
    return library, None if model is None else (model, library.content(model))


def _run(
    options: Options,
    model: str | None,
    config_dir: AnyPath | None,
    processes: str | None,
    progress: Progress | None,
) -> Outcome:
    library, chosen = _definitions(model, config_dir)
    observer = Observer() if progress is None else _Progress(progress)
    with _connected(processes) as group:
        return run_job(options, chosen, library, group, observer)


@contextmanager
def _connected(which: str | None) -> Iterator[Processes]:
    """The processes of a call. After an error of all of them they leave together; else nobody can be waited for."""
    group = connect_to(which, os.environ)
    try:
        yield group
    except DistconvError:
        group.close()
        raise
    group.close()


class _Progress(Observer):
    """Tells a function of a program."""

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self._phase, self._done, self._nbytes = "", 0, 0

    def begin(self, phase: str, nbytes: int) -> None:
        """Tell that it begins."""
        self._phase, self._done, self._nbytes = phase, 0, nbytes
        self._tell(phase, 0, nbytes)

    def advance(self, nbytes: int) -> None:
        """Tell how much is done."""
        self._done += nbytes
        self._tell(self._phase, self._done, self._nbytes)
