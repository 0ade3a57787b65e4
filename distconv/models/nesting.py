"""A language model inside of another model: where its configuration and its tensors are.

Owns the key `language_model` of a definition. So a definition inherits the sizes and rules of a language model as they
are where it is alone. Never sees a configuration or a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distconv.errors import unknown_keys
from distconv.models.rules import TEXT, Rule
from distconv.models.sizes import SizeSpec


@dataclass(frozen=True, kw_only=True)
class Nesting:
    """Parts of config.json that a field without a dot is looked for in, and what beginnings of names become."""

    config: tuple[str, ...] = ("",)
    names: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def parse(value: Any) -> Nesting:
        """The nesting in a value of a definition.

        Raises:
            ValueError: it is none; the message is what was expected.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"expected {{config: [part of config.json, …], names: [[old, new], …]}}, found {value!r}")
        if problems := unknown_keys(value, ("config", "names")):
            raise ValueError("; ".join(problems))
        config, names = value.get("config", [""]), value.get("names", [])
        if not isinstance(config, list) or not config or not _are_text(config):
            raise ValueError(f'config: expected parts of config.json, "" for all of it, found {config!r}')
        if not isinstance(names, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in names):
            raise ValueError(f"names: expected pairs of beginnings, found {names!r}")
        if not all(map(_are_text, names)):
            raise ValueError(f"names: expected pairs of beginnings, found {names!r}")
        return Nesting(config=tuple(config), names=tuple((old, new) for old, new in names))

    def size(self, spec: SizeSpec) -> SizeSpec:
        """A size whose fields are where the configuration is."""
        paths = (
            [path] if "." in path else [f"{part}.{path}" if part else path for part in self.config]
            for path in spec.path
        )
        # The same field is sought in all parts before another one is.
        return replace(spec, path=tuple(each for found in paths for each in found))

    def rule(self, rule: Rule) -> Rule:
        """A rule whose sources are where the tensors are."""
        if rule.modality != TEXT:
            return rule
        return replace(rule, sources=tuple(replace(each, name=self.name(each.name)) for each in rule.sources))

    def name(self, name: str) -> str:
        """The name of a tensor of the language model in the model: the first beginning that fits is exchanged."""
        return next((new + name[len(old) :] for old, new in self.names if name.startswith(old)), name)


def _are_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)
