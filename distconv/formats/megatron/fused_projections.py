"""Fused down projections of multi-head latent attention, as the two parameters that they are.

Since Megatron-core 0.17 a model may be built with `mla_down_proj_fusion`: then rank files hold one matrix, rows of q
above those of k and v, as far as the rank holds them, and the norm in front is a part of it. Distributed checkpoints
have them apart all the same. Owns this form of rank files, which is only read. Pure.
Format: `FusedMLASelfAttention` in `megatron/core/transformer/multi_latent_attention.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from distconv.errors import raise_if
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.models.bind import whole_parameter
from distconv.models.definition import Definition
from distconv.models.sizes import Sizes
from distconv.tensors.dtypes import ITEM_SIZE

_FUSED = re.compile(r"(.*)\.self_attention\.linear_qkv_down_proj\.(weight|layer_norm_\w+)")
_PARTS = (".self_attention.linear_q_down_proj.weight", ".self_attention.linear_kv_down_proj.weight")


def unfused(index: MegatronIndex, definition: Definition, sizes: Sizes) -> MegatronIndex:
    """The index with a tensor for each of two projections, where one holds both: views of its rows.

    Raises:
        InputError: every such tensor whose rows are not those of both, or an equal part of each.
    """
    if not any(_FUSED.fullmatch(name) for file in index.files for _, name in file.tensors):
        return index
    rules = {end: rule for end in _PARTS for rule in definition.rules if rule.target.endswith(end)}
    if len(rules) < len(_PARTS):
        # Not of this model: that no rule knows them is said by name.
        return index
    rows = [whole_parameter(rules[end], sizes).shape[0] for end in _PARTS]
    problems: list[str] = []
    files = []
    for file in index.files:
        tensors: dict[tuple[str, str], ArchivedTensor] = {}
        for (key, name), tensor in file.tensors.items():
            try:
                tensors |= {(key, part): view for part, view in _parts(name, tensor, rows)}
            except ValueError as error:
                problems.append(f"{file.file.path}: {key}/{name} {error}")
        files.append(replace(file, tensors=tensors))
    raise_if(problems)
    return replace(index, files=tuple(files))


def _parts(name: str, tensor: ArchivedTensor, rows: list[int]) -> Iterator[tuple[str, ArchivedTensor]]:
    """The tensors that a tensor holds, by name: most are one themselves; `rows` are those of all ranks of each part.

    Raises:
        ValueError: it has other rows than both parts, or than an equal share of each.
    """
    match = _FUSED.fullmatch(name)
    if match is None:
        yield name, tensor
        return
    at, end = match.groups()
    if end != "weight":
        yield f"{at}.input_layernorm.{end.removeprefix('layer_norm_')}", tensor
        return
    held = tensor.shape[0] if len(tensor.shape) == 2 else 0
    ranks = sum(rows) // held if held else 0
    if not ranks or held * ranks != sum(rows) or any(each % ranks for each in rows):
        raise ValueError(
            f"has shape {list(tensor.shape)}, expected {rows[0]} + {rows[1]} rows of the down projections of q and of "
            "kv, or an equal share of each"
        )
    start = 0
    for part, length in zip(_PARTS, (each // ranks for each in rows), strict=True):
        offset = tensor.offset + start * tensor.strides[0] * ITEM_SIZE[tensor.dtype]
        yield at + part, ArchivedTensor(tensor.dtype, (length, tensor.shape[1]), tensor.strides, offset)
        start += length
