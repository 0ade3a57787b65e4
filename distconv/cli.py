"""The command line: Hydra composes the configuration, this module turns every outcome into text and an exit status.

Owns the words for what Hydra rejects, the connection to the other processes, and the exit status: 0 done, 1 failed,
2 wrong input. Only rank 0 talks.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from distconv.catalogue import Definitions, Head, read_heads
from distconv.config import JobConfig, parse_config
from distconv.errors import DistconvError, InputError, LauncherError
from distconv.interruption import end_politely
from distconv.job import run_job
from distconv.processes import Processes, connect, launch
from distconv.report import Reporter

if TYPE_CHECKING:
    from importlib.abc import Traversable

# What Hydra says of a key that does not exist, and of a value that a group of keys cannot have.
_REJECTED_KEY = re.compile(r"Could not override '([^']+)'|Error merging override ([^=\s]+)=\S*")
# What Hydra says of a definition that inherits from one that is not there.
_HEIR = re.compile(r"In '(model/.+?)'")
# What Hydra raises of a command line, or of a configuration file, that it cannot compose; of a definition that inherits
# from itself, Python speaks.
_NOT_COMPOSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError)
# How long a process that was interrupted lets the others clean up before it leaves.
_FAREWELL_SECONDS = 10


def main() -> int:
    """Run the command line; the exit status."""
    try:
        start = launch(os.environ)
    except LauncherError as error:
        # Every process says it: none knows of the others.
        Reporter(rank=0).complain(f"distconv: {error}")
        return error.exit_status
    rank = start.rank
    reporter = Reporter(rank)
    processes: Processes | None = None

    failure: Exception | None = None

    def task(content: DictConfig) -> None:
        nonlocal processes, failure
        try:
            config, chosen = _parsed(content)
            if processes is None:
                processes = connect(start)
            run_job(config, chosen, Definitions(heads=_heads, compose=_composed), processes, reporter)
        except Exception as error:  # noqa: BLE001 - Hydra would print it in its own words; it is dealt with below
            failure = failure or error

    # Hydra then leaves its own errors to the caller, too; this is its documented switch.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    end_politely()
    try:
        with _quiet_unless_first(rank):
            overrides = _flags_first()
            with _in_own_words(overrides):
                hydra.main(version_base="1.3", config_path="pkg://distconv.conf", config_name="config")(task)()
        if failure is not None:
            raise failure
        status = 0
    except DistconvError as error:
        reporter.complain(f"distconv: {error}")
        status = error.exit_status
    except SystemExit as leave:
        status = int(leave.code or 0)
    except KeyboardInterrupt:
        reporter.complain("distconv: interrupted; nothing was left in the target")
        if processes is not None:
            processes.close(_FAREWELL_SECONDS)
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort: say who failed, and let no process wait for this one
        text = "".join(traceback.format_exception(error))
        Reporter(rank=0).complain(f"{text}distconv: rank {rank}: unexpected failure")
        if processes is not None:
            processes.abort()
        return 1
    if processes is None and status and not isinstance(failure, LauncherError):
        # A launcher ends all processes when the first has left: let rank 0 speak before.
        with contextlib.suppress(LauncherError):
            processes = connect(start)
    if processes is not None:
        processes.close()
    return status


def _flags_first() -> Sequence[str]:
    """Put the flags of the command line before the options, the only order that Hydra understands; the options."""
    words = sys.argv[1:]
    overrides: list[str] = get_args_parser().parse_intermixed_args(words).overrides
    for word in overrides:
        words.remove(word)
    sys.argv[1:] = [*words, *overrides]
    return overrides


def _parsed(content: DictConfig) -> tuple[JobConfig, tuple[str, Mapping[str, Any]] | None]:
    """The configuration, and the name and content of the model definition if one was named."""
    plain = _plain(content)
    model = plain.get("model")
    if model is None:
        return parse_config(plain), None
    name = HydraConfig.get().runtime.choices.get("model")
    if name is None:
        raise InputError("model: give one definition, +model=NAME; model.KEY=… then changes it")
    if not isinstance(model, Mapping):
        raise InputError(f"model definition {name}: expected a mapping, found {model!r}")
    name = name.removesuffix(".yaml")
    _check_unique(name)
    return parse_config(plain), (name, model)


def _plain(content: Any) -> dict[str, Any]:
    with _in_own_words(()):
        plain = OmegaConf.to_container(content, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _heads() -> Mapping[str, Head]:
    """What the model definitions on Hydra's search path say that they are for."""
    return read_heads(_search_path(), _composed)


