"""Hydra's rejections of a command line or a configuration file, in the words of this program.

Owns the messages about options and files that cannot be composed. Never checks composed ones, which `options` and
`models.definition` do.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator, Sequence

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from distconv.cli.meanings import kinds, unknown_option
from distconv.cli.values import as_typed, literal
from distconv.errors import InputError, system_problem

# Hydra's messages about an unknown key, and about a value that a group of keys cannot have.
_REJECTED_KEY = re.compile(r"Could not override '([^']+)'|Error merging override ([^=\s]+)=\S*")
# The key in a word of the command line that gives an option.
_KEY = re.compile(r"(?!model\b|hydra\b)([a-z_][\w.]*)=")
# Hydra's message about a definition with a missing parent.
_HEIR = re.compile(r"In '(model/.+?)'")
# Hydra's errors about a command line or a file that it cannot compose; for a definition that inherits from itself it is
# an error of Python.
_NOT_COMPOSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError)


@contextlib.contextmanager
def in_own_words(overrides: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's errors about these options, and the files that they name, into `InputError`."""
    try:
        yield
    except BrokenPipeError:
        # From the reader of Hydra's output, not from a file that it reads.
        raise
    except _NOT_COMPOSED as error:
        raise InputError(_explained(error, overrides).splitlines()) from None


def _explained(error: Exception, overrides: Sequence[str]) -> str:
    """An error of Hydra as a message in terms of options and files."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).partition("/")
        options = list(error.options or ())
        if heir := _HEIR.match(str(error)):
            return f"{heir[1]}.yaml: defaults: no model definition {name}; action=models lists them"
        if group == "model" and options:
            near = difflib.get_close_matches(name, options, cutoff=0.4)
            hint = f"; did you mean +model={near[0]}?" if near else ""
            others = f"near it: {', '.join(near)}; action=models lists all" if near else f"known: {', '.join(options)}"
            return f"+model={name}: no such model definition{hint}\n{others}"
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {error}\na name with {{ }} in it needs quotes"
    if isinstance(error, UnicodeDecodeError):
        return f"a configuration file, such as the model definition, is not UTF-8: {error}"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return system_problem(error.filename or "standard output", error)
    if isinstance(error, RecursionError):
        return "defaults: a model definition inherits from itself"
    if isinstance(error, InterpolationResolutionError):
        return (
            f"{error.full_key}: {str(error).splitlines()[0]}; ${{…}} stands for the value of an option, "
            "a placeholder of a rule is {…}"
        )
    if wrong := [word for word in overrides if not _is_override(word)]:
        return _misread(as_typed(wrong[0]))
    match = _REJECTED_KEY.search(str(error))
    if match is None:
        return f"{error}\ndistconv --help lists the options"
    key = match[1] or match[2]
    if key == "model" or (key.startswith("model.") and not any(word.startswith("+model=") for word in overrides)):
        return f"{key} is not in the configuration by default: write +model=NAME"
    if key.startswith("model."):
        return f"{key}: the model definition has no such key; write +{key}=…"
    members = [each.removeprefix(f"{key}.") for each in kinds() if each.startswith(f"{key}.")]
    if members:
        word = match[0].rpartition(" ")[2]
        return f"{word}: expected a group of options: {', '.join(members)}; give {key}.{members[0]}=…"
    return unknown_option(key)


def _misread(word: str) -> str:
    """The problem of a word that Hydra's grammar cannot read."""
    known = kinds()
    given = _KEY.match(word)
    if given is not None and not any(f"{key}.".startswith(f"{given[1]}.") for key in known):
        return unknown_option(given[1])
    if given is None or given[1] not in known:
        return f"{word}: not of the form KEY=VALUE; distconv --help lists the options"
    key, value = given[1], word[given.end() :]
    try:
        known[key].read(key, value)
    except InputError as error:
        return str(error)
    return (
        f"{word}: a value with = , ( ) [ ] {{ }}, a quote, a blank or é in it needs quotes of its own, and others for "
        f"the shell around them: {shlex.quote(f'{key}={literal(value)}')}"
    )


def _is_override(word: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(word).key_or_group)
    except (HydraException, ValueError):
        return False
