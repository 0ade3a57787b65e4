"""The keys of a torch_dist checkpoint, and the names that they stand for.

Megatron-core stacks parameters there: those of all layers are one tensor with the layers in front, and those of all
experts of a layer, too; unless layers differ, whose keys then have numbers. Keys are the same for all ways of building
a model, but for norms. Owns the way from a key to the names of Megatron-core's local spec, as rank files have them,
with global numbers; and back, from the targets of a dialect. Sees names and shapes only; which program's names they
are, dialects tell.
Format: `sharded_state_dict` of the modules in `megatron/core/transformer`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from distconv.models.parameter_dialect import ParameterDialect, ParameterDialects
from distconv.models.sizes import MOST_COMBINATIONS
from distconv.tensors.virtual import Index

# What is not of the model, by the beginning of its key: state of training may have keys of the model further on.
_OTHERS = {
    "state of the optimizer": re.compile(r"(?:chained_\d+\.)?optimizer\."),
    "states of random generators": re.compile(r"rng_state[/.]"),
    "state of the rerun machine": re.compile(r"rerun_state_machine_state[/.]"),
    "common state": re.compile(r"common_state/"),
}
# What NeMo puts in front of all keys of a model.
_PREFIXES = ("module.", "model.")
_EXTRA_STATE = re.compile(r"\._extra_state(?:/|$)")
EXTRA_STATES = "extra states of modules"
COMMON_STATE = "common_state/shard_0_1"
_LAYERS = re.compile(r"((?:^|\.)layers\.)(?=[^\d.])")
_EXPERTS = re.compile(r"(\.mlp\.experts\.)experts\.(?:(\d+)\.|(?=[^\d.]))")
_LAYER = re.compile(r".*?(?:^|\.)layers\.(?:\d+\.)?")
# Ends of keys that a layer has together only where the model was built in one way.
_SPECS = {
    "Transformer Engine": (
        ("self_attention.linear_qkv.layer_norm_weight", "pre_mlp_layernorm.weight"),
        ("self_attention.linear_kv_up_proj.layer_norm_weight",),
    ),
    "local": (
        ("mlp.router.weight", "mlp.linear_fc1.layer_norm_weight"),
        ("self_attention.linear_kv_up_proj.weight", "self_attention.kv_layernorm.weight"),
    ),
}
# Halves of a gated linear unit that are kept apart: the gate, and what it gates.
_HALF = re.compile(r"(\.linear_fc1\.(?:weight|bias))_([wv])")
_NUMBER = r"(\d+|\{expert\})"
# The names of other ways to build a model, and those of the local spec.
_LOCAL = tuple(
    (re.compile(pattern), local)
    for pattern, local in (
        (r"\.self_attention\.linear_qkv\.layer_norm_(weight|bias)$", r".input_layernorm.\1"),
        (r"\.mlp\.linear_fc1\.layer_norm_(weight|bias)$", r".pre_mlp_layernorm.\1"),
        (r"\.self_attention\.linear_(q|kv)_up_proj\.layer_norm_(weight|bias)$", r".self_attention.\1_layernorm.\2"),
        (rf"\.mlp\.experts\.linear_fc([12])\.(weight|bias){_NUMBER}$", r".mlp.experts.local_experts.\3.linear_fc\1.\2"),
        (rf"\.mlp\.experts\.weight([12])\[{_NUMBER}\]$", r".mlp.experts.local_experts.\2.linear_fc\1.weight"),
        (r"^((?:.*\.)?mtp\.layers\.\d+)\.mtp_model_layer\.", r"\1.transformer_layer."),
    )
)

# The other way: targets, with placeholders for numbers.
_TARGET_OF_LAYER = re.compile(r"(?:.*\.)?layers\.\{layer\}\.")
_KEYS_OF_TARGETS = tuple(
    (re.compile(pattern), key)
    for pattern, key in (
        (r"\.mlp\.experts\.local_experts\.\{expert\}\.", ".mlp.experts.experts."),
        (r"\.mlp\.experts\.linear_fc([12])\.(weight|bias)\{expert\}$", r".mlp.experts.experts.linear_fc\1.\2"),
        (r"\.mlp\.experts\.weight([12])\[\{expert\}\]$", r".mlp.experts.experts.linear_fc\1.weight"),
        (r"^((?:.*\.)?mtp\.layers\.\d+)\.mtp_model_layer\.", r"\1.transformer_layer."),
    )
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter in a tensor: its name, and its position on the first dims of the tensor.

    `half`: which half of the parameter it is, in the order of rows; `None` for all of it.
    """

    name: str
    position: Index
    half: int | None = None


