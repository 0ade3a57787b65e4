"""InternVL as transformers itself saves it becomes the very parameters that InternVL as the hub has it becomes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.checkpoints import case_names, describe_result, load_case, overrides, tensor_bytes, write_safetensors

CASES = [name for name in case_names() if name.startswith("internvl__") and "internlm2" not in name]
# As transformers' script for these models renames them.
NAMES = [
    ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.", "vision_tower.embeddings.patch_embeddings.projection."),
    (r"vision_model.encoder.layers.(\d+).attn.proj.", r"vision_tower.encoder.layer.\1.attention.projection_layer."),
    (r"vision_model.encoder.layers.(\d+).attn.", r"vision_tower.encoder.layer.\1.attention."),
    (r"vision_model.encoder.layers.(\d+).norm1.", r"vision_tower.encoder.layer.\1.layernorm_before."),
    (r"vision_model.encoder.layers.(\d+).norm2.", r"vision_tower.encoder.layer.\1.layernorm_after."),
    (r"vision_model.encoder.layers.(\d+).ls(\d)", r"vision_tower.encoder.layer.\1.lambda_\2"),
    (r"vision_model.encoder.layers.(\d+).", r"vision_tower.encoder.layer.\1."),
    ("mlp1.0.", "multi_modal_projector.layer_norm."),
    ("mlp1.1.", "multi_modal_projector.linear_1."),
    ("mlp1.3.", "multi_modal_projector.linear_2."),
]
# And as transformers has them in memory.
HELD = [
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
]
Tensors = dict[str, tuple[str, list[int], bytes]]


def test_there_are_cases():
    assert len(CASES) > 4


@pytest.mark.parametrize("held", [False, True], ids=["saved", "held"])
@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_the_same_model_under_its_other_names(name, held, tmp_path, distconv):
    case = load_case(name)
    config = case["hf_config"]
    vision = {**config["vision_config"], "patch_size": [config["vision_config"]["patch_size"]] * 2}
    rewritten = {"model_type": "internvl", "text_config": config["llm_config"], "vision_config": vision}
    source = tmp_path / "hf"
    source.mkdir()
    write_safetensors(source / "model.safetensors", dict(renamed(case, held=held)))
    (source / "config.json").write_text(json.dumps(rewritten))
    given = [each for each in overrides(case) if not each.startswith("+model=")]
    outcome = distconv(f"source={source}", f"target={tmp_path / 'mm'}", *given)
    assert outcome.status == 0, outcome.err
    assert describe_result(tmp_path / "mm") == case["files"]
    record = json.loads((tmp_path / "mm" / "release" / "distconv.json").read_text())
    assert record["model"] == "internvl_hf"
    back = distconv(f"source={tmp_path / 'mm'}", f"target={tmp_path / 'back'}", "target_format=hf")
    assert back.status == 0, back.err
    assert distconv("action=diff", f"source={source}", f"target={tmp_path / 'back'}").status == 0


def renamed(case: Mapping[str, Any], *, held: bool) -> Iterator[tuple[str, tuple[str, list[int], bytes]]]:
    """The tensors of a case as transformers saves them: q, k and v of the encoder apart."""
    for name, (dtype, shape, _) in case["source_tensors"].items():
        data = tensor_bytes(name, dtype, shape, case.get("salt", ""))
        own = next((re.sub(f"^{old}", new, name) for old, new in NAMES if re.match(old, name)), name)
        if held:
            own = next((new + own.removeprefix(old) for old, new in HELD if own.startswith(old)), own)
        if ".qkv." not in own:
            yield own, (dtype, shape, data)
            continue
        third = len(data) // 3
        for number, letter in enumerate("qkv"):
            part = data[number * third : (number + 1) * third]
            yield own.replace(".qkv.", f".{letter}_proj."), (dtype, [shape[0] // 3, *shape[1:]], part)
