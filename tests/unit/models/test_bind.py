"""Binding is total: every source tensor is used or left out for a reason, every rule finds what it expects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distconv.errors import InputError, JobError
from distconv.models.parameters import Binding, Recipe
from tests.unit import toy
from tests.unit.programs import numbered
from tests.unit.reference import evaluate

Shapes = dict[str, tuple[int, ...]]
TO_DO = (
    "is config.json that of these weights? to leave tensors out, name them under ignored in a definition of your own"
)


def problems(shapes: Shapes | None = None, **given: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        toy.bound(shapes, **given)
    return caught.value.problems


def without(*names: str) -> Shapes:
    return {name: shape for name, shape in toy.shapes().items() if name not in names}


def with_(**shapes: tuple[int, ...]) -> Shapes:
    return {**toy.shapes(), **{name.replace("__", "."): shape for name, shape in shapes.items()}}


def used(binding: Binding) -> dict[str, list[str]]:
    """The sources of each parameter."""
    return {parameter.name: [source.name for source in parameter.sources] for parameter in binding.parameters}


def test_parameters_are_unsplit_with_global_numbers_and_sources_in_the_order_of_the_rule():
    binding = toy.bound()
    found = used(binding)
    assert found["vision.patch.weight"] == ["visual.patch.weight"]
    assert found["text.layers.2.qkv.bias"] == [f"model.layers.2.{part}.bias" for part in "qkv"]
    assert found["text.layers.1.experts.3.fc1.weight"] == [
        "model.layers.1.experts.3.gate.weight",
        "model.layers.1.experts.3.up.weight",
    ]
    numbers = {parameter.name: (parameter.layer, parameter.expert) for parameter in binding.parameters}
    assert numbers["text.layers.1.experts.3.fc1.weight"] == (1, 3)
    assert numbers["text.layers.1.router.weight"] == (1, None)
    assert numbers["text.final.weight"] == (None, None)


def test_every_source_tensor_is_used_once():
    """But for those that hold all experts: each expert takes its own part of them."""
    binding = toy.bound()
    users = Counter(source for sources in used(binding).values() for source in sources)
    assert users == {name: toy.EXPERTS if name.endswith("experts.down") else 1 for name in toy.shapes()}
    assert binding.unconverted == ()


def test_the_facts_for_a_layout():
    binding = toy.bound()
    assert binding.layers == {"text": toy.LAYERS, "vision": toy.VISION_LAYERS}
    assert binding.experts == toy.EXPERTS
    assert binding.tied is False


def test_layers_that_look_alike_share_a_recipe():
    recipes: dict[str, set[Recipe]] = {}
    for parameter in toy.bound().parameters:
        recipes.setdefault(parameter.recipe.rule.target, set()).add(parameter.recipe)
    counts = {target: len(found) for target, found in recipes.items()}
    packed = "text.layers.{layer}.experts.{expert}.fc2.weight"
    # Each expert is another part of the tensor that holds them all.
    assert counts == {**dict.fromkeys(counts, 1), packed: toy.EXPERTS}


def test_a_recipe_knows_its_sources_its_unit_and_how_messages_speak_of_them():
    (recipe,) = {
        parameter.recipe for parameter in toy.bound().parameters if parameter.name == "text.layers.0.qkv.weight"
    }
    assert recipe.source_shapes == ((16, 16), (8, 16), (8, 16))
    assert recipe.tensor.shape == (32, 16)
    assert recipe.unit == (4, "groups (4, num_key_value_heads in config.json)")
    assert recipe.dims[2:4] == ("kv_rows (8)", "hidden (16, hidden_size in config.json)")


def test_sizes_in_bytes_are_of_the_unsplit_parameter():
    sizes = {parameter.name: parameter.nbytes for parameter in toy.bound().parameters}
    assert sizes["text.layers.0.qkv.weight"] == 32 * 16 * 2


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_floating_point_element_types_are_kept(dtype):
    binding = toy.bound(dtypes=dict.fromkeys(toy.shapes(), dtype))
    assert {parameter.recipe.tensor.dtype for parameter in binding.parameters} == {dtype}


def test_layers_may_differ_in_element_type():
    binding = toy.bound(dtypes={"model.layers.1.norm.weight": "float32"})
    norms = [each.recipe.tensor.dtype for each in binding.parameters if each.name.endswith("norm.weight")]
    assert norms == ["bfloat16", "float32", "bfloat16"]


def test_a_source_of_all_experts_gives_each_its_part():
    found = {each.name: each for each in toy.bound().parameters}
    parameter = found["text.layers.2.experts.3.fc2.weight"]
    stack = numbered((toy.EXPERTS, toy.FFN, toy.HIDDEN))
    np.testing.assert_array_equal(evaluate(parameter.recipe.tensor, [stack]), stack[3].T)
    assert parameter.recipe.unused == 3 * toy.FFN * toy.HIDDEN
    assert (parameter.layer, parameter.expert) == (2, 3)
    assert [source.name for source in parameter.sources] == ["model.layers.2.experts.down"]


def test_parameters_are_found_by_target_and_global_numbers():
    binding = toy.bound()
    found = binding.by_key()
    assert list(found.values()) == list(binding.parameters)
    parameter = found["text.layers.{layer}.experts.{expert}.fc2.weight", 2, 3]
    assert parameter.name == "text.layers.2.experts.3.fc2.weight"
    assert found["text.head.weight", None, None].name == "text.head.weight"


def test_two_parameters_of_one_name_are_an_error():
    binding = toy.bound()
    doubled = replace(binding, parameters=(*binding.parameters, replace(binding.parameters[1])))
    with pytest.raises(JobError, match=rf"^{binding.parameters[1].name}: would be two parameters"):
        doubled.by_key()


def test_rules_for_the_layers_of_a_list_count_them():
    shapes = with_(**{"visual.deep.1.weight": (24,)})
    found = used(toy.bound(shapes, vision_config={**toy.config()["vision_config"], "deep": [1, 0]}))
    assert found["vision.layers.1.deep.weight"] == ["visual.deep.0.weight"]
    assert found["vision.layers.0.deep.weight"] == ["visual.deep.1.weight"]
    assert "vision.layers.0.deep.weight" not in used(toy.bound())


@pytest.mark.parametrize("deep", [[toy.VISION_LAYERS], [1, 1]])
def test_a_list_with_a_layer_that_the_model_does_not_have_or_has_twice_is_refused(deep):
    shapes = toy.shapes() | {f"visual.deep.{item}.weight": (24,) for item in range(len(deep))}
    (problem,) = problems(shapes, vision_config={**toy.config()["vision_config"], "deep": deep})
    assert "vision_config.deep" in problem


def test_each_layer_uses_the_alternative_whose_sources_are_there():
    found = used(toy.bound())
    assert [f"text.layers.{layer}.mlp.fc1.weight" in found for layer in range(3)] == [True, False, False]
    assert [f"text.layers.{layer}.router.weight" in found for layer in range(3)] == [False, True, True]


def test_a_model_without_a_layer_of_experts_has_none():
    binding = toy.bound(toy.shapes(layers=1), num_hidden_layers=1, num_experts=None)
    assert binding.experts is None


def test_of_alternatives_of_which_none_is_complete_the_one_that_is_most_there_is_missing_something():
    found = problems(without("model.layers.1.router.weight"))
    assert [problem.split(" is missing")[0] for problem in found] == ["source tensor model.layers.1.router.weight"]


def test_a_layer_that_has_both_alternatives_is_refused():
    (problem,) = problems(with_(model__layers__0__router__weight=(4, 16)))
    assert "fitting a rule, but not" in problem
    assert "model.layers.0.router.weight" in problem


def test_both_spellings_of_names_are_the_same_tensors():
    respelt = {
        name.replace("visual.", "model.visual.", 1) if name.startswith("visual.")
        else name.replace("model.", "model.language_model.", 1): shape
        for name, shape in toy.shapes().items()
    }  # fmt: skip
    assert sorted(used(toy.bound(respelt))) == sorted(used(toy.bound()))
    found = used(toy.bound(respelt))
    assert found["text.final.weight"] == ["model.language_model.norm.weight"]
    assert found["vision.patch.weight"] == ["model.visual.patch.weight"]


def test_two_spellings_of_one_tensor_are_refused():
    found = problems(with_(model__language_model__norm__weight=(16,)))
    assert found == [
        "/hf: model.norm.weight and model.language_model.norm.weight are two spellings of the same tensor; remove one"
    ]


def test_a_missing_tensor_is_named_with_what_is_made_from_it():
    name = "model.layers.1.experts.2.up.weight"
    assert problems(without(name)) == [
        (
            f"source tensor {name} is missing: text.layers.1.experts.2.fc1.weight is made from it (rule text.mlp)"
            "; is config.json that of these weights?"
        )
    ]


def test_a_tensor_that_no_rule_knows_is_refused():
    assert problems(with_(model__layers__0__extra=(3,), model__more=(4,))) == [
        "/hf: 2 source tensors that no rule of model definition toy knows: model.layers.0.extra, model.more; " + TO_DO
    ]


def test_many_unknown_tensors_are_one_problem():
    (problem,) = problems(with_(**{f"x{number}": (1,) for number in range(10)}))
    assert problem.startswith("/hf: 10 source tensors that no rule of model definition toy knows: x0, ")
    assert problem.endswith(f" and 2 more; {TO_DO}")


@pytest.mark.parametrize(
    "name", ["model.layers.3.norm.weight", "model.layers.1.experts.4.up.weight", "visual.deep.1.weight"]
)
def test_a_layer_or_expert_or_entry_of_a_list_beyond_the_config_is_refused(name):
    (problem,) = problems({**toy.shapes(), name: (16,)})
    assert problem == (
        "/hf: 1 source tensor fitting a rule, but not the number of layers or experts in config.json, "
        f"or what the layer is: {name}; {TO_DO}"
    )


def test_fewer_layers_in_the_config_than_in_the_files_is_refused_with_the_names():
    (problem,) = problems(num_hidden_layers=2)
    beyond = len([name for name in toy.shapes() if name.startswith("model.layers.2.")])
    assert problem.startswith(f"/hf: {beyond} source tensors fitting a rule, but not the number of layers")


@pytest.mark.parametrize("shape", [(24, 5, 2), (24, 2, 5, 3), (23, 5, 2, 3), (24, 5, 2, 3, 1), ()])
def test_a_wrong_shape_is_refused_with_the_sizes_that_were_expected(shape):
    (problem,) = problems({**toy.shapes(), "visual.patch.weight": shape})
    assert problem == (
        f"/hf/model.safetensors: visual.patch.weight has shape {list(shape)}, expected [24, 5, 2, 'any']: "
        "vision_width (24, vision_config.width in config.json), "
        "channels (5, the default of vision_config.channels in config.json), 2, any (rule vision.embedding)"
        "; is config.json that of these weights?"
    )


def test_what_no_rule_knows_is_seen_before_what_is_missing_in_many_layers():
    """The names of the one explain the other, and only the first lines are shown."""
    shapes = {name.replace(".norm.", ".norm1."): shape for name, shape in toy.shapes().items()}
    first, *others = problems(shapes)
    assert "no rule of model definition toy knows: model.layers.0.norm1.weight" in first
    assert len(others) > toy.LAYERS


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float8_e4m3fn", "float8_e5m2"])
def test_an_element_type_of_quantised_weights_is_refused(dtype):
    (problem,) = problems(dtypes={"model.norm.weight": dtype})
    assert problem == (
        f"/hf: model.norm.weight is {dtype}, expected one of float64, float32, float16, bfloat16; "
        "of quantised weights, config.json must say how they are, and dtype=bfloat16, float16 or float32 what to make "
        "of them"
    )


def test_sources_of_one_parameter_that_differ_in_element_type_are_refused():
    (problem,) = problems(dtypes={"model.layers.0.k.weight": "float32"})
    assert "sources of one parameter differ in element type" in problem
    assert "model.layers.0.q.weight is bfloat16, model.layers.0.k.weight is float32" in problem


def test_a_dim_of_which_the_config_does_not_tell_the_size_may_have_any():
    binding = toy.bound({**toy.shapes(), "visual.patch.weight": (24, 5, 2, 77)})
    assert binding.parameters[0].recipe.tensor.shape == (24, 5, 2, 77)


def test_an_alternative_with_a_question_mark_may_be_absent_and_is_bound_where_it_is_there():
    norms = {f"model.layers.{layer}.norm.bias": (16,) for layer in range(toy.LAYERS)}
    assert "text.layers.0.norm.bias" not in used(toy.bound())
    assert "text.layers.0.norm.bias" in used(toy.bound({**toy.shapes(), **norms}))


def test_an_optional_parameter_may_be_absent_and_is_bound_where_it_is_there():
    assert "text.positions.weight" not in used(toy.bound())
    assert "text.positions.weight" in used(toy.bound(with_(model__positions__weight=(16,))))


def _optional_bias() -> Mapping[str, Any]:
    model = toy.content()
    bias = {
        "target": "text.layers.{layer}.gate_up.bias",
        "sources": [["model.layers.{layer}.gate.bias", "ffn"], ["model.layers.{layer}.up.bias", "ffn"]],
        "operator": "concat",
        "tp": "glu",
        "optional": True,
    }
    model["rules"]["text"]["attention"].append(bias)
    return model


def test_an_optional_parameter_that_is_there_in_part_is_refused():
    """In one layer but not in all of them, or one source without the other."""
    given = with_(
        model__layers__0__gate__bias=(20,), model__layers__0__up__bias=(20,), model__layers__1__up__bias=(20,)
    )
    missing = [problem.split(" is missing")[0] for problem in problems(given, model=_optional_bias())]
    assert missing == [
        "source tensor model.layers.1.gate.bias",
        "source tensor model.layers.2.gate.bias",
        "source tensor model.layers.2.up.bias",
    ]
    assert toy.bound(model=_optional_bias()).parameters


def test_rules_that_are_not_wanted_leave_their_tensors_out_with_the_reason():
    binding = toy.bound(left_out=lambda rule: "not selected" if rule.modality == "text" else None)
    assert {name.split(".")[0] for name in used(binding)} == {"vision"}
    assert binding.layers == {"vision": toy.VISION_LAYERS}
    expected = sorted(name for name in toy.shapes() if not name.startswith("visual."))
    assert [each.tensor.name for each in binding.unconverted] == expected
    assert {each.reason for each in binding.unconverted} == {"not selected"}


def test_tensors_of_unwanted_rules_may_be_missing_or_of_any_shape_and_number():
    given = {name: shape for name, shape in toy.shapes().items() if name != "model.norm.weight"}
    given |= {"model.embed.weight": (1,), "model.layers.77.norm.weight": (3,)}
    binding = toy.bound(given, left_out=lambda rule: "no" if rule.modality == "text" else None)
    assert "model.layers.77.norm.weight" in {each.tensor.name for each in binding.unconverted}


def test_an_unknown_tensor_is_refused_also_where_rules_are_not_wanted():
    (problem,) = problems(with_(other=(3,)), left_out=lambda rule: "no" if rule.modality == "text" else None)
    assert "no rule of model definition toy knows: other" in problem


def test_sizes_that_only_unwanted_rules_need_may_be_missing():
    binding = toy.bound(vision_config=None, left_out=lambda rule: "no" if rule.modality == "vision" else None)
    assert binding.layers == {"text": toy.LAYERS}


def test_ignored_tensors_are_left_out_for_the_reason_that_the_definition_gives():
    binding = toy.bound(with_(model__rotary__inv_freq=(8,), visual__inv_freq=(2, 2)))
    assert [(each.tensor.name, each.reason) for each in binding.unconverted] == [
        ("model.rotary.inv_freq", "rebuilt by the training side"),
        ("visual.inv_freq", "rebuilt by the training side"),
    ]


def test_layers_that_are_not_trained_are_left_out_by_their_number():
    given = with_(**{"model.layers.3.mtp.proj": (1,), "model.layers.4.mtp.proj": (1,)})
    binding = toy.bound(given, num_nextn_predict_layers=2)
    assert [(each.tensor.name, each.reason) for each in binding.unconverted] == [
        ("model.layers.3.mtp.proj", "not trained"),
        ("model.layers.4.mtp.proj", "not trained"),
    ]
    (problem,) = problems(given, num_nextn_predict_layers=1)
    assert problem.endswith(f"that no rule of model definition toy knows: model.layers.4.mtp.proj; {TO_DO}")


def test_a_pattern_of_ignored_tensors_does_not_hide_a_tensor_that_a_rule_wants():
    model = toy.content()
    model["ignore"] = [{"names": "*", "reason": "everything"}]
    assert toy.bound(model=model).unconverted == ()


@pytest.mark.parametrize(("head", "tie", "names"), [(True, True, 1), (True, False, 1), (False, True, 0)])
def test_the_head_of_a_tied_model_may_be_stored_or_not(head, tie, names):
    binding = toy.bound(toy.shapes() if head else without("lm_head.weight"), tie_word_embeddings=tie)
    assert binding.tied is tie
    assert list(used(binding)).count("text.head.weight") == names


def test_the_head_of_an_untied_model_must_be_there():
    (problem,) = problems(without("lm_head.weight"))
    assert problem.startswith("source tensor lm_head.weight is missing")


def test_a_model_whose_text_is_not_wanted_is_not_tied():
    binding = toy.bound(tie_word_embeddings=True, left_out=lambda rule: "no" if rule.modality == "text" else None)
    assert binding.tied is False


def test_an_operator_that_does_not_fit_the_sizes_is_refused_with_its_sizes():
    for problem, kind, shape in zip(
        problems(vision_config={"depth": 2, "width": 24, "heads": 5}),
        ("weight", "bias"),
        ([24, 24], [24]),
        strict=True,
    ):
        assert (
            f"0.qkv.{kind}: vision.layers.{{layer}}.qkv.{kind} (rule vision.blocks): operator qkv_heads with "
            f"vision_heads (5, vision_config.heads in config.json): dim 0 of shape {shape} does not divide into 5"
        ) in problem


def test_sources_that_are_cut_as_equal_parts_have_equally_many_rows():
    model = toy.content()
    (entry,) = model["rules"]["text"]["mlp"]
    (gate_up,) = [rule for rule in entry["one_of"]["experts"] if "fc1" in rule["target"]]
    gate_up["sources"] = [[name, "any", "hidden"] for name, *_ in gate_up["sources"]]
    up = {name: (8, toy.HIDDEN) for name in toy.shapes() if name.endswith("1.experts.3.up.weight")}
    target = "text.layers.{layer}.experts.{expert}.fc1.weight"
    (problem,) = problems({**toy.shapes(), **up}, model=model)
    assert "1.experts.3.up.weight: " in problem
    assert problem.endswith(
        f"{target} (rule text.mlp): tp rule glu takes its sources for equal parts, but they have {toy.FFN} and 8 rows"
    )
    assert toy.bound(model=model).parameters
    gate_up["tp"] = "rows"
    assert toy.bound({**toy.shapes(), **up}, model=model).parameters


def test_a_size_that_is_missing_is_reported_once():
    assert problems(moe_intermediate_size=None) == [
        "/hf/config.json: no field moe_intermediate_size; the model definition needs it as 'ffn'"
    ]


def test_a_size_that_is_missing_hides_no_tensor_that_no_rule_knows():
    found = problems({**toy.shapes(), "other": (3,)}, moe_intermediate_size=None)
    assert [problem.partition(": ")[2] for problem in found] == [
        f"1 source tensor that no rule of model definition toy knows: other; {TO_DO}",
        "no field moe_intermediate_size; the model definition needs it as 'ffn'",
    ]


def test_all_problems_are_reported_together():
    given = {**without("model.norm.weight"), "visual.patch.weight": (1,), "other": (3,)}
    given["model.layers.9.norm.weight"] = (16,)
    found = problems(given, dtypes={"model.embed.weight": "int8", "model.layers.0.k.bias": "float32"})
    for part in (
        "model.norm.weight is missing",
        "visual.patch.weight has shape [1]",
        "no rule of model definition toy knows: other",
        "fitting a rule, but not the number of layers or experts in config.json, or what the layer is: model.lay",
        "model.embed.weight is int8",
        "differ in element type",
    ):
        assert sum(part in problem for problem in found) == 1
    assert len(found) == 6


def test_two_rules_for_one_source_tensor_are_refused():
    model = toy.content()
    extra = {"target": "text.copy.weight", "sources": [["model.norm.weight", "hidden"]], "stage": "last"}
    model["rules"]["text"]["head"].append(extra)
    assert "model.norm.weight" in problems(model=model)[0]


def test_a_checkpoint_of_adapters_alone_knows_its_layers_by_their_names():
    """At least so many as the last that has an adapter; sizes are not known, and not needed."""
    model = {**toy.content(), "adapters": "only", "ignore": []}
    factors = {
        "model.layers.4.mlp.up.lora_A.weight": (7, 2),
        "model.layers.4.mlp.up.lora_B.weight": (2, 9),
        "visual.blocks.0.proj.lora_A.default.weight": (7, 2),
        "visual.blocks.0.proj.lora_B.default.weight": (2, 9),
    }
    model["rules"]["text"]["mlp"] = model["rules"]["text"]["mlp"][0]["one_of"]["dense"]
    config = dict.fromkeys(toy.config())
    binding = toy.bound(factors, model=model, **config)
    assert binding.layers == {"text": 5, "vision": 1}
    assert (binding.adapters, binding.experts, binding.tied) == (True, None, False)
    assert used(binding)["text.layers.4.mlp.fc1.lora_A.default.weight"] == ["model.layers.4.mlp.up.lora_A.weight"]
    assert len(binding.parameters) == 4


def test_the_language_model_of_another_binding():
    vision = toy.bound(left_out=lambda rule: "elsewhere" if rule.modality == "text" else None)
    text = toy.bound(
        toy.shapes(layers=5),
        num_hidden_layers=5,
        tie_word_embeddings=True,
        left_out=lambda rule: "no" if rule.modality == "vision" else None,
    )
    both = vision.and_text_from(text)
    assert both.parameters == vision.parameters + text.parameters
    assert both.unconverted == vision.unconverted + text.unconverted
    assert both.layers == {"vision": 2, "text": 5}
    assert (both.experts, both.tied) == (toy.EXPERTS, True)


def test_where_a_layer_has_nothing_of_any_alternative_all_of_them_are_named():
    """What is missing are then the sources of the first, which is a guess."""
    found = problems(
        {name: shape for name, shape in toy.shapes().items() if not name.startswith("model.layers.0.mlp.")}
    )
    assert found
    assert all("(rule text.mlp, one of dense, experts);" in problem for problem in found)
    (problem,) = problems(without("model.layers.0.mlp.up.weight"))
    assert "(rule text.mlp);" in problem
