"""Literal values on the command line, although the grammars of Hydra and OmegaConf parse them.

Owns the quoting of paths for both grammars, the values that Hydra would take for files, and the expansion of `~` and
`$VAR`. Never decides which options are paths: their kinds do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from distconv.fields import keys_of
from distconv.formats.registry import Options
from distconv.kinds import Kind
from distconv.path_kinds import LIST_MARK, Directories, FilePaths, PathKind

# A value in Hydra's quotes; a quote inside has an odd number of backslashes before it.
_QUOTED = re.compile(r"""(["'])(?:(?!\1)[^\\]|\\.)*\1""", re.DOTALL)
# Options whose keys are those of folders beside `config.yaml`, and the key under which their values pass Hydra.
_FOLDERS = ("dialect",)
_NAME = "name"
# OmegaConf's mark of a missing value, which cannot be quoted.
_MISSING = "???"


def _paths() -> dict[str, Kind[Any]]:
    """The dotted keys of options that are paths, with their kinds."""
    return {key: each.kind for key, each in keys_of(Options) if isinstance(each.kind, PathKind)}


def literal(text: str) -> str:
    """The text as a value of Hydra's grammar that Hydra and OmegaConf read as exactly this text.

    The one exception is `???`, which becomes `./???`, the same path.
    """
    if text == _MISSING:
        text = f"./{_MISSING}"
    # A backslash counts before ${ for OmegaConf, and before a quote for Hydra, and nowhere else.
    resolved = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    quoted = re.sub(r'(\\+)(?="|\Z)', r"\1\1", resolved).replace('"', r"\"")
    return f'"{quoted}"'


def with_literal_path(word: str) -> str:
    """A word of the command line, with the value of a path option quoted for Hydra's grammar.

    Values already in quotes of that grammar, lists where the option takes some, and `null`, are unchanged.
    """
    key, _, value = word.partition("=")
    kind = _paths().get(key.lstrip("+"))
    if kind is None or value in ("", "null") or _QUOTED.fullmatch(value):
        return word
    if value.startswith("[") and isinstance(kind, FilePaths):
        return word
    return f"{key}={literal(value)}"


def with_group_as_value(word: str) -> str:
    """A word of the command line, with the value of an option wrapped whose key is a folder of configurations, too.

    Hydra would take the value for a file to compose; a mapping is a value even to it. Lists of values, as for
    `--multirun`, are wrapped one by one. `without_wrapping` takes the values out again.
    """
    key, equals, value = word.partition("=")
    if key not in _FOLDERS or not equals:
        return word
    values = [value] if value.startswith("[") or _QUOTED.fullmatch(value) else value.split(",")
    return f"{key}={','.join(f'{{{_NAME}:{each}}}' for each in values)}"


def as_typed(word: str) -> str:
    """The word of which `with_group_as_value` made this one, for messages."""
    key, _, value = word.partition("=")
    return f"{key}={value[len(_NAME) + 2 : -1]}" if key in _FOLDERS and value.startswith(f"{{{_NAME}:") else word


def without_wrapping(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a configuration with the values that `with_group_as_value` has wrapped."""
    wrapped = {key: content[key] for key in _FOLDERS if isinstance(content.get(key), Mapping)}
    return {**content, **{key: value[_NAME] for key, value in wrapped.items() if value.keys() == {_NAME}}}


def with_expanded_paths(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a configuration with `~` and environment variables in paths expanded, as in a shell."""
    return _expanded(content, _paths(), "")


def _expanded(content: Mapping[str, Any], paths: Mapping[str, Kind[Any]], prefix: str) -> dict[str, Any]:
    expanded: dict[str, Any] = {}
    for key, value in content.items():
        kind = paths.get(prefix + key)
        if isinstance(value, Mapping):
            expanded[key] = _expanded(value, paths, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and kind is not None:
            expanded[key] = [_path(each, kind) for each in value]
        else:
            expanded[key] = value if kind is None else _path(value, kind)
    return expanded


def _path(value: Any, kind: Kind[Any]) -> Any:
    if not isinstance(value, str):
        return value
    mark = LIST_MARK if isinstance(kind, Directories) and value.startswith(LIST_MARK) else ""
    return mark + os.path.expandvars(os.path.expanduser(value.removeprefix(mark)))
