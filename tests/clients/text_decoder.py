"""The text decoder that a Megatron training program builds: megatron-core's own `GPTModel`, dense or with experts.

It is built for the (tensor, expert, pipeline) rank of this process and holds a range of layers of one virtual stage:
`first` also holds what precedes the layers, `last` what follows them. Reads no files and knows nothing of pipeline
hand-over.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSizes:
    """`experts` is what a configuration says of experts; nothing for a dense model."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    add_qkv_bias: bool
    qk_layernorm: bool
    vocab_size: int
    rotary_base: float
    layernorm_epsilon: float
    tied: bool
    experts: dict[str, Any]


def text_decoder(sizes: TextSizes, *, layers: range, first: bool, last: bool) -> GPTModel:
    config = TransformerConfig(
        **on_cpu(),
        **experts(sizes),
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        ffn_hidden_size=sizes.ffn_hidden_size,
        num_attention_heads=sizes.num_attention_heads,
        num_query_groups=sizes.num_query_groups,
        kv_channels=sizes.kv_channels,
        layernorm_epsilon=sizes.layernorm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=functional.silu,
        add_bias_linear=False,
        add_qkv_bias=sizes.add_qkv_bias,
        qk_layernorm=sizes.qk_layernorm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return GPTModel(
        config=config,
        # the layers are given, not left to megatron-core, which knows equal stages only
        transformer_layer_spec=TransformerBlockSubmodules(
            layer_specs=[layer_spec(config, layer) for layer in layers], layer_norm=WrappedTorchNorm
        ),
        vocab_size=sizes.vocab_size,
        max_sequence_length=4096,
        pre_process=first,
        post_process=last,
        parallel_output=True,  # each rank computes the logits of its part of the vocabulary
        share_embeddings_and_output_weights=sizes.tied,
        position_embedding_type="rope",  # what the model's three-axis rotary embedding comes to without images
        rotary_base=sizes.rotary_base,
    )


def layer_spec(config: TransformerConfig, layer: int) -> ModuleSpec:
    has_experts = config.num_moe_experts and config.moe_layer_freq[layer]
    return get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts if has_experts else None,
        qk_layernorm=config.qk_layernorm,
        normalization=config.normalization,
    )


def experts(sizes: TextSizes) -> dict[str, Any]:
    """The part of a configuration about experts; probabilities are those of the chosen experts and add up to one."""
    if not sizes.experts:
        return {}
    return {
        **sizes.experts,
        "sequence_parallel": sequence_parallel(sizes),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "moe_router_load_balancing_type": "none",
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": False,
        "moe_token_dispatcher_type": "allgather",  # the others need streams of an accelerator
    }


def sequence_parallel(sizes: TextSizes) -> bool:
    """Whether tensor parallel ranks divide the sequence between layers; with experts they have to."""
    return bool(sizes.experts) and parallel_state.get_tensor_model_parallel_world_size() > 1


def hidden_shape(sizes: TextSizes, input_ids: Tensor) -> tuple[int, int, int]:
    """Of what this rank hands on to the next stage, for token ids [batch, length]."""
    batch, length = input_ids.shape
    ranks = parallel_state.get_tensor_model_parallel_world_size() if sequence_parallel(sizes) else 1
    return length // ranks, batch, sizes.hidden_size


def on_cpu() -> dict[str, Any]:
    """The part of a configuration that every module here shares: float32, no accelerator, nothing initialised."""
    return {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "pipeline_dtype": torch.float32,
        "params_dtype": torch.float32,
        "use_cpu_initialization": True,
        "perform_initialization": False,
    }
