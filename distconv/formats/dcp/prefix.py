"""The prefix that training put in front of the names of a model.

Owns the matching of names in a checkpoint with names of a model definition. Pure: sees names, never tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from distconv.errors import InputError, named, raise_if
from distconv.models.wrappers import unwrapped

# What training programs keep beside the model, and the state of optimizers, also below an outer key.
_TRAINING = re.compile(
    r"(?:optim|optimizers?|\w*scheduler|rng\w*|rerun\w*|\w*_state|dataloader\w*)\."
    r"|(?:.*\.)?(?:optim|optimizers?)\.(?:state|param_groups)\."
    r"|.*\.(?:exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)$"
)


def find_prefix(found: Collection[str], known: Collection[str], given: str | None = None) -> str:
    """The prefix in front of the names of a model in a checkpoint, mostly with a dot at its end.

    `found`: the names of the checkpoint, wrappers and optimizer included; `known`: the names of the definition in every
    spelling. A `given` prefix, with or without wrappers, is checked instead. Of two prefixes under which the same
    tensors have different spellings of the definition, the shorter one is taken.

    Raises:
        InputError: no name is known under any prefix, or under the given one; the checkpoint holds the model twice.
    """
    matches = _matches(found, set(known))
    best = _best(matches)
    shown = sorted(name for name in found if not of_training(name)) or sorted(found)
    if given is not None:
        if (clean := unwrapped(given)) not in matches:
            hint = (
                "; the names are not those of this model" if best is None else f"; expected name_prefix={_shown(best)}"
            )
            raise InputError(
                f"name_prefix={_shown(given)}: no tensor of the model has a name that begins so; the source holds "
                f"{named(shown, 3)}{hint}"
            )
        return clean
    if best is None:
        raise InputError(
            f"the source holds no tensor of this model under any prefix: it holds {named(shown, 3)}, expected "
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
    """Name without prefix and wrappers → name in the checkpoint, for the names with the prefix.

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


def is_under_prefix(name: str, known: set[str]) -> bool:
    """Whether a name of a checkpoint is one of the known names, under any prefix."""
    return bool(_matches([name], known))


def count_known(found: Collection[str], known: Collection[str], given: str | None = None) -> int:
    """How many names of a checkpoint are known under a given prefix, or that under which most of them are."""
    matches = _matches(found, set(known))
    best = _best(matches) if given is None else unwrapped(given)
    return 0 if best is None else len(matches.get(best, ()))


def common_prefix(found: Collection[str], given: str | None = None) -> str:
    """The longest prefix of whole segments that all names of a model have in common, where nothing else is known.

    Raises:
        InputError: no name begins with a `given` prefix, which is taken instead.
    """
    if given is not None:
        if not any(unwrapped(name).startswith(unwrapped(given)) for name in found):
            raise InputError(
                f"name_prefix={_shown(given)}: no tensor has a name that begins so; the source holds "
                f"{named(sorted(found), 3)}"
            )
        return unwrapped(given)
    segments = [unwrapped(name).split(".")[:-1] for name in found if not of_training(name)]
    common: list[str] = []
    for column in zip(*segments, strict=False):
        if len(set(column)) > 1 or column[0].isdecimal():
            break
        common.append(column[0])
    return "".join(f"{each}." for each in common)


def of_training(name: str) -> bool:
    """Whether a name is that of the state of training, not of the model."""
    return _TRAINING.match(name) is not None


def _best(matches: Mapping[str, Collection[str]]) -> str | None:
    return max(matches, key=lambda prefix: (len(matches[prefix]), -len(prefix)), default=None)


def _matches(found: Collection[str], known: set[str]) -> dict[str, set[str]]:
    """Prefix of whole segments → known names under it."""
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
