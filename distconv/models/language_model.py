"""The language model of any model: where configurations and published names have it, and where the two contradict.

Owns what is common to all families, for models that no definition is for: embedding and head, their tie, the number of
layers. Sees names and shapes, never tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from distconv.errors import named
from distconv.models.sizes import field_of

# Where a configuration may have it.
_PARTS = ("thinker_config.text_config", "text_config", "llm_config", "language_config")
# The module that has embedding and layers, and the name of the head.
_MODULES: Mapping[str, str] = {
    "thinker.model": "thinker.lm_head.weight",
    "model.language_model": "lm_head.weight",
    "language_model.model": "language_model.lm_head.weight",
    "model": "lm_head.weight",
}
_TIE = "tie_word_embeddings"
_EMBEDDING = "embed_tokens.weight"


def text_path(config: Mapping[str, Any]) -> str:
    """The dotted path of the part of a configuration that is of its language model; empty where it has no such part."""
    return next((path for path in _PARTS if isinstance(field_of(config, path), Mapping)), "")


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is of its language model; all of it where it has no such part."""
    path = text_path(config)
    part = field_of(config, path) if path else config
    assert isinstance(part, Mapping)
    return part


def embeddings() -> set[str]:
    """The names that an embedding may have."""
    return {f"{module}.{_EMBEDDING}" for module in _MODULES}


def head_and_embedding(names: Collection[str]) -> tuple[str, str] | None:
    """The names of the head and the embedding of a model with tensors of these names, which need not have the head."""
    for module, head in _MODULES.items():
        if (embedding := f"{module}.{_EMBEDDING}") in names:
            return head, embedding
    return None


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether a configuration says that the head is tied to the embedding, in any of its parts; `None`: nothing."""
    flags = [field_of(config, path) for path in tie_paths(config)]
    return any(flags) if flags else None


def tie_paths(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The dotted paths of the fields of a configuration that say whether the head is tied."""
    paths = [_TIE, *(f"{part}.{_TIE}" for part in ("thinker_config", *_PARTS))]
    return tuple(path for path in paths if isinstance(field_of(config, path), bool))


def contradictions(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], where: str) -> list[str]:
    """What tensors, by published name, and the configuration in the file `where` say against each other, in words."""
    found = head_and_embedding(shapes)
    if found is None:
        return []
    head, embedding = found
    text = text_part(config)
    rows, hidden = text.get("vocab_size"), text.get("hidden_size")
    problems = []
    for name in (embedding, head):
        expected = [rows if type(rows) is int else None, hidden if type(hidden) is int else None]
        shape = shapes.get(name, ())
        if len(shape) == 2 and any(size not in (None, length) for size, length in zip(expected, shape, strict=True)):
            problems.append(
                f"{name} has shape {list(shape)}, but {where} says vocab_size {rows} and hidden_size {hidden}"
            )
    return problems + _layers(shapes, embedding.removesuffix(_EMBEDDING), text, where)


def _layers(names: Collection[str], module: str, text: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with the numbers of layers."""
    pattern = re.compile(rf"{re.escape(module)}layers\.(\d+)\.")
    layers = {int(match[1]) for name in names if (match := pattern.match(name))}
    count = text.get("num_hidden_layers")
    if type(count) is not int or count < 1 or not layers:
        return []
    further = text.get("num_nextn_predict_layers")
    most = count + (further if type(further) is int else 0)
    missing = [f"{module}layers.{layer}" for layer in range(count) if layer not in layers]
    beyond = [f"{module}layers.{layer}" for layer in sorted(layers) if layer >= most]
    says = f"{where} says num_hidden_layers {count}"
    return [
        f"{named(found)}: {what}, but {says}"
        for what, found in (("has no tensor", missing), ("has tensors", beyond))
        if found
    ]
