"""What a configuration says of the element types of weights: the main one, and whether they are quantised.

Owns the fields of `config.json` that do, wherever programs put them. Decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distconv.tensors.dtypes import FLOATING

# The field of config.json that says the element type, before and since transformers 4.56.
DTYPE_KEYS = ("torch_dtype", "dtype")
# Those that say how weights are quantised, and the element types that a model has which is not.
QUANTISATION_KEYS = frozenset({"quantization_config", "compression_config"})
PLAIN = frozenset({*FLOATING, "int64", "bool"})


def says_quantised(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, or a part of it, says that weights are quantised."""
    parts = (part for part in config.values() if isinstance(part, Mapping))
    return not QUANTISATION_KEYS.isdisjoint(config) or any(map(says_quantised, parts))


def named_dtypes(config: Mapping[str, Any]) -> Iterator[str]:
    """The element types that a configuration names, the model's before those of its parts, which may have it alone."""
    yield from (config[key] for key in DTYPE_KEYS if isinstance(config.get(key), str))
    for part in config.values():
        if isinstance(part, Mapping):
            yield from named_dtypes(part)


def main_dtype(sizes: Iterable[tuple[str, int]]) -> str | None:
    """The floating type that most bytes are of, given types and sizes of tensors; `None` without any."""
    nbytes = Counter[str]()
    for dtype, size in sizes:
        if dtype in FLOATING:
            nbytes[dtype] += size
    return max(nbytes, key=lambda each: nbytes[each], default=None)
