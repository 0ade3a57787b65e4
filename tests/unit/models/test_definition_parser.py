"""A definition file is complete and consistent in itself, or every problem of it is named with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.definition import Restriction
from distconv.models.definition_parser import parse_definition
from distconv.models.sizes import SizeSpec
from tests.unit import toy

Change = Callable[[dict[str, Any]], Any]
ONE_TOWER = {"modality": "vision", "one_stage": True, "reason": "one tower"}
FIRST_STAGE = {"modality": "text", "first_stage": "deep", "reason": "features"}


def problems(*changes: Change) -> list[str]:
    content = toy.content()
    for change in changes:
        change(content)
    with pytest.raises(InputError) as caught:
        parse_definition("toy", content)
    return caught.value.problems


def put(value: Any, *keys: Any) -> Change:
    """A change: the value at the end of a path of keys."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    change.__name__ = f"{'.'.join(map(str, keys))}={value}"
    return change


def test_a_definition_says_what_its_file_says():
    found = toy.definition()
    assert found.name == "toy"
    assert found.model_types == ("toy",)
    assert found.variant_of is None
    assert found.renamed_prefixes == (("model.visual.", "visual."), ("model.language_model.", "model."))
    assert found.sizes["head_dim"] == SizeSpec(derivation="quotient", of=("hidden", "heads"))
    assert found.modalities == {"text": "layers", "vision": "vision_layers"}
    assert found.experts == "n_experts"
    assert found.tied is not None
    assert found.tied.flag == SizeSpec(path=("tie_word_embeddings",), default=False)
    assert (found.tied.embedding, found.tied.head) == ("text.embedding.weight", "text.head.weight")
    assert found.lists == {"deep": SizeSpec(path=("vision_config.deep",), default=(1,))}
    assert [(entry.names, entry.reason, entry.layers) for entry in found.ignored] == [
        ("*.inv_freq", "rebuilt by the training side", None),
        ("model.layers.{layer}.mtp.*", "not trained", ("layers", "mtp_layers")),
    ]
    sections = [rule.section for rule in found.rules if rule.modality == "vision"]
    assert sections == ["embedding", *["blocks"] * 4, "deep", "projector"]


def test_restrictions_name_a_list_or_a_size():
    found = parse_definition("toy", {**toy.content(), "layout": [ONE_TOWER, {**FIRST_STAGE, "modality": "vision"}]})
    assert found.restrictions == (
        Restriction(modality="vision", one_stage=True, reason="one tower"),
        Restriction(modality="vision", first_stage="deep", reason="features"),
    )
    (by_size,) = parse_definition(
        "toy", {**toy.content(), "layout": [{**FIRST_STAGE, "first_stage": "heads"}]}
    ).restrictions
    assert by_size.first_stage == "heads"
    assert toy.definition().restrictions == ()


def test_what_most_models_do_not_need_may_be_left_out():
    content = toy.content()
    for key in ("model_types", "renamed_prefixes", "lists", "tied", "ignore"):
        del content[key]
    del content["rules"]["vision"]["deep"]
    found = parse_definition("toy", content)
    assert found.lists == {}
    assert (found.model_types, found.renamed_prefixes, found.tied, found.ignored) == ((), (), None, ())
    assert toy.definition({**toy.content(), "variant_of": "other"}).variant_of == "other"
    assert toy.definition({**toy.content(), "part_of": "whole"}).part_of == "whole"


