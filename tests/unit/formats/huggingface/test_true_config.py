"""What a configuration and its side files say is true of the tensors beside them, or is not said."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.formats.config_dtypes import says_quantised
from distconv.formats.huggingface.true_config import (
    cannot_be_judged,
    is_quantised,
    leaves_out,
    true_config,
    untied,
)
from distconv.models.sizes import Sizes
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import whole
from tests.here import LIBRARY
from tests.megatron_sources import definition

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def tensors(*dtypes: str) -> list[NamedTensor]:
    return [NamedTensor((), whole(dtype, (2,)), f"t{number}") for number, dtype in enumerate(dtypes)]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["bfloat16", "float32"], False),
        (["bfloat16", "int64", "bool"], False),
        (["bfloat16", "float8_e4m3fn"], True),
        (["bfloat16", "uint8"], True),
        (["bfloat16", "int32"], True),
        ([], False),
    ],
)
def test_quantised_is_what_has_elements_that_only_quantised_weights_have(dtypes, expected):
    assert is_quantised(tensors(*dtypes)) is expected


def test_the_element_type_is_that_of_most_bytes_not_of_most_tensors():
    large = NamedTensor((), whole("float32", (100,)), "large")
    assert true_config({"torch_dtype": "bfloat16"}, [*tensors(*["bfloat16"] * 3), large]) == {"torch_dtype": "float32"}


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_the_quantisation_goes_with_the_quantised_weights_wherever_it_is_said(key):
    config: dict[str, Any] = {"hidden_size": 8, key: FP8, "text_config": {key: FP8, "deep": {key: FP8, "x": 1}}}
    plain = {"hidden_size": 8, "text_config": {"deep": {"x": 1}}}
    assert true_config(config, tensors("bfloat16")) == plain
    assert true_config(config, tensors("bfloat16", "float8_e4m3fn")) == config
    assert (says_quantised(config), says_quantised(plain)) == (True, False)


def test_every_part_is_of_the_type_that_most_of_the_result_is_of():
    config = {"dtype": "float32", "vision_config": {"torch_dtype": "float32", "deep": {"dtype": "float16"}}, "x": 1}
    made = {"dtype": "bfloat16", "vision_config": {"torch_dtype": "bfloat16", "deep": {"dtype": "bfloat16"}}, "x": 1}
    assert true_config(config, tensors("bfloat16", "bfloat16")) == made
    # Of a part that is of another type nothing is known but that there are such tensors.
    mixed = {**made, "vision_config": {"torch_dtype": "float32"}}
    assert true_config(mixed, tensors("bfloat16", "bfloat16", "bfloat16", "float32")) == mixed
    # What says nothing says nothing then; a name of no type of weights is left.
    assert true_config({"x": 1}, tensors("bfloat16")) == {"x": 1}
    other = {"dtype": "bfloat16", "audio": {"dtype": "int8"}}
    assert true_config(other, tensors("bfloat16")) == other


@pytest.mark.parametrize("name", LIBRARY.names())
def test_a_model_with_a_head_of_its_own_is_untied_for_every_release(name):
    model = definition(name)
    config = {
        "tie_word_embeddings": True,
        "text_config": {"tie_word_embeddings": True},
        "llm_config": {"tie_word_embeddings": True},
        "language_config": {"tie_word_embeddings": True},
        "thinker_config": {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}},
    }

    def is_tied(content: Any, version: str) -> bool:
        return model.is_tied(Sizes(model.sizes, {**content, "transformers_version": version}, "config.json"))

    for version in ("4.57.6", "5.24.0"):
        assert is_tied(config, version) == (model.tied is not None)
        assert not is_tied(untied(config, model), version)
        # Where the configuration has no such part, none is made.
        assert set(untied({"hidden_size": 8}, model)) <= {"hidden_size", "tie_word_embeddings"}


@pytest.mark.parametrize(
    ("name", "dtypes", "expected"),
    [
        ("adapter_config.json", ["bfloat16"], "the result holds no adapters"),
        ("sub/adapter_config.json", ["bfloat16"], "the result holds no adapters"),
        ("hf_quant_config.json", ["bfloat16"], "no tensor of the result is quantised"),
        ("quantize_config.json", ["uint8"], None),
        ("tokenizer.json", ["bfloat16"], None),
        ("config.json", ["bfloat16"], None),
    ],
)
def test_a_side_file_is_left_out_for_a_reason(name, dtypes, expected):
    assert leaves_out(name, tensors(*dtypes)) == expected


def test_the_configuration_of_adapters_stays_with_adapters():
    held = NamedTensor((), whole("bfloat16", (2, 2)), "base_model.model.x.q_proj.lora_A.weight")
    assert leaves_out("adapter_config.json", [held]) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, False)
            for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
        ),
        *((name, False) for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")),
        *(
            (name, False)
            for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json")
        ),
        *((name, False) for name in ("README.md", "LICENSE", "modeling_x.py", "sub/code.py", "spk_dict.pt", "a.png")),
        *((name, True) for name in ("trainer_state.json", "quant_stats.json", "calibration.csv", "weights.map")),
    ],
)
def test_files_of_unknown_meaning_are_named(name, expected):
    assert cannot_be_judged(name) is expected
