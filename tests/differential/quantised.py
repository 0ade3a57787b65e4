"""Weights of a draft that are published in fewer bits: their pieces, and what they stand for, by torch's arithmetic."""

from __future__ import annotations

from random import Random

import torch

from tests.differential.drafts import Draft, Tensors
from tests.quantised import fp8, int4

GROUP = 8
# A tensor in bfloat16, and its pieces by what their names have at the end.
Made = tuple[torch.Tensor, list[tuple[str, torch.Tensor]]]


def quantise(random: Random, draft: Draft) -> Tensors | None:
    """Put the pieces of some matrices into a draft; all tensors as they are without quantisation, or nothing.

    fp8 has blocks that the ends of tensors cut off; int4 is for matrices of whole groups.
    """
    how = random.choice(["fp8", "int4"])
    block = (random.randint(1, 7), random.randint(1, 7))
    chosen = [
        each
        for each in draft.stored
        if (each.tensor.ndim == 2 or (each.tensor.ndim == 3 and "experts" in each.name and how == "fp8"))
        and each.tensor.numel()
        and "layers." in each.name
        and (how == "fp8" or (each.name.endswith(".weight") and not each.tensor.shape[1] % GROUP))
        and random.random() < 0.8
    ]
    if not chosen:
        return None
    generator = torch.Generator().manual_seed(random.randrange(2**32))
    plain = dict(draft.tensors)
    for each in chosen:
        make = _fp8(each.tensor.shape, block, generator) if how == "fp8" else _int4(each.tensor.shape, generator)
        plain[each.name], pieces = make
        draft.remove(each.name)
        for suffix, tensor in pieces:
            draft.add(each.name + suffix, tensor, each.shard if random.random() < 0.8 else random.choice(draft.shards))
    draft.config = {**draft.config, "quantization_config": fp8(block) if how == "fp8" else int4(GROUP)}
    return plain


def _fp8(shape: torch.Size, block: tuple[int, int], generator: torch.Generator) -> Made:
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] ^= 1
    weight = codes.view(torch.float8_e4m3fn)
    *outer, rows, columns = shape
    scales = torch.rand((*outer, -(-rows // block[0]), -(-columns // block[1])), generator=generator) + 0.01
    spread = scales.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)[..., :rows, :columns]
    return (weight.float() * spread).bfloat16(), [("", weight), ("_scale_inv", scales)]


def _int4(shape: torch.Size, generator: torch.Generator) -> Made:
    rows, columns = shape
    codes = torch.randint(0, 16, (rows, columns // 8, 8), generator=generator)
    words = (codes << torch.arange(0, 32, 4)).sum(-1)
    packed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    scales = (torch.rand((rows, columns // GROUP), generator=generator) + 0.01).bfloat16()
    values = (codes.reshape(rows, columns) - 8) * scales.float().repeat_interleave(GROUP, 1)
    return values.bfloat16(), [
        ("_packed", packed),
        ("_scale", scales),
        ("_shape", torch.tensor(shape)),
    ]
