"""The prefix that training put in front of the names of a model, and the wrappers that it put inside them.

Owns how names of a checkpoint are recognised as names that a model definition knows. Pure: it sees names, no tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from distconv.errors import InputError, named, raise_if

# Modules that FSDP, torch.compile and activation checkpointing wrap around others; some versions leave them in names.
_WRAPPERS = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")


def unwrapped(name: str) -> str:
    """The name without the modules that only wrap another one."""
    return _WRAPPERS.sub("", name)


def find_prefix(found: Collection[str], known: Collection[str], given: str | None = None) -> str:
    """The prefix, mostly ending in a dot, that makes names of a model definition the names of a checkpoint.

    `found` are the names of the checkpoint, wrappers and optimizer included; `known` all names that the definition
    knows, in every spelling. A `given` prefix, with wrappers or without, is checked instead. Where two
    prefixes read the same tensors as different spellings of the definition, the shorter one is taken.

    Raises:
        InputError: no name is known under any prefix, or not under the given one, or the model is there twice.
    """
    matches = _matches(found, set(known))
    best = max(matches, key=lambda prefix: (len(matches[prefix]), -len(prefix)), default=None)
    if given is not None:
        if (clean := unwrapped(given)) not in matches:
            hint = (
                "; the names are not those of this model" if best is None else f"; expected name_prefix={_shown(best)}"
            )
            raise InputError(
                f"name_prefix={_shown(given)}: no tensor of the model has a name that begins so; the source holds "
                f"{named(sorted(found), 3)}{hint}"
            )
        return clean
    if best is None:
        raise InputError(
            f"the source holds no tensor of this model under any prefix: it holds {named(sorted(found), 3)}, expected "
            f"names such as {named(sorted(known), 3)}; choose another +model, or give name_prefix="
        )
    rivals = [
        prefix
        for prefix, names in matches.items()
        if prefix != best and 2 * len(names - matches[best]) >= len(matches[best])
    ]
    if rivals:
        counts = ", ".join(f"{_shown(prefix)} ({len(matches[prefix])} tensors)" for prefix in (best, *sorted(rivals)))
        raise InputError(f"the source holds the model under several prefixes: {counts}; choose with name_prefix=")
    return best


def names_under(found: Collection[str], prefix: str) -> Mapping[str, str]:
    """The names that begin with the prefix: what is left of them, without wrappers, to the name in the checkpoint.

    Raises:
        InputError: two names differ in wrappers only.
    """
    names: dict[str, str] = {}
    problems = []
    for name in found:
        clean = unwrapped(name)
        if clean.startswith(prefix):
            other = names.setdefault(clean[len(prefix) :], name)
            if other != name:
                problems.append(
                    f"{other} and {name} are one name, but for modules that wrap others; remove one of them"
                )
    raise_if(problems)
    return names


def _matches(found: Collection[str], known: set[str]) -> dict[str, set[str]]:
    """The names that are known under each prefix; a prefix is a number of whole segments."""
    matches: dict[str, set[str]] = defaultdict(set)
    for name in map(unwrapped, found):
        start = 0
        while start >= 0:
            if name[start:] in known:
                matches[name[:start]].add(name)
            start = name.find(".", start) + 1 or -1
    return dict(matches)


def _shown(prefix: str) -> str:
    return prefix or "''"
