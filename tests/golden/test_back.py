"""Every golden case, read back: the layout is found again, and every parameter holds the elements it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from distconv.formats.megatron.bind import MegatronBinding, bind_megatron
from distconv.formats.megatron.index import MegatronIndex, read_megatron
from distconv.layout.request import SourceLayout
from distconv.models.definition import Definition
from distconv.models.sizes import Sizes
from distconv.tensors.virtual import invert
from tests.checkpoints import case_names, load_case, overrides, tensor_bytes, write_source
from tests.here import run_here
from tests.megatron_sources import as_array, definition, element_type, elements, stored
from tests.unit.reference import evaluate

CASES = [name for name in case_names() if "files" in load_case(name)]


@pytest.mark.parametrize("name", CASES)
def test_a_result_is_read_back(name, tmp_path):
    case = load_case(name)
    options = overrides(case)
    changes = {"source": str(write_source(tmp_path / "hf", case)), "target": str(tmp_path / "mm")}
    if "llm" in case:
        changes["text_source"] = str(write_source(tmp_path / "llm", case["llm"]))
    run_here(*options, **changes)
    model = definition(options[0].removeprefix("+model="))
    index = read_megatron(tmp_path / "mm", None)
    assert MegatronIndex.from_json(index.to_json()).to_json() == index.to_json()

    sizes = Sizes(model.sizes, case["hf_config"], "config.json")
    found = bind_megatron(model, sizes, index, SourceLayout(), lambda _: None, dict.fromkeys(case["source_tensors"]))

    check_layout(found, case)
    assert found.parameters.layers == found.over_hf.layers
    source = source_arrays(case, model)
    for parameter, model_parameter in zip(found.parameters.parameters, found.over_hf.parameters, strict=True):
        assert parameter.name == model_parameter.name
        held = elements(parameter, map(stored, parameter.sources))
        given = [fitted(source[each.name], each.shape) for each in model_parameter.sources]
        np.testing.assert_array_equal(held, elements(model_parameter, given), parameter.name)
    published = published_arrays(found)
    rows = case["options"].get("resize_vocab_size")
    for tensor, array in published.items():
        np.testing.assert_array_equal(array, fitted(source[tensor], array.shape) if rows else source[tensor], tensor)
    assert published.keys() == {each for each in source if not left_out(each, case)}
    for replica in found.replicas:
        assert held_alike(replica)


def test_adapters_alone_of_a_model_that_holds_both(tmp_path, distconv):
    case = load_case("videoalign__peft_canonical_pp1")
    options = [*overrides(case), "lora_only=true", "layout.stages.text=[2,4]", "layout.stages.vision=[5,0]"]
    assert distconv(*options, f"source={write_source(tmp_path / 'hf', case)}", f"target={tmp_path / 'mm'}").status == 0
    model = definition("videoalign_canonical")
    sizes = Sizes(model.sizes, case["hf_config"], "config.json")
    given = SourceLayout(stages={"text": ((2, 4),)})
    found = bind_megatron(model, sizes, read_megatron(tmp_path / "mm", None), given, lambda _: None)
    source = source_arrays(case, model)
    published = published_arrays(found)
    assert published.keys() == {name for name in source if ".lora_" in name}
    for tensor, array in published.items():
        np.testing.assert_array_equal(array, source[tensor], tensor)


def check_layout(found: MegatronBinding, case: Mapping[str, Any]) -> None:
    asked, layout = case["layout"], found.layout
    assert (layout.pp, layout.vpp) == (len(asked["llm_pp_layers"][0]), len(asked["llm_pp_layers"]))
    assert layout.ep == asked["ep_size"]
    keys = {"text": "llm", "vision": "vit", "audio": "audio"}
    for modality, rows in layout.stages.items():
        assert [list(row) for row in rows] == asked[f"{keys[modality]}_pp_layers"]
        size = asked.get(f"{keys[modality]}_tp_size") or asked["tp_size"]
        assert layout.tensor_parallel_size(modality) == size
    assert layout.placement == ("u_shape" if "__ldt_" in case["case"] else "sequential")


def source_arrays(case: Mapping[str, Any], model: Definition) -> dict[str, np.ndarray]:
    arrays = {}
    for part in (case, case.get("llm", {})):
        for name, (dtype, shape, _) in part.get("source_tensors", {}).items():
            data = tensor_bytes(name, dtype, shape, part.get("salt", ""))
            arrays[model.spelled(name)] = as_array(dtype, shape, data)
    return arrays


def published_arrays(found: MegatronBinding) -> dict[str, np.ndarray]:
    """The tensors of the Hugging Face checkpoint, from the parameters: the inverse of how these are made from it."""
    arrays: dict[str, np.ndarray] = {}
    for parameter, model in zip(found.parameters.parameters, found.over_hf.parameters, strict=True):
        held = elements(parameter, map(stored, parameter.sources))
        operands = [(each.dtype, each.shape) for each in model.sources]
        for tensor, back in zip(model.sources, invert([model.recipe.tensor], operands), strict=True):
            array = arrays.setdefault(tensor.name, np.zeros(tensor.shape, element_type(tensor.dtype)))
            array += evaluate(back, [held])
    return arrays


def fitted(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array with the number of rows of a vocabulary that was resized."""
    rows = np.zeros((max(shape[0] - len(array), 0), *array.shape[1:]), array.dtype)
    return np.concatenate([array[: shape[0]], rows]) if array.shape != shape else array


def held_alike(replica: Any) -> bool:
    held = [evaluate(each.tensor, list(map(stored, each.sources))) for each in (replica.original, replica.copy)]
    return np.array_equal(*held)


def left_out(name: str, case: Mapping[str, Any]) -> bool:
    """Whether the case's result does not hold a source tensor."""
    if name.startswith(("talker.", "token2wav.")) or (name == "lm_head.weight" and case["model"] == "videoalign"):
        return True
    if case["options"].get("save_vit_only"):
        return not name.startswith("visual.")
    if "llm" in case:
        return name.startswith("visual.merger.")
    # A tied head that is on a stage of its own is a copy of the embedding.
    return name == "lm_head.weight" and case["case"] == "qwen2vl__tied_with_head_pp2"
