"""What `config.json` and the files beside it say of a result, where what the reference says is not true of it.

Owns the fields that the tensors of a result can contradict: element type, quantisation, the tie of the head; and which
side files go with them. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from distconv.formats.config_dtypes import DTYPE_KEYS, PLAIN, QUANTISATION_KEYS, main_dtype, named_dtypes
from distconv.models.adapters import CONFIG_NAME, belongs_to_adapter
from distconv.models.definition import Definition
from distconv.models.language_model import tie_paths
from distconv.models.vocabulary import SIZE_NAME
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.stored import NamedTensor

# The files that say how weights are quantised for other programs.
_QUANTISATION_FILES = frozenset({"hf_quant_config.json", "quantize_config.json", "quant_config.json"})
# Files that say nothing of weights: texts, code and pictures, and the configuration of what comes before a model.
_OF_NO_WEIGHTS = (
    ".py",
    ".md",
    ".txt",
    ".jinja",
    ".model",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".svg",
    ".pdf",
    ".wav",
    ".mp4",
)
_KNOWN_NAMES = ("config", "tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "generation_config")
_KNOWN_PARTS = ("processor", "chat_template", "license", "notice")


def true_config(config: Mapping[str, Any], tensors: Sequence[NamedTensor]) -> Mapping[str, Any]:
    """A configuration as it is true of tensors: the element type of most of them, and no quantisation that is not."""
    said = next(named_dtypes(config), None)
    dtype = main_dtype((each.tensor.dtype, each.nbytes) for each in tensors) or said
    if said is not None:
        config = _with_dtype(config, said, dtype, {each.tensor.dtype for each in tensors})
    return config if is_quantised(tensors) else _plain(config)


def is_quantised(tensors: Sequence[NamedTensor]) -> bool:
    """Whether some tensors have an element type that quantised weights, and nothing else, have."""
    return any(each.tensor.dtype not in PLAIN for each in tensors)


def untied(config: Mapping[str, Any], definition: Definition | None) -> Mapping[str, Any]:
    """The configuration of a model that is the same but for a head of its own, whichever release reads it."""
    if definition is None:
        paths: tuple[str, ...] = tie_paths(config)
    else:
        paths = () if definition.tied is None else definition.tied.flag_of_transformers_5.path
    for path in paths:
        config = _with_field(config, path.split("."), value=False)
    return config


def with_vocabulary(config: Mapping[str, Any], definition: Definition, rows: int) -> Mapping[str, Any]:
    """The configuration of a model that is the same but for the rows of its vocabulary."""
    paths = definition.sizes[SIZE_NAME].path
    there = [path for path in paths if _has_field(config, path.split("."))]
    for path in there or paths:
        config = _with_field(config, path.split("."), value=rows)
    return config


def leaves_out(name: str, tensors: Sequence[NamedTensor]) -> str | None:
    """Why a side file, by its path below the reference, is not true of these tensors; nothing if it may be."""
    name = name.rpartition("/")[2]
    if name == CONFIG_NAME and not any(belongs_to_adapter(each.name) for each in tensors):
        return "the result holds no adapters"
    if name in _QUANTISATION_FILES and not is_quantised(tensors):
        return "no tensor of the result is quantised"
    return None


def cannot_be_judged(name: str) -> bool:
    """Whether a side file may say something of the weights that nobody here understands."""
    name = name.rpartition("/")[2].lower()
    known = name.endswith(_OF_NO_WEIGHTS) or name.startswith(_KNOWN_NAMES) or any(part in name for part in _KNOWN_PARTS)
    return not known and name not in (CONFIG_NAME, "spk_dict.pt")


def _with_dtype(value: Any, old: str, new: str | None, held: Container[str]) -> Any:
    """A configuration, or a part of one, in which types that are `old`, or that no tensor is of, are `new` ones."""
    if isinstance(value, Mapping):
        return {
            key: new
            if key in DTYPE_KEYS and (item == old or (item in FLOATING and item not in held))
            else _with_dtype(item, old, new, held)
            for key, item in value.items()
        }
    return value


def _plain(value: Any) -> Any:
    """A configuration, or a part of one, that says nothing of quantisation."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key not in QUANTISATION_KEYS}
    return value


def _has_field(config: Mapping[str, Any], path: Sequence[str]) -> bool:
    first, *rest = path
    part = config.get(first)
    return _has_field(part, rest) if rest and isinstance(part, Mapping) else not rest and part is not None


def _with_field(config: Mapping[str, Any], path: Sequence[str], *, value: object) -> Mapping[str, Any]:
    """The configuration with another value in a field; unchanged where the part is not there that would have it."""
    first, *rest = path
    if not rest:
        return {**config, first: value}
    part = config.get(first)
    return {**config, first: _with_field(part, rest, value=value)} if isinstance(part, Mapping) else config
