"""A converted language model computes in megatron-core what it computes in transformers, and comes back from there.

In three releases of megatron-core. What each saves is torch_dist, which published again is what was converted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from language_models import CLOSE, LAYOUTS, assert_published_alike
from training import Converted, MegatronClient, loaded

from tests.here import run_here

CASES = [
    *[("0.12.1", "llama", layout) for layout in ("tp1", "tp2", "pp2", "vpp2")],
    *[("0.12.1", "qwen2_tied", layout) for layout in ("tp1", "pp2", "tp2_pp2_vpp2")],
    *[("0.12.1", "qwen3", layout) for layout in ("tp2", "vpp2")],
    *[("0.12.1", "qwen3_moe", layout) for layout in ("tp2", "pp2", "ep2", "tp2_ep2")],
    *[("0.12.1", "glm4_moe", layout) for layout in ("tp2", "vpp2", "ep2")],
    *[("0.12.1", "deepseek_v3", layout) for layout in ("tp1", "tp2", "vpp2", "ep2_pp2", "tp2_ep2")],
    *[
        (release, model, layout)
        for release in ("0.16.1", "0.19.2")
        for model, layout in (
            ("llama", "tp2"),
            ("qwen2_tied", "pp2"),
            ("qwen3", "vpp2"),
            ("qwen3_moe", "ep2"),
            ("glm4_moe", "tp2_ep2"),
            ("deepseek_v3", "tp2"),
            ("deepseek_v3", "ep2_pp2"),
        )
    ],
]


@pytest.mark.parametrize(("release", "model", "layout"), CASES)
def test_training_computes_the_same_and_what_it_saves_comes_back(
    release: str,
    model: str,
    layout: str,
    language_models: Path,
    megatron_clients: Callable[[str], MegatronClient],
    tmp_path: Path,
) -> None:
    client, source = megatron_clients(release), language_models / model
    run_here(*LAYOUTS[layout].overrides(), source=str(source / "hf"), target=str(tmp_path / "mm"))
    converted = Converted(tmp_path / "mm", LAYOUTS[layout], source)

    found = loaded(client, converted, tmp_path / "outputs", save=tmp_path / "saved")

    assert found["logits"] <= CLOSE
    back = {"target": str(tmp_path / "back"), "target_format": "hf", "reference": str(source / "hf")}
    run_here(source=str(tmp_path / "saved"), **back)
    assert_published_alike(tmp_path / "back", source / "hf")
