"""Arguments of Megatron: sizes, and the stages that they mean."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.training.arguments import layout_of_arguments

_TP_PP = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 4}


def told(**values: Any) -> dict[str, Any]:
    found = layout_of_arguments("args", _TP_PP | values)
    assert not found.unread
    return {key: value for key, value in found.values.items() if key != "tp"}


def unread(**values: Any) -> dict[str, str]:
    return dict(layout_of_arguments("args", _TP_PP | values).unread)


def test_sizes_alone() -> None:
    assert told(virtual_pipeline_model_parallel_size=None) == {"pp": 4}
    assert told(expert_model_parallel_size=8, expert_tensor_parallel_size=1) == {"pp": 4, "ep": 8, "expert_tp": 1}


@pytest.mark.parametrize(
    ("values", "stages"),
    [
        ({"num_layers": 28}, ((7, 7, 7, 7),)),
        ({"num_layers": 16, "virtual_pipeline_model_parallel_size": 2}, ((2, 2, 2, 2), (2, 2, 2, 2))),
        ({"num_layers": 16, "num_virtual_stages_per_pipeline_rank": 2}, ((2, 2, 2, 2), (2, 2, 2, 2))),
        ({"num_layers": 16, "num_layers_per_virtual_pipeline_stage": 1}, ((1, 1, 1, 1),) * 4),
        ({"num_layers": 28, "decoder_first_pipeline_num_layers": 4}, ((4, 8, 8, 8),)),
        ({"num_layers": 28, "decoder_last_pipeline_num_layers": 4}, ((8, 8, 8, 4),)),
        (
            {"num_layers": 28, "decoder_first_pipeline_num_layers": 5, "decoder_last_pipeline_num_layers": 3},
            ((5, 10, 10, 3),),
        ),
        ({"num_layer_list": "1,10,10,7"}, ((1, 10, 10, 7),)),
        ({"num_layer_list": "1,1,1,1,6,6,6,6"}, ((1, 1, 1, 1), (6, 6, 6, 6))),
    ],
)
def test_stages(values: dict[str, Any], stages: tuple[tuple[int, ...], ...]) -> None:
    assert told(**values) == {"pp": 4, "vpp": len(stages), "stages.text": stages}


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"num_layers": 27}, "stages.text", "--num-layers 27, which do not divide over 4 stages"),
        ({"num_layers": 28, "decoder_first_pipeline_num_layers": 5}, "stages.text", "do not divide"),
        ({"num_layers": 2, "decoder_first_pipeline_num_layers": 5}, "stages.text", "do not divide"),
        ({"num_layers": 16, "num_layers_per_virtual_pipeline_stage": 3}, "vpp", "does not divide"),
        ({"num_layers_per_virtual_pipeline_stage": 3}, "vpp", "does not divide"),
        ({"num_layer_list": "1,2"}, "stages.text", "one number for each stage of 4 pipeline ranks"),
        ({"num_layer_list": "1,2,x,4"}, "stages.text", "one number for each stage"),
        ({"num_layers": 28, "pipeline_model_parallel_layout": "Et|t"}, "stages.text", "which is not read"),
        ({"num_layers": 26, "account_for_embedding_in_pipeline_split": True}, "stages.text", "which is not read"),
        ({"moe_tp_extend_ep": True}, "ep", "which gives experts to other ranks"),
        ({"expert_model_parallel_size": "many"}, "ep", "expected a positive integer"),
        ({"expert_model_parallel_size": True}, "ep", "expected a positive integer"),
    ],
)
def test_what_is_not_understood(values: dict[str, Any], key: str, words: str) -> None:
    assert words in unread(**values)[key]


def test_layers_of_a_model_of_several_modules_are_in_its_own_file() -> None:
    assert told(num_layers=1, mm_model="model.json") == {"pp": 4}


def test_modules_that_are_cut_differently() -> None:
    assert layout_of_arguments("args", {"hetero_parallel": "true"}).heterogeneous is True
    assert layout_of_arguments("args", {}).heterogeneous is False
