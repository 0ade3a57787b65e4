"""Changes of what JSON and YAML hold, so that a fuzzer gets behind their grammar.

Owns a random change of one value. Knows no reader.
"""

from __future__ import annotations

import copy
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**99, 0.5, 1e308, float("nan"), "", "a", "..", "a/../b", "/etc",
    "\udc80", "\0", "a" * 300, "layers.{layer}", "{layer}{layer}", "*", "${source}", "F32", [], {}, [[]], {"": {}},
    [0, 0], [2**62, 2**62], [0] * 70, {"a": [1]},
)  # fmt: skip


def changed(tree: Any, random: Random) -> Any:
    """The same with one value replaced, taken out, given twice, put under another key, or exchanged for another one."""
    tree = {"": copy.deepcopy(tree)}
    places = list(_places(tree))
    group, key = random.choice(places)
    other, name = random.choice(places)
    how = random.choice(("value", "value", "other", "gone", "again", "renamed", "number"))
    if how == "other":
        group[key] = copy.deepcopy(other[name])
    elif how == "gone" and key != "":
        del group[key]
    elif how == "again" and isinstance(group, list):
        group.insert(key, copy.deepcopy(group[key]))
    elif how == "renamed" and isinstance(group, dict) and key != "":
        group[random.choice([name if isinstance(name, str) else "a", "", "..", f"{key}x"])] = group.pop(key)
    elif how == "number" and type(group[key]) is int:
        group[key] += random.choice((-1, 1, 8, 2**32, -(2**63)))
    else:
        group[key] = copy.deepcopy(random.choice(VALUES))
    return tree.get("")


def _places(tree: Any) -> Any:
    """Each value, as the group that it is in and its key or number there."""
    if isinstance(tree, dict | list):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            yield from _places(value)
