"""Literal paths on the command line, although the grammars of Hydra and OmegaConf parse its values.

Owns the quoting for both grammars, and the expansion of `~` and `$VAR`. Never decides which options are paths: their
kinds do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from distconv.fields import options_of
from distconv.formats.registry import Options
from distconv.kinds import FilePath

# A value in Hydra's quotes; a quote inside has an odd number of backslashes before it.
_QUOTED = re.compile(r"""(["'])(?:(?!\1)[^\\]|\\.)*\1""", re.DOTALL)
# OmegaConf's mark of a missing value, which cannot be quoted.
_MISSING = "???"


def _paths() -> list[str]:
    return [key for key, each in options_of(Options).items() if isinstance(each.kind, FilePath)]


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

    Values already in quotes of that grammar, and `null`, are unchanged.
    """
    key, _, value = word.partition("=")
    if key.lstrip("+") not in _paths() or value in ("", "null") or _QUOTED.fullmatch(value):
        return word
    return f"{key}={literal(value)}"


def with_expanded_paths(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a configuration with `~` and environment variables in paths expanded, as in a shell."""
    paths = {key: content[key] for key in _paths() if isinstance(content.get(key), str)}
    return {**content, **{key: os.path.expandvars(os.path.expanduser(value)) for key, value in paths.items()}}
