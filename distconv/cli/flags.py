"""The flags of the command line: what this program does itself, how much it says, and what is left for Hydra.

Owns the names of all flags. Never reads options, which are `KEY=VALUE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from distconv.errors import InputError

_HELP = ("--help", "-h", "help")
_VERSION = ("--version",)
_QUIET = ("-q", "--quiet")
_VERBOSE = ("-v", "--verbose")
COMPLETION = "--completion"
# Those of Hydra, and whether a value follows: the next word in any case, or only if it is no option.
ALWAYS, PERHAPS, NEVER = "always", "perhaps", "never"
OF_HYDRA: Mapping[str, str] = {
    **dict.fromkeys(("--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m"), NEVER),
    **dict.fromkeys(("--shell-completion", "-sc"), NEVER),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"), ALWAYS),
    **dict.fromkeys(("--config-dir", "-cd", "--experimental-rerun"), ALWAYS),
    **dict.fromkeys(("--info", "-i"), PERHAPS),
}
# With these, a file of the user may have keys of its own.
_CONFIGURING = {"--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
KNOWN = (*_HELP, *_VERSION, *_QUIET, *_VERBOSE, COMPLETION, *OF_HYDRA)


class Loudness(IntEnum):
    """How much is said: errors alone, what is usual, or also how long each phase took."""

    QUIET = 0
    USUAL = 1
    VERBOSE = 2


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of a command line.

    `help`, `version`: these are printed, and nothing else is done; so is the script that `completes`
    the words in that shell. `of_hydra`: its
    flags with their values; `configured`: they may bring keys of a user. `others`: all other words, which should be
    options.
    """

    help: bool = False
    version: bool = False
    completes: str | None = None
    loudness: Loudness = Loudness.USUAL
    of_hydra: tuple[str, ...] = ()
    configured: bool = False
    others: tuple[str, ...] = ()


def sorted_words(words: Sequence[str]) -> Words:
    """The words of a command line, in any order, by what they are.

    Raises:
        InputError: `--quiet` with `--verbose`; `--completion` without a shell.
    """
    given: set[str] = set()
    of_hydra: list[str] = []
    others: list[str] = []
    completes = None
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name == COMPLETION:
            completes = value if equals else left.pop(0) if left else ""
        elif word in KNOWN and word not in OF_HYDRA:
            given.add(word)
        elif name in OF_HYDRA:
            of_hydra.append(word)
            follows = OF_HYDRA[name]
            if left and not equals and (follows == ALWAYS or (follows == PERHAPS and _is_bare(left[0]))):
                of_hydra.append(left.pop(0))
        else:
            others.append(word)
    if not given.isdisjoint(_QUIET) and not given.isdisjoint(_VERBOSE):
        raise InputError("--quiet: says nothing but errors, --verbose says more than usual; give one of the two")
    loudness = Loudness.QUIET if not given.isdisjoint(_QUIET) else Loudness.USUAL
    return Words(
        help=not given.isdisjoint(_HELP),
        version=not given.isdisjoint(_VERSION),
        completes=completes,
        loudness=loudness if given.isdisjoint(_VERBOSE) else Loudness.VERBOSE,
        of_hydra=tuple(of_hydra),
        configured=any(each.partition("=")[0] in _CONFIGURING for each in of_hydra),
        others=tuple(others),
    )


def _is_bare(word: str) -> bool:
    return "=" not in word and not word.startswith("-")
