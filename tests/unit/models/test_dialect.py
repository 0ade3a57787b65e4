"""The file of a dialect: its names there and back, what it says of experts, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.dialect import Dialect, ExpertModule, parse_dialect
from distconv.models.library import Library
from distconv.models.packing import Packing
from distconv.models.parameter_dialect_file import is_of_parameters

PACKAGED = {
    name: parse_dialect(name, each["content"], each["path"])
    for name, each in Library.of_package().dialects().items()
    if not is_of_parameters(each["content"])
}
NAMES = [
    "lm_head.weight",
    "language_model.lm_head.weight",
    "language_model.model.layers.3.self_attn.q_proj.weight",
    "model.embed_tokens.weight",
    "model.layers.0.block_sparse_moe.experts.3.w1.weight",
    "model.layers.11.block_sparse_moe.gate.weight",
    "model.layers.2.mlp.moe_statics.e_score_correction_bias",
    "multi_modal_projector.linear_1.bias",
    "talker.model.layers.0.mlp.experts.0.up_proj.weight",
    "thinker.audio_tower.layers.0.fc1.weight",
    "thinker.lm_head.weight",
    "thinker.model.layers.0.mlp.experts.0.up_proj.weight",
    "thinker.visual.patch_embed.weight",
    "vision_tower.ln_pre.weight",
]


def parsed(**content: Any) -> Dialect:
    return parse_dialect("mine", content, "mine.yaml")


def family(**content: Any) -> Dialect:
    return parsed(families=[{"model_types": ["m"], **content}])


def test_the_packaged_ones_are_complete():
    assert PACKAGED.keys() == {"published", "transformers5", "transformers5_thinker", "mm_fsdp2", "mm_wrapped"}
    published = PACKAGED["published"]
    for dialect in PACKAGED.values():
        for model_type, holding in dialect.holdings.items():
            known = published.holding(model_type)
            assert known is None or dialect is published or holding.says_experts == bool(known.modules), model_type


@pytest.mark.parametrize("name", [name for name in PACKAGED if name != "published"])
def test_published_names_come_back(name):
    changed = set()
    for holding in PACKAGED[name].holdings.values():
        for each in NAMES:
            starts = each.split(".")[0]
            # Names that another family has, and that would be another tensor's in this one.
            if any(new.split(".")[0] == starts and not each.startswith(old) for old, new in holding.names):
                continue
            if ("", "thinker.") in [(new, old) for old, new in holding.names] and not each.startswith(
                ("thinker.", "talker.")
            ):
                continue
            assert holding.published(holding.held(each)) == each
            changed |= {each} if holding.held(each) != each else set()
    assert changed or not any(holding.names for holding in PACKAGED[name].holdings.values())


def test_the_first_beginning_that_fits_is_exchanged():
    holding = family(names=[["a.b.", "x."], ["a.", "y."], ["c.{layer}.d.", "c.{layer}.e.f."]]).holdings["m"]
    assert [holding.held(name) for name in ("a.b.w", "a.c.w", "b.a.w", "c.12.d.w", "c.x.d.w")] == [
        "x.w", "y.c.w", "b.a.w", "c.12.e.f.w", "c.x.d.w",
    ]  # fmt: skip
    assert [holding.published(name) for name in ("x.w", "y.c.w", "c.12.e.f.w")] == ["a.b.w", "a.c.w", "c.12.d.w"]


def test_a_name_that_is_held_or_published_already_stays():
    """One of a held name may begin with that of the published one: the longer beginning tells."""
    holding = family(names=[["visual.", "model.visual."], ["model.", "model.language_model."]]).holdings["m"]
    pairs = {"visual.w": "model.visual.w", "model.norm.w": "model.language_model.norm.w", "lm_head.w": "lm_head.w"}
    assert {name: holding.held(name) for name in pairs} == pairs
    assert {holding.published(name) for name in pairs.values()} == set(pairs)
    assert all(holding.held(name) == name for name in pairs.values())
    assert all(holding.published(name) == name for name in pairs)
    assert [holding.tells(name) for name in (*pairs, *pairs.values())] == [-1, -1, 0, 1, 1, 0]


def test_a_module_knows_its_tensors_by_layer_and_part():
    module = ExpertModule(module="m.{layer}.experts", parts=("w1", "w3", "w2"))
    names = {
        "m.10.experts.3.w1.weight": (10, (3, "gate")),
        "m.10.experts.3.w2.weight": (10, (3, "down")),
        "m.0.experts.gate_up_proj": (0, (None, "gate_up")),
        "m.0.experts.down_proj": (0, (None, "down")),
    }
    for name, found in names.items():
        assert module.find(name) == found
        assert module.name(*found) == name
    for other in (
        "m.0.experts.down_proj.weight",
        "m.0.experts.0.w1.bias",
        "m.0.shared.w1.weight",
        "xm.0.experts.down_proj",
    ):
        assert module.find(other) is None


def test_what_is_left_out_has_a_reason():
    holding = family(leave_out=[{"names": "mtp.*", "reason": "not loaded"}]).holdings["m"]
    assert holding.why_left_out("mtp.layers.0.w") == "not loaded"
    assert holding.why_left_out("model.mtp.w") is None


def test_what_is_held_in_float32():
    holding = family(float32=["*.gate.weight"]).holdings["m"]
    assert holding.is_in_float32("model.layers.0.mlp.gate.weight")
    assert not holding.is_in_float32("model.layers.0.mlp.gate.weight_scale")


def test_all_that_can_be_said_of_experts():
    holding = family(experts={"transposed": True, "joined": False, "flattened": True}).holdings["m"]
    assert holding.experts == Packing(transposed=True, joined=False, flattened=True)
    assert (
        family(experts="one_each").holdings["m"].experts,
        family(experts="one_each").holdings["m"].says_experts,
    ) == (
        None,
        True,
    )
    assert not family().holdings["m"].says_experts


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"prefixes": "a"}, "unknown key 'prefixes'; did you mean 'prefix'?"),
    "a prefix": ({"prefix": 3}, "prefix: expected text, found 3"),
    "a head": ({"tied_head": "no"}, "tied_head: expected auto or write, found 'no'"),
    "families": ({"families": {}}, "families: expected a list of mappings, each with model_types"),
    "no types": ({"families": [{}]}, "families: entry 1: model_types: expected a list of model types"),
    "twice": (
        {"families": [{"model_types": ["m"]}, {"model_types": ["m"]}]},
        "families: m has two entries",
    ),
}
WRONG_FAMILY: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"rename": []}, "unknown key 'rename'"),
    "names": ({"names": [["a"]]}, "names: expected [published beginning, held beginning], found ['a']"),
    "no list": ({"names": "a"}, "names: expected a list, found 'a'"),
    "a layer": ({"names": [["a.{layer}.", "a."]]}, "expected one {layer} in both or in none"),
    "experts": ({"experts": "packed"}, "experts: expected one_each, or a mapping with transposed, found 'packed'"),
    "a flag": ({"experts": {"transposed": "yes"}}, "experts.transposed: expected true or false, found 'yes'"),
    "a flag's name": ({"experts": {"transposed": True, "flat": True}}, "experts: unknown key 'flat'"),
    "no reason": ({"leave_out": [{"names": "a"}]}, "leave_out: expected names and a reason, found {'names': 'a'}"),
    "no pattern": ({"float32": [1]}, "float32: expected a pattern of published names, found 1"),
    "no mapping": ({"published": ["a"]}, "published: expected a mapping, found 'a'"),
    "a module": ({"published": [{"module": "a"}]}, "published: module: expected a name with one {layer}, found 'a'"),
    "parts": (
        {"published": [{"module": "a.{layer}", "parts": ["a", "a", "b"]}]},
        "published: parts: expected the names of gate, up and down",
    ),
    "too many parts": (
        {"published": [{"module": "a.{layer}", "parts": ["a", "b", "c", "a"]}]},
        "published: parts: expected the names of gate, up and down",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_with_the_file(wrong):
    content, says = WRONG[wrong]
    with pytest.raises(InputError) as caught:
        parsed(**content)
    assert caught.value.problems[0].startswith(f"mine.yaml: {says}")


@pytest.mark.parametrize("wrong", WRONG_FAMILY)
def test_what_is_wrong_with_a_family_is_said_with_its_number(wrong):
    content, says = WRONG_FAMILY[wrong]
    with pytest.raises(InputError) as caught:
        family(**content)
    assert caught.value.problems[0].startswith("mine.yaml: families: entry 1: ")
    assert says in caught.value.problems[0]
