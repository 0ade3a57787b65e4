"""The scaling of LoRA adapters: what the product of their factors is multiplied by.

Owns the arithmetic of PEFT's `lora_alpha` and rank, and the scaling as plain data, for results that have no
`adapter_config.json`. Reads no file.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distconv.errors import InputError

# No alpha is near it; beyond, a number of float32 is infinite.
_LARGEST = 1e38


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The factors that the products of adapters are multiplied by, by the definition's names of their modules.

    `alpha` is the `lora_alpha` of modules that are not in `alphas`, `None` where it is not known. With `rslora` it is
    divided by the square root of the rank, else by the rank. `initialisation` names the one that changed the weights of
    the base, if one did. `where`: the file that says all this.
    """

    alpha: float | None
    rslora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    initialisation: str | None = None
    where: str = ""

    def agrees_with(self, other: Scaling) -> bool:
        """Whether both scale every adapter alike, wherever they say so."""
        return replace(self, where=other.where) == other

    def alpha_of(self, module: str) -> float:
        """The alpha of a module; one must be known."""
        alpha = self.alphas.get(module, self.alpha)
        assert alpha is not None
        return alpha

    def of(self, module: str, rank: int) -> float:
        """The factor for a module whose adapter has this rank."""
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    def plain_alphas(self, ranks: Mapping[str, int]) -> list[float]:
        """The different values of `lora_alpha` that training needs which divides it by the rank, given the ranks."""
        return sorted({self.of(module, rank) * rank for module, rank in ranks.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain data; `parse` reads it."""
        return {**vars(self), "alphas": dict(self.alphas)}

    @staticmethod
    def parse(data: Any, where: str) -> Scaling:
        """The scaling in the data of `to_json`, read from a file that anybody may have edited.

        Raises:
            InputError: it is damaged.
        """
        known: dict[str, Any] = {"alpha": None, "rslora": False, "alphas": {}, "initialisation": None}
        content = {**known, **data} if isinstance(data, Mapping) else {}
        alphas = content.get("alphas")
        sound = (
            (content.get("alpha") is None or is_number(content["alpha"]))
            and isinstance(content.get("rslora"), bool)
            and isinstance(alphas, Mapping)
            and all(map(is_number, alphas.values()))
            and isinstance(content.get("initialisation"), str | None)
        )
        if not sound:
            raise InputError(f"{where}: expected the scaling of adapters, found {reprlib.repr(data)}; remove the file")
        return Scaling(**{key: content[key] for key in known}, where=where)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number that an alpha may be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
