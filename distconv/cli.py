"""The command line: Hydra composes the configuration, this module turns every outcome into text and an exit status.

Owns the words for what Hydra rejects, the connection to the other processes, and the exit status: 0 done, 1 failed,
2 wrong input. Only rank 0 talks.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import signal
import traceback
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distconv.config import JobConfig, parse_config
from distconv.errors import DistconvError, InputError
from distconv.job import run_job
from distconv.processes import Processes, connect, launch
from distconv.report import Reporter

_UNKNOWN_KEY = re.compile(r"Could not override '([^']+)'")


def main() -> int:
    """Run the command line; the exit status."""
    try:
        start = launch(os.environ)
    except InputError as error:
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
            run_job(config, chosen, _definitions, processes, reporter)
        except Exception as error:  # noqa: BLE001 - Hydra would print it in its own words; it is dealt with below
            failure = failure or error

    # Hydra then leaves its own errors to the caller, too; this is its documented switch.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _quiet_unless_first(rank):
            hydra.main(version_base="1.3", config_path="pkg://distconv.conf", config_name="config")(task)()
        if failure is not None:
            raise failure
        status = 0
    except DistconvError as error:
        reporter.complain(f"distconv: {error}")
        status = error.exit_status
    except (HydraException, OmegaConfBaseException) as error:
        reporter.complain(f"distconv: {_explained(error)}")
        status = InputError.exit_status
    except KeyboardInterrupt:
        reporter.complain("distconv: interrupted; nothing was left in the target")
        status = 130
    except Exception as error:  # noqa: BLE001 - the last resort: say who failed, and let no process wait for this one
        text = "".join(traceback.format_exception(error))
        Reporter(rank=0).complain(f"{text}distconv: rank {rank}: unexpected failure")
        if processes is not None:
            processes.abort()
        return 1
    if processes is not None and status != 130:
        processes.close()
    return status


def _parsed(content: DictConfig) -> tuple[JobConfig, tuple[str, Mapping[str, Any]] | None]:
    """The configuration, and the name and content of the model definition if one was named."""
    plain = _plain(content)
    model = plain.get("model")
    if model is not None and not isinstance(model, Mapping):
        raise InputError(f"model={model}: write +model=NAME")
    name = str(HydraConfig.get().runtime.choices.get("model"))
    return parse_config(plain), None if model is None else (name, model)


def _plain(content: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(content, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _definitions() -> Mapping[str, Mapping[str, Any]]:
    """All model definitions on Hydra's search path, composed, by name."""
    loader = GlobalHydra.instance().config_loader()
    definitions = {}
    for name in loader.get_group_options("model"):
        composed = loader.load_configuration("config", [f"+model={name}"], RunMode.RUN, validate_sweep_overrides=False)
        definitions[name] = _plain(composed.model)
    return definitions


def _terminate(*_: object) -> NoReturn:
    """Let a polite end of the job clean up, as the launchers ask for it when another process has died."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def _quiet_unless_first(rank: int) -> Iterator[None]:
    if rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _explained(error: Exception) -> str:
    """What Hydra rejected, in terms of this program."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).partition("/")
        options = list(error.options or ())
        if group == "model":
            near = difflib.get_close_matches(name, options, 1, cutoff=0.4)
            hint = f"; did you mean +model={near[0]}?" if near else ""
            return f"+model={name}: no such model definition{hint}\nknown: {', '.join(options)}"
    match = _UNKNOWN_KEY.search(str(error))
    if match:
        key = match[1]
        if key == "model":
            return "model is not in the configuration by default: write +model=NAME"
        known = list(_keys(OmegaConf.create((files("distconv.conf") / "config.yaml").read_text())))
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown option {key}{hint}\nknown: {', '.join(known)}"
    return (
        f"{error}\noptions are written KEY=VALUE; a value with = , ( ) [ ] {{ }} or a blank in it needs own quotes: "
        "'target=\"/data/a=b\"'; python -m distconv --help lists the options"
    )


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if not prefix and key in ("hydra", "defaults"):
            continue
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