def test_a_section_may_be_empty():
    content = toy.content()
    content["rules"]["vision"]["blocks"] = None
    content["rules"]["vision"]["projector"] = []
    assert len([rule for rule in parse_definition("toy", content).rules if rule.modality == "vision"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put({}, "modality"), "unknown key 'modality'; did you mean 'modalities'?"),
        (put({}, "xyz"), "unknown key 'xyz'; known: model_types, "),
        (put(8, "sizes", "extra"), "sizes.extra: expected [path in config.json, …]"),
        (put("hidden_size", "sizes", "extra"), "sizes.extra: expected [path in config.json, …]"),
        (put({"path": "hidden_size"}, "sizes", "extra"), "sizes.extra: expected [path in config.json, …]"),
        (put(["quotient", "hidden"], "sizes", "extra"), "sizes.extra: quotient takes two sizes, found ['hidden']"),
        (put(["product", "hiden", 2], "sizes", "extra"), "sizes.extra: no size 'hiden'"),
        (put(["quotient", "hidden", "haeds"], "sizes", "extra"), "sizes.extra: no size 'haeds'"),
        (put(["sum", "hidden", "haeds"], "sizes", "extra"), "sizes.extra: no size 'haeds'"),
        (put([3], "lists", "extra"), "lists.extra: expected a list of layer numbers as the default, found 3"),
        (
            put({"layers": "depth"}, "modalities", "audio"),
            "modalities.audio.layers: expected the name of a size, found 'depth'",
        ),
        (put({"layers": "layers"}, "modalities", "video"), "modalities: unknown 'video'; known: text, vision, audio"),
        (put("depth", "modalities", "text", "size"), "modalities.text: unknown key 'size'; known: layers"),
        (put({}, "modalities", "audio"), "modalities.audio.layers: expected the name of a size, found None"),
        (put(None, "modalities", "audio"), "modalities.audio.layers: expected the name of a size, found None"),
        (put("n_expert", "experts"), "experts: expected the name of a size, found 'n_expert'"),
        (put({}, "rules", "audio"), "rules.audio: no such modality; known: text, vision"),
        (put("rowz", "rules", "text", "attention", 1, "tp"), "rules.text.attention[1]: tp: unknown 'rowz'"),
        (put(["x"], "rules", "text", "mlp"), "rules.text.mlp[0]: expected a rule, found 'x'"),
        (
            put("text.final.weight", "rules", "text", "embedding", 1, "target"),
            "two rules for the target text.final.weight",
        ),
        (
            put({"flag": ["tie", False], "embedding": "text.embedding.weight"}, "tied"),
            "tied.head: no rule for the target None",
        ),
        (
            put({"flag": "tie", "embedding": "text.embedding.weight", "head": "text.head.weight"}, "tied"),
            "tied.flag: expected [path",
        ),
        (put("text_config", "tied", "within"), "tied: unknown key 'within'"),
        (put("text.haed.weight", "tied", "head"), "tied.head: no rule for the target text.haed.weight"),
        (put(["*.inv_freq"], "ignore"), "ignore[0]: expected {names: …, reason: …}, found '*.inv_freq'"),
        (put([{"names": "*.inv_freq"}], "ignore"), "ignore[0]: expected {names: …, reason: …}"),
        (put(["text"], "layout"), "layout[0]: expected {modality: …, one_stage: true or first_stage: …, reason: …}"),
        (put([{**ONE_TOWER, "reason": None}], "layout"), "layout[0]: expected {modality: …"),
        (put([{**ONE_TOWER, "stage": 1}], "layout"), "layout[0]: unknown key 'stage'; did you mean 'one_stage'?"),
        (
            put([{**ONE_TOWER, "modality": "text"}], "layout"),
            "layout[0].modality: expected one of vision, found 'text'",
        ),
        (
            put([{**FIRST_STAGE, "modality": "audio"}], "layout"),
            "layout[0].modality: expected one of text, vision, found",
        ),
        (put([{**ONE_TOWER, "one_stage": False}], "layout"), "layout[0].one_stage: expected true, found False"),
        (
            put([{**FIRST_STAGE, "first_stage": "deeep"}], "layout"),
            "layout[0].first_stage: expected the name of a list",
        ),
        (
            put([{**FIRST_STAGE, "first_stage": 2}], "layout"),
            "layout[0].first_stage: expected the name of a list or of a",
        ),
        (put([{**ONE_TOWER, "first_stage": "deep"}], "layout"), "layout[0]: expected either one_stage or first_stage"),
        (
            put([{"modality": "text", "reason": "none"}], "layout"),
            "layout[0]: expected either one_stage or first_stage",
        ),
    ],
)
def test_a_problem_is_named_with_its_place(change, message):
    (problem,) = problems(change)
    assert problem.startswith(f"model definition toy: {message}")


def test_the_same_target_twice_is_found_through_alternatives():
    extra = {"target": "text.layers.{layer}.qkv.bias", "sources": [["model.layers.{layer}.b", "hidden"]]}
    found = problems(lambda content: content["rules"]["text"]["attention"].append(extra))
    assert found == ["model definition toy: two rules for the target text.layers.{layer}.qkv.bias"]


