"""Model files of MindSpeed-MM: layers of the stages of every module."""

from __future__ import annotations

import pytest

from distconv.errors import InputError
from distconv.training.model_file import layout_of_model_file

VISION, TEXT, AUDIO = {"pipeline_num_layers": [32, 0]}, {"pipeline_num_layers": [11, 17]}, {"pipeline_num_layers": [32]}


def test_modules() -> None:
    told = layout_of_model_file(
        "model.json",
        {
            "image_encoder": {"vision_encoder": VISION, "tp": 1},
            "audio_encoder": {"audio_encoder": AUDIO, "tp": 2},
            "text_decoder": TEXT,
            "text_encoder": None,
        },
    )
    stages = {"stages.text": ((11, 17),), "stages.vision": ((32, 0),), "stages.audio": ((32,),)}
    assert dict(told.values) == {**stages, "pp": 2, "vpp": 1}
    assert told.encoder_tp == {"vision": 1, "audio": 2}
    assert told.heterogeneous is None


def test_virtual_stages() -> None:
    told = layout_of_model_file("model.json", {"text_decoder": {"pipeline_num_layers": [[1, 2], [3, 4]]}})
    assert dict(told.values) == {"stages.text": ((1, 2), (3, 4)), "pp": 2, "vpp": 2}


def test_without_stages() -> None:
    assert not layout_of_model_file("model.json", {"text_decoder": {"pipeline_num_layers": None}}).values


def test_lists_that_are_none() -> None:
    told = layout_of_model_file("model.json", {"text_decoder": {"pipeline_num_layers": [1, "2"]}})
    assert "text_decoder.pipeline_num_layers=[1,2], expected layers per stage" in told.unread["stages.text"]


@pytest.mark.parametrize("content", [{}, {"model_type": "qwen2"}, {"image_encoder": [], "text_decoder": 3}])
def test_another_file(content: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is no model file of MindSpeed-MM: it has none of text_decoder"):
        layout_of_model_file("config.json", content)
