"""What stands in the names of tensors because training wrapped the model: prefixes, and modules around others.

Owns the wrapper modules that are known, and the explanation of names that no rule knows by what stands in front of
them. Pure: sees names, never tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from distconv.errors import counted, named
from distconv.models.definition import Definition

# Modules that FSDP, torch.compile and activation checkpointing wrap around others; some versions leave them in names.
_WRAPPERS = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")

# An empty text in a list on the command line.
_EMPTY = '""'


def unwrapped(name: str) -> str:
    """The name without wrapper modules."""
    return _WRAPPERS.sub("", name)


def wrapping_problem(unknown: Collection[str], is_missing: Callable[[str], bool], definition: Definition) -> str | None:
    """Why most of the names are unknown, in words, if something in them is all that they have too much.

    `is_missing`: whether a name, in the definition's spelling, is that of a tensor that is sought and not there.
    """
    prefix = common_prefix(unknown, lambda name: is_missing(definition.spelled(name)))
    wrapped = [name for name in unknown if is_missing(definition.spelled(unwrapped(name)))]
    if not prefix and (not wrapped or 2 * len(wrapped) < len(unknown)):
        return None
    if not prefix:
        return wrapped_words(wrapped)
    count = sum(name.startswith(prefix) for name in unknown)
    pairs = ",".join(f"[{old},{new or _EMPTY}]" for old, new in ((prefix, ""), *definition.renamed_prefixes))
    return (
        f"{prefix} is in front of the names of {counted(count, 'source tensor')}, which a wrapped model is saved with; "
        f"to take it off, add +model={definition.name} 'model.renamed_prefixes=[{pairs}]', or save the model inside"
    )


def wrapped_words(names: Collection[str]) -> str | None:
    """What is wrong with names in which there are wrapper modules, in words; nothing if there are none."""
    wrapped = [name for name in names if unwrapped(name) != name]
    if not wrapped:
        return None
    modules = sorted({module for name in wrapped for module in _WRAPPERS.findall(name)})
    return (
        f"modules that wrap others, {named(modules)}, are in the names of {counted(len(wrapped), 'source tensor')} "
        f"({named(wrapped, 2)}); save the state dict of the model without them"
    )


def prefix_of_all(names: Collection[str], known: Collection[str]) -> str:
    """What stands in front of all names of a model, before one that is `known`; empty if nothing does."""
    if not set(known).isdisjoint(names):
        return ""
    found = {name.removesuffix(each) for name in names for each in known if name.endswith(f".{each}")}
    return min((each for each in found if all(name.startswith(each) for name in names)), key=len, default="")


def common_prefix(names: Collection[str], is_known: Callable[[str], bool]) -> str:
    """The prefix without which most of the names would be known; empty if there is none."""
    prefixes = Counter(each for name in names for each in _prefixes(name) if is_known(name[len(each) :]))
    prefix, count = max(prefixes.items(), key=lambda each: each[1], default=("", 0))
    return prefix if 2 * count >= len(names) else ""


def _prefixes(name: str) -> Iterator[str]:
    """The prefixes of whole segments, the shortest first."""
    at = name.find(".") + 1
    while at:
        yield name[:at]
        at = name.find(".", at) + 1
