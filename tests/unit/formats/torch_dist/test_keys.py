"""Keys of torch_dist stand for the names that rank files have, with global numbers."""

from __future__ import annotations

import pytest

from distconv.formats.torch_dist.keys import (
    Part,
    in_local_names,
    local_name,
    other_kind,
    parts_of,
    prefix_of,
    spec_of,
)
from distconv.models.parameter_dialect import Exchange, ParameterDialect, ParameterDialects


@pytest.mark.parametrize(
    ("key", "shape", "parts"),
    [
        ("output_layer.weight", (4, 2), [("output_layer.weight", ())]),
        (
            "text_decoder.decoder.layers.mlp.linear_fc2.weight",
            (2, 4, 3),
            [(f"text_decoder.decoder.layers.{layer}.mlp.linear_fc2.weight", (layer,)) for layer in (0, 1)],
        ),
        ("decoder.layers.10.mlp.linear_fc2.weight", (4, 3), [("decoder.layers.10.mlp.linear_fc2.weight", ())]),
        (
            "decoder.layers.mlp.experts.experts.linear_fc1.weight",
            (1, 2, 4, 3),
            [(f"decoder.layers.0.mlp.experts.local_experts.{each}.linear_fc1.weight", (0, each)) for each in (0, 1)],
        ),
        (
            "decoder.layers.3.mlp.experts.experts.linear_fc1.weight",
            (2, 4, 3),
            [(f"decoder.layers.3.mlp.experts.local_experts.{each}.linear_fc1.weight", (each,)) for each in (0, 1)],
        ),
        (
            "decoder.layers.3.mlp.experts.experts.12.linear_fc2.weight",
            (4, 3),
            [("decoder.layers.3.mlp.experts.local_experts.12.linear_fc2.weight", ())],
        ),
        (
            "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
            (1, 3),
            [("decoder.layers.0.input_layernorm.weight", (0,))],
        ),
        ("decoder.layers.mlp.router.expert_bias", (0, 3), []),
        # The layers that predict further tokens are apart; their experts are not.
        ("mtp.layers.0.eh_proj.weight", (4, 8), [("mtp.layers.0.eh_proj.weight", ())]),
        (
            "mtp.layers.1.mtp_model_layer.mlp.experts.experts.linear_fc2.bias",
            (2, 4),
            [
                (f"mtp.layers.1.transformer_layer.mlp.experts.local_experts.{each}.linear_fc2.bias", (each,))
                for each in (0, 1)
            ],
        ),
        (
            "language_model.decoder.layers.mlp.shared_experts.linear_fc1.weight",
            (1, 4, 3),
            [("language_model.decoder.layers.0.mlp.shared_experts.linear_fc1.weight", (0,))],
        ),
    ],
)
def test_a_key_tells_the_parameters_in_its_tensor(key, shape, parts):
    assert parts_of(key, shape) == [Part(name=name, position=position) for name, position in parts]


@pytest.mark.parametrize(("end", "half"), [("w", 0), ("v", 1)])
def test_halves_of_a_gated_unit_are_one_parameter(end, half):
    key = f"decoder.layers.3.mlp.experts.experts.1.linear_fc1.weight_{end}"
    name = "decoder.layers.3.mlp.experts.local_experts.1.linear_fc1.weight"
    assert parts_of(key, (4, 3)) == [Part(name=name, position=(), half=half)]


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("decoder.layers.mlp.router.weight", (10**12, 0)),
        ("decoder.layers.0.mlp.experts.experts.linear_fc2.weight", (10**12, 0)),
        ("decoder.layers.mlp.experts.experts.linear_fc2.weight", (4096, 4096, 0)),
    ],
)
def test_more_than_any_model_has_are_not_numbered(key, shape):
    """The metadata of a few bytes could say so."""
    with pytest.raises(ValueError, match="expected at most"):
        parts_of(key, shape)


def test_halves_of_all_layers_are_parameters_of_each():
    assert parts_of("decoder.layers.mlp.linear_fc1.weight_v", (2, 4, 3)) == [
        Part(name=f"decoder.layers.{layer}.mlp.linear_fc1.weight", position=(layer,), half=1) for layer in (0, 1)
    ]


@pytest.mark.parametrize("name", ["decoder.layers.0.mlp.linear_fc2.weight_w", "decoder.layers.0.linear_fc1.weight_w.x"])
def test_other_names_that_end_so_are_whole(name):
    assert parts_of(name, (4, 3)) == [Part(name=name, position=())]


