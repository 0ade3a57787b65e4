"""Completion of the command `distconv` in bash, zsh and fish: scripts made from the options.

Owns their text. They complete the command of this program alone: never `python`, and they start no process.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from distconv.cli.flags import COMPLETION, KNOWN
from distconv.cli.meanings import MODEL, kinds
from distconv.errors import InputError
from distconv.kinds import Choice, Truth
from distconv.models.library import Library
from distconv.path_kinds import PathKind

_FLAGS = " ".join(sorted(flag for flag in KNOWN if flag.startswith("--")))

_BASH = """\
# distconv: completion for bash. In ~/.bashrc: eval "$(distconv --completion bash)"
_distconv() {{
    local line=${{COMP_LINE:0:COMP_POINT}} word key value list=""
    word=${{line##*[[:space:]]}}
    COMPREPLY=()
    if [[ $word != *=* ]]; then
        compopt -o nospace 2>/dev/null
        [[ $word == -* ]] && list="{flags}" || list="{keys}"
        COMPREPLY=($(compgen -W "$list" -- "$word"))
        [[ $word == -* ]] && COMPREPLY=("${{COMPREPLY[@]/%/ }}")
        return
    fi
    key=${{word%%=*}} value=${{word#*=}}
    case $key in
        {paths})
            compopt -o filenames 2>/dev/null
            local IFS=$'\\n'
            COMPREPLY=($(compgen -f -- "$value"))
            ;;
{cases}
    esac
    [[ -n $list ]] && COMPREPLY=($(compgen -W "$list" -- "$value"))
    # Where readline takes = for the end of a word, it replaces only what is behind it.
    [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${{COMPREPLY[@]/#/$key=}}")
}}
complete -F _distconv distconv
"""

_ZSH = """\
#compdef distconv
# distconv: completion for zsh. In ~/.zshrc, after compinit: eval "$(distconv --completion zsh)"
_distconv() {{
    local key
    if [[ $PREFIX != *=* ]]; then
        [[ $PREFIX == -* ]] && compadd -- {flags}
        compadd -S '' -- {keys}
        return
    fi
    key=${{PREFIX%%=*}}
    compset -P '*='
    case $key in
        ({paths}) _files ;;
{cases}
    esac
}}
compdef _distconv distconv
"""

_FISH = """\
# distconv: completion for fish. distconv --completion fish > ~/.config/fish/completions/distconv.fish
function __distconv_words
    set -l word (commandline -ct)
    if not string match -q -- '*=*' $word
        printf '%s\\n' {keys}
        return
    end
    set -l parts (string split -m 1 = -- $word)
    switch $parts[1]
        case {paths}
            __fish_complete_path $parts[2] | string replace -r '^' "$parts[1]="
{cases}
    end
end
complete -c distconv -f -a '(__distconv_words)'
{flags}
"""


def completion(shell: str) -> str:
    """The script for a shell: bash, zsh or fish.

    Raises:
        InputError: another shell.
    """
    scripts = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in scripts:
        near = difflib.get_close_matches(shell, scripts, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{COMPLETION} {shell}: expected one of {', '.join(scripts)}{hint}")
    return scripts[shell]().rstrip("\n")


def _bash() -> str:
    cases = "\n".join(f'        {key}) list="{" ".join(names)}" ;;' for key, names in _choices().items())
    return _BASH.format(flags=_FLAGS, keys=" ".join(_keys()), paths="|".join(_paths()), cases=cases)


def _zsh() -> str:
    cases = "\n".join(f"        ({key}) compadd -- {' '.join(names)} ;;" for key, names in _choices().items())
    return _ZSH.format(flags=_FLAGS, keys=" ".join(_keys()), paths="|".join(_paths()), cases=cases)


def _fish() -> str:
    cases = "\n".join(
        f"        case {key}\n            printf '%s\\n' {' '.join(f'{key}={name}' for name in names)}"
        for key, names in _choices().items()
    )
    flags = "\n".join(f"complete -c distconv -l {flag.removeprefix('--')}" for flag in _FLAGS.split())
    return _FISH.format(flags=flags, keys=" ".join(_keys()), paths=" ".join(_paths()), cases=cases)


def _keys() -> list[str]:
    return [f"{key}=" for key in (MODEL, *kinds())]


def _paths() -> list[str]:
    return [key for key, kind in kinds().items() if isinstance(kind, PathKind)]


def _choices() -> Mapping[str, list[str]]:
    """Key → its values, of options that have few; definitions and dialects are those of the package."""
    library = Library.of_package()
    found = {MODEL: library.names()}
    for key, kind in kinds().items():
        if isinstance(kind, Choice):
            found[key] = list(kind.choices)
        elif isinstance(kind, Truth):
            found[key] = ["true", "false"]
    dialects = sorted(library.dialects())
    return {**found, "dialect": dialects, "source_dialect": dialects}
