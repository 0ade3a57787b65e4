"""Command lines of plain words, composed without Hydra, whose import and grammar take as long as a small conversion.

Owns which words are plain: `KEY=VALUE` with the whole key of an option and a value that the grammars of Hydra and
OmegaConf read in one way only, and `+model=NAME`. What they make of them is what Hydra makes of them; everything else,
and whatever Hydra would reject, is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distconv.cli.values import with_expanded_paths
from distconv.fields import keys_of
from distconv.formats.registry import Options
from distconv.kinds import Kind
from distconv.models.library import Library
from distconv.path_kinds import FilePaths, PathKind

# The options of a job, the name and content of the chosen model definition, and the library of all definitions.
Job = Callable[[Options, "tuple[str, Mapping[str, Any]] | None", Library], None]

_MODEL = "+model"
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})", re.ASCII)
_SIZE = re.compile(r"[1-9][0-9]{0,17}[KMGT]i?B", re.ASCII)
# Not a number: they begin with a digit, a sign or a point, but for the words below.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*", re.ASCII)
_VALUE_OF_WORD: Mapping[str, Any] = {"null": None, "true": True, "false": False}
_NUMBERS = ("inf", "nan")
# In lists of them alone: a list is not deeper than lists of virtual stages.
_LIST = re.compile(r"\[[^\[\]]*\]|\[\[[^\[\]]*\](?:,\[[^\[\]]*\])*\]")


def composed(words: Sequence[str]) -> tuple[Options, tuple[str, Mapping[str, Any]] | None, Library] | None:
    """What a job of these words is called with; `None` where Hydra has to compose them.

    Raises:
        InputError: options that are wrong; a model definition that cannot be read.
    """
    given = _given(words)
    if given is None:
        return None
    library = Library.of_package()
    name = given.pop(_MODEL, None)
    if name is not None and name not in library.names():
        return None
    chosen = None if name is None else (name, library.content(name))
    return Options.from_content(with_expanded_paths(_nested(given))), chosen, library


def _given(words: Sequence[str]) -> dict[str, Any] | None:
    """Dotted key → value of plain words, `None` if one of them is not plain, or says a second time what a key is."""
    known = {key: each.kind for key, each in keys_of(Options)}
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key in given or (key != _MODEL and key not in known):
            return None
        try:
            given[key] = _path(text) if _is_path(known.get(key), text) else _value(text)
        except ValueError:
            return None
    # A model is a name, and is given by one that is read as that.
    return given if isinstance(given.get(_MODEL, ""), str) else None


def _is_path(kind: Kind[Any] | None, text: str) -> bool:
    return isinstance(kind, PathKind) and not (isinstance(kind, FilePaths) and text.startswith("["))


def _path(text: str) -> str | None:
    """The value of a path, which is taken as it is.

    Raises:
        ValueError: it has a sign that is one of quoting or of the grammars.
    """
    if text == "null":
        return None
    if not text or not text.isprintable() or text == "???" or "${" in text or set(text) & set("\\\"'"):
        raise ValueError(text)
    return text


def _value(text: str) -> Any:
    """The value of another option.

    Raises:
        ValueError: it is not plain.
    """
    if text.startswith("["):
        return _items(text)
    if _INTEGER.fullmatch(text):
        return int(text)
    if _SIZE.fullmatch(text):
        return text
    if not _WORD.fullmatch(text) or text.lower() in _NUMBERS:
        raise ValueError(text)
    return _VALUE_OF_WORD.get(text.lower(), text)


def _items(text: str) -> list[Any]:
    if not _LIST.fullmatch(text):
        raise ValueError(text)
    inner = text[1:-1]
    if inner.startswith("["):
        return [_items(f"[{each}]") for each in inner[1:-1].split("],[")]
    return [_value(each) for each in inner.split(",")] if inner else []


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a configuration with these values by their dotted keys."""
    content: dict[str, Any] = {}
    for key, value in given.items():
        *groups, last = key.split(".")
        inner = content
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return content
