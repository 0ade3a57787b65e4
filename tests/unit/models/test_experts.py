"""The experts of a model: their packing found by shapes, and rearranged tensors under the names of their form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.models.dialect import ExpertModule
from distconv.models.experts import ConfiguredSizes, Experts, as_published, configured_sizes
from distconv.models.packing import ExpertSizes, Form, Packing, parts_of
from distconv.tensors.stored import NamedTensor, SourceFile, StoredTensor
from distconv.tensors.virtual import whole
from tests.unit.reference import evaluate

MODULE = ExpertModule(module="m.{layer}.experts")
FORMS: Mapping[str, Form] = {
    "one each": None,
    "in, out": Packing(transposed=True),
    "out, in": Packing(transposed=False),
    "in, out, as matrices": Packing(transposed=True, flattened=True),
    "out, in, as matrices": Packing(transposed=False, flattened=True),
    "apart": Packing(transposed=False, joined=False),
}
SHAPES = {"nothing square": (6, 5), "gate and up square": (6, 3), "down square": (5, 5)}


def experts(hidden: int | None, width: int | None, count: int | None = 3, published: Form = None) -> Experts:
    module = ExpertModule(module=MODULE.module, published=published)
    configured = ConfiguredSizes(experts=count, hidden=hidden, width=width, where="config.json")
    return Experts(modules=(module,), configured=configured)


def shapes(form: Form, hidden: int, width: int, count: int = 3, layers: int = 1) -> dict[str, tuple[int, ...]]:
    sizes = ExpertSizes(experts=count, hidden=hidden, width=width)
    return {MODULE.name(layer, part): shape for layer in range(layers) for part, shape in parts_of(form, sizes).items()}


def tensors(given: Mapping[str, tuple[int, ...]], dtype: str = "bfloat16") -> list[NamedTensor]:
    tables = {shape: whole(dtype, shape) for shape in given.values()}
    file = SourceFile("/hf/model.safetensors", 1 << 20)
    return [
        NamedTensor((StoredTensor(name, dtype, shape, file, 0),), tables[shape], name) for name, shape in given.items()
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("square", SHAPES)
def test_shapes_and_configuration_tell_how_experts_are_packed(form, square):
    hidden, width = SHAPES[square]
    if form == "apart" and hidden == width:
        return
    given = shapes(FORMS[form], hidden, width, layers=2)
    assert list(experts(hidden, width).forms(given).values()) == [FORMS[form]] * 2


@pytest.mark.parametrize("form", ["in, out", "out, in"])
@pytest.mark.parametrize("square", SHAPES)
def test_three_dims_tell_it_even_where_the_configuration_says_nothing(form, square):
    given = shapes(FORMS[form], *SHAPES[square])
    assert list(experts(None, None, None).forms(given).values()) == [FORMS[form]]


def test_what_shapes_leave_open_is_asked_for():
    given = shapes(FORMS["in, out, as matrices"], 6, 5, count=4)
    with pytest.raises(InputError) as caught:
        experts(None, None, None).forms(given)
    assert "fits [E*h, 2I] and [E*2I, h]" in str(caught.value)
    assert "h = not said" in str(caught.value)
    assert "give source_dialect=NAME" in str(caught.value)
    told = experts(None, None, None).given("mine", FORMS["in, out, as matrices"])
    assert list(told.forms(given).values()) == [FORMS["in, out, as matrices"]]


def test_square_matrices_of_apart_experts_are_asked_for_too():
    with pytest.raises(InputError, match=r"fits \[E, h, I\] and \[E, I, h\]"):
        experts(5, 5).forms(shapes(FORMS["apart"], 5, 5))


def test_a_dialect_that_the_shapes_contradict_is_refused():
    told = experts(6, 5).given("mine", FORMS["out, in"])
    with pytest.raises(InputError, match=r"\[E, h, 2I\], but source_dialect=mine has \[E, 2I, h\]"):
        told.forms(shapes(FORMS["in, out"], 6, 5))


def test_one_tensor_transposed_is_no_layout():
    given = shapes(FORMS["in, out"], 6, 5)
    name = MODULE.name(0, (None, "gate_up"))
    count, *others = given[name]
    with pytest.raises(InputError, match=rf"{name} has shape \[3, 10, 6\].*in no known layout.*E = 3, h = 6, I = 5"):
        experts(6, 5).forms({**given, name: (count, *reversed(others))})


@pytest.mark.parametrize("form", ["one each", "in, out", "out, in, as matrices"])
@pytest.mark.parametrize("wrong", [(7, 5, 3), (6, 4, 3), (6, 5, 4)])
def test_other_sizes_than_the_configuration_says_are_refused(form, wrong):
    hidden, width, count = wrong
    with pytest.raises(InputError, match=r"config\.json says"):
        experts(6, 5, 3).forms(shapes(FORMS[form], hidden, width, count))


@pytest.mark.parametrize("part", [(0, "gate"), (0, "up"), (2, "gate")])
def test_of_experts_that_are_one_each_the_odd_one_is_named(part):
    given = shapes(None, 6, 5)
    name = MODULE.name(0, part)
    with pytest.raises(InputError) as caught:
        experts(6, 5).forms({**given, name: given[name][::-1]})
    assert caught.value.problems == [f"{name} has shape [6, 5], expected [5, 6] as the other experts"]


def test_experts_that_are_not_complete_are_refused_by_name():
    given = shapes(None, 6, 5)
    lost = given.pop(MODULE.name(0, (1, "up")))
    assert lost
    with pytest.raises(InputError, match=r"1 tensor of the 3 experts of layer 0 missing: m\.0\.experts\.1\.up_proj"):
        experts(6, 5).forms(given)
    for part in ("down", "gate_up"):
        given = shapes(FORMS["in, out"], 6, 5)
        del given[MODULE.name(0, (None, part))]
        with pytest.raises(InputError, match=rf"layer 0 are not complete: missing: m\.0\.experts\.{part}_proj; is"):
            experts(6, 5).forms(given)
    both = shapes(FORMS["in, out"], 6, 5) | shapes(None, 6, 5)
    with pytest.raises(InputError, match=r"beside them: m\.0\.experts\.0\.down_proj"):
        experts(6, 5).forms(both)


@pytest.mark.parametrize("published", ["one each", "in, out"])
def test_without_shapes_packed_experts_are_as_published_or_else_as_transformers_saves_them(published):
    known = experts(6, 5, published=FORMS[published])
    given = dict.fromkeys(shapes(FORMS["out, in"], 6, 5))
    assert list(known.forms(given).values()) == [FORMS["in, out"] if published == "in, out" else FORMS["out, in"]]
    assert list(known.forms(dict.fromkeys(shapes(None, 6, 5))).values()) == [None]


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("wanted", FORMS)
def test_tensors_are_rearranged_and_named_as_their_form_has_them(source, wanted):
    given = tensors({"a.weight": (2, 2)} | shapes(FORMS[source], 6, 5, layers=2) | {"b.weight": (2,)})
    found = experts(6, 5).respelled(given, lambda *_: FORMS[wanted])
    expected = {"a.weight": (2, 2)} | shapes(FORMS[wanted], 6, 5, layers=2) | {"b.weight": (2,)}
    assert {each.name: each.tensor.shape for each in found} == expected
    assert [each.name for each in found][:: len(found) - 1] == ["a.weight", "b.weight"]
    back = experts(6, 5).respelled(found, lambda *_: FORMS[source])
    arrays = {each.name: np.arange(each.tensor.elements).reshape(each.tensor.shape) for each in given}
    for before, after in zip(
        sorted(given, key=lambda each: each.name), sorted(back, key=lambda each: each.name), strict=True
    ):
        array = evaluate(after.tensor, [arrays[stored.name] for stored in after.sources])
        np.testing.assert_array_equal(array, arrays[before.name])


def test_what_is_in_its_form_already_is_untouched_and_layers_share_tables():
    given = tensors(shapes(FORMS["in, out"], 6, 5, layers=2))
    known = experts(6, 5, published=FORMS["in, out"])
    assert known.respelled(given, as_published) == given
    found = known.respelled(given, lambda *_: None)
    one, two = (next(each for each in found if each.name == f"m.{layer}.experts.2.up_proj.weight") for layer in (0, 1))
    assert one.tensor is two.tensor
    # Only what it is made of is read.
    assert [stored.name for stored in one.sources] == ["m.0.experts.gate_up_proj"]


def test_quantised_experts_are_not_rearranged():
    given = tensors(shapes(None, 6, 5), "float8_e4m3fn")
    with pytest.raises(InputError, match="are float8_e4m3fn; only experts of one type, and not quantised"):
        experts(6, 5).respelled(given, lambda *_: FORMS["in, out"])


def test_the_order_of_alternating_rows_is_kept():
    alternating = Packing(transposed=True, alternating=True)
    known = experts(6, 5, published=alternating)
    given = tensors(shapes(alternating, 6, 5))
    assert list(known.forms({each.name: each.tensor.shape for each in given}).values()) == [alternating]
    found = known.respelled(given, lambda *_: FORMS["in, out"])
    assert found == given
    with pytest.raises(InputError, match="gate and up alternating cannot become one tensor each"):
        known.respelled(given, lambda *_: None)


@pytest.mark.parametrize(
    "config",
    [
        {"num_experts": 3, "hidden_size": 6, "moe_intermediate_size": 5, "intermediate_size": 9},
        {"num_local_experts": 3, "hidden_size": 6, "intermediate_size": 5},
        {"n_routed_experts": 3, "hidden_size": 6, "moe_intermediate_size": 5},
        {"text_config": {"num_local_experts": 3, "hidden_size": 6, "moe_intermediate_size": 5}, "hidden_size": 1},
        {"llm_config": {"num_experts": 3, "hidden_size": 6, "moe_intermediate_size": 5}},
        {"thinker_config": {"text_config": {"num_experts": 3, "hidden_size": 6, "moe_intermediate_size": 5}}},
        {"moe_num_experts": 3, "hidden_size": 6, "moe_intermediate_size": 5},
    ],
)
def test_sizes_are_read_in_the_spellings_of_all_families(config):
    found = configured_sizes(config, "config.json")
    assert (found.experts, found.hidden, found.width) == (3, 6, 5)
