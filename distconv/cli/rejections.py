"""What Hydra cannot compose, in the words of this program.

Owns the messages about options and configuration files that no job begins with. What is wrong in a configuration that
could be composed is the business of `options` and `definition`.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from distconv.errors import InputError
from distconv.fields import keys_of
from distconv.formats.registry import Options

# What Hydra says of a key that does not exist, and of a value that a group of keys cannot have.
_REJECTED_KEY = re.compile(r"Could not override '([^']+)'|Error merging override ([^=\s]+)=\S*")
# The key of a word that gives an option of this program.
_KEY = re.compile(r"(?!model\b|hydra\b)([a-z_][\w.]*)=")
# What Hydra says of a definition that inherits from one that is not there.
_HEIR = re.compile(r"In '(model/.+?)'")
# What Hydra raises of a command line, or of a configuration file, that it cannot compose; of a definition that inherits
# from itself, Python speaks.
_NOT_COMPOSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError)


@contextlib.contextmanager
def in_own_words(overrides: Sequence[str]) -> Iterator[None]:
    """What Hydra cannot compose of these options and the files that they name is wrong input."""
    try:
        yield
    except BrokenPipeError:
        # Of a reader of what Hydra prints, not of a file that it reads.
        raise
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
    known = [key for key, _ in keys_of(Options)]
    wrong = [word for word in overrides if not _is_override(word)]
    if wrong:
        given = _KEY.match(wrong[0])
        if given is not None and not any(f"{key}.".startswith(f"{given[1]}.") for key in known):
            return _unknown(given[1], known)
        return (
            f"{wrong[0]}: not of the form KEY=VALUE; a value with = , ( ) [ ] {{ }}, a blank or é in it needs own "
            "quotes: 'name_prefix=\"a=b\"'; so does a path with --multirun; "
            "python -m distconv --help lists the options"
        )
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
        word = match[0].rpartition(" ")[2]
        return f"{word}: expected a group of options: {', '.join(members)}; give {key}.{members[0]}=…"
    return _unknown(key, known)


def _unknown(key: str, known: Sequence[str]) -> str:
    near = [each for each in known if each.endswith(f".{key}")] or difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown option {key}{hint}\nknown: {', '.join(known)}"


def _is_override(word: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(word).key_or_group)
    except (HydraException, ValueError):
        return False
