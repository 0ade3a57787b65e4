"""Names that are alike but for numbers of layers and experts are one group; other numbers stay in names."""

from __future__ import annotations

import pytest

from distconv.models.grouping import Group, beyond, grouped, main_stacks, modality_of

SHAPES = {
    "model.embed.weight": (32, 8),
    **{f"model.layers.{layer}.mlp.up.weight": (16, 8) for layer in range(3)},
    **{f"model.layers.{layer}.mlp.experts.{expert}.up.weight": (4, 8) for layer in (1, 2) for expert in range(5)},
    **{f"visual.blocks.{layer}.attn.qkv.weight": (12, 4 + layer) for layer in range(2)},
    "visual.merger.mlp.0.weight": (16, 16),
    "visual.merger.mlp.2.weight": (8, 16),
}


def by_name(shapes: dict[str, tuple[int, ...]]) -> dict[str, Group]:
    return {each.name: each for each in grouped(shapes)}


def test_layers_and_experts_are_numbers_and_others_are_not():
    found = by_name(SHAPES)
    assert list(found) == [
        "model.embed.weight",
        "model.layers.{layer}.mlp.up.weight",
        "model.layers.{layer}.mlp.experts.{expert}.up.weight",
        "visual.blocks.{layer}.attn.qkv.weight",
        "visual.merger.mlp.0.weight",
        "visual.merger.mlp.2.weight",
    ]
    mixture = found["model.layers.{layer}.mlp.experts.{expert}.up.weight"]
    assert (mixture.stack, mixture.layers, mixture.shape, mixture.experts) == ("model.layers", {1, 2}, (4, 8), 5)
    assert mixture.rest == "mlp.experts.{expert}.up.weight"
    outside = found["visual.merger.mlp.0.weight"]
    assert (outside.stack, outside.layers, outside.rest) == ("", frozenset(), "visual.merger.mlp.0.weight")


def test_a_dim_that_is_not_the_same_in_all_layers_is_none():
    assert by_name(SHAPES)["visual.blocks.{layer}.attn.qkv.weight"].shape == (12, None)


@pytest.mark.parametrize(
    "names",
    [
        # With a gap, without modules in them, and of which no two are alike.
        ["a.layers.0.b.weight", "a.layers.2.b.weight"],
        ["a.layers.0.weight", "a.layers.1.weight"],
        ["a.steps.0.b.weight", "a.steps.1.c.weight", "a.steps.2.d.weight"],
        ["a.steps.0.b.weight"],
        # Which `{layer}` would not give back.
        ["a.layers.00.b.weight", "a.layers.01.b.weight"],
        ["a.layers.²." + "b.weight"],
        [f"a.layers.{'9' * 5000}.b.weight"],
    ],
)
def test_what_only_looks_like_layers(names):
    assert [each.name for each in grouped(dict.fromkeys(names, (2,)))] == names


def test_a_model_may_have_one_layer():
    assert by_name({"model.layers.0.b.weight": (2,)})["model.layers.{layer}.b.weight"].layers == {0}


def test_the_largest_stack_of_a_modality_is_its_layers():
    small = {f"draft.layers.{layer}.b.weight": (2,) for layer in range(9)}
    assert main_stacks(grouped({**SHAPES, **small})) == {"text": "model.layers", "vision": "visual.blocks"}


@pytest.mark.parametrize(
    ("stack", "root"),
    [("draft.layers", "draft"), ("model.draft.layers", "model.draft"), ("model.layers2", "model.layers2")],
)
def test_what_is_beyond_begins_where_nothing_else_is(stack, root):
    assert beyond(stack, ["model.layers", "visual.blocks"]) == root


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("model.layers", "text"),
        ("model.visual.blocks", "vision"),
        ("vision_tower.vision_model.encoder.layers", "vision"),
        ("vit.blocks", "vision"),
        ("model.activity.layers", "text"),
        ("thinker.audio_tower.layers", "audio"),
    ],
)
def test_modalities_are_told_by_words(name, modality):
    assert modality_of(name) == modality