def _search_path() -> Sequence[Traversable]:
    places: Mapping[str, Callable[[str], Traversable]] = {"pkg": files, "file": Path}
    sources = HydraConfig.get().runtime.config_sources
    return [places[each.schema](each.path) for each in sources if each.schema in places]


def _check_unique(name: str) -> None:
    """Hydra would take the first definition of a name, and say nothing of the others."""
    paths = (root.joinpath("model").joinpath(f"{name}.yaml") for root in _search_path())
    found = [str(path) for path in paths if path.is_file()]
    if len(found) > 1:
        raise InputError(f"+model={name}: {found[1]} has the name of {found[0]}; give it another one")


def _composed(name: str) -> Mapping[str, Any]:
    """A model definition as Hydra composes it, from the search path that this job has."""
    _check_unique(name)
    overrides = [*HydraConfig.get().overrides.hydra, f"+model={name}"]
    loader = GlobalHydra.instance().config_loader()
    with _in_own_words(()):
        content = loader.load_configuration("config", overrides, RunMode.RUN, validate_sweep_overrides=False).model
    return _plain(content)


@contextlib.contextmanager
def _quiet_unless_first(rank: int) -> Iterator[None]:
    if rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _in_own_words(overrides: Sequence[str]) -> Iterator[None]:
    """What Hydra cannot compose of these options and the files that they name is wrong input."""
    try:
        yield
    except _NOT_COMPOSED as error:
        raise InputError(_explained(error, overrides)) from None


def _explained(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra rejected of the command line, or of a file, in terms of this program."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).partition("/")
        options = list(error.options or ())
        if heir := _HEIR.match(str(error)):
            return f"{heir[1]}.yaml: defaults: no model definition {name}; action=models lists them"
        if group == "model" and options:
            near = difflib.get_close_matches(name, options, 1, cutoff=0.4)
            hint = f"; did you mean +model={near[0]}?" if near else ""
            return f"+model={name}: no such model definition{hint}\nknown: {', '.join(options)}"
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {error}\na name with {{ }} in it needs quotes"
    if isinstance(error, UnicodeDecodeError):
        return f"a configuration file, such as the model definition, is not UTF-8: {error}"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, RecursionError):
        return "defaults: a model definition inherits from itself"
    if isinstance(error, InterpolationResolutionError):
        return (
            f"{error.full_key}: {str(error).splitlines()[0]}; ${{…}} stands for the value of an option, "
            "a placeholder of a rule is {…}"
        )
    wrong = [word for word in overrides if not _is_override(word)]
    if wrong:
        return (
            f"{wrong[0]}: not of the form KEY=VALUE; a value with = , ( ) [ ] {{ }} or a blank in it needs own quotes: "
            "'target=\"/data/a=b\"'; python -m distconv --help lists the options"
        )
    known = list(_keys(OmegaConf.create((files("distconv.conf") / "config.yaml").read_text())))
    match = _REJECTED_KEY.search(str(error))
    if match is None:
        return f"{error}\npython -m distconv --help lists the options"
    key = match[1] or match[2]
    if key == "model" or (key.startswith("model.") and not any(word.startswith("+model=") for word in overrides)):
        return f"{key} is not in the configuration by default: write +model=NAME"
    if key.startswith("model."):
        return f"{key}: the model definition has no such key; write +{key}=…"
    members = [each.removeprefix(f"{key}.") for each in known if each.startswith(f"{key}.")]
    if members:
        given = match[0].rpartition(" ")[2]
        return f"{given}: expected a group of options: {', '.join(members)}; give {key}.{members[0]}=…"
    near = [each for each in known if each.endswith(f".{key}")] or difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown option {key}{hint}\nknown: {', '.join(known)}"


def _is_override(word: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(word).key_or_group)
    except (HydraException, ValueError):
        return False


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if not prefix and key in ("hydra", "defaults"):
            continue
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
