"""Words of the command line that are no options, and the line to type instead.

Owns what people type by habit of other programs, and what their shells make of blanks, quotes and unset variables.
Corrects nothing: a word that could mean something else is refused, never taken for that. Values of options are checked
by their kinds.
"""

from __future__ import annotations

import difflib
import re
import shlex

from distconv.cli.flags import KNOWN, Words
from distconv.cli.meanings import MODEL, kinds, nearest, unknown_option
from distconv.errors import InputError
from distconv.fields import options_of
from distconv.formats.registry import Options
from distconv.kinds import Choice, Text, Truth
from distconv.models.library import Library
from distconv.path_kinds import Directories, PathKind

# `KEY=VALUE` as Hydra has it; `+KEY` and `~KEY` may name files of the user's configuration.
_OPTION = re.compile(r"(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
_OF_A_GRAMMAR = re.compile(r"[+~]")
# Of text processors and web pages, where the shell needs ' and ", and a flag begins with -.
_TYPOGRAPHIC = re.compile("[‘’“”„«»–—]")
_QUOTES = "'\""
_FORM = "options have the form KEY=VALUE"


def check_words(words: Words) -> None:
    """Check that all words beside flags may be options.

    Raises:
        InputError: every word that is none, and the line to type instead, where that is clear.
    """
    found = _Line(words)
    if found.problems:
        raise InputError([*found.problems, *found.instead()])


class _Line:
    """A command line that is read word by word; `problems` of words that are no options."""

    def __init__(self, words: Words) -> None:
        self.problems: list[str] = []
        self._configured = words.configured
        self._kinds = kinds()
        self._left = list(words.others)
        self._typed = list(words.of_hydra)
        self._is_clear = True
        # The option before the word that is read, if it is one as it stands.
        self._before: re.Match[str] | None = None
        while self._left:
            self._read(self._left.pop(0))

    def instead(self) -> list[str]:
        """The whole line as it should be, where every wrong word has one meaning."""
        return [f"type instead: distconv {shlex.join(self._typed)}"] if self._is_clear and self._typed else []

    def _read(self, word: str) -> None:
        option = _OPTION.fullmatch(word)
        if word.endswith("\r"):
            self._refuse(
                f"{word}: ends with a carriage return: the script has the line ends of Windows; sed -i 's/\\r$//' FILE "
                "removes them",
                word.rstrip("\r"),
            )
        elif not word.strip():
            self._refuse(
                f"'{word}': is nothing: a variable in quotes that is not set, or a blank behind the \\ at the end of a "
                "line; leave it out"
            )
        elif _TYPOGRAPHIC.match(word):
            self._refuse(f"{word}: begins with a sign of typography; type ' or \" for quotes, and - for flags", None)
        elif word.startswith("-"):
            self._read_flag(word)
        elif option is not None:
            self._read_option(word, option["key"], option["value"])
        elif word.startswith("="):
            self._refuse(f"{word}: not of the form KEY=VALUE: nothing is before the =, or a blank is; {_FORM}", None)
        elif _OF_A_GRAMMAR.match(word) or "=" in word:
            self._typed.append(word)
        else:
            self._read_bare(word)

    def _read_option(self, word: str, key: str, value: str) -> None:
        if key == "model" and not self._configured:
            self._refuse(f"{word}: a model definition is named with a plus: +model={value}", f"+model={value}")
        elif self._is_known(key) or (self._configured and key not in options_of(Options)):
            if not value and self._left and _is_bare(self._left[0]):
                self._refuse(f"{word} {self._left[0]}: no blank may be behind the =", word + self._left.pop(0))
            else:
                self._typed.append(word)
                self._before = _OPTION.fullmatch(word)
        elif near := nearest(key):
            self._refuse(unknown_option(key), f"{near[0]}={value}")
        else:
            self._refuse(unknown_option(key), None)

    def _read_flag(self, word: str) -> None:
        """A word that begins with - and is no flag: often an option of another program, with its value behind it."""
        name, equals, value = word.partition("=")
        bare = name.lstrip("-").replace("-", "_")
        said = word
        if bare.startswith("no_") and isinstance(self._kinds.get(bare[3:]), Truth):
            self._refuse(f"{word}: {_FORM}: {bare[3:]}=false", f"{bare[3:]}=false")
            return
        keys = nearest(bare) if len(bare) > 1 else []
        long = [flag for flag in KNOWN if flag.startswith("--")]
        full = f"--{name.lstrip('-')}"
        flags = [flag for flag in long if len(bare) > 1 and flag.startswith(full)]
        flags += difflib.get_close_matches(full, long, 1, cutoff=0.8)
        if flags and bare not in self._kinds:
            self._refuse(f"{word}: no such flag; did you mean {flags[0]}?", None)
            return
        if not keys:
            self._refuse(f"{word}: no such flag; {_FORM}, and distconv --help lists them", None)
            return
        if not equals and self._left and not self._left[0].startswith("-") and not self._is_option(self._left[0]):
            value = self._left.pop(0)
            said = f"{word} {value}"
        elif not equals:
            value = "true" if isinstance(self._kinds.get(keys[0]), Truth) else ""
        option = f"{keys[0]}={value}"
        self._refuse(f"{said}: {_FORM}: {option if value else f'{keys[0]}=…'}", option if value else None)

    def _read_bare(self, word: str) -> None:
        """A word without =."""
        following = self._left[0] if self._left else ""
        if following.startswith("=") and (keys := nearest(word)):
            del self._left[0]
            value = following[1:] or (self._left.pop(0) if self._left else "")
            option = f"{keys[0]}={value}"
            self._refuse(f"{word} {following}: no blank may be around the =: {option}", option)
        elif word in _actions():
            self._refuse(f"{word}: the action is an option, too: action={word}", f"action={word}")
        elif self._is_known(word) and following and _is_bare(following):
            option = f"{word}={self._left.pop(0)}"
            self._refuse(f"{word} {following}: {_FORM}: {option}", option)
        elif self._is_known(word):
            self._refuse(f"{word}: {_FORM}: {word}=…", None)
        elif self._belongs_to_a_value(word):
            return
        elif actions := difflib.get_close_matches(word, _actions(), 1, cutoff=0.75):
            self._refuse(f"{word}: the action is an option, too: action={actions[0]}", f"action={actions[0]}")
        elif word in Library.of_package().names():
            self._refuse(f"{word}: a model definition is named with +model={word}", f"{MODEL}={word}")
        elif missing := [key for key in ("source", "target") if not self._gives(key)]:
            option = f"{missing[0]}={word}"
            self._refuse(f"{word}: {_FORM}; if it is the {missing[0]}: {option}", option)
        else:
            self._refuse(f"{word}: not of the form KEY=VALUE; distconv --help lists the options", None)

    def _belongs_to_a_value(self, word: str) -> bool:
        """Whether the word is what a shell has cut off the value of the option before it; then it is refused."""
        if self._before is None or not self._before["value"]:
            return False
        key, value = self._before["key"], self._before["value"]
        is_text = isinstance(self._kinds.get(key), (PathKind, Text))
        in_list = not is_text and sum(map(value.count, "[{")) > sum(map(value.count, "]}"))
        if not is_text and not in_list:
            return False
        rest = [word]
        while self._left and _is_bare(self._left[0]) and (not in_list or not rest[-1].endswith(("]", "}"))):
            rest.append(self._left.pop(0))
        said = " ".join(rest)
        self._typed.pop()
        if in_list:
            whole = f"{key}={value}{''.join(rest)}"
            self._refuse(f"{said}: is cut off {key}={value}: write it without blanks, in quotes: '{whole}'", whole)
        elif value[0] in _QUOTES and value[-1] != value[0]:
            self._refuse(
                f"{said}: is cut off {key}={value}: quotes inside a variable quote nothing; in a script write "
                f'{key}="$NAME", or keep options in an array: args=({key}=\'a b\'), then distconv "${{args[@]}}"',
                f"{key}={' '.join([value, *rest]).strip(_QUOTES)}",
            )
        elif isinstance(self._kinds.get(key), Directories):
            self._refuse(
                f"{said}: no option; several paths are a pattern in quotes, such as '{key}=runs/*', or a file that "
                f"lists them: {key}=@FILE",
                None,
            )
        else:
            whole = " ".join([value, *rest])
            self._refuse(
                f"{said}: no option; if it belongs to {key}={value}, which the shell has cut at a blank, quote them "
                f'together: {shlex.quote(f"{key}={whole}")}; in a script: {key}="$NAME"',
                f"{key}={whole}",
            )
            # Or it is a path by itself.
            self._is_clear = False
        return True

    def _refuse(self, problem: str, instead: str | None = "") -> None:
        """Note a problem; `instead`: the right word, empty if there should be none, `None` if nobody knows."""
        self.problems.append(problem)
        self._before = None
        if instead is None:
            self._is_clear = False
        elif instead:
            self._typed.append(instead)

    def _is_known(self, key: str) -> bool:
        """Whether a key is that of an option or a group, or one that only Hydra can judge."""
        return any(f"{known}.".startswith(f"{key}.") for known in self._kinds) or key.startswith(("model.", "hydra."))

    def _is_option(self, word: str) -> bool:
        option = _OPTION.fullmatch(word)
        return option is not None and (option["key"] in self._kinds or word.startswith(MODEL))

    def _gives(self, key: str) -> bool:
        several = ("source=", "sources=") if key == "source" else (f"{key}=",)
        return any(each.startswith(several) for each in [*self._typed, *self._left])


def _is_bare(word: str) -> bool:
    return "=" not in word and not word.startswith(("-", "+", "~"))


def _actions() -> list[str]:
    kind = options_of(Options)["action"].kind
    assert isinstance(kind, Choice)
    return list(kind.choices)