def other_kind(key: str) -> str | None:
    """What an entry is that is no parameter of the model, in words; `None` for one that may be."""
    for kind, beginning in _OTHERS.items():
        if beginning.match(key):
            return kind
    return EXTRA_STATES if _EXTRA_STATE.search(key) else None


def prefix_of(keys: Collection[str]) -> str:
    """What stands in front of all keys of a model, because a program wraps it; mostly nothing."""
    found = (prefix for prefix in _PREFIXES if keys and all(key.startswith(prefix) for key in keys))
    return next(found, "")


def spec_of(keys: Collection[str]) -> str | None:
    """Which way to build a model its norms tell, in words; `None` where all ways have the same keys."""
    layers = {match[0] for key in keys if (match := _LAYER.match(key))}
    for spec, telling in _SPECS.items():
        if any(all(layer + end in keys for end in ends) for ends in telling for layer in layers):
            return spec
    return None


def parts_of(key: str, shape: Index) -> list[Part]:
    """The parameters that the tensor of a key holds.

    Raises:
        ValueError: its shape has not the dims that its key tells of, or more layers or experts than any model.
    """
    half = _HALF.search(key)
    if half is not None and half.end() == len(key):
        parts = parts_of(key[: half.end(1)], shape)
        return [replace(each, half="wv".index(half[2])) for each in parts]
    layers, experts = _LAYERS.search(key), _EXPERTS.search(key)
    stacked = [layers is not None, experts is not None and experts[2] is None]
    lengths = [_length(shape, dim) for dim in range(sum(stacked))]
    if prod(lengths) > MOST_COMBINATIONS:
        raise ValueError(f"holds {prod(lengths)} parameters, expected at most {MOST_COMBINATIONS}")
    return [
        Part(name=local_name(_numbered(key, position, experts)), position=position)
        for position in product(*map(range, lengths))
    ]


def _numbered(key: str, position: Index, experts: re.Match[str] | None) -> str:
    """The key with the numbers of layer and expert, as names in rank files have them."""
    if experts is not None:
        number = position[-1] if experts[2] is None else int(experts[2])
        key = _EXPERTS.sub(rf"\g<1>local_experts.{number}.", key, count=1)
    return _LAYERS.sub(lambda match: f"{match[0]}{position[0]}.", key, count=1)


def local_name(name: str) -> str:
    """The name of a parameter in the local spec, where another way to build the model gives it another one."""
    for pattern, local in _LOCAL:
        name = pattern.sub(local, name)
    return name


def block_of(target: str) -> str:
    """The beginning that the targets of a block of layers have in common; empty for a target of no layer."""
    match = _TARGET_OF_LAYER.match(target)
    return match[0] if match else ""


def key_of(target: str, *, stacked: bool) -> str:
    """The key of the parameters of a target: without experts, and without layers if these are `stacked`."""
    for pattern, key in _KEYS_OF_TARGETS:
        target = pattern.sub(key, target)
    block = block_of(target)
    return block.removesuffix("{layer}.") + target.removeprefix(block) if stacked else target


def _length(shape: Index, dim: int) -> int:
    if dim >= len(shape):
        raise ValueError(f"expected a dim for layers, or for experts, in front of the parameter's, found {list(shape)}")
    return shape[dim]


class _LocalDialect(ParameterDialect):
    """A dialect with the names of the local spec, whatever its own are."""

    def renamed(self, target: str, has: Callable[[str], bool]) -> str:
        return local_name(super().renamed(target, has))


def in_local_names(dialects: ParameterDialects) -> ParameterDialects:
    """The dialects with the names that the parameters of keys are found under: they tell nothing but wrappers apart."""
    return ParameterDialects(dialects={name: _LocalDialect(**vars(each)) for name, each in dialects.dialects.items()})
