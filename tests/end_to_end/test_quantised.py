"""A quantised source becomes what the same conversion makes of the model that its formulas say, file by file."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distconv import inspect
from distconv.errors import InputError
from distconv.tensors import quantised as arithmetic
from distconv.transfer import lower
from tests.checkpoints import hashes, load_case, overrides, tensor_bytes
from tests.golden.test_round_trip import tensors
from tests.here import changed, outcome_here
from tests.quantised import (
    MXFP4,
    SCHEMES,
    Piece,
    as_bfloat16,
    as_fp8,
    as_int4,
    fp8,
    int4,
    of_fp8,
    of_mxfp4,
    write_quantised,
    written,
)

DENSE, EXPERTS = "qwen2vl__tp2_pp2", "qwen3vl_moe__ep2"
PLAIN = {"dtype": "bfloat16"}
PUBLISHED = {"target_format": "dcp", "naming": "hf"}


def convert(source: Path, target: Path, **options: Any) -> Any:
    outcome = outcome_here(source=str(source), target=str(target), **options)
    assert not outcome.differences, outcome.differences
    return outcome.report


def weights(directory: Path) -> dict[str, str]:
    return {
        name: digest
        for name, digest in hashes(directory).items()
        if not name.endswith(("distconv.json", "config.json"))
    }


@pytest.mark.parametrize("options", [{}, {"target_format": "hf"}, {"target_format": "dcp"}, PUBLISHED])
@pytest.mark.parametrize(("name", "scheme"), [(DENSE, "fp8"), (DENSE, "int4"), (EXPERTS, "fp8")])
def test_it_becomes_what_the_model_that_it_stands_for_becomes(name, scheme, options, tmp_path):
    case = load_case(name)
    source, plain = written(case, scheme, tmp_path)
    given = {**options, **PLAIN, "io__buffer_mib": 1}
    if not options:
        given |= changed(overrides(case)[1:])
    report = convert(source, tmp_path / "found", **given)
    convert(plain, tmp_path / "expected", **given)

    assert weights(tmp_path / "found") == weights(tmp_path / "expected")
    assert {each["from"] for each in report["casts"]["cast"]} == {{"fp8": "float8_e4m3fn"}.get(scheme, scheme)}
    assert any("quantised: " in note for note in report["notes"])
    verified = outcome_here(source=str(source), target=str(tmp_path / "found"), action="verify", **given)
    assert not verified.differences
    if options.get("target_format") == "hf":
        config = json.loads((tmp_path / "found" / "config.json").read_text())
        assert config == {"torch_dtype": "bfloat16", **case["hf_config"]}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_becomes_any_type_that_is_asked_for(dtype, tmp_path):
    """float32 is what the formula says, before it is rounded; float16 is rounded from that once."""
    name = "model.layers.0.mlp.up_proj.weight"
    pieces, rounded = as_fp8(name, [7, 8])
    source = write_quantised(tmp_path / "source", pieces, fp8([5, 3]))
    convert(source, tmp_path / "found", target_format="hf", dtype=dtype)
    codes = np.frombuffer(pieces[name][2], np.uint8).reshape(7, 8)
    scales = np.frombuffer(pieces[f"{name}_scale_inv"][2], np.float32).reshape(2, 3)
    exact = of_fp8(codes, scales, (5, 3))
    data = (tmp_path / "found" / "model.safetensors").read_bytes()
    assert data.endswith(exact.astype(dtype).tobytes())
    assert np.array_equal(as_bfloat16(exact), rounded)


def test_experts_of_gpt_oss_are_packed_as_in_training(tmp_path):
    """In memory they are as published where they are not quantised: input before output, gate and up alternating."""
    config = {"model_type": "gpt_oss", "num_local_experts": 2, "hidden_size": 32, "intermediate_size": 64,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
              "num_hidden_layers": 1, "vocab_size": 4, "tie_word_embeddings": False}  # fmt: skip
    layer = "model.layers.0"
    module = f"{layer}.mlp.experts"
    shapes = {
        "model.embed_tokens.weight": [4, 32],
        "model.norm.weight": [32],
        "lm_head.weight": [4, 32],
        f"{layer}.input_layernorm.weight": [32],
        f"{layer}.post_attention_layernorm.weight": [32],
        f"{layer}.self_attn.sinks": [4],
        f"{layer}.mlp.router.weight": [2, 32],
        f"{layer}.mlp.router.bias": [2],
        **{f"{layer}.self_attn.{part}_proj.weight": [rows, 32] for part, rows in (("q", 32), ("k", 16), ("v", 16))},
        **{f"{layer}.self_attn.{part}_proj.bias": [rows] for part, rows in (("q", 32), ("k", 16), ("v", 16))},
        f"{layer}.self_attn.o_proj.weight": [32, 32],
        f"{layer}.self_attn.o_proj.bias": [32],
    }
    held: dict[str, Piece] = {name: ("bfloat16", shape, bytes(2 * prod(shape))) for name, shape in shapes.items()}
    expected = {}
    for part, rows, columns in (("gate_up_proj", 128, 32), ("down_proj", 32, 64)):
        blocks = np.frombuffer(tensor_bytes(part, "uint8", [2, rows, columns // 32, 16]), np.uint8)
        blocks = blocks.reshape(2, rows, columns // 32, 16)
        scales = np.full(blocks.shape[:3], 127, np.uint8)
        held[f"{module}.{part}_blocks"] = ("uint8", list(blocks.shape), blocks.tobytes())
        held[f"{module}.{part}_scales"] = ("uint8", list(scales.shape), scales.tobytes())
        held[f"{module}.{part}_bias"] = ("bfloat16", [2, rows], bytes(4 * rows))
        expected[part] = as_bfloat16(of_mxfp4(blocks, scales))
    source = write_quantised(tmp_path / "source", held, MXFP4, config)
    report = convert(source, tmp_path / "dcp", **PUBLISHED, **PLAIN, dialect="transformers5")
    assert report["source_names"]["experts"] == ["[E, h, 2I], gate and up alternating"]
    convert(tmp_path / "dcp", tmp_path / "hf", target_format="hf", reference=str(source))
    convert(source, tmp_path / "mm", **PLAIN, layout__tp=2, layout__ep=2)
    convert(tmp_path / "mm", tmp_path / "hf of mm", target_format="hf", reference=str(source))

    for directory in (tmp_path / "hf", tmp_path / "hf of mm"):
        found = tensors(directory / "model.safetensors")
        assert not any(name.endswith(("_blocks", "_scales")) for name in found)
        for part, values in expected.items():
            assert found[f"{module}.{part}"] == ("BF16", list(values.shape), values.tobytes())
        assert "quantization_config" not in json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize(
    "options", [{}, {"target_format": "dcp"}, PUBLISHED, {"target_format": "hf", "shard_size": "10KB"}]
)
def test_without_a_type_the_message_says_what_to_give(options, tmp_path):
    source, _ = written(load_case(DENSE), "int4", tmp_path)
    with pytest.raises(InputError, match="int4 in groups of 4; give dtype=bfloat16, float16 or float32"):
        convert(source, tmp_path / "target", **options)
    assert not (tmp_path / "target").exists()


def test_a_quantised_tensor_is_nothing_to_keep(tmp_path):
    source, _ = written(load_case(DENSE), "fp8", tmp_path)
    with pytest.raises(InputError, match=r"keep_dtype=\*up_proj\*: 6 tensors that are quantised") as caught:
        convert(source, tmp_path / "target", target_format="hf", **PLAIN, keep_dtype=["*up_proj*"])
    assert "up_proj.weight" in str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weights_there", [True, False], ids=["weights", "index alone"])
def test_a_quantised_reference_is_followed_as_the_model_that_it_was_made_of(scheme, weights_there, tmp_path):
    source, plain = written(load_case(DENSE), scheme, tmp_path)
    convert(plain, tmp_path / "mm")
    if not weights_there:
        names = tensors(source / "model.safetensors")
        index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        (source / "model.safetensors").unlink()
    for fill in (False, True) if weights_there else (False,):
        target = tmp_path / f"hf{fill}"
        given = {**PLAIN, "fill_from_reference": True} if fill else {}
        convert(tmp_path / "mm", target, target_format="hf", reference=str(source), **given)
        assert same(target, plain)
        assert "quantization_config" not in json.loads((target / "config.json").read_text())


def same(one: Path, other: Path) -> bool:
    """Whether two directories hold the same tensors, in any order."""
    found, expected = (tensors(path / "model.safetensors") for path in (one, other))
    return found == expected


def test_a_quantised_reference_tells_no_types(tmp_path):
    source, plain = written(load_case(DENSE), "fp8", tmp_path)
    convert(plain, tmp_path / "mm")
    with pytest.raises(InputError, match=r"dtype=reference: .* that the reference does not have, or only quantised"):
        convert(tmp_path / "mm", tmp_path / "hf", target_format="hf", reference=str(source), dtype="reference")


def test_what_only_a_quantised_reference_has_is_filled_in_dequantised(tmp_path):
    """A part that was not trained: of a type that is asked for, and not without."""
    case = load_case(DENSE)
    source, plain = written(case, "fp8", tmp_path)
    convert(plain, tmp_path / "mm", select=["vision"])
    given = {"target_format": "hf", "reference": str(source), "fill_from_reference": True}
    with pytest.raises(InputError, match=r"fill_from_reference=true: .* quantised, and the result is not; give dtype"):
        convert(tmp_path / "mm", tmp_path / "hf", **given)
    convert(tmp_path / "mm", tmp_path / "hf", **given, **PLAIN)
    assert same(tmp_path / "hf", plain)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_inspecting_one_tells_what_it_stands_for(scheme, tmp_path):
    source, plain = written(load_case(DENSE), scheme, tmp_path)
    found, expected = inspect(source), inspect(plain)
    assert found["problems"] == []
    assert (found["model"], found["parameters"]) == (expected["model"], expected["parameters"])
    assert found["dtypes"] != expected["dtypes"]
    assert any("quantised: " in note for note in found["notes"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tensors_of_many_boxes_are_read_where_their_codes_and_scales_are(scheme, tmp_path, monkeypatch):
    """Long runs of elements that are stored as the type that is asked for, too, though they are no copies."""
    monkeypatch.setattr(arithmetic, "BOX_ELEMENTS", 1000)
    monkeypatch.setattr(lower, "MIN_RUN_BYTES", 64 * 1024)
    quantise, said = SCHEMES[scheme]
    held: dict[str, Piece] = {}
    plain: dict[str, Piece] = {}
    for name in ("model.a.weight", "model.b.weight"):
        pieces, values = quantise(name, [190, 180])
        held |= pieces
        plain[name] = ("bfloat16", [190, 180], values.tobytes())
    source = write_quantised(tmp_path / "source", held, said)
    write_quantised(tmp_path / "plain", plain, {})
    convert(source, tmp_path / "found", target_format="hf", **PLAIN)
    assert same(tmp_path / "found", tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"w.weight_shape": ("int64", [2], np.array([4, 9], np.int64).tobytes())},
            r"w.weight_shape says \[4, 9\]: not that of int4",
        ),
        (
            {"w.weight_shape": ("int64", [2], np.array([3, 8], np.int64).tobytes())},
            r"w.weight_shape says \[3, 8\]: not that of int4",
        ),
        ({"w.weight_shape": ("int64", [2], np.array([-4, 8], np.int64).tobytes())}, "not that of int4"),
        ({"w.weight_shape": ("float32", [2], bytes(8))}, r"w.weight_shape is float32 \[2\], expected 2 integers"),
        (
            {"w.weight_zero_point": ("int32", [1, 2], bytes(8))},
            "has w.weight_zero_point beside it, which int4 in groups of 4 does not",
        ),
        ({"w.weight_g_idx": ("int32", [8], bytes(32))}, "has w.weight_g_idx beside it"),
    ],
)
def test_int4_that_contradicts_itself_is_refused(change, expected, tmp_path):
    pieces, _ = as_int4("w.weight", [4, 8])
    source = write_quantised(tmp_path / "source", {**pieces, **change}, int4(4))
    with pytest.raises(InputError, match=expected):
        convert(source, tmp_path / "target", target_format="hf", **PLAIN)
    assert not (tmp_path / "target").exists()
