"""The sizes of a model: named integers, from fields of `config.json` or derived from other sizes.

Owns the closed vocabulary of derivations; never evaluates an expression. A size is looked up when a rule needs it, so a
text-only `config.json` serves the text rules of a vision-language definition.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from distconv.errors import InputError

# Where tensors have other sizes than these.
OTHER_CONFIG = "is config.json that of these weights?"
# More layers, or experts, than any model has.
_MOST = 4096
_RELEASE = re.compile(r"([0-9]{1,4})\b")
# More experts in all layers than any model has.
MOST_COMBINATIONS = 1 << 18
DERIVATIONS = ("product", "sum", "quotient")


@dataclass(frozen=True, kw_only=True)
class SizeSpec:
    """The origin of a size: fields of config.json, or other sizes.

    `path`: dotted paths of fields, in order of priority; `default`: the value without any of them.
    `derivation`: product, sum or quotient of the sizes `of`, given as names or integers; a quotient has no remainder.
    It may stand in the place of a default.
    """

    path: tuple[str, ...] = ()
    default: int | bool | tuple[int, ...] | None = None
    derivation: str | None = None
    of: tuple[str | int, ...] = ()

    @staticmethod
    def parse(value: Any, *, is_list: bool = False) -> SizeSpec:
        """The spec in a value of a definition: a list of paths and maybe a default, or of a derivation and sizes.

        Always a list, because a list replaces an inherited value, and a mapping would be merged with it. `is_list`: the
        field and the default are lists of layer numbers.

        Raises:
            ValueError: the value is neither; the message is what was expected.
        """
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(
                "expected [path in config.json, …], with a default at the end if there is one, or "
                f"[{'|'.join(DERIVATIONS)}, size, …]; found {value!r}"
            )
        if value[0] in DERIVATIONS and not is_list:
            return _derivation(value[0], tuple(value[1:]))
        *path, last = value
        default: int | bool | tuple[int, ...] | None = None
        derived = SizeSpec()
        if isinstance(last, str):
            path.append(last)
        elif isinstance(last, Sequence) and last and last[0] in DERIVATIONS and not is_list:
            derived = _derivation(last[0], tuple(last[1:]))
        elif is_list:
            if not isinstance(last, Sequence) or any(type(item) is not int or item < 0 for item in last):
                raise ValueError(f"expected a list of layer numbers as the default, found {last!r}")
            default = tuple(last)
        elif isinstance(last, bool) or (type(last) is int and last >= 0):
            default = last
        else:
            raise ValueError(f"expected a number as the default, found {last!r}")
        if not path or any(not isinstance(item, str) for item in path):
            raise ValueError(f"expected paths in config.json and at most one default, at the end; found {list(value)}")
        return SizeSpec(path=tuple(path), default=default, derivation=derived.derivation, of=derived.of)


def _derivation(name: str, of: tuple[Any, ...]) -> SizeSpec:
    if not of or (name == "quotient" and len(of) != 2):
        raise ValueError(f"{name} takes {'two sizes' if name == 'quotient' else 'sizes'}, found {list(of)}")
    wrong = [item for item in of if not isinstance(item, str) and not (type(item) is int and item > 0)]
    if wrong:
        raise ValueError(f"{name} takes names of sizes and positive integers, found {wrong[0]!r}")
    return SizeSpec(derivation=name, of=of)


class Sizes:
    """The sizes of one model: specs from its definition, values from its `config.json`."""

    def __init__(self, specs: Mapping[str, SizeSpec], config: Mapping[str, Any], where: str) -> None:
        self._specs = specs
        self._config = config
        self._where = where
        self._given: Mapping[str, int] = {}
        self._known: dict[str, int] = {}

    def having(self, **values: int) -> Sizes:
        """The sizes with these values in place of those of `config.json`."""
        changed = Sizes(self._specs, self._config, self._where)
        changed._given = {**self._given, **values}
        changed._known = dict(changed._given)
        return changed

    def __contains__(self, name: str) -> bool:
        """Whether the definition has a size of this name."""
        return name in self._specs

    def get(self, name: str | int) -> int:
        """The value of a size (an integer stands for itself), at least 1 (0 if that is its default).

        Raises:
            InputError: the field is missing and has no default, is not a positive integer, or a quotient is uneven.
        """
        if isinstance(name, int):
            return name
        if name not in self._known:
            self._known[name] = self._derive(name, self._specs[name])
        return self._known[name]

    def count(self, name: str | int) -> int:
        """The value of a size that is a number of layers or experts, over which names are spelled out.

        Raises:
            InputError: as `get`, or more than any model has.
        """
        number = self.get(name)
        if number > _MOST:
            raise InputError(f"{self._where}: {self.origin(name)}: expected at most {_MOST} layers or experts")
        return number

    def check_combinations(self, one: str, other: str) -> None:
        """Raise `InputError` if names spelled out for each combination of two numbers are more than any model has."""
        combinations = self.count(one) * self.count(other)
        if combinations > MOST_COMBINATIONS:
            raise InputError(
                f"{self._where}: {self.origin(one)} times {self.origin(other)}: expected at most {MOST_COMBINATIONS}"
            )

    def divisor(self, name: str | int) -> int:
        """The value of a size that is a divisor, or a number of units.

        Raises:
            InputError: as `get`, or the value is 0.
        """
        value = self.get(name)
        if not value:
            raise InputError(f"{self._where}: cannot divide by {self.origin(name)}; expected at least 1")
        return value

    def numbers(self, spec: SizeSpec, layers: int | None = None) -> list[int]:
        """The value of a field that is a list of layer numbers, counted from 0, of a modality with so many layers.

        `layers`: `None` where that does not matter.

        Raises:
            InputError: another type of value, or no field and no default; a layer out of range, or twice.
        """
        value, path = self._find("list", spec)
        if not isinstance(value, (list, tuple)) or any(type(item) is not int or item < 0 for item in value):
            raise InputError(f"{self._where}: {path}: expected a list of layer numbers, found {value!r}")
        if len(set(value)) < len(value) or (layers is not None and any(layer >= layers for layer in value)):
            raise InputError(f"{self._where}: {path}: expected different layers out of {layers}, found {list(value)}")
        return list(value)

    def flag(self, spec: SizeSpec) -> bool:
        """Whether a field is true: of its paths the first that is there.

        Raises:
            InputError: one of them is something else, or all are missing without a default.
        """
        for path in spec.path:
            if (value := field_of(self._config, path)) is not None and not isinstance(value, bool):
                raise InputError(f"{self._where}: {path}: expected true or false, found {value!r}")
        return bool(self._find("flag", spec)[0])

    @property
    def is_of_transformers_5(self) -> bool:
        """Whether release 5 of transformers, or a later one, wrote the configuration.

        It says so itself; where it does not, a field tells that only these releases write.
        """
        version = self._config.get("transformers_version")
        if isinstance(version, str):
            major = _RELEASE.match(version)
            return major is not None and int(major[1]) >= 5
        parts = (self._config, *(part for part in self._config.values() if isinstance(part, Mapping)))
        return any("rope_parameters" in part for part in parts)

    def origin(self, name: str | int) -> str:
        """A size in words, for messages: its name in the definition, its value, and its field of config.json."""
        spec = None if isinstance(name, int) else self._specs.get(name)
        if spec is None or isinstance(name, int):
            return str(name)
        value = self.get(name)
        from_config = spec.path and name not in self._given and not self._is_derived(spec)
        field = f", {self._find(name, spec)[1]} in config.json" if from_config else ""
        return f"{name} ({value}{field})"

    def _is_derived(self, spec: SizeSpec) -> bool:
        return spec.derivation is not None and all(field_of(self._config, path) is None for path in spec.path)

    def _derive(self, name: str, spec: SizeSpec) -> int:
        if self._is_derived(spec):
            if spec.derivation == "product":
                return prod(self.get(item) for item in spec.of)
            if spec.derivation == "sum":
                return sum(self.get(item) for item in spec.of)
            quotient, rest = divmod(self.get(spec.of[0]), self.divisor(spec.of[1]))
            if rest:
                origins = " / ".join(self.origin(item) for item in spec.of)
                raise InputError(
                    f"{self._where}: {name} = {origins} leaves a remainder; is this the config.json of the model?"
                )
            return quotient
        value, path = self._find(name, spec)
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        least = 0 if spec.default == 0 else 1
        if type(number) is not int or number < least:
            raise InputError(f"{self._where}: {path}: expected an integer, at least {least}, found {value!r}")
        return number

    def _find(self, name: str, spec: SizeSpec) -> tuple[Any, str]:
        for path in spec.path:
            if (value := field_of(self._config, path)) is not None:
                return value, path
        if spec.default is None:
            raise InputError(
                f"{self._where}: no field {' or '.join(spec.path)}; the model definition needs it as '{name}'"
            )
        return spec.default, f"the default of {spec.path[0]}"


def field_of(config: Mapping[str, Any], path: str) -> Any:
    """The value of a field of a configuration by its dotted path; `None` where there is none."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
