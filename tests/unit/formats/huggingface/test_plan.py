"""Which tensor goes into which file, and what the index and config.json must then say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.huggingface.plan import HuggingFacePlan, make_huggingface_plan
from distconv.formats.model import Reference
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import LowRank, NamedTensor, SourceFile
from distconv.tensors.virtual import whole

INDEX = "model.safetensors.index.json"
INDEX_FILE = SourceFile(f"/hf/{INDEX}", 100)
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BARE = Reference(directory="/hf", config={}, is_adapter=False, index=None, shard_files=None, index_content=None)


def tensor(name: str, shape: tuple[int, ...] = (2,), dtype: str = "bfloat16") -> NamedTensor:
    return NamedTensor((), whole(dtype, shape), name)


def reference(shards: Mapping[str, str], content: Any = None, **config: Any) -> Reference:
    index_file = None if content is None else INDEX_FILE
    return replace(BARE, shard_files=shards, index_content=content, index_file=index_file, config=config)


def side_files(*names: str) -> dict[str, SourceFile]:
    return {name: SourceFile(f"/hf/{name}", 2) for name in names}


def plan(tensors: list[NamedTensor], known: Reference = BARE) -> HuggingFacePlan:
    return make_huggingface_plan(tensors, (), (), known)


def index_of(shards: Mapping[str, str], total: object, **more: Any) -> dict[str, Any]:
    return {"metadata": {"total_size": total, **more}, "weight_map": dict(shards)}


def held(found: HuggingFacePlan) -> dict[str, list[str]]:
    return {file.path: [entry.name for entry in found.entries(file)] for file in found.files}


def test_tensors_are_in_the_files_of_the_reference_wide_elements_first():
    shards = {"b": TWO, "a": ONE, "c": ONE, "d": ONE}
    found = plan([tensor("c"), tensor("b"), tensor("d", dtype="float32"), tensor("a")], reference(shards))
    assert held(found) == {ONE: ["d", "a", "c"], TWO: ["b"]}
    assert [(file.nbytes, file.order, file.batch) for file in found.files] == [(16, (0,), 0), (4, (1,), 1)]
    assert found.summary() == {"hf": {"tensors": 4, "filled_from_reference": []}}


def test_what_is_added_to_a_tensor_goes_with_it_into_its_file():
    product = LowRank(tensor("b", (2, 1)), tensor("a", (1, 3)), 0.5)
    found = plan([replace(tensor("merged", (2, 3)), low_rank=product), tensor("plain", (2, 3))])
    (file,) = found.files
    assert {entry.name: entry.low_rank for entry in found.entries(file)} == {"merged": product, "plain": None}


@given(st.lists(st.tuples(st.sampled_from(["float64", "float32", "bfloat16"]), st.integers(0, 9)), min_size=1))
def test_every_tensor_is_in_one_file_and_starts_at_a_multiple_of_its_element(given_tensors):
    tensors = [tensor(f"t{number}", (size,), dtype) for number, (dtype, size) in enumerate(given_tensors)]
    shards = {each.name: f"m-{number % 3}.safetensors" for number, each in enumerate(tensors)}
    found = plan(tensors, reference(shards))
    names = [name for entries in held(found).values() for name in entries]
    assert sorted(names) == sorted(shards)
    for file in found.files:
        assert len({entry.group for entry in found.entries(file)}) == len(held(found)[file.path])
        position = 0
        for entry in found.entries(file):
            assert shards[entry.name] == file.path
            assert position % ITEM_SIZE[entry.tensor.dtype] == 0
            position += entry.tensor.elements * ITEM_SIZE[entry.tensor.dtype]
        assert position == file.nbytes


def test_a_reference_that_names_no_files_gets_one():
    found = plan([tensor("b"), tensor("a")])
    assert held(found) == {"model.safetensors": ["a", "b"]}
    assert (found.texts, found.copied, found.reference) == ({}, {}, "/hf")
    adapter = make_huggingface_plan([tensor("a")], (), (), replace(BARE, is_adapter=True))
    assert list(held(adapter)) == ["adapter_model.safetensors"]


def test_a_large_model_is_cut_into_numbered_files_before_five_gigabytes():
    big = (1_000_000_000,)
    found = plan([tensor(name, big) for name in "abcde"])
    assert held(found) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c", "d"],
        "model-00003-of-00003.safetensors": ["e"],
    }
    index = json.loads(found.texts[INDEX])
    assert index["metadata"] == {"total_size": 10_000_000_000}
    assert {name: path for path, names in held(found).items() for name in names} == index["weight_map"]
    # Full to the last byte is not too full, and a tensor that is larger has a file of its own.
    assert len(plan([tensor("a", (1_500_000_000,)), tensor("b", big)]).files) == 1
    assert len(plan([tensor("a", (1_500_000_000,)), tensor("b", (1_000_000_001,))]).files) == 2
    assert [len(names) for names in held(plan([tensor("a", (3_000_000_000,)), tensor("b")])).values()] == [1, 1]


def test_an_index_that_is_as_true_of_the_result_is_copied():
    shards = {"a": ONE, "b": TWO}
    found = plan([tensor("a"), tensor("b")], reference(shards, index_of(shards, 8, total_parameters=4)))
    assert (found.copied, found.texts) == ({INDEX: INDEX_FILE}, {})


@pytest.mark.parametrize(
    ("content", "changed"),
    [
        (index_of({"a": ONE, "b": TWO}, 9, x=1), index_of({"a": ONE, "b": TWO}, 8, x=1)),
        (index_of({"a": ONE, "b": TWO, "gone": TWO}, 8), index_of({"a": ONE, "b": TWO}, 8)),
        (index_of({"a": "p-1.bin", "b": "p-2.bin"}, 8), index_of({"a": ONE, "b": TWO}, 8)),
        ({"weight_map": {"a": TWO, "b": TWO}, "x": 1}, {"weight_map": {"a": ONE, "b": TWO}, "x": 1}),
        (index_of({"a": ONE, "b": TWO}, 8.5), index_of({"a": ONE, "b": TWO}, 8)),
    ],
)
def test_an_index_that_is_not_is_made_true_and_keeps_what_else_it_says(content, changed):
    found = plan([tensor("a"), tensor("b")], reference({"a": ONE, "b": TWO}, content))
    assert found.copied == {}
    assert {name: json.loads(text) for name, text in found.texts.items()} == {INDEX: changed}


def test_an_index_counts_the_parameters_of_other_tensors_anew():
    known = reference({"a": ONE, "b": TWO}, index_of({"a": ONE, "b": TWO, "gone": TWO}, 8, total_parameters=9))
    content = json.loads(plan([tensor("a"), tensor("b")], known).texts[INDEX])
    assert content["metadata"] == {"total_size": 8, "total_parameters": 4}


def test_a_tensor_that_the_reference_has_not_is_in_its_last_file():
    found = plan([tensor("a"), tensor("b"), tensor("own")], reference({"a": ONE, "b": TWO}))
    assert held(found) == {ONE: ["a"], TWO: ["b", "own"]}


def test_side_files_that_are_not_true_of_the_result_are_not_copied_and_the_doubtful_are_named():
    names = side_files(
        "adapter_config.json", "config.json", "hf_quant_config.json", "trainer_state.json", "tokenizer.json"
    )
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    found = plan([tensor("a")], replace(reference({"a": ONE}, **quantised), side_files=names))
    assert found.copied == side_files("trainer_state.json", "tokenizer.json")
    assert json.loads(found.texts["config.json"]) == {}
    assert found.notes == (
        "config.json: without its quantisation: no tensor of the result is quantised",
        "adapter_config.json: not copied: the result holds no adapters",
        "hf_quant_config.json: not copied: no tensor of the result is quantised",
        "copied from the reference, and may not be true of the result: trainer_state.json",
    )


def test_side_files_that_are_true_of_the_result_are_copied():
    names = side_files("adapter_config.json", "hf_quant_config.json")
    tensors = [tensor("a", dtype="float8_e4m3fn"), tensor("x.lora_A.weight")]
    known = reference({each.name: ONE for each in tensors}, quantization_config={"quant_method": "fp8"})
    found = plan(tensors, replace(known, side_files=names))
    assert found.copied == names
    # That it is quantised as this says, nobody has looked at.
    doubtful = "copied from the reference, and may not be true of the result: hf_quant_config.json"
    assert (found.texts, found.notes) == ({}, (doubtful,))


def test_a_single_file_has_an_index_only_if_the_reference_has_one():
    shards = {"a": "model.safetensors"}
    assert plan([tensor("a")], reference(shards)).copied == {}
    assert plan([tensor("a")], reference(shards, index_of(shards, 4))).copied == {INDEX: INDEX_FILE}


def config_text(tensors: list[NamedTensor], **config: Any) -> Any:
    texts = plan(tensors, reference({each.name: ONE for each in tensors}, **config)).texts
    return json.loads(texts["config.json"]) if "config.json" in texts else None


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_configuration_says_the_element_type_of_most_bytes(key):
    trained = [tensor("a", (9,), "float32"), tensor("b", (10,)), tensor("c", (99,), "int64")]
    config = {
        key: "bfloat16",
        "text_config": {key: "bfloat16", "layers": [{"dtype": "bfloat16"}], "hidden_act": "bfloat16"},
        "vision_config": {key: "float16", "deep": {key: "bfloat16"}},
        "note": "bfloat16",
    }
    made = {
        key: "float32",
        "text_config": {key: "float32", "layers": [{"dtype": "bfloat16"}], "hidden_act": "bfloat16"},
        "vision_config": {key: "float32", "deep": {key: "float32"}},
        "note": "bfloat16",
    }
    assert config_text(trained, **config) == made
    # A part may be of another type, as long as there are tensors of it.
    half = tensor("d", (1,), "float16")
    assert config_text([*trained, half], **config) == {
        **made,
        "vision_config": {key: "float16", "deep": {key: "float32"}},
    }
    assert config_text([tensor("a", (1,), "float32"), tensor("b", (10,)), half], **config) is None


def test_a_configuration_that_says_no_element_type_or_is_of_an_adapter_stays():
    trained = [tensor("a", dtype="float32")]
    assert config_text(trained, hidden_size=8) is None
    known = replace(reference({"a": "adapter_model.safetensors"}, torch_dtype="bfloat16"), is_adapter=True)
    assert plan(trained, known).texts == {}
    assert config_text([tensor("a", dtype="int64")], torch_dtype="bfloat16") is None


def test_texts_are_written_as_transformers_writes_them():
    (text,) = plan([tensor("a", dtype="float32")], reference({"a": ONE}, dtype="bfloat16", name="é")).texts.values()
    assert text == '{\n  "dtype": "float32",\n  "name": "é"\n}\n'


def test_a_nested_element_type_is_made_true_where_the_top_says_none():
    """As Qwen3-VL is published."""
    config = {"model_type": "x", "text_config": {"dtype": "bfloat16"}}
    assert config_text([tensor("a", dtype="float32")], **config) == {
        "model_type": "x",
        "text_config": {"dtype": "float32"},
    }


def test_a_size_of_shards_that_is_asked_for_replaces_those_of_the_reference():
    tensors = [tensor(name, (4,)) for name in ("a", "b", "c", "large")] + [tensor("d", (100,)), tensor("e")]
    shards = dict.fromkeys((each.name for each in tensors), ONE)
    known = reference(shards, index_of(shards, 228, total_parameters=114))
    found = make_huggingface_plan(tensors, (), (), known, shard_bytes=16)
    assert held(found) == {
        "model-00001-of-00004.safetensors": ["a", "b"],
        "model-00002-of-00004.safetensors": ["c", "large"],
        "model-00003-of-00004.safetensors": ["d"],
        "model-00004-of-00004.safetensors": ["e"],
    }
    index = json.loads(found.texts[INDEX])
    assert index["metadata"] == {"total_size": 236, "total_parameters": 114}
    assert set(index["weight_map"].values()) == {file.path for file in found.files}


def test_one_file_needs_no_index_also_where_the_reference_has_one():
    shards = {"a": ONE, "b": TWO}
    known = reference(shards, index_of(shards, 8))
    found = make_huggingface_plan([tensor("a"), tensor("b")], (), (), known, shard_bytes=10**9)
    assert held(found) == {"model.safetensors": ["a", "b"]}
    assert INDEX not in {**found.copied, **found.texts}


def test_adapters_are_one_file_since_peft_reads_no_other():
    known = replace(BARE, is_adapter=True)
    tensors = [tensor("a"), tensor("b")]
    assert held(make_huggingface_plan(tensors, (), (), known, shard_bytes=8)) == {
        "adapter_model.safetensors": ["a", "b"]
    }
    with pytest.raises(InputError, match="shard_size=4: PEFT reads adapters from a single file, of 8 bytes"):
        make_huggingface_plan(tensors, (), (), known, shard_bytes=4)