def test_all_problems_of_a_file_are_reported_together():
    found = problems(
        put(1, "xyz"),
        put(8, "sizes", "extra"),
        put("n_expert", "experts"),
        put("rowz", "rules", "text", "attention", 1, "tp"),
        put("stack", "rules", "vision", "blocks", 0, "operator"),
        put(["a."], "renamed_prefixes"),
        put([{}], "ignore"),
    )
    assert len(found) == 7


def test_a_size_that_is_wrong_itself_is_not_reported_as_unknown_where_it_is_used():
    (problem,) = problems(put(8, "sizes", "hidden"))
    assert problem.startswith("model definition toy: sizes.hidden: expected [path")


@pytest.mark.parametrize("key", ["sizes", "modalities", "rules"])
@pytest.mark.parametrize("value", [None, [], "text"])
def test_a_group_that_is_missing_or_no_mapping_is_refused(key, value):
    assert any(f"{key}: expected a mapping, found {value!r}" in problem for problem in problems(put(value, key)))


def test_a_misspelt_group_is_reported_as_such():
    content = toy.content()
    content["siezs"] = content.pop("sizes")
    with pytest.raises(InputError) as caught:
        parse_definition("toy", content)
    assert any("unknown key 'siezs'; did you mean 'sizes'?" in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    "change",
    [
        put(None, "rules", "text"),
        put([], "rules", "text"),
        put(3, "rules", "text", "mlp"),
        put("toy", "model_types"),
        put(["a.", "b."], "renamed_prefixes"),
        put([["a.", "b.", "c."]], "renamed_prefixes"),
        put(["toy"], "lists"),
        put(["product", "groups", 1.5], "sizes", "kv_rows"),
        put(["product", ["groups"]], "sizes", "kv_rows"),
        put(["product"], "sizes", "kv_rows"),
        put(["n_experts"], "experts"),
        put(["only"], "adapters"),
        put(2, "variant_of"),
        put(["whole"], "part_of"),
        put(2, "model_types"),
        put([["toy"]], "model_types"),
        put(["deep"], "rules", "vision", "deep", 0, "layers"),
        put(["text.head.weight"], "tied", "head"),
        put("tied", "tied"),
        put(["layers"], "modalities", "text", "layers"),
        put(["hidden_size", [16]], "sizes", "hidden"),
        put(["hidden_size", -1], "sizes", "hidden"),
        put(["product", "layers", 2], "lists", "deep"),
        put(["vision_config.deep", 3], "lists", "deep"),
        put([{"names": 3, "reason": "x"}], "ignore"),
        put({"text": FIRST_STAGE}, "layout"),
        put([{**FIRST_STAGE, "modality": ["text"]}], "layout"),
        put([{**FIRST_STAGE, "first_stage": ["deep"]}], "layout"),
        put([{"names": 3, "reason": "x"}], "keep_dtype"),
        put([{"names": "x"}], "keep_dtype"),
        put([{"names": "x", "reason": "x", "layers": ["layers", "mtp_layers"]}], "keep_dtype"),
        put({"names": "x", "reason": "x"}, "keep_dtype"),
        put([{"names": "x", "reason": "x", "layers": ["layers"]}], "ignore"),
        put([{"names": "x", "reason": "x", "layers": ["layers", "mtp"]}], "ignore"),
        put([{"names": "x", "reason": "x", "layer": ["layers", "mtp_layers"]}], "ignore"),
    ],
    ids=lambda change: change.__name__,
)
def test_a_value_of_the_wrong_type_is_refused(change):
    assert problems(change)


def test_sizes_that_are_derived_from_each_other_in_a_circle_are_refused():
    assert problems(put(["product", "kv_rows", 2], "sizes", "groups"))


def test_rules_for_experts_need_their_number():
    assert problems(lambda content: content.pop("experts"))


def test_a_wrong_rule_for_a_tied_target_is_reported_once():
    (problem,) = problems(put("rowz", "rules", "text", "head", 1, "tp"))
    assert "tp: unknown 'rowz'" in problem
