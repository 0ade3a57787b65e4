"""The image encoder that a Megatron-style training program builds for Qwen2-VL, named as in its checkpoints.

It is written here on megatron-core's parallel linear layers, since megatron-core has none for this model: its attention
reads `linear_qkv` per head as [heads, 3, head_size].

It is built for the (tensor, pipeline) rank of this process and holds a range of layers of one virtual stage: `first`
also holds what precedes the layers, `last` what follows them. Reads no files and knows nothing of pipeline hand-over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from text_decoder import on_cpu
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSizes:
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    in_channels: int
    temporal_patch_size: int
    patch_size: int
    spatial_merge_size: int
    output_size: int

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


class ImageEncoder(nn.Module):
    """A range of vision blocks; with the patch embedding when `first`, with the projector when `last`."""

    def __init__(self, sizes: VisionSizes, *, layers: int, first: bool, last: bool) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = VisionTransformer(sizes, layers=layers, first=first)
        self.projector = Projector(sizes) if last else None

    def forward(self, hidden: Tensor, grid: Tensor) -> Tensor:
        """`hidden` is the patches on the first stage, and elsewhere what the stage before returned."""
        angles = rotary_angles(grid, head_size=self.sizes.head_size, merge=self.sizes.spatial_merge_size)
        frames = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0]).tolist()
        encoded: Tensor = self.encoder(hidden, angles, frames)
        if self.projector is not None:
            encoded = self.projector(encoded)
        return encoded


class VisionTransformer(nn.Module):
    def __init__(self, sizes: VisionSizes, *, layers: int, first: bool) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(sizes) if first else None
        self.blocks = Blocks(sizes, layers)

    def forward(self, hidden: Tensor, angles: Tensor, frames: list[int]) -> Tensor:
        if self.patch_embed is not None:
            hidden = self.patch_embed(hidden)
        output: Tensor = self.blocks(hidden, angles, frames)
        return output


class PatchEmbed(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        kernel = (sizes.temporal_patch_size, sizes.patch_size, sizes.patch_size)
        self.proj = nn.Conv3d(sizes.in_channels, sizes.hidden_size, kernel_size=kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        embedded: Tensor = self.proj(patches.view(-1, *self.proj.weight.shape[1:]))
        return embedded.flatten(1)


class Blocks(nn.Module):
    def __init__(self, sizes: VisionSizes, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(sizes) for _ in range(layers))

    def forward(self, hidden: Tensor, angles: Tensor, frames: list[int]) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, angles, frames)
        return hidden


class Block(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(sizes.hidden_size, eps=1e-6)
        self.self_attention = Attention(sizes)
        self.pre_mlp_layernorm = nn.LayerNorm(sizes.hidden_size, eps=1e-6)
        self.mlp = Mlp(sizes.hidden_size, sizes.ffn_hidden_size, sizes.hidden_size, activation=quick_gelu)

    def forward(self, hidden: Tensor, angles: Tensor, frames: list[int]) -> Tensor:
        hidden = hidden + self.self_attention(self.input_layernorm(hidden), angles, frames)
        output: Tensor = hidden + self.mlp(self.pre_mlp_layernorm(hidden))
        return output


class Attention(nn.Module):
    """Attention within each frame; every tensor parallel rank holds whole heads."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.head_size = sizes.head_size
        self.linear_qkv = column_parallel(sizes.hidden_size, 3 * sizes.hidden_size)
        self.linear_proj = row_parallel(sizes.hidden_size, sizes.hidden_size)

    def forward(self, hidden: Tensor, angles: Tensor, frames: list[int]) -> Tensor:
        qkv: Tensor = self.linear_qkv(hidden)[0].unflatten(-1, (-1, 3, self.head_size))
        query, key, value = qkv.unbind(2)
        query, key = rotate(query, angles), rotate(key, angles)
        mixed = [attend(*frame) for frame in zip(*(torch.split(x, frames) for x in (query, key, value)), strict=True)]
        projected: Tensor = self.linear_proj(torch.cat(mixed).flatten(1))[0]
        return projected


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, output: int, *, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear_fc1 = column_parallel(width, inner)
        self.linear_fc2 = row_parallel(inner, output)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.linear_fc2(self.activation(self.linear_fc1(hidden)[0]))[0]
        return output


class Projector(nn.Module):
    """Merges neighbouring patches and projects them to the width of the text decoder."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.merged = sizes.hidden_size * sizes.spatial_merge_size**2
        self.layernorm = nn.LayerNorm(sizes.hidden_size, eps=1e-6)
        self.encoder = Mlp(self.merged, self.merged, sizes.output_size, activation=functional.gelu)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.encoder(self.layernorm(hidden).view(-1, self.merged))
        return projected


def column_parallel(width: int, output: int) -> ColumnParallelLinear:
    return ColumnParallelLinear(width, output, config=ModelParallelConfig(**on_cpu()), init_method=None, bias=True)


def row_parallel(width: int, output: int) -> RowParallelLinear:
    return RowParallelLinear(
        width,
        output,
        config=ModelParallelConfig(**on_cpu()),
        init_method=None,
        bias=True,
        input_is_parallel=True,
        skip_bias_add=False,
    )


def rotary_angles(grid: Tensor, *, head_size: int, merge: int) -> Tensor:
    """For each patch the angles of half a head: first those of its row, then those of its column.

    The patches of a frame come in groups of merge x merge neighbours, which the projector joins.
    """
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, head_size // 2, 2) / (head_size // 2))
    positions = []
    for frames, height, width in grid.tolist():
        rows_and_columns = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        grouped = rows_and_columns.view(height // merge, merge, width // merge, merge, 2).transpose(1, 2)
        positions.append(grouped.reshape(-1, 2).repeat(frames, 1))
    return (torch.cat(positions)[..., None] * frequencies).flatten(1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    cosine, sine = (turn.repeat(1, 2)[:, None] for turn in (angles.cos(), angles.sin()))
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-high, low), dim=-1) * sine


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[patches, heads, head_size] each; every patch of the frame sees every other."""
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    weights = torch.softmax(query @ key.transpose(1, 2) * query.shape[-1] ** -0.5, dim=-1)
    return (weights @ value).transpose(0, 1)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
