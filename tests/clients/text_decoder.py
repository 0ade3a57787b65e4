"""The text decoder that a Megatron training program builds: megatron-core's own `GPTModel`, dense or with experts.

It is built for the (tensor, expert, pipeline) rank of this process and holds a range of layers of one virtual stage:
`first` also holds what precedes the layers, `last` what follows them. Reads no files and knows nothing of pipeline
hand-over.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSizes:
    """`experts` and `latent` are what a configuration says of experts and of latent attention; nothing without them."""

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
    rotary_percent: float
    layernorm_epsilon: float
    tied: bool
    latent: dict[str, Any]
    experts: dict[str, Any]


def text_decoder(sizes: TextSizes, *, layers: range, first: bool, last: bool, virtual_stage: int) -> GPTModel:
    # releases up to 0.13 ask for the number of the virtual stage, those since 0.13 are told
    stage = {"vp_stage": virtual_stage} if "vp_stage" in inspect.signature(GPTModel.__init__).parameters else {}
    config = configuration(sizes)
    return GPTModel(
        config=config,
        # the layers are given, not left to megatron-core, which knows equal stages only
        transformer_layer_spec=TransformerBlockSubmodules(
            layer_specs=[layer_spec(sizes, layer) for layer in layers], layer_norm=WrappedTorchNorm
        ),
        vocab_size=sizes.vocab_size,
        max_sequence_length=4096,
        pre_process=first,
        post_process=last,
        parallel_output=True,  # each rank computes the logits of its part of the vocabulary
        share_embeddings_and_output_weights=sizes.tied,
        position_embedding_type="rope",  # what the model's three-axis rotary embedding comes to without images
        rotary_base=sizes.rotary_base,
        rotary_percent=sizes.rotary_percent,
        **stage,
    )


def configuration(sizes: TextSizes) -> TransformerConfig:
    options = {
        **on_cpu(),
        **experts(sizes),
        **latent(sizes),
        "num_layers": sizes.num_layers,
        "hidden_size": sizes.hidden_size,
        "ffn_hidden_size": sizes.ffn_hidden_size,
        "num_attention_heads": sizes.num_attention_heads,
        "num_query_groups": sizes.num_query_groups,
        "kv_channels": sizes.kv_channels,
        "layernorm_epsilon": sizes.layernorm_epsilon,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": sizes.add_qkv_bias,
        "qk_layernorm": sizes.qk_layernorm,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return (MLATransformerConfig if sizes.latent else TransformerConfig)(**options)


def layer_spec(sizes: TextSizes, layer: int) -> ModuleSpec:
    has_experts = sizes.experts and sizes.experts["moe_layer_freq"][layer]
    return get_gpt_layer_local_spec(
        num_experts=sizes.experts["num_moe_experts"] if has_experts else None,
        qk_layernorm=sizes.qk_layernorm,
        multi_latent_attention=bool(sizes.latent),
        normalization="RMSNorm",
    )


def latent(sizes: TextSizes) -> dict[str, Any]:
    """The part of a configuration about latent attention; rotary embeddings are not stretched."""
    if not sizes.latent:
        return {}
    rotary = {"rope_type": "rope", "rotary_base": sizes.rotary_base, "rotary_scaling_factor": 1.0}
    return {**sizes.latent, **rotary, "multi_latent_attention": True}


def experts(sizes: TextSizes) -> dict[str, Any]:
    """The part of a configuration about experts; what weighs the chosen experts adds up to one."""
    if not sizes.experts:
        return {}
    layers = sizes.experts["moe_layer_freq"]
    return {
        **sizes.experts,
        # a list is another form of model, whose layers a torch_dist checkpoint holds one by one
        "moe_layer_freq": 1 if all(layers) else layers,
        "sequence_parallel": sequence_parallel(sizes),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "moe_router_load_balancing_type": "none",
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
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        "pipeline_dtype": torch.float32,
        "params_dtype": torch.float32,
        "use_cpu_initialization": True,
        "perform_initialization": False,
    }
