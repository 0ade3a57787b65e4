"""Reads what was made with the readers of safetensors and torch, and judges it by what was put in.

Never uses distconv's rules: whatever is moved, cut, fused or permuted, the bit patterns are all there, each once in a
module, and none is new.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from distconv.errors import InputError
from tests.checkpoints import read_dcp
from tests.differential.damages import RIGHT, Harm
from tests.differential.drafts import INDEX, SINGLE, Tensors, bits, same
from tests.differential.generations import TIE, is_tied, text_of
from tests.differential.models import Model


class WrongError(Exception):
    """A result that is not as its source says."""


def check_named(found: Mapping[str, torch.Tensor], expected: Tensors, may_lack: Collection[str]) -> None:
    """Check tensors under published names, to the bit.

    Raises:
        WrongError: one is missing, unknown, or differs.
    """
    missing = [name for name in expected if name not in found and name not in may_lack]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        raise WrongError(f"without a word missing: {missing}; unknown: {unknown}")
    for name, tensor in found.items():
        if not same(tensor, expected[name]):
            other = expected[name]
            raise WrongError(f"{name}: {tensor.dtype} {list(tensor.shape)} is not {other.dtype} {list(other.shape)}")


def check_elements(modules: Iterable[Tensors], expected: Tensors, *, padded: bool) -> None:
    """Check parameters under other names by their elements: all are there, none is new, none twice in a module.

    `padded`: zeros may have been put in. Tensors of `expected` that hold the same elements are one.

    Raises:
        WrongError: an element is missing, new or doubled.
    """
    needed = _patterns(expected.values())
    seen: dict[torch.dtype, set[int]] = {}
    for module in modules:
        here = _patterns(module.values())
        for dtype, patterns in here.items():
            known = needed.get(dtype, {})
            if new := [each for each in patterns if each not in known and not (padded and each == 0)]:
                raise WrongError(f"{len(new)} elements of {dtype} were never put in: {new[:5]}")
            if doubled := [each for each, count in patterns.items() if each and count > known.get(each, 1)]:
                raise WrongError(f"{len(doubled)} elements of {dtype} are more than once in a module: {doubled[:5]}")
            seen.setdefault(dtype, set()).update(patterns)
    for dtype, patterns in needed.items():
        if lost := patterns.keys() - seen.get(dtype, set()):
            names = [name for name, each in expected.items() if set(bits(each).flatten().tolist()) & lost]
            raise WrongError(f"{len(lost)} elements of {dtype} are lost, without a word, of {names[:5]}")


def _patterns(tensors: Iterable[torch.Tensor]) -> dict[torch.dtype, dict[int, int]]:
    """How often each bit pattern is there, by element type."""
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for each in tensors:
        by_dtype.setdefault(each.dtype, []).append(bits(each).flatten())
    found = {}
    for dtype, parts in by_dtype.items():
        values, counts = torch.cat(parts).unique(return_counts=True)
        found[dtype] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return found


def read_hf(directory: Path) -> Tensors:
    """The tensors of a Hugging Face directory, as its index says.

    Raises:
        WrongError: index and shards do not agree.
    """
    shards = {path.name: load_file(path) for path in directory.glob("*.safetensors")}
    path = directory / INDEX
    if not path.exists():
        if set(shards) != {SINGLE}:
            raise WrongError(f"no index, but {sorted(shards)}")
        return shards[SINGLE]
    content = json.loads(path.read_text())
    names = {name: shard for shard, held in shards.items() for name in held}
    if content["weight_map"] != names or sum(map(len, shards.values())) != len(names):
        raise WrongError("the index does not say where the tensors are")
    held = {name: tensor for each in shards.values() for name, tensor in each.items()}
    if content["metadata"]["total_size"] != sum(each.nbytes for each in held.values()):
        raise WrongError("total_size is not that of the tensors")
    return held


def read_adapter(directory: Path) -> Tensors:
    """The tensors of adapters as PEFT saves them."""
    return load_file(directory / "adapter_model.safetensors")


def read_megatron(directory: Path) -> Iterator[Tensors]:
    """The parameters of each module in each rank file."""
    for path in sorted(directory.rglob("*.pt")):
        content = torch.load(path, weights_only=True)
        for key, module in content.items():
            if key == "model" or (key.startswith("model") and key[5:].isdigit()):
                yield module


def read_parameters(directory: Path) -> Tensors:
    """The tensors of a DCP by their names below `model`."""
    (iteration,) = [path.parent for path in directory.rglob(".metadata")]
    found = {name: each for name, each in read_dcp(iteration).items() if isinstance(each, torch.Tensor)}
    return {name.removeprefix("model."): each for name, each in found.items()}


def check_refusal(error: InputError, target: Path, harm: Harm | None) -> None:
    """Check that a conversion was refused for what was done to its source, and left nothing.

    Raises:
        WrongError: it was not.
    """
    text = "\n".join(error.problems)
    if harm is None or harm.owed == RIGHT:
        raise WrongError(f"refused without a cause: {text}")
    if harm.mentions and not any(each in text for each in harm.mentions):
        raise WrongError(f"the refusal names none of {harm.mentions}: {text}")
    if target.exists():
        raise WrongError(f"refused, and left {sorted(target.rglob('*'))}")


def check_config(directory: Path, found: Tensors, model: Model, notes: Iterable[str] = ()) -> None:
    """Check that the configuration beside a result is true of it, or the report has a note that it may not be.

    Raises:
        WrongError: a reader would tie a head that is stored otherwise, or miss one; or expects other sizes.
    """
    if model.embedding not in found:
        raise WrongError(f"{model.embedding} is not there; there are {list(found)[:5]}")
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    head, embedding = found.get(model.head), found[model.embedding]
    is_said = any("readers may take the embedding" in note for note in notes)
    if head is not None and is_tied(config, model) and not same(head, embedding) and not is_said:
        raise WrongError(f"{model.head} is stored, and {TIE} has readers take the embedding")
    if head is None and not is_tied(config, model) and model.head not in model.left_out:
        raise WrongError(f"{model.head} is not stored, and {TIE} is false")
    rows = text_of(config, model).get("vocab_size", embedding.shape[0])
    if rows != embedding.shape[0]:
        raise WrongError(f"vocab_size is {rows}, of {embedding.shape[0]} rows")
    if "quantization_config" in config and all(each.dtype.itemsize > 1 for each in found.values()):
        raise WrongError("quantization_config beside tensors that are not quantised")
