"""One entry of a definition becomes rules, or every problem of it is named."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.rules import Rule, SourcePattern, parse_rules

SIZES = ("hidden", "ffn", "heads")
LISTS = ("deep",)
ENTRY: dict[str, Any] = {
    "target": "layers.{layer}.fc.weight",
    "sources": [["model.{layer}.fc.weight", "ffn", "hidden"]],
    "tp": "rows",
}


def rules(**changes: Any) -> list[Rule]:
    entry = {key: value for key, value in {**ENTRY, **changes}.items() if value is not ...}
    return list(parse_rules("text", "mlp", 3, entry, SIZES, LISTS))


def problems(**changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        rules(**changes)
    return caught.value.problems


def test_an_entry_is_a_rule():
    (rule,) = rules(optional=True)
    assert rule.where == "rule text.mlp"
    assert rule.target == "layers.{layer}.fc.weight"
    assert rule.sources == (SourcePattern(name="model.{layer}.fc.weight", dims=("ffn", "hidden")),)
    assert (rule.operator, rule.operator_sizes) == ("rename", ())
    assert (rule.tensor_parallel, rule.unit) == ("rows", None)
    assert rule.placeholders == {"layer"}
    assert (rule.stage, rule.optional) == ("layer", True)


def test_operators_and_cuts_name_their_sizes():
    (rule,) = rules(operator=["qkv_heads", "heads"], tp=["rows", "heads"])
    assert (rule.operator, rule.operator_sizes) == ("qkv_heads", ("heads",))
    assert (rule.tensor_parallel, rule.unit) == ("rows", "heads")


def test_a_parameter_outside_the_layers_names_its_stage():
    for stage in ("first", "last", "every"):
        (rule,) = rules(target="fc.weight", sources=[["fc.weight", "ffn", "hidden"]], stage=stage)
        assert rule.stage == stage


def test_a_vector_is_replicated_unless_its_rule_says_otherwise():
    vector = [["model.{layer}.fc.weight", "ffn"]]
    assert rules(sources=vector, tp=...)[0].tensor_parallel == "replicated"
    assert rules(sources=vector, tp="rows")[0].tensor_parallel == "rows"


def test_a_dim_is_a_size_or_a_number_or_any():
    (rule,) = rules(sources=[["model.{layer}.fc.weight", "ffn", 3, "any"]])
    assert rule.sources[0].dims == ("ffn", 3, "any")


def test_alternatives_are_a_rule_each_and_a_bias_has_the_first_dim_of_its_weight():
    weight, bias = rules(
        target="layers.{layer}.fc.{weight,bias}",
        sources=[
            ["model.{layer}.gate.{weight,bias}", "ffn", "hidden"],
            ["model.{layer}.up.{weight,bias}", "ffn", "hidden"],
        ],
        operator="concat",
        tp="glu",
    )
    assert (weight.target, bias.target) == ("layers.{layer}.fc.weight", "layers.{layer}.fc.bias")
    assert weight.sources == (
        SourcePattern(name="model.{layer}.gate.weight", dims=("ffn", "hidden")),
        SourcePattern(name="model.{layer}.up.weight", dims=("ffn", "hidden")),
    )
    assert bias.sources == (
        SourcePattern(name="model.{layer}.gate.bias", dims=("ffn",)),
        SourcePattern(name="model.{layer}.up.bias", dims=("ffn",)),
    )
    assert {rule.operator for rule in (weight, bias)} == {"concat"}
    assert {rule.tensor_parallel for rule in (weight, bias)} == {"glu"}


def test_alternatives_are_paired_by_position_and_may_be_parts_of_a_name():
    one, other = rules(target="layers.{layer}.{query.w,key.w}", sources=[["m.{layer}.{q,k}.weight", "ffn", "hidden"]])
    assert [(rule.target, rule.sources[0].name) for rule in (one, other)] == [
        ("layers.{layer}.query.w", "m.{layer}.q.weight"),
        ("layers.{layer}.key.w", "m.{layer}.k.weight"),
    ]


def test_an_alternative_with_a_question_mark_is_optional():
    weight, bias = rules(
        target="layers.{layer}.fc.{weight,bias?}", sources=[["model.{layer}.fc.{weight,bias?}", "ffn", "hidden"]]
    )
    assert (weight.target, weight.optional) == ("layers.{layer}.fc.weight", False)
    assert (bias.target, bias.optional) == ("layers.{layer}.fc.bias", True)
    assert bias.sources == (SourcePattern(name="model.{layer}.fc.bias", dims=("ffn",)),)


def test_a_rule_may_be_for_the_layers_of_a_list_and_count_them():
    (rule,) = rules(sources=[["model.{item}.fc.weight", "ffn", "hidden"]], layers="deep")
    assert rule.layers == "deep"
    (rule,) = rules(layers="deep")
    assert rule.sources[0].name == "model.{layer}.fc.weight"


def test_one_source_may_hold_all_experts():
    (rule,) = rules(target="layers.{layer}.experts.{expert}.fc.weight")
    assert rule.placeholders == {"layer", "expert"}


def _one_of(**alternatives: Any) -> Any:
    return parse_rules("text", "mlp", 3, {"one_of": alternatives}, SIZES, LISTS)


def test_rules_of_different_alternatives_exclude_each_other():
    norm = {"target": "layers.{layer}.norm.weight", "sources": [["model.{layer}.norm.weight", "hidden"]]}
    dense, norm_1, norm_2, outside = [*_one_of(dense=[ENTRY, norm], experts=[norm]), *rules()]
    assert dense.choice == norm_1.choice == ("text.mlp[3]", "dense")
    assert norm_2.choice == ("text.mlp[3]", "experts")
    assert norm_1.excludes(norm_2)
    assert norm_2.excludes(dense)
    assert not dense.excludes(norm_1)
    assert not outside.excludes(dense)
    (elsewhere, _) = parse_rules("text", "mlp", 4, {"one_of": {"dense": [ENTRY], "experts": [ENTRY]}}, SIZES, LISTS)
    assert not elsewhere.excludes(norm_2)


@pytest.mark.parametrize("alternatives", [{"dense": [ENTRY]}, {}, [ENTRY, ENTRY], None])
def test_a_choice_is_between_two_or_more(alternatives):
    with pytest.raises(InputError, match="one_of: expected two or more named lists of rules, and nothing beside"):
        list(parse_rules("text", "mlp", 3, {"one_of": alternatives}, SIZES, LISTS))


def test_beside_a_choice_there_is_nothing():
    with pytest.raises(InputError, match="one_of: expected two or more named lists of rules, and nothing beside"):
        list(parse_rules("text", "mlp", 3, {"one_of": {"a": [], "b": []}, "tp": "rows"}, SIZES, LISTS))


def test_a_choice_of_something_else_than_rules_is_refused():
    with pytest.raises(InputError, match=r"one_of\.dense\[0\]: expected a rule, found 'x'"):
        list(_one_of(dense=["x"], experts=[ENTRY]))


def test_all_problems_of_a_choice_are_reported_with_the_names_of_the_alternatives():
    with pytest.raises(InputError) as caught:
        list(_one_of(dense=[{**ENTRY, "tp": "rowz"}, ENTRY], experts=[{**ENTRY, "operator": "stack"}]))
    first, second = caught.value.problems
    assert "dense" in first
    assert "tp: unknown 'rowz'" in first
    assert "experts" in second
    assert "operator: unknown 'stack'" in second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targte": "x"}, "unknown key 'targte'; did you mean 'target'?"),
        ({"target": None}, "target: expected a name, found None"),
        ({"target": ["a"]}, "target: expected a name, found ['a']"),
        ({"sources": [*ENTRY["sources"], "x"]}, "sources: expected [name, size of dim 0, …], found 'x'"),
        ({"sources": [*ENTRY["sources"], []]}, "sources: expected [name, size of dim 0, …], found []"),
        ({"sources": []}, "operator: rename takes 1 sources, found 0"),
        ({"sources": ENTRY["sources"] * 2}, "operator: rename takes 1 sources, found 2"),
        ({"operator": "concat"}, "operator: concat takes 2 or more sources, found 1"),
        ({"operator": ["qkv_group", "heads"]}, "operator: qkv_group takes 3 sources, found 1"),
        ({"operator": "stack"}, "operator: unknown 'stack'; known: rename, concat, qkv_group, "),
        ({"operator": "qkv_heads"}, "operator: qkv_heads takes the sizes ['heads'], found []"),
        ({"operator": ["rename", "heads"]}, "operator: rename takes the sizes [], found ['heads']"),
        ({"operator": ["qkv_heads", "haeds"]}, "no size 'haeds' under sizes"),
        ({"tp": ...}, "tp: missing for layers.{layer}.fc.weight, which has two or more dims; one of replicated, rows"),
        ({"tp": None}, "tp: missing for layers.{layer}.fc.weight"),
        ({"tp": "columns"}, "tp: unknown 'columns'; known: replicated, rows, cols, glu, rows3, "),
        ({"tp": ["rows", "heads", "hidden"]}, "tp: expected a rule and at most one unit, found ['heads', 'hidden']"),
        ({"tp": ["rows", "haeds"]}, "no size 'haeds' under sizes"),
        ({"sources": [["model.{layer}.fc.weight", "fnn", "hidden"]]}, "no size 'fnn' under sizes"),
        (
            {"stage": "first"},
            "stage: expected first, last, ends or every for a target without {layer}, and none with it; f",
        ),
        ({"target": "fc.weight", "sources": [["fc", "ffn", "hidden"]]}, "found None"),
        ({"target": "fc.weight", "sources": [["fc", "ffn", "hidden"]], "stage": "layer"}, "found 'layer'"),
        ({"target": "fc.weight", "sources": [["fc", "ffn", "hidden"]], "stage": "middle"}, "found 'middle'"),
        ({"target": "layers.{layer}.{head}.weight"}, "unknown placeholder {head}"),
        ({"sources": [["model.{layer}.{head}", "ffn", "hidden"]]}, "unknown placeholder {head}"),
        ({"sources": [["m.{layer}.{expert}", "ffn", "hidden"]]}, "{expert} stands in a source but not in the target"),
        ({"target": "fc", "stage": "first"}, "{layer} stands in a source but not in the target"),
        ({"sources": [["fc.weight", "ffn", "hidden"]]}, "{layer} stands in the target but not in every source"),
        ({"sources": [["m.{layer}.{item}", "ffn", "hidden"]]}, "{item} counts the entries of a list: name it with the"),
        ({"layers": "depe"}, "layers: expected the name of a list, for a target with {layer}; found 'depe'"),
        (
            {"target": "fc", "sources": [["fc", "ffn", "hidden"]], "stage": "first", "layers": "deep"},
            "layers: expected the name of a list, for a target with {layer}; found 'deep'",
        ),
        ({"layers": ["deep"]}, "layers: expected the name of a list, for a target with {layer}; found ['deep']"),
        (
            {"target": "layers.{layer}.{weight,bias}"},
            "model.{layer}.fc.weight: expected as many alternatives as in the",
        ),
        (
            {"target": "layers.{layer}.{weight,bias}", "sources": [["m.{layer}.{a,b,c}", "ffn", "hidden"]]},
            "m.{layer}.{a,b,c}: expected as many alternatives",
        ),
        (
            {"target": "layers.{layer}.{weight, bias}"},
            "layers.{layer}.{weight, bias}: expected placeholders such as {layer}, and at one place alternatives",
        ),
        ({"target": "layers.{layer}.{weight"}, "layers.{layer}.{weight: expected placeholders"),
        ({"sources": [["model.{layer}.{}", "ffn", "hidden"]]}, "model.{layer}.{}: expected placeholders"),
        ({"target": "layers.{layer}.{a,b}.{weight,bias}"}, "layers.{layer}.{a,b}.{weight,bias}: expected placeholders"),
        ({"operator": ["qkv_heads", "any"]}, "no size 'any' under sizes"),
        ({"tp": ["rows", "any"]}, "no size 'any' under sizes"),
    ],
)
def test_a_problem_is_named(changes, message):
    (problem,) = problems(**changes)
    assert message in problem


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"kind": "linear", "target": 3, "sources": ["m"], "operator": 3, "tp": [], "optional": "no"},
            ["unknown key 'kind'", "target: ", "sources: ", "operator: ", "tp: ", "optional: "],
        ),
        (
            {"sources": [["{head}", "fnn", "hidden"]], "operator": "stack", "tp": "columns", "stage": "first"},
            [
                "operator: unknown 'stack'",
                "tp: unknown 'columns'",
                "no size 'fnn'",
                "stage: expected",
                "unknown placeholder {head}",
                "{layer} stands in the target but not in every source",
            ],
        ),
    ],
)
def test_all_problems_of_an_entry_are_reported_together(changes, messages):
    """Those of its types first; what the values mean is only asked when there are values."""
    for problem, message in zip(problems(**changes), messages, strict=True):
        assert problem.startswith(message)


@pytest.mark.parametrize("entry", ["a", None, 3, ["target"]])
def test_an_entry_that_is_no_mapping_is_refused(entry):
    with pytest.raises(InputError, match="expected a rule, found"):
        list(parse_rules("text", "mlp", 3, entry, SIZES, LISTS))


@pytest.mark.parametrize(
    "changes",
    [
        {"operator": []},
        {"operator": {"concat": 1}},
        {"operator": 3},
        {"tp": 3},
        {"tp": []},
        {"tp": True},
        {"sources": 3},
        {"sources": [["model.{layer}.fc.weight", ["ffn"], "hidden"]]},
        {"sources": [["model.{layer}.fc.weight", 1.5, "hidden"]]},
        {"sources": [["model.{layer}.fc.weight", 0, "hidden"]]},
        {"sources": [["model.{layer}.fc.weight", -1, "hidden"]]},
        {"optional": "no"},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused(changes):
    assert len(problems(**changes)) == 1


def test_alternatives_in_a_source_alone_are_refused():
    assert "{weight,bias}" in problems(sources=[["model.{layer}.fc.{weight,bias}", "ffn", "hidden"]])[0]