def test_a_key_of_layers_needs_a_dim_of_layers():
    with pytest.raises(ValueError, match="a dim for layers"):
        parts_of("decoder.layers.mlp.router.expert_bias", ())
    with pytest.raises(ValueError, match="or for experts"):
        parts_of("decoder.layers.mlp.experts.experts.linear_fc1.weight", (2,))


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("a.layers.0.mlp.linear_fc1.layer_norm_bias", "a.layers.0.pre_mlp_layernorm.bias"),
        ("a.layers.0.pre_mlp_layernorm.weight", "a.layers.0.pre_mlp_layernorm.weight"),
        (
            "a.layers.0.self_attention.linear_kv_up_proj.layer_norm_weight",
            "a.layers.0.self_attention.kv_layernorm.weight",
        ),
        (
            "a.layers.{layer}.mlp.experts.linear_fc2.weight{expert}",
            "a.layers.{layer}.mlp.experts.local_experts.{expert}.linear_fc2.weight",
        ),
        (
            "a.layers.{layer}.mlp.experts.weight1[{expert}]",
            "a.layers.{layer}.mlp.experts.local_experts.{expert}.linear_fc1.weight",
        ),
        ("mtp.layers.0.mtp_model_layer.x", "mtp.layers.0.transformer_layer.x"),
    ],
)
def test_all_ways_of_building_a_model_have_one_name(name, local):
    assert local_name(name) == local


GROUP = "optimizer.distributed.dp_group_idx_1"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{GROUP}.gbuf_idx_0.dtype_(torch.float32, torch.float32).bucket_idx_0.exp_avg_sq", "state of the optimizer"),
        (f"{GROUP}.optimizer/shard_0_1", "state of the optimizer"),
        (f"{GROUP}.per_bucket_numel_unpadded/shard_0_1", "state of the optimizer"),
        ("chained_0.optimizer.distributed.dp_group_idx_0.optimizer/shard_0_1", "state of the optimizer"),
        ("optimizer.state.exp_avg.module.decoder.layers.mlp.linear_fc1.weight", "state of the optimizer"),
        ("optimizer.state.exp_avg.decoder.layers.mlp.linear_fc1.weight", "state of the optimizer"),
        ("chained_1.optimizer.state.param.output_layer.weight", "state of the optimizer"),
        ("rng_state/shard_0.0_1.2", "states of random generators"),
        ("rerun_state_machine_state/shard_0.0_1.2", "state of the rerun machine"),
        ("common_state/shard_0_1", "common state"),
        ("decoder.layers.mlp.linear_fc1._extra_state/shard_0_4", "extra states of modules"),
        (
            "module.decoder.layers.3.mlp.experts.experts.linear_fc1._extra_state/shard_0.1_1.4",
            "extra states of modules",
        ),
        ("decoder.final_layernorm._extra_state", "extra states of modules"),
        ("decoder.final_layernorm.weight", None),
        ("decoder.rng_state.weight", None),
        ("decoder.optimizer.weight", None),
    ],
)
def test_what_is_not_of_the_model_is_told_by_the_beginning(key, kind):
    assert other_kind(key) == kind


@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        ([], ""),
        (["decoder.a", "embedding.b"], ""),
        (["module.decoder.a", "module.embedding.b"], "module."),
        (["model.decoder.a"], "model."),
        (["module.decoder.a", "embedding.b"], ""),
        (["modules.decoder.a"], ""),
    ],
)
def test_a_prefix_is_in_front_of_all_keys(keys, prefix):
    assert prefix_of(keys) == prefix


@pytest.mark.parametrize(
    ("ends", "spec"),
    [
        (["self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"], None),
        (["input_layernorm.weight", "pre_mlp_layernorm.weight"], None),
        (["self_attention.linear_qkv.layer_norm_weight", "pre_mlp_layernorm.weight"], "Transformer Engine"),
        (["self_attention.linear_kv_up_proj.layer_norm_weight"], "Transformer Engine"),
        (["mlp.linear_fc1.layer_norm_weight", "mlp.router.weight"], "local"),
        (["self_attention.linear_kv_up_proj.weight", "self_attention.kv_layernorm.weight"], "local"),
        (["mlp.router.weight", "pre_mlp_layernorm.weight"], None),
    ],
)
@pytest.mark.parametrize("layer", ["decoder.layers.", "module.decoder.layers.11.", "layers."])
def test_norms_tell_how_a_model_was_built(layer, ends, spec):
    assert spec_of({layer + end for end in ends}) == spec


def test_norms_of_two_layers_tell_nothing():
    """A dense layer beside one of a mixture of experts that was built otherwise."""
    keys = {"decoder.layers.0.self_attention.linear_qkv.layer_norm_weight", "decoder.layers.1.pre_mlp_layernorm.weight"}
    assert spec_of(keys) is None


def test_a_dialect_has_the_names_of_the_local_spec_in_its_wrapper():
    norm = Exchange(old="text_decoder.a.input_layernorm.", new="text_decoder.a.self_attention.linear_qkv.layer_norm_")
    wrapper = Exchange(old="text_decoder.", new="language_model.")
    dialect = ParameterDialect(name="bridge", words="", exchanges=(norm, wrapper))
    local = in_local_names(ParameterDialects(dialects={"bridge": dialect})).dialects["bridge"]
    name = local.renamed("text_decoder.a.input_layernorm.weight", lambda _: True)
    assert name == "language_model.a.input_layernorm.weight"
