"""Keys of torch_dist stand for the names that rank files have, with global numbers."""

from __future__ import annotations

import pytest

from distconv.formats.torch_dist.keys import Part, local_name, other_kind, parts_of


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
    ],
)
def test_a_key_tells_the_parameters_in_its_tensor(key, shape, parts):
    assert parts_of(key, shape) == [Part(name=name, position=position) for name, position in parts]


@pytest.mark.parametrize(("end", "half"), [("w", 0), ("v", 1)])
def test_halves_of_a_gated_unit_are_one_parameter(end, half):
    key = f"decoder.layers.3.mlp.experts.experts.1.linear_fc1.weight_{end}"
    name = "decoder.layers.3.mlp.experts.local_experts.1.linear_fc1.weight"
    assert parts_of(key, (4, 3)) == [Part(name=name, position=(), half=half)]


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


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("optimizer.state.exp_avg.decoder.layers.mlp.linear_fc1.weight", "state of the optimizer"),
        ("chained_1.optimizer.state.param.output_layer.weight", "state of the optimizer"),
        ("rng_state/shard_0.0_1.2", "states of random generators"),
        ("rerun_state_machine_state/shard_0.0_1.2", "state of the rerun machine"),
        ("common_state/shard_0_1", "common state"),
        ("decoder.layers.mlp.linear_fc1._extra_state/shard_0_4", "extra states of modules"),
        ("decoder.final_layernorm.weight", None),
        ("decoder.optimizer.weight", None),
    ],
)
def test_what_is_not_of_the_model_is_told_by_the_beginning(key, kind):
    assert other_kind(key) == kind
