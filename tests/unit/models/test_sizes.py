"""Sizes are found in config.json by path, or derived; what is missing or odd is an error that names the field."""

from __future__ import annotations

import re
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.sizes import Sizes, SizeSpec


def sizes(config: dict[str, Any], **specs: list[Any]) -> Sizes:
    return Sizes({name: SizeSpec.parse(spec) for name, spec in specs.items()}, config, "/hf/config.json")


def size(config: dict[str, Any], *spec: Any) -> int:
    return sizes(config, it=list(spec)).get("it")


def test_the_first_path_that_is_there_counts():
    paths = ["text_config.hidden", "hidden", "n_embd"]
    assert size({"text_config": {"hidden": 3}, "hidden": 4}, *paths) == 3
    assert size({"text_config": {}, "hidden": 4, "n_embd": 5}, *paths) == 4
    assert size({"n_embd": 5}, *paths) == 5


def test_null_is_as_good_as_absent():
    assert size({"text_config": None, "hidden": 4}, "text_config.hidden", "hidden") == 4
    assert size({"text_config": {"hidden": None}, "hidden": 4}, "text_config.hidden", "hidden") == 4


def test_a_path_through_something_that_is_no_object_is_absent():
    assert size({"text_config": 7}, "text_config.hidden", "deep.er.still", 2) == 2
    assert size({"text_config": [{"hidden": 3}]}, "text_config.hidden", 2) == 2


def test_the_default_counts_where_no_path_is_there():
    assert size({}, "vision_config.depth", 32) == 32
    assert size({"vision_config": {"depth": 8}}, "vision_config.depth", 32) == 8


def test_what_may_be_absent_altogether_has_the_default_nought():
    assert size({}, "num_nextn_predict_layers", 0) == 0
    assert size({"num_nextn_predict_layers": 0}, "num_nextn_predict_layers", 0) == 0
    with pytest.raises(InputError, match="expected an integer, at least 0, found -1"):
        size({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers", 0)


TIE = ["text_config.tie", "tie", False]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, False),
        ({"tie": True}, True),
        ({"text_config": {"tie": True}}, True),
        ({"text_config": {"tie": True}, "tie": False}, True),
        ({"text_config": {"tie": False}, "tie": True}, False),
        ({"text_config": {}, "tie": True}, True),
        ({"text_config": {"tie": None}, "tie": False}, False),
        ({"text_config": {"tie": False}, "tie": None}, False),
    ],
)
def test_a_flag_is_the_first_of_its_fields_that_is_there(config, expected):
    assert sizes(config).flag(SizeSpec.parse(TIE)) is expected


@pytest.mark.parametrize("config", [{"tie": "yes"}, {"tie": True, "text_config": {"tie": 1}}])
def test_a_flag_that_is_no_truth_value_is_refused(config):
    with pytest.raises(InputError, match="tie: expected true or false, found"):
        sizes(config).flag(SizeSpec.parse(TIE))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"transformers_version": "4.57.6"}, False),
        ({"transformers_version": "5.24.0"}, True),
        ({"transformers_version": "5.0.0rc1"}, True),
        ({"transformers_version": "10.1"}, True),
        ({"transformers_version": "main"}, False),
        ({"transformers_version": None}, False),
        ({}, False),
        # What wrote the file counts, not what it was told to write.
        ({"transformers_version": "4.57.6", "text_config": {"rope_parameters": {}}}, False),
        ({"rope_parameters": {"rope_theta": 1.0}}, True),
        ({"text_config": {"rope_parameters": {}}}, True),
        ({"text_config": {"rope_theta": 1.0}}, False),
    ],
)
def test_the_generation_that_wrote_a_configuration(config, expected):
    assert sizes(config).is_of_transformers_5 is expected


def test_products_sums_and_quotients_are_of_other_sizes_and_of_integers():
    found = sizes(
        {"hidden": 12, "heads": 4},
        hidden=["hidden"],
        heads=["heads"],
        head_dim=["quotient", "hidden", "heads"],
        qkv=["product", 3, "heads", "head_dim"],
        half=["quotient", "qkv", 2],
        latent=["sum", "head_dim", "heads", 1],
    )
    assert [found.get(name) for name in ("head_dim", "qkv", "half", "latent")] == [3, 36, 18, 8]


