"""Which type each tensor of a result gets, who decides it, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.element_types import Casts, ElementTypes, main_dtype, named_dtypes
from distconv.formats.model import Model, Reference
from distconv.formats.registry import Options
from distconv.models.parameters import Binding
from distconv.tensors.stored import NamedTensor, as_stored
from tests.unit import toy

ROUTER, NORM, HEAD, EMBEDDING = (
    "model.layers.1.router.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.embed.weight",
)
KEPT = [{"names": "*.router.weight", "reason": "the router is sensitive"}]


def reference(index: Mapping[str, str] | None, config: Mapping[str, Any] | None = None) -> Reference:
    """A reference whose tensors are bfloat16, but for those in `index`; without weights for `None`."""
    return Reference(
        directory="/ref",
        config=config or {},
        is_adapter=False,
        index=None if index is None else toy.index(None, **index),
        shard_files=None,
        index_content=None,
    )


def types_for(
    dtype: str, known: Reference | None = None, *, kept: Any = (), keep: list[str] | None = None
) -> ElementTypes:
    options = Options(source=Path("/hf"), target=Path("/x"), target_format="hf", dtype=dtype, keep_dtype=keep)
    definition = toy.definition({**toy.content(), "keep_dtype": list(kept)})
    return ElementTypes(
        options, Model(definition=definition, reference=known, config=toy.config(), config_path="/hf/config.json")
    )


def tensors(dtype: str = "float32", **others: str) -> list[NamedTensor]:
    """The checkpoint in `dtype`, but for the names in `others`."""
    shapes = toy.shapes()
    return list(as_stored(toy.index(shapes, **{**dict.fromkeys(shapes, dtype), **others}).tensors.values()))


def parameters(dtype: str = "float32", **others: str) -> Binding:
    return toy.bound(dtypes={**dict.fromkeys(toy.shapes(), dtype), **others})


def others_than(dtype: str, typed: tuple[NamedTensor, ...]) -> dict[str, str]:
    return {each.name: each.tensor.dtype for each in typed if each.tensor.dtype != dtype}


def test_nothing_is_cast_unless_asked_for():
    types, given = types_for("keep", reference({})), tensors()
    assert types.of_tensors(given) == tuple(given)
    binding = parameters()
    assert types.of_parameters(binding) is binding
    assert types.casts() == Casts()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_all_numbers_get_the_type_that_is_named_and_nothing_else_does(dtype):
    given = tensors("float64", **{NORM: "int64", HEAD: "bool"})
    types = types_for(dtype)
    typed = types.of_tensors(given)
    assert others_than(dtype, typed) == {NORM: "int64", HEAD: "bool"}
    assert [(each.sources, each.tensor.copies) for each in typed] == [
        (each.sources, each.tensor.copies) for each in given
    ]
    count, nbytes = len(given) - 2, sum(each.nbytes for each in typed if each.tensor.dtype == dtype)
    assert types.casts() == Casts(dtype=dtype, cast={("float64", dtype): (count, nbytes)})


def test_tensors_that_share_a_table_share_the_table_of_the_result():
    given, typed = tensors(), types_for("bfloat16").of_tensors(tensors())
    assert len({id(each.tensor) for each in typed}) == len({id(each.tensor) for each in given})
    before, after = parameters(), types_for("bfloat16").of_parameters(parameters())
    assert len({each.recipe for each in after.parameters}) == len({each.recipe for each in before.parameters})


def test_parameters_get_the_type_that_is_named():
    types = types_for("float16")
    typed = types.of_parameters(parameters())
    assert {each.recipe.tensor.dtype for each in typed.parameters} == {"float16"}
    assert [each.name for each in typed.parameters] == [each.name for each in parameters().parameters]


@pytest.mark.parametrize(
    ("found", "dtype", "expected"),
    [
        ("float32", "bfloat16", "float32"),
        ("float32", "float16", "float32"),
        ("bfloat16", "float16", "bfloat16"),
        ("float16", "bfloat16", "float16"),
        # To widen rounds nothing.
        ("bfloat16", "float32", "float32"),
        ("float64", "float32", "float64"),
    ],
)
def test_what_a_definition_keeps_is_not_rounded(found, dtype, expected):
    types = types_for(dtype, kept=KEPT)
    typed = types.of_tensors(tensors("float32", **{ROUTER: found}))
    assert next(each.tensor.dtype for each in typed if each.name == ROUTER) == expected
    held = {name for names in types.casts().kept.values() for name in names}
    assert (ROUTER in held) == (expected != dtype)


def test_a_definition_keeps_parameters_by_their_published_names():
    types = types_for("bfloat16", kept=KEPT)
    typed = types.of_parameters(parameters())
    held = ["text.layers.1.router.weight", "text.layers.2.router.weight"]
    assert [each.name for each in typed.parameters if each.recipe.tensor.dtype == "float32"] == held
    assert types.casts().kept == {KEPT[0]["reason"]: tuple(held)}


def test_what_the_reference_has_in_float32_unlike_the_rest_is_not_rounded():
    types = types_for("bfloat16", reference({NORM: "float32"}))
    assert others_than("bfloat16", types.of_tensors(tensors())) == {NORM: "float32"}
    assert types.casts().kept == {"float32 in the reference, unlike most of it": (NORM,)}
    # One that is float32 throughout keeps nothing.
    whole = reference(dict.fromkeys(toy.shapes(), "float32"))
    assert others_than("bfloat16", types_for("bfloat16", whole).of_tensors(tensors())) == {}


@pytest.mark.parametrize(
    ("known", "held"),
    [
        # Nothing else says.
        (None, True),
        (reference(None), True),
        (reference(dict.fromkeys(toy.shapes(), "float32")), True),
        # What it was published as decides.
        (reference({"model.layers.1.router.weight": "float32", "model.layers.2.router.weight": "float32"}), True),
        (reference({}), False),
    ],
)
def test_the_definition_keeps_what_no_reference_has_rounded(known, held):
    types = types_for("bfloat16", known, kept=KEPT)
    routers = {"model.layers.1.router.weight": "float32", "model.layers.2.router.weight": "float32"}
    assert others_than("bfloat16", types.of_tensors(tensors())) == (routers if held else {})
    assert types.casts().kept == ({KEPT[0]["reason"]: tuple(routers)} if held else {})


@pytest.mark.parametrize(
    ("pattern", "held"),
    [
        (NORM, ["text.final.weight"]),
        ("text.final.*", ["text.final.weight"]),
        ("model.layers.2.q.bias", ["text.layers.2.qkv.bias"]),
        ("visual.deep.0.weight", ["vision.layers.1.deep.weight"]),
        ("*.experts.3.*", ["text.layers.1.experts.3.fc1.weight", "text.layers.1.experts.3.fc2.weight",
                           "text.layers.2.experts.3.fc1.weight", "text.layers.2.experts.3.fc2.weight"]),
    ],
)  # fmt: skip
def test_the_user_keeps_tensors_by_any_of_their_names(pattern, held):
    types = types_for("bfloat16", keep=[pattern])
    typed = types.of_parameters(parameters())
    found = [each.name for each in typed.parameters if each.recipe.tensor.dtype == "float32"]
    assert sorted(found) == sorted(held)
    assert {key: sorted(names) for key, names in types.casts().kept.items()} == {f"keep_dtype={pattern}": sorted(held)}


def test_what_the_user_keeps_stays_as_stored_whatever_else_says():
    known = reference({NORM: "float16"})
    for dtype in ("float32", "reference"):
        types = types_for(dtype, known, kept=[{"names": NORM, "reason": "x"}], keep=[NORM])
        typed = types.of_tensors(tensors("float32", **{NORM: "bfloat16"}))
        assert next(each.tensor.dtype for each in typed if each.name == NORM) == "bfloat16"


def test_patterns_may_have_tensors_in_common():
    types = types_for("bfloat16", keep=["*.norm.weight", NORM, HEAD])
    typed = types.of_tensors(tensors("float32", **{HEAD: "int64"}))
    held = {each.name for each in typed if each.tensor.dtype == "float32"}
    assert held == {NORM, *(f"model.layers.{layer}.norm.weight" for layer in range(toy.LAYERS))}
    assert types.casts().kept[f"keep_dtype={HEAD}"] == (HEAD,)


def test_a_pattern_that_no_tensor_has_is_refused():
    with pytest.raises(InputError) as caught:
        types_for("bfloat16", keep=["*.A_log", NORM]).of_tensors(tensors())
    (problem,) = caught.value.problems
    assert problem.startswith("keep_dtype=*.A_log: no tensor of the result is called so; they are called visual.patch")


def test_each_tensor_gets_the_type_of_the_reference_in_any_spelling():
    known = reference({NORM: "float32", ROUTER: "float16"})
    types = types_for("reference", known, kept=KEPT)
    assert others_than("bfloat16", types.of_tensors(tensors())) == {NORM: "float32", ROUTER: "float16"}
    spelled = types.of_tensors([NamedTensor(each.sources, each.tensor, f"model.{each.name}")
                                for each in tensors() if each.name.startswith("visual.")])  # fmt: skip
    assert others_than("bfloat16", spelled) == {}


def test_a_parameter_of_several_tensors_gets_a_type_that_holds_them_all():
    layer = "model.layers.0"
    known = reference({f"{layer}.q.weight": "float32", f"{layer}.q.bias": "float16"})
    typed = types_for("reference", known).of_parameters(parameters("float64"))
    found = {each.name: each.recipe.tensor.dtype for each in typed.parameters}
    assert (found["text.layers.0.qkv.weight"], found["text.layers.0.qkv.bias"]) == ("float32", "float32")
    assert found["text.layers.1.qkv.weight"] == "bfloat16"


def test_a_head_that_the_reference_does_not_have_is_as_its_embedding():
    shapes = toy.shapes()
    del shapes[HEAD]
    known = Reference(**{**vars(reference({})), "index": toy.index(shapes, **{EMBEDDING: "float16"})})
    typed = types_for("reference", known).of_tensors(tensors())
    assert {each.name: each.tensor.dtype for each in typed if each.name in (HEAD, EMBEDDING)} == {
        HEAD: "float16", EMBEDDING: "float16"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, "dtype=reference: there is no reference; give dtype=bfloat16, float16 or float32"),
        (
            reference(None, {"torch_dtype": "bfloat16"}),
            (
                "dtype=reference: reference=/ref holds no weights, which would tell element types; give "
                "dtype=bfloat16, float16 or float32"
            ),
        ),
    ],
)
def test_a_reference_that_tells_no_types_is_refused(known, expected):
    with pytest.raises(InputError) as caught:
        types_for("reference", known)
    assert caught.value.problems == [expected]


def test_all_tensors_of_which_the_reference_tells_no_type_are_named():
    shapes = toy.shapes()
    del shapes[NORM]
    known = Reference(**{**vars(reference({})), "index": toy.index(shapes, **{ROUTER: "float8_e4m3fn"})})
    with pytest.raises(InputError) as caught:
        types_for("reference", known).of_tensors(tensors())
    assert caught.value.problems == [
        (
            f"dtype=reference: 2 tensors that the reference does not have, or only quantised: {NORM}, {ROUTER}; give "
            "dtype=bfloat16, float16 or float32"
        )
    ]


def test_integers_are_quantised_weights_where_the_configuration_says_so():
    options = Options(source=Path("/hf"), target=Path("/x"), target_format="hf", dtype="bfloat16")
    config = {"text_config": {"quantization_config": {"quant_method": "gptq"}}}
    types = ElementTypes(options, Model(definition=None, reference=None, config=config, config_path="/hf/config.json"))
    with pytest.raises(InputError, match=r"1 tensor of int32, which has no meaning without scales: lm_head\.weight"):
        types.of_tensors(tensors("float32", **{HEAD: "int32", NORM: "int64"}))
    assert others_than("bfloat16", types_for("bfloat16").of_tensors(tensors("float32", **{HEAD: "int32"}))) == {
        HEAD: "int32"
    }


def test_what_is_quantised_is_not_cast():
    with pytest.raises(InputError) as caught:
        types_for("bfloat16").of_tensors(tensors("float32", **{NORM: "float8_e4m3fn", HEAD: "uint8"}))
    assert caught.value.problems == [
        (
            f"dtype=bfloat16: 1 tensor of float8_e4m3fn, which has no meaning without scales: {NORM}; "
            "keep_dtype=[PATTERN] leaves such tensors as they are"
        )
    ]


@pytest.mark.parametrize(
    ("found", "known", "expected"),
    [
        ("float32", reference({}), "float32, 23.3 KiB, as the source; /ref is bfloat16: dtype=reference makes it so"),
        (
            "float32",
            reference(None, {"dtype": "bfloat16"}),
            "float32, 23.3 KiB, as the source; /ref is bfloat16: dtype=bfloat16 makes it so",
        ),
        (
            "float32",
            reference(None, {"text_config": {"dtype": "float16"}}),
            "float32, 23.3 KiB, as the source; /ref is float16: dtype=float16 makes it so",
        ),
        (
            "float32",
            reference({ROUTER: "float8_e4m3fn"}),
            "float32, 23.3 KiB, as the source; /ref is bfloat16: dtype=bfloat16 makes it so",
        ),
        ("bfloat16", reference({}), None),
        ("bfloat16", reference(None), None),
        ("bfloat16", None, None),
    ],
)
def test_another_type_than_the_references_is_told_where_none_is_asked_for(found, known, expected):
    notes = list(types_for("keep", known).notes(tensors(found)))
    if expected is None:
        assert notes == []
    else:
        (note,) = notes
        size = note.partition(", ")[2].partition(", ")[0]
        assert note == f"the result is {expected}".replace("23.3 KiB", size)
        assert size.endswith("KiB")
    assert list(types_for("bfloat16", known).notes(tensors(found))) == []


def test_the_types_of_a_configuration_are_those_of_the_model_before_those_of_its_parts():
    assert list(named_dtypes({"vision_config": {"dtype": "float32"}, "torch_dtype": "bfloat16", "dtype": None})) == [
        "bfloat16", "float32"
    ]  # fmt: skip


def test_the_main_type_is_that_of_most_bytes():
    assert main_dtype([("float32", 8), ("bfloat16", 5), ("bfloat16", 4), ("int64", 100)]) == "bfloat16"
    assert main_dtype([("uint8", 100)]) is None
