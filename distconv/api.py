"""The door for programs: convert, plan, verify, inspect, compare, draw up definitions, clean up after killed jobs.

Owns how a call becomes a job: options, model definitions, processes, progress. A call prints nothing, touches no signal
handler and no environment variable, and raises the errors that the command line prints; how it was written, such as a
keyword that does not exist, is a `TypeError`. Planning imports neither torch nor hydra. What happens is logged by the
logger `distconv` of the standard library's `logging`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.campaign.run import run
from distconv.errors import JobError, joined, unknown_keys
from distconv.fields import options_of
from distconv.formats.registry import Options
from distconv.models.library import Library
from distconv.observer import Observer, Outcome, Progress, Telling
from distconv.planning.choice import Chosen
from distconv.runtime.agreement import on_all
from distconv.runtime.launch import connected

# A path, as text or as an object that has one.
AnyPath = str | os.PathLike[str]
# Options that a call says in another way, or that are of the terminal alone.
_NOT_GIVEN = ("action", "source", "target", "processes", "tensors")
# What calls take beside the options.
_OF_A_JOB = ("source", "target", "model", "config_dir", "options", "processes", "progress")
_OF_A_DIRECTORY = ("directory", "model", "config_dir", "processes")


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
        source: directory of the checkpoint; paths are taken as they are, nothing in them is expanded.
        target: directory that gets the result.
        model: name of a model definition; left out, the configuration of the model or the source's record chooses it.
        config_dir: directory of model definitions of your own, as `--config-dir` of the command line.
        options: all options as a record, instead of `source`, `target` and `given`; its `action` does not count. Fields
            have the types that they are held in: paths are taken as text, too, but to a type checker they are `Path`s.
        processes: `None` for this process alone; `"torchrun"`, `"mpi"`, or `"auto"` for either, as the launcher that
            started the program: then all ranks make the call together, and all get the report.
        progress: called with a phase, the bytes of it that are done on this process, and its bytes in all; from
            several threads, one at a time. An error that it raises ends the job, on all ranks.
        given: options by their names on the command line; groups as mappings or records, such as `layout`. With
            `sources`, a pattern or a list of directories, instead of `source` the report is that of all: `checkpoints`
            has the source, target, outcome (`done`, `skipped`, `failed`), `why` and `report` of each.

    Raises:
        InputError: wrong input; nothing has been written. It is a `ValueError`, and has all `problems` of its kind.
        UnfinishedError: with `sources`, after all jobs, that some failed; it is a `JobError` with the `report` of all.
        JobError: the input was right and the job failed all the same; no result was left.
        TypeError: a keyword that is no option, or options beside `options`.

    Example:
        >>> from distconv import Layout, convert
        >>> report = convert("/ckpt/Qwen2-VL-7B", "/ckpt/mm", layout=Layout(tp=2, stages={"text": [1, 10, 10, 7]}))
        >>> len(report["files"])
        8
    """
    asked = _asked("convert", source, target, options, given)
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
        >>> len(report["files"]), report["layout"]["stages"]["vision"]
        (8, [[32, 0, 0, 0]])
    """
    asked = _asked("plan", source, target, options, given)
    if isinstance(processes, int):
        asked, processes = {**asked, "processes": processes}, None
    return _run(asked, model, config_dir, processes, None).report


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

    Without a source it is compared with its own record, `distconv.json`: its files by size and checksum.

    Arguments and errors are those of `convert`; a difference is no error, nor is a file that is missing or damaged.

    Example:
        >>> from distconv import Layout, verify
        >>> verify("/ckpt/Qwen2-VL-7B", "/ckpt/mm", layout=Layout(tp=2, stages={"text": [1, 10, 10, 7]}))
        []
    """
    asked = _asked("verify", source, target, options, given)
    return _run(asked, model, config_dir, processes, progress).differences


def inspect(
    directory: AnyPath,
    *,
    model: str | None = None,
    config_dir: AnyPath | None = None,
    processes: str | None = None,
    **given: Any,
) -> dict[str, Any]:
    """What a checkpoint directory is, as plain data.

    Its format, the family of its model, layout, iterations, parameters, element types and bytes; `problems`: what is
    missing or wrong; `notes`: what is odd; `tensors`: file, name, element type and shape.

    Args:
        directory: the directory of a checkpoint.
        model: name of the model definition, where the directory does not say it.
        config_dir: directory of model definitions of your own.
        processes: as of `convert`.
        given: options that say something about a source: `iteration`, of a directory that holds several; `reference`,
            the Hugging Face directory of the model that a trained checkpoint came from; `source_layout`.

    Raises:
        InputError: no such directory.
        TypeError: a keyword that is no option.

    Example:
        >>> from distconv import inspect
        >>> found = inspect("/ckpt/Qwen2-VL-7B")
        >>> found["source_format"], found["model"], found["problems"]
        ('hf', 'qwen2vl', [])
    """
    return _run(_asked("inspect", directory, None, None, given), model, config_dir, processes, None).report


