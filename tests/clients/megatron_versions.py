"""What megatron-core does on an accelerator only, and what its releases lack here, replaced.

Never changes what is computed, or what is read and written.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn
from torch.distributed.checkpoint.filesystem import SerializationFormat


def without_accelerator() -> None:
    """Replace what megatron-core does on an accelerator only, for this process and those forked from it."""
    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]  # megatron-core takes any device
    torch.cuda.synchronize = lambda *_: None
    CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
    # the only norm without an accelerator refuses sequence parallelism, although what it computes is the same
    WrappedTorchNorm.__new__ = staticmethod(rms_norm)
    # would overwrite a tied head with the embedding; what the checkpoint holds has to be right by itself
    LanguageModule.setup_embeddings_and_output_layer = lambda _: None
    # 0.16 asks for what it has of Transformer Engine where that is not
    multi_latent_attention.HAVE_TE, moe_utils.te_general_gemm = False, None
    DotProductAttention.__init__ = with_channels(DotProductAttention.__init__)
    if "serialization_format" not in inspect.getsource(filesystem_async):
        # older than the torch that is here
        filesystem_async._write_item = functools.partial(
            filesystem_async._write_item, serialization_format=SerializationFormat.TORCH_SAVE
        )


def rms_norm(_: type, config: TransformerConfig, hidden_size: int, eps: float, **__: object) -> nn.RMSNorm:
    assert config.normalization == "RMSNorm"
    return nn.RMSNorm(hidden_size, eps=eps)


def with_channels(attention: Callable[..., None]) -> Callable[..., None]:
    """The only attention without an accelerator cannot be told that keys and values differ in width."""

    def init(
        self: Any, *arguments: Any, k_channels: int | None = None, v_channels: int | None = None, **more: Any
    ) -> None:
        del k_channels  # of which only the scale depends, which is given
        attention(self, *arguments, **more)
        if v_channels is not None:
            self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition

    return init
