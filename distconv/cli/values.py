"""Values of the command line: paths are taken as they are, although Hydra's grammar and OmegaConf's read them.

Owns the way around both grammars, and what stands for something else in a path: `~` and `$VAR`. Which options are paths
the table of options says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from distconv.fields import FilePath, options_of
from distconv.formats.registry import Options

# A value that is in quotes as Hydra understands them: a quote inside has an odd number of backslashes before it.
_QUOTED = re.compile(r"""(["'])(?:(?!\1)[^\\]|\\.)*\1""", re.DOTALL)
# What OmegaConf takes for a value that is yet to be given, and cannot be told otherwise.
_MISSING = "???"


def _paths() -> list[str]:
    return [key for key, each in options_of(Options).items() if isinstance(each.kind, FilePath)]


def literal(text: str) -> str:
    """A value of Hydra's grammar that is this text after Hydra, and OmegaConf, have read it.

    The one exception is `???`, which becomes `./???`, the same path.
    """
    if text == _MISSING:
        text = f"./{_MISSING}"
    # A backslash counts before ${ for OmegaConf, and before a quote for Hydra, and nowhere else.
    resolved = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    quoted = re.sub(r'(\\+)(?="|\Z)', r"\1\1", resolved).replace('"', r"\"")
    return f'"{quoted}"'


def with_literal_path(word: str) -> str:
    """A word of the command line; if it gives a path, then in terms of Hydra's grammar.

    A value in quotes of that grammar, and `null`, are left to Hydra.
    """
    key, _, value = word.partition("=")
    if key.lstrip("+") not in _paths() or value in ("", "null") or _QUOTED.fullmatch(value):
        return word
    return f"{key}={literal(value)}"


def with_expanded_paths(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a configuration with `~` and environment variables of its paths replaced, as a shell would."""
    paths = {key: content[key] for key in _paths() if isinstance(content.get(key), str)}
    return {**content, **{key: os.path.expandvars(os.path.expanduser(value)) for key, value in paths.items()}}