def diff(
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
    """Compare two checkpoints of any formats, tensor by tensor, under published names; what differs, as plain data.

    Lists of `name`, `dtype` and `shape`, empty where nothing differs: `only_in_source`, `only_in_target`; and
    `different`, with both forms, the number of elements `compared` (`None`: they cannot be), how many are `differing`,
    the index of the `first`, and of floats the `largest` difference, with its index and both numbers. `copies`: what a
    checkpoint stores several times, and not alike, in words. `notes`: what was not compared.

    Arguments and errors are those of `convert`. `given`: options by which checkpoints are read: `reference`, of one
    that does not say what model it is; `source_layout`, `source_dialect`, and `layout`, `dialect` of the target.

    Example:
        >>> from distconv import diff
        >>> found = diff("/ckpt/Qwen2-VL-7B", "/ckpt/mm")
        >>> found["only_in_source"], found["only_in_target"], found["different"]
        ([], [], [])
    """
    asked = _asked("diff", source, target, options, given)
    return _run(asked, model, config_dir, processes, progress).report


def skeleton(
    source: AnyPath,
    target: AnyPath | None = None,
    *,
    config_dir: AnyPath | None = None,
    processes: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a first definition of a published model that no definition knows; a report, with the text as `definition`.

    Names are grouped by layer and expert, sizes recognised in `config.json`, and rules taken from definitions of like
    names; `undecided` is the number of lines with a `TODO`, which a person decides.

    Args:
        source: the Hugging Face directory of the model.
        target: the file that gets the definition, `model/NAME.yaml`; without one it is in the report alone.
        config_dir: directory of model definitions of your own.
        processes: as of `convert`.
        overwrite: whether a file that is there already is replaced.

    Raises:
        InputError: a model that has a definition, a directory that is none, a file that cannot be written.

    Example:
        >>> from distconv import skeleton
        >>> skeleton("/ckpt/MyModel", "my_models/model/mine.yaml")["undecided"]
        2
    """
    asked = _asked("skeleton", source, target, None, {"overwrite": overwrite})
    return _run(asked, None, config_dir, processes, None).report


def clean(target: AnyPath, *, processes: str | None = None) -> dict[str, Any]:
    """Remove what killed jobs left in or beside a target directory, never what a running job uses; a report.

    Of `removed` and `kept` the report has paths, bytes, and whether a job is running that uses them; in `notes` what
    became of commits that were unfinished.

    Args:
        target: the directory that got, or was to get, the result.
        processes: as of `convert`.

    Raises:
        InputError: no such directory, or it cannot be read.
        JobError: something could not be removed.

    Example:
        >>> from distconv import clean
        >>> clean("/ckpt/mm")["removed"]
        []
    """
    outcome = _run(_asked("clean", None, target, None, {}), None, None, processes, None)
    if outcome.differences:
        raise JobError(joined(outcome.differences))
    return outcome.report


def _asked(
    action: str, source: AnyPath | None, target: AnyPath | None, options: Options | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of the options that a call asks for.

    Raises:
        TypeError: a keyword that is no option, or options beside `options`.
    """
    paths = {key: path for key, path in (("source", source), ("target", target)) if path is not None}
    known = [key for key in options_of(Options) if key not in _NOT_GIVEN]
    unknown = dict.fromkeys(key for key in given if key not in known)
    if unknown:
        own = _OF_A_DIRECTORY if action == "inspect" else _OF_A_JOB
        raise TypeError(f"{action}(): {'; '.join(unknown_keys(unknown, [*own, *known]))}")
    if options is None:
        return {**paths, **given, "action": action}
    if paths or given:
        raise TypeError(f"{action}(): options= holds all options; leave out {', '.join([*paths, *given])}")
    return {**{key: getattr(options, key) for key in options_of(Options)}, "action": action}


def _run(
    asked: Mapping[str, Any],
    model: str | None,
    config_dir: AnyPath | None,
    processes: str | None,
    progress: Progress | None,
) -> Outcome:
    def prepare() -> tuple[Options, Library, Chosen | None]:
        options = Options.from_content(asked)
        library = Library.of_package(None if config_dir is None else Path(config_dir))
        return options, library, None if model is None else (model, library.content(model))

    observer = Observer() if progress is None else Telling(progress)
    with connected(processes, os.environ) as group:
        (options, library, chosen), _ = on_all(group, prepare, lambda _: None)
        return run(options, chosen, library, group, observer)
