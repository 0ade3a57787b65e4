"""The model definitions at hand: what each says it is for, and the content of the one that is chosen.

Owns reading the heads of the files (`model_types`, `variant_of`, `adapters`) as Hydra would compose them: the first
file of a name on the search path counts, and a key that a file leaves out is inherited. It never composes a definition:
that is Hydra's, takes a tenth of a second, and is asked for here only if a file inherits by more than a list of names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from distconv.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable

_SELF = "_self_"
# Of a file whose content Hydra puts elsewhere than into the model.
_PACKAGE = re.compile(r"^\s*#\s*@", re.MULTILINE)
# Several times as fast, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Head = Mapping[str, Any]


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))


# The keys of a head, and whether a value is one.
_KEYS = {"model_types": _are_names, "variant_of": _is_text, "adapters": _is_text}


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """The heads of all definitions by name, and the composed content of one."""

    heads: Callable[[], Mapping[str, Head]]
    compose: Callable[[str], Mapping[str, Any]]


def read_heads(roots: Sequence[Traversable], compose: Callable[[str], Mapping[str, Any]]) -> dict[str, Head]:
    """The heads of the definitions in the `model` directories below `roots`, the first root first, by name.

    Raises:
        InputError: a file is not YAML.
    """
    found: dict[str, Traversable] = {}
    for root in roots:
        group = root.joinpath("model")
        if group.is_dir():
            for file in group.iterdir():
                if file.name.endswith(".yaml") and file.is_file():
                    found.setdefault(file.name.removesuffix(".yaml"), file)
    heads: dict[str, Head | None] = {}

    def head(name: str) -> Head | None:
        """With what is inherited; `None` if only Hydra can tell."""
        if name not in heads:
            # Hydra says what is wrong with a file that inherits from itself, or from none, when that is chosen.
            heads[name] = {}
            if name in found:
                heads[name] = inherited(*_read(found[name]))
        return heads[name]

    def inherited(text: str, content: Mapping[str, Any]) -> Head | None:
        defaults = content.get("defaults") or []
        if _PACKAGE.search(text) or not isinstance(defaults, list) or not all(map(_is_name, defaults)):
            return None
        merged: dict[str, Any] = {}
        for item in defaults if _SELF in defaults else [*defaults, _SELF]:
            parent = head_of(content) if item == _SELF else head(item)
            if parent is None:
                return None
            merged |= parent
        return merged

    return {name: known if (known := head(name)) is not None else head_of(compose(name)) for name in sorted(found)}


def head_of(content: Mapping[str, Any]) -> Head:
    """What a definition says that it is for; without what is no such thing, as parsing the definition will say."""
    return {key: content[key] for key, fits in _KEYS.items() if key in content and fits(content[key])}


def _is_name(item: object) -> bool:
    """Whether an entry of `defaults` is just another definition."""
    return isinstance(item, str) and not set(item) & set("/@$")


def _read(file: Traversable) -> tuple[str, Mapping[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.load(text, _LOADER)  # noqa: S506 - one of the safe ones
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a YAML file: {error}") from error
    return text, content if isinstance(content, Mapping) else {}
