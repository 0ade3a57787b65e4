"""The arguments of training that describe a model, for the common part of a torch_dist result.

Megatron-LM's `--load` compares some of them with its own, and `--use-checkpoint-args` takes them over. Owns their
names, and what of a model tells each; what neither its configuration nor its parameters tell is left out.
Source: `check_checkpoint_args` and `load_args_from_checkpoint` in `megatron/training/checkpointing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distconv.errors import InputError
from distconv.formats.model import Model
from distconv.formats.torch_dist.kind import BACKEND
from distconv.formats.torch_dist.sizes import is_configured_alone
from distconv.models.language_model import text_part
from distconv.models.parameters import Binding
from distconv.models.rules import TEXT
from distconv.models.vocabulary import has_vocabulary

_SIZES = {
    "num_layers": "layers",
    "hidden_size": "hidden",
    "ffn_hidden_size": "mlp",
    "num_attention_heads": "heads",
    "num_experts": "expert_count",
    "moe_ffn_hidden_size": "expert_mlp",
    "moe_shared_expert_intermediate_size": "shared_mlp",
}
_SIZES_OF_GROUPED_ATTENTION = {"num_query_groups": "kv_heads", "kv_channels": "head_dim"}
_SIZES_OF_LATENT_ATTENTION = {
    "q_lora_rank": "q_rank",
    "kv_lora_rank": "kv_rank",
    "qk_head_dim": "nope_dim",
    "qk_pos_emb_head_dim": "rope_dim",
    "v_head_dim": "value_dim",
}
# Of the language model's part of config.json, if the field is there.
_FIELDS = {
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "attention_dropout": "attention_dropout",
    "moe_router_topk": "num_experts_per_tok",
    "moe_router_topk_scaling_factor": "routed_scaling_factor",
    "moe_router_num_groups": "n_group",
    "moe_router_group_topk": "topk_group",
}
# Parameters, by the ends of their names, that are there if the argument is given in training.
_TOLD_BY_PARAMETERS = {
    "add_bias_linear": ".self_attention.linear_proj.bias",
    "add_qkv_bias": ".self_attention.linear_qkv.bias",
    "qk_layernorm": ".self_attention.q_layernorm.weight",
    "multi_latent_attention": ".self_attention.linear_kv_up_proj.weight",
    "untie_embeddings_and_output_weights": "output_layer.weight",
}
_ROUTER = ".mlp.router.weight"
_PREDICTING = re.compile(r"(?:^|\.)mtp\.layers\.(\d+)\.")


def arguments_of(model: Model, binding: Binding, vocab_multiple: int | None) -> dict[str, Any]:
    """The arguments for a model with the parameters of a binding, which have the names of its definition.

    The sizes of the parallel axes are one: a distributed checkpoint has none, and training gives its own.
    """
    text = [each for each in binding.parameters if each.recipe.rule.modality == TEXT]
    targets = {each.recipe.rule.target for each in text}
    told = {name: any(target.endswith(end) for target in targets) for name, end in _TOLD_BY_PARAMETERS.items()}
    rows = [each.recipe.tensor.shape[0] for each in text if has_vocabulary(each.recipe.rule)]
    latent = told["multi_latent_attention"]
    arguments: dict[str, Any] = {
        "ckpt_format": BACKEND,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": 1,
        **dict(_sizes(model, {**_SIZES, **(_SIZES_OF_LATENT_ATTENTION if latent else _SIZES_OF_GROUPED_ATTENTION)})),
        "group_query_attention": not latent,
    }
    if rows:
        arguments["padded_vocab_size"] = max(rows)
    if vocab_multiple is not None:
        arguments["make_vocab_size_divisible_by"] = vocab_multiple
    # Training of several modalities is configured elsewhere, and may have placeholders for what is not compared.
    if is_configured_alone(model):
        arguments |= told | dict(_of_text(text_part(model.config), binding, targets))
    return arguments


def _sizes(model: Model, names: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    for argument, size in names.items():
        if size in model.sizes:
            try:
                yield argument, model.sizes.get(size)
            except InputError:
                # The configuration lacks what nothing of the model is made with.
                continue


def _of_text(config: Mapping[str, Any], binding: Binding, targets: set[str]) -> Iterator[tuple[str, Any]]:
    """What the configuration of a language model, and its parameters, tell of an architecture."""
    yield from ((argument, config[field]) for argument, field in _FIELDS.items() if config.get(field) is not None)
    yield "swiglu", any(each.recipe.rule.tensor_parallel == "glu" for each in binding.parameters)
    yield "normalization", "LayerNorm" if any(each.endswith("layernorm.bias") for each in targets) else "RMSNorm"
    yield "hidden_dropout", 0.0
    rope = config.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    base = rope.get("rope_theta", config.get("rope_theta"))
    if base is not None:
        yield "position_embedding_type", "rope"
        yield "use_rotary_position_embeddings", True
        yield "rotary_base", base
        yield "rotary_percent", rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    numbers = [int(match[1]) for each in targets if (match := _PREDICTING.search(each))]
    if numbers:
        yield "mtp_num_layers", max(numbers) + 1
    if binding.experts is not None:
        has_bias = any(each.endswith(".mlp.router.expert_bias") for each in targets)
        yield "moe_router_enable_expert_bias", has_bias
        yield "moe_router_score_function", "sigmoid" if has_bias else "softmax"
        sparse = {
            each.layer
            for each in binding.parameters
            if each.layer is not None and each.recipe.rule.target.endswith(_ROUTER)
        }
        if len(sparse) < (layers := binding.layers[TEXT]):
            yield "moe_layer_freq", [int(layer in sparse) for layer in range(layers)]
