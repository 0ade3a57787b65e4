"""Which tensors are pieces of a quantised one, and what is wrong with pieces that do not fit."""

from __future__ import annotations

import pytest

from distconv.errors import InputError
from distconv.formats.huggingface.quantisation import lifted, lifted_names, undecided, words_of
from distconv.formats.huggingface.schemes import scheme_in
from distconv.tensors.stored import NOWHERE, SourceIndex, StoredTensor
from tests.quantised import FP8, INT4, MXFP4, fp8, int4

PLAIN = ("model.norm.weight", "bfloat16", (6,))


def index(*tensors):
    stored = [StoredTensor(*each, NOWHERE, 0) for each in (*tensors, PLAIN)]
    return SourceIndex(directory="/hf", tensors={each.name: each for each in stored})


def scheme(said):
    found = scheme_in({"text_config": {"quantization_config": said}}, "/hf/config.json")
    assert found is not None
    return found


def problems(said, *tensors):
    with pytest.raises(InputError) as caught:
        lifted(index(*tensors), scheme(said))
    return caught.value.problems


def test_pieces_are_one_tensor_in_the_place_of_its_codes():
    before = index(
        ("a.weight", "float8_e4m3fn", (5, 6)),
        ("a.weight_scale_inv", "float32", (3, 2)),
        ("a.input_scale", "float32", ()),
        ("b.weight", "bfloat16", (2, 2)),
        ("experts.gate_up_proj", "float8_e4m3fn", (2, 4, 6)),
        ("experts.gate_up_proj_scale_inv", "bfloat16", (2, 2, 2)),
    )
    found = lifted(before, scheme(fp8([2, 3])))
    assert [(name, each.dtype, each.stored_as) for name, each in found.tensors.items()] == [
        ("a.weight", "bfloat16", "float8_e4m3fn"),
        ("b.weight", "bfloat16", "bfloat16"),
        ("experts.gate_up_proj", "bfloat16", "float8_e4m3fn"),
        ("model.norm.weight", "bfloat16", "bfloat16"),
    ]
    assert words_of(found, before, scheme(fp8([2, 3]))) == (
        "/hf: 2 tensors quantised: fp8 in blocks of 2 x 3; 1 scale of activations left out"
    )


def test_mxfp4_has_its_dims_exchanged_when_it_is_published():
    found = lifted(index(("e.down_proj_blocks", "uint8", (2, 3, 4, 16)), ("e.down_proj_scales", "uint8", (2, 3, 4))),
                   scheme(MXFP4))  # fmt: skip
    assert found.tensors["e.down_proj"].shape == (2, 3, 128)
    assert found.tensors["e.down_proj"].published_shape == (2, 128, 3)


@pytest.mark.parametrize(
    ("said", "tensors", "expected"),
    [
        (FP8, [("a.weight", "float8_e4m3fn", (4, 4))], "a.weight_scale_inv, its scale, is missing"),
        (
            FP8,
            [("a.weight_scale_inv", "float32", (1, 1))],
            "/hf: 1 tensor of scales without what they are for: a.weight_scale_inv",
        ),
        (
            FP8,
            [("a.weight", "bfloat16", (4, 4)), ("a.weight_scale_inv", "float32", (1, 1))],
            "/hf: 1 tensor of scales beside weights that are not quantised: a.weight_scale_inv",
        ),
        (
            fp8([3, 2]),
            [("a.weight", "float8_e4m3fn", (4, 4)), ("a.weight_scale_inv", "float32", (2, 1))],
            "a.weight_scale_inv has shape [2, 1], expected [2, 2]: fp8 in blocks of 3 x 2 of a tensor of shape [4, 4]",
        ),
        (
            fp8([4, 4]),
            [("a.weight", "float8_e4m3fn", (4, 4)), ("a.weight_scale_inv", "int32", (1, 1))],
            "a.weight_scale_inv is int32, expected one of",
        ),
        (
            FP8,
            [("a.weight", "float8_e4m3fn", (4,)), ("a.weight_scale_inv", "float32", (1,))],
            "a.weight: has shape [4]",
        ),
        (MXFP4, [("e_blocks", "uint8", (2, 3, 4, 15)), ("e_scales", "uint8", (2, 3, 4))], "e_blocks: has shape"),
        (
            MXFP4,
            [("e_blocks", "uint8", (2, 3, 4, 16)), ("e_scales", "uint8", (2, 3, 4)), ("e", "bfloat16", (2, 128, 3))],
            "e_blocks is quantised, but there is e, too",
        ),
        (
            INT4,
            [("a.weight_packed", "int32", (2, 4)), ("a.weight_scale", "bfloat16", (2, 1))],
            "a.weight_packed: has shape [2, 4]: not that of int4 in groups of 32",
        ),
    ],
)
def test_pieces_that_do_not_fit_are_named(said, tensors, expected):
    (problem,) = problems(said, *tensors)
    assert expected in problem


def test_scales_of_something_else_stay_what_they_are():
    before = index(("logit_scale", "bfloat16", (1,)), ("layers.0.k_scale", "float32", (1,)))
    assert lifted(before, scheme(INT4)) == before


def test_all_pieces_that_do_not_fit_are_named_at_once():
    assert len(problems(FP8, *((f"{each}.weight", "float8_e4m3fn", (4, 4)) for each in "abc"))) == 3


def test_names_alone_are_those_of_the_plain_model():
    files = {"a.weight_packed": "1", "a.weight_scale": "1", "a.weight_shape": "2", "b.weight": "2"}
    assert lifted_names(files, scheme(INT4)) == {"a.weight": "1", "b.weight": "2"}
    files = {"a.weight": "1", "a.weight_scale_inv": "2", "b.weight": "2"}
    assert lifted_names(files, scheme(FP8)) == {"a.weight": "1", "b.weight": "2"}


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8"},
        fp8([128]),
        {**FP8, "fmt": "e5m2"},
        {**FP8, "expert_dtype": "fp4"},
        {**INT4, "format": "naive-quantized"},
        {**INT4, "config_groups": {}},
        int4("32"),
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": None}}},
        *(
            {**INT4, "config_groups": {"g": {"weights": {**INT4["config_groups"]["group_0"]["weights"], **change}}}}
            for change in ({"num_bits": 8}, {"symmetric": False}, {"strategy": "channel"}, {"actorder": "group"})
        ),
    ],
)
def test_a_scheme_that_is_not_known_is_refused_with_what_is_said_of_it(said):
    with pytest.raises(InputError, match=r"quantization_config says .* no way to dequantise this is known") as caught:
        scheme(said)
    assert "modules_to_not_convert" not in str(caught.value)


def test_nothing_is_asked_where_nothing_is_quantised():
    config = {"quantization_config": FP8}
    assert undecided(index(), config, "") is None
    assert undecided(index(("a.weight", "float8_e4m3fn", (4, 4))), {}, "") is None
    assert undecided(index(("a.weight", "float8_e4m3fn", (4, 4))), {"quantization_config": {}}, "") is None
    asked = undecided(index(("a.weight", "float8_e4m3fn", (4, 4))), config, "")
    assert asked is not None
    assert "fp8 in blocks of 128 x 128; give dtype=bfloat16, float16 or float32" in asked
