"""A dim is the size that has its value, the likeliest by name of several; what nothing is equal to stays a number."""

from __future__ import annotations

import pytest

from distconv.models.recognition import Recognition
from distconv.models.sizes import SizeSpec

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 1000,
    "pad_token_id": 64,
    "flag": True,
    "vision_config": {"hidden_size": 48, "depth": 2, "patch_size": 14, "merge": [0, 1]},
}
UP = "model.layers.{layer}.mlp.up_proj.weight"
Q = "model.layers.{layer}.self_attn.q_proj.weight"


def spec(*value: object) -> SizeSpec:
    return SizeSpec.parse(list(value))


@pytest.mark.parametrize(
    ("value", "tensor", "modality", "size"),
    [
        (64, UP, "text", "hidden_size"),
        (160, UP, "text", "intermediate_size"),
        (1000, "lm_head.weight", "text", "vocab_size"),
        (48, "visual.norm.weight", "vision", "vision_hidden_size"),
        # Of the language model, which a projector leads to.
        (64, "visual.merger.weight", "vision", "hidden_size"),
        # A field of the vision is none of the text, and one is no factor.
        (48, Q, "text", 48),
        (1, UP, "text", 1),
        (7777, UP, "text", 7777),
        (None, UP, "text", "any"),
    ],
)
def test_a_size_is_a_field_of_its_modality(value, tensor, modality, size):
    assert Recognition(CONFIG).dim(value, tensor, modality).size == size


@pytest.mark.parametrize(
    ("value", "tensor", "modality", "size", "written"),
    [
        (320, UP, "text", "intermediate_size_times_2", ["product", 2, "intermediate_size"]),
        (144, "visual.qkv.weight", "vision", "vision_hidden_size_times_3", ["product", 3, "vision_hidden_size"]),
        (16, Q, "text", "hidden_size_by_num_attention_heads", ["quotient", "hidden_size", "num_attention_heads"]),
    ],
)  # fmt: skip
def test_or_one_that_is_made_of_few_fields(value, tensor, modality, size, written):
    sizes = Recognition(CONFIG)
    assert sizes.dim(value, tensor, modality).size == size
    assert sizes.written[size] == written
    # Those that it is made of come first.
    assert list(sizes.written)[-1] == size


def test_fields_of_one_name_are_sizes_of_two():
    vision = {"hidden_size": 48, "vision_head": {"hidden_size": 96}}
    sizes = Recognition({**CONFIG, "vision_config": vision})
    found = [sizes.dim(length, "visual.norm.weight", "vision").size for length in (48, 96)]
    assert [sizes.written[each] for each in found] == [
        ["vision_config.hidden_size"],
        ["vision_config.vision_head.hidden_size"],
    ]


def test_of_several_the_likeliest_by_name_is_taken_and_the_others_are_told():
    sizes = Recognition({**CONFIG, "intermediate_size": 64})
    assert sizes.dim(64, UP, "text").size == "intermediate_size"
    assert sizes.dim(64, UP, "text").others == ("hidden_size",)
    found = sizes.dim(64, "model.norm.weight", "text")
    assert (found.size, found.others) == ("hidden_size", ("intermediate_size",))


def test_what_another_definition_expects_is_taken_if_it_has_the_value():
    known = [
        ("width", spec("hidden_size")),
        ("heads", spec("n_head", 4)),
        ("heads", spec("num_attention_heads")),
        ("head_dim", spec("head_dim", ["quotient", "width", "heads"])),
        ("rows", spec("product", "heads", "head_dim")),
    ]
    sizes = Recognition(CONFIG, known)
    assert sizes.dim(64, Q, "text", "rows").size == "rows"
    assert sizes.dim(160, Q, "text", "rows").size == "intermediate_size"
    assert sizes.written == {
        "heads": ["num_attention_heads"],
        "width": ["hidden_size"],
        "head_dim": ["quotient", "width", "heads"],
        "rows": ["product", "heads", "head_dim"],
        "intermediate_size": ["intermediate_size"],
    }


def test_a_default_of_another_model_is_no_size():
    sizes = Recognition(CONFIG, [("experts", spec("num_experts", 64))])
    assert sizes.value("experts") is None
    assert sizes.dim(64, UP, "text", "experts").size == "hidden_size"


def test_numbers_of_layers_and_experts():
    sizes = Recognition({**CONFIG, "num_local_experts": 8})
    assert [sizes.layers("text", 6), sizes.layers("vision", 2), sizes.experts(8)] == [
        "layers",
        "vision_layers",
        "expert_count",
    ]
    assert sizes.written == {
        "layers": ["num_hidden_layers"],
        "vision_layers": ["vision_config.depth"],
        "expert_count": ["num_local_experts"],
    }
    # One that no field says is literal.
    other = Recognition(CONFIG)
    other.layers("text", 5)
    assert other.written == {"layers": ["product", 5]}


def test_a_list_of_layers_is_one_of_the_modality_with_as_many():
    sizes = Recognition(CONFIG)
    assert sizes.layer_list("vision", 2) == ("merge", "vision_config.merge")
    assert sizes.layer_list("vision", 3) is None
    assert sizes.layer_list("text", 2) is None