def test_an_integer_stands_for_itself():
    assert sizes({}).get(7) == 7
    assert sizes({}).origin(7) == "7"


def test_a_whole_number_written_as_a_float_is_a_size():
    assert size({"ratio": 4.0}, "ratio") == 4


def test_nothing_is_looked_up_before_it_is_needed():
    assert sizes({"hidden": 2}, hidden=["hidden"], depth=["vision_config.depth"]).get("hidden") == 2


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True, [8], {"a": 1}])
def test_a_size_that_is_no_positive_integer_is_refused_with_its_field(value):
    with pytest.raises(InputError) as caught:
        size({"text_config": {"hidden": value}}, "hidden", "text_config.hidden")
    assert str(caught.value) == (
        f"/hf/config.json: text_config.hidden: expected an integer, at least 1, found {value!r}"
    )


def test_a_number_of_layers_is_no_more_than_a_model_can_have():
    found = sizes({"layers": 4096, "experts": 10**30}, layers=["layers"], experts=["experts"])
    assert found.count("layers") == 4096
    assert found.get("experts") == 10**30
    with pytest.raises(InputError, match=rf"experts \({10**30}, experts in config.json\): expected at most 4096"):
        found.count("experts")


def test_what_is_spelled_out_for_two_numbers_is_no_more_than_a_model_can_have():
    """Else a configuration of some bytes means millions of names."""
    sizes({"layers": 4096, "experts": 64}, layers=["layers"], experts=["experts"]).check_combinations(
        "layers", "experts"
    )
    found = sizes({"layers": 4096, "experts": 65}, layers=["layers"], experts=["experts"])
    with pytest.raises(InputError, match=r"layers in config.json\) times experts \(65, .*: expected at most 262144"):
        found.check_combinations("layers", "experts")


def test_a_field_that_is_nowhere_is_refused_with_every_place_looked_at():
    with pytest.raises(InputError) as caught:
        size({}, "text_config.hidden", "hidden")
    assert str(caught.value) == (
        "/hf/config.json: no field text_config.hidden or hidden; the model definition needs it as 'it'"
    )


def test_an_uneven_quotient_is_refused_with_both_numbers_and_their_fields():
    found = sizes(
        {"hidden": 10, "heads": 4}, hidden=["hidden"], heads=["heads"], head_dim=["quotient", "hidden", "heads"]
    )
    with pytest.raises(InputError) as caught:
        found.get("head_dim")
    assert str(caught.value) == (
        "/hf/config.json: head_dim = hidden (10, hidden in config.json) / heads (4, heads in config.json) "
        "leaves a remainder; is this the config.json of the model?"
    )


@pytest.mark.parametrize("value", [1, "true", 0.0])
def test_a_flag_that_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(InputError, match="tie: expected true or false, found"):
        sizes({"tie": value}).flag(SizeSpec.parse(["tie"]))


def test_a_flag_that_is_nowhere_and_has_no_default_is_refused():
    with pytest.raises(InputError, match="no field tie"):
        sizes({}).flag(SizeSpec.parse(["tie"]))


def numbers(config: dict[str, Any], *spec: Any, layers: int = 24) -> list[int]:
    return sizes(config).numbers(SizeSpec.parse(list(spec), is_list=True), layers)


def test_lists_of_layers_are_found_like_sizes():
    assert numbers({"vision_config": {"deep": [1, 0]}}, "vision_config.deep", [8, 16]) == [1, 0]
    assert numbers({}, "vision_config.deep", [8, 16]) == [8, 16]
    assert numbers({"deep": []}, "deep") == []


@pytest.mark.parametrize("value", [8, "8", [-1], ["8"], [1.0], [True], {"a": 1}])
def test_a_list_of_anything_but_layer_numbers_is_refused(value):
    with pytest.raises(InputError, match="deep: expected a list of layer numbers, found"):
        numbers({"deep": value}, "deep", [8])


