"""Checkpoints in memory whose every element has a number of its own, and how they are saved, without distconv.

An element is its number as a bit pattern, so a tensor is compared as bits, never as values. What saves them are
safetensors and torch themselves.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MARK = "\0"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(eq=False)
class Stored:
    """A tensor in a shard."""

    shard: str
    name: str
    tensor: torch.Tensor


@dataclass(eq=False)
class Draft:
    """A checkpoint that is not saved yet: change it, then save it.

    `weight_map` is the index; `None`: there is none. `files` are further files by name. `after` changes what is saved.
    """

    config: dict[str, Any]
    stored: list[Stored]
    weight_map: dict[str, str] | None
    files: dict[str, bytes] = field(default_factory=dict)
    after: list[Callable[[Path], object]] = field(default_factory=list)

    @property
    def tensors(self) -> Tensors:
        """By name; of a name that is there twice, as the index says."""
        found = {each.name: each.tensor for each in self.stored}
        if self.weight_map is not None:
            found |= {each.name: each.tensor for each in self.stored if self.weight_map.get(each.name) == each.shard}
        return found

    def find(self, name: str) -> Stored:
        return next(each for each in self.stored if each.name == name)

    def remove(self, name: str, *, from_index: bool = True) -> None:
        self.stored = [each for each in self.stored if each.name != name]
        if from_index and self.weight_map is not None:
            self.weight_map.pop(name)

    def add(self, name: str, tensor: torch.Tensor, shard: str) -> None:
        self.stored.append(Stored(shard, name, tensor))
        if self.weight_map is not None:
            self.weight_map.setdefault(name, shard)

    @property
    def shards(self) -> list[str]:
        return list(dict.fromkeys(each.shard for each in self.stored))


def numbered(shape: Iterable[int], dtype: torch.dtype, first: int) -> torch.Tensor:
    """A tensor of consecutive numbers, as bit patterns; those of two bytes begin again after 65535, without 0."""
    shape = tuple(shape)
    integer = INTEGERS[dtype.itemsize]
    numbers = torch.arange(first, first + prod(shape), dtype=torch.int64)
    limit = 256**dtype.itemsize - 1
    return ((numbers - 1) % limit + 1).to(integer).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as integers of their width."""
    return tensor.contiguous().view(INTEGERS[tensor.dtype.itemsize])


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same to the bit, element type and shape included."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def numbered_tensors(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], first: int) -> Tensors:
    found = {}
    for name, shape in shapes.items():
        found[name] = numbered(shape, dtypes[name], first)
        first += prod(shape)
    return found


def in_shards(tensors: Tensors, config: dict[str, Any], random: Random) -> Draft:
    """A draft of several shards and an index, or of a single file without."""
    count = random.choice([1, 2, 3])
    if count == 1:
        return Draft(config, [Stored(SINGLE, name, each) for name, each in tensors.items()], None)
    shards = [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    stored = [Stored(random.choice(shards), name, each) for name, each in tensors.items()]
    for shard, each in zip(shards, stored, strict=False):
        each.shard = shard
    return Draft(config, stored, {each.name: each.shard for each in stored})


def save_hf(draft: Draft, directory: Path) -> Path:
    """The draft as a Hugging Face directory."""
    directory.mkdir(parents=True)
    for shard in draft.shards:
        held = {each.name: each.tensor.contiguous().clone() for each in draft.stored if each.shard == shard}
        save_file(held, directory / shard, metadata={"format": "pt"})
    if draft.weight_map is not None:
        size = sum(each.tensor.nbytes for each in draft.stored)
        content = {"metadata": {"total_size": size}, "weight_map": draft.weight_map}
        (directory / INDEX).write_text(json.dumps(content))
    (directory / "config.json").write_text(json.dumps(draft.config))
    return _with_files(draft, directory)


def save_dcp(draft: Draft, directory: Path, prefix: str, rename: Callable[[str], str]) -> Path:
    """The draft's tensors as torch saves a state dict, under other names."""
    state = {prefix + _spelled(each.name, rename): each.tensor.contiguous().clone() for each in draft.stored}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.save(state, checkpoint_id=directory, no_dist=True)
    return _with_files(draft, directory)


def _spelled(name: str, rename: Callable[[str], str]) -> str:
    """The name that is saved: a name marked by `as_it_is` is not renamed."""
    return name.removeprefix(_MARK) if name.startswith(_MARK) else rename(name)


def as_it_is(name: str) -> str:
    """A name that goes into a DCP as it is."""
    return _MARK + name


def _with_files(draft: Draft, directory: Path) -> Path:
    for name, content in draft.files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    for change in draft.after:
        change(directory)
    return directory
