"""The sizes of a model as training was configured, against those of its `config.json`.

Shapes do not tell heads from groups, so a wrong configuration would give wrong rows of a fused qkv without a word. Owns
what is compared, and the reading of `run_config.yaml`, in which Megatron-Bridge keeps the configuration. Of YAML, only
plain numbers are made into values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distconv.errors import InputError, reading
from distconv.formats.model import Model
from distconv.models.rules import TEXT
from distconv.runtime.identity import read_whole
from distconv.tensors.stored import SourceFile

RUN_CONFIG = "run_config.yaml"
# Names in the arguments of training, and of sizes in definitions.
_SIZES = {
    "num_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_query_groups": "kv_heads",
    "kv_channels": "head_dim",
    "num_experts": "expert_count",
    "num_moe_experts": "expert_count",
}
# Multi-head latent attention has neither groups nor heads of one length.
_NOT_LATENT = ("num_query_groups", "kv_channels")
_LATENT = "linear_kv_up_proj"
_GROUPED = "group_query_attention"
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, kw_only=True)
class Told:
    """Sizes that a configuration of training tells, by its own names, and `where` it is."""

    where: str
    sizes: Mapping[str, int]


def told_by(where: str, values: Mapping[Any, Any]) -> Told:
    """The sizes among the values of a configuration."""
    sizes = {name: values[name] for name in _SIZES if type(values.get(name)) is int}
    if values.get(_GROUPED) is False:
        # Then their number means nothing.
        sizes.pop("num_query_groups", None)
    return Told(where=where, sizes=sizes)


def read_run_config(directory: Path, seen: list[SourceFile]) -> Told | None:
    """The sizes in `run_config.yaml`, `None` where there is none; the identity of the file is added to `seen`.

    Raises:
        InputError: it cannot be read, or is not YAML.
    """
    path = directory / RUN_CONFIG
    if not path.exists():
        return None
    with reading(path):
        text, file = read_whole(path)
    seen.append(file)
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}; copy the file again") from None
    model = dict(_entries(root)).get("model")
    numbers = {name: int(node.value) for name, node in _entries(model) if _is_number(node)}
    return told_by(f"{path}: model", numbers)


def contradictions(told: Told, model: Model) -> list[str]:
    """The sizes that the configuration of the model says otherwise, in words."""
    definition, sizes = model.defined, model.sizes
    latent = any(_LATENT in rule.target for rule in definition.rules)
    problems = []
    for name, value in told.sizes.items():
        own = _SIZES[name]
        if own not in sizes or (latent and name in _NOT_LATENT):
            continue
        try:
            is_same = sizes.get(own) == value
        except InputError:
            # That the configuration lacks it, whoever needs it says.
            continue
        if not is_same:
            problems.append(f"{told.where}: {name} is {value}, but {model.config_path} says {sizes.origin(own)}")
    return problems


def is_configured_alone(model: Model) -> bool:
    """Whether training is configured by sizes of the model: that of several modalities may have placeholders."""
    return set(model.defined.modalities) == {TEXT}


def _entries(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))


def _is_number(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and _NUMBER.fullmatch(node.value) is not None
