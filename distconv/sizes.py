"""The sizes of a model: named integers found in `config.json`, by path, or derived from one another.

Owns the closed vocabulary for saying so (path, product, quotient); there are no expressions. Sizes are looked up when
something needs them, so a text-only `config.json` serves the text rules of a vision-language definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distconv.errors import InputError

_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class SizeSpec:
    """Where a size comes from; exactly one of path, product and quotient is given.

    `path`: fields of config.json by dotted path, the first that is there counts; `default` where none is.
    `parent_decides`: where the parent of the first path exists, the later paths are not looked at.
    `product`, `quotient`: of other sizes by name, or integers; a quotient must come out even.
    """

    path: tuple[str, ...] = ()
    default: int | bool | None = None
    parent_decides: bool = False
    product: tuple[str | int, ...] = ()
    quotient: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if [bool(self.path), bool(self.product), bool(self.quotient)].count(True) != 1:
            raise ValueError("give one of path, product and quotient")
        if self.quotient and len(self.quotient) != 2:
            raise ValueError("quotient takes two sizes")
        if (self.default is not None or self.parent_decides) and not self.path:
            raise ValueError("default and parent_decides go with path")

    @staticmethod
    def parse(value: Any) -> SizeSpec:
        """The spec in a definition's mapping.

        Raises:
            ValueError: not such a mapping.
        """
        if not isinstance(value, Mapping):
            raise ValueError("expected {path: […]}, {product: […]} or {quotient: […]}")
        known = SizeSpec.__dataclass_fields__
        unknown = [key for key in value if key not in known]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(known)}")
        return SizeSpec(
            path=tuple(value.get("path", ())),
            default=value.get("default"),
            parent_decides=value.get("parent_decides", False),
            product=tuple(value.get("product", ())),
            quotient=tuple(value.get("quotient", ())),
        )


class Sizes:
    """The sizes of one model: specs from its definition, values from its `config.json`."""

    def __init__(self, specs: Mapping[str, SizeSpec], config: Mapping[str, Any], where: str) -> None:
        self._specs = specs
        self._config = config
        self._where = where
        self._known: dict[str, int] = {}

    def get(self, name: str | int) -> int:
        """The value of a size (an integer stands for itself), at least 1.

        Raises:
            InputError: the field is missing and has no default, is not a positive integer, or a quotient is uneven.
        """
        if isinstance(name, int):
            return name
        if name not in self._known:
            self._known[name] = self._derive(name, self._specs[name])
        return self._known[name]

    def flag(self, spec: SizeSpec) -> bool:
        """The value of a field that is true or false.

        Raises:
            InputError: it is something else, or missing without a default.
        """
        value, path = self._find("flag", spec)
        if not isinstance(value, bool):
            raise InputError(f"{self._where}: {path}: expected true or false, found {value!r}")
        return value

    def origin(self, name: str | int) -> str:
        """How messages speak of a size: its name in the definition, its value, and its field."""
        if isinstance(name, int):
            return str(name)
        spec = self._specs[name]
        value = self.get(name)
        field = f", {self._find(name, spec)[1]} in config.json" if spec.path else ""
        return f"{name} ({value}{field})"

    def _derive(self, name: str, spec: SizeSpec) -> int:
        if spec.product:
            result = 1
            for factor in spec.product:
                result *= self.get(factor)
            return result
        if spec.quotient:
            dividend, divisor = (self.get(item) for item in spec.quotient)
            if dividend % divisor:
                origins = " / ".join(self.origin(item) for item in spec.quotient)
                raise InputError(f"{self._where}: {name} = {origins} does not come out even")
            return dividend // divisor
        value, path = self._find(name, spec)
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if type(number) is not int or number < 1:
            raise InputError(f"{self._where}: {path}: expected a positive integer, found {value!r}")
        return number

    def _find(self, name: str, spec: SizeSpec) -> tuple[Any, str]:
        for number, path in enumerate(spec.path):
            parent: Any = self._config
            *parents, field = path.split(".")
            for part in parents:
                parent = parent.get(part) if isinstance(parent, Mapping) else None
            value = parent.get(field, _ABSENT) if isinstance(parent, Mapping) else _ABSENT
            if value is not _ABSENT and value is not None:
                return value, path
            if number == 0 and spec.parent_decides and isinstance(parent, Mapping):
                break
        if spec.default is None:
            raise InputError(
                f"{self._where}: no field {' or '.join(spec.path)}; the model definition needs it as '{name}'"
            )
        return spec.default, spec.path[0]