@pytest.mark.parametrize("value", [[24], [3, 99], [3, 3]])
def test_a_list_with_a_layer_that_is_not_there_or_twice_is_refused(value):
    with pytest.raises(InputError, match="deep: expected different layers out of 24, found"):
        numbers({"deep": value}, "deep")
    assert numbers({"deep": [23]}, "deep") == [23]


def test_messages_name_a_size_with_its_value_and_the_field_it_came_from():
    found = sizes({"hidden": 12}, width=["text_config.hidden", "hidden"], double=["product", 2, "width"])
    assert found.origin("width") == "width (12, hidden in config.json)"
    assert found.origin("double") == "double (24)"
    assert found.origin("any") == "any"


def test_a_spec_is_a_list_of_paths_with_a_default_or_a_derivation():
    assert SizeSpec.parse(["a.b", "c"]) == SizeSpec(path=("a.b", "c"))
    assert SizeSpec.parse(["a.b", "c", 3]) == SizeSpec(path=("a.b", "c"), default=3)
    assert SizeSpec.parse(["a", False]) == SizeSpec(path=("a",), default=False)
    assert SizeSpec.parse(["a", [1, 2]], is_list=True) == SizeSpec(path=("a",), default=(1, 2))
    assert SizeSpec.parse(["quotient", "a", 2]) == SizeSpec(derivation="quotient", of=("a", 2))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hidden", "expected [path in config.json, …], with a default at the end"),
        ({"path": ["hidden"]}, "expected [path in config.json, …]"),
        (8, "expected [path in config.json, …]"),
        (None, "expected [path in config.json, …]"),
        ([], "or [product|sum|quotient, size, …]; found []"),
        ([8], "expected paths in config.json and at most one default, at the end; found [8]"),
        ([8, "a"], "at most one default, at the end; found [8, 'a']"),
        (["a", 8, 9], "at most one default, at the end; found ['a', 8, 9]"),
        (["a", [8]], "expected a number as the default, found [8]"),
        (["a", 1.5], "expected a number as the default, found 1.5"),
        (["a", -1], "expected a number as the default, found -1"),
        (["product"], "product takes sizes, found []"),
        (["sum", "a", 0], "sum takes names of sizes and positive integers, found 0"),
        (["product", "a", ["b"]], "product takes names of sizes and positive integers, found ['b']"),
        (["product", True], "product takes names of sizes and positive integers, found True"),
        (["quotient", "a"], "quotient takes two sizes, found ['a']"),
        (["quotient", "a", "b", "c"], "quotient takes two sizes, found ['a', 'b', 'c']"),
    ],
)
def test_a_spec_that_is_none_is_refused(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SizeSpec.parse(spec)


@pytest.mark.parametrize("default", [8, -1, [-1], ["8"], [1.5], [True], None, True])
def test_the_default_of_a_list_is_a_list_of_layer_numbers(default):
    with pytest.raises(ValueError, match="expected a list of layer numbers as the default, found"):
        SizeSpec.parse(["deep", default], is_list=True)


def test_a_list_is_never_derived():
    assert SizeSpec.parse(["product", "sum"], is_list=True) == SizeSpec(path=("product", "sum"))


def test_a_size_can_be_another_than_that_of_the_configuration():
    config = {"vocab_size": 100, "hidden": 4}
    found = sizes(config, vocabulary=["vocab_size"], hidden=["hidden"], elements=["product", "vocabulary", "hidden"])
    assert found.get("elements") == 400
    changed = found.having(vocabulary=128)
    assert (changed.get("vocabulary"), changed.get("elements")) == (128, 512)
    assert changed.origin("vocabulary") == "vocabulary (128)"
    assert found.get("vocabulary") == 100


def test_nothing_is_divided_by_nought():
    found = sizes({}, heads=["num_heads", 0], width=["quotient", 8, "heads"], groups=["num_groups", 4])
    assert found.divisor("groups") == 4
    assert found.divisor(3) == 3
    for name in ("heads", "width"):
        with pytest.raises(
            InputError, match=re.escape("cannot divide by heads (0, the default of num_heads in config.json)")
        ):
            found.divisor(name)
