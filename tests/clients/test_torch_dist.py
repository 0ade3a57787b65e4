"""megatron-core loads the torch_dist that distconv writes, into any layout, and computes what transformers computes.

Three releases of it load the same directory with its own `dist_checkpointing.load`, and no key may be left over on
either side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from language_models import CLOSE, LAYOUTS, RELEASES, assert_published_alike
from programs import run_python
from training import Converted, MegatronClient, loaded, packages_beside

from tests.here import run_here

CASES = [
    *[("llama", layout) for layout in ("tp1", "tp2", "pp2", "vpp2")],
    *[("qwen2_tied", layout) for layout in ("tp2", "pp2")],
    ("qwen3", "tp2_pp2_vpp2"),
    *[("qwen3_moe", layout) for layout in ("tp2", "pp2", "ep2")],
    *[("glm4_moe", layout) for layout in ("vpp2", "tp2_ep2")],
    *[("deepseek_v3", layout) for layout in ("tp2", "vpp2", "ep2_pp2")],
]


@pytest.fixture(scope="module")
def written(language_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The torch_dist of a model, made when it is first asked for. Not to be changed: tests share it."""
    directory = tmp_path_factory.mktemp("torch_dist")

    def write(model: str) -> Path:
        if not (directory / model).exists():
            run_here(source=str(language_models / model / "hf"), **into(directory / model))
        return directory / model

    return write


def into(target: Path) -> dict[str, str]:
    return {"target": str(target), "target_format": "torch_dist"}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("model", "layout"), CASES)
def test_it_loads_into_any_layout(
    release: str,
    model: str,
    layout: str,
    language_models: Path,
    written: Callable[[str], Path],
    megatron_clients: Callable[[str], MegatronClient],
    tmp_path: Path,
) -> None:
    converted = Converted(written(model), LAYOUTS[layout], language_models / model)

    found = loaded(megatron_clients(release), converted, tmp_path / "outputs")

    assert (converted.checkpoint / "release" / "metadata.json").exists()
    assert found["logits"] <= CLOSE


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("model", "layout"), [("qwen2_tied", "tp2_pp2_vpp2"), ("deepseek_v3", "tp2_ep2")])
def test_made_of_ranks_and_trained_on_from_there_it_comes_back(
    release: str,
    model: str,
    layout: str,
    language_models: Path,
    megatron_clients: Callable[[str], MegatronClient],
    tmp_path: Path,
) -> None:
    """Published, to ranks, to torch_dist of an iteration, loaded and saved by training, published."""
    client, source = megatron_clients(release), language_models / model
    ranks = {"target": str(tmp_path / "mm"), "iteration": "5"}
    run_here(*LAYOUTS[layout].overrides(), source=str(source / "hf"), **ranks)
    run_here(source=str(tmp_path / "mm"), **into(tmp_path / "written"))
    converted = Converted(tmp_path / "written", LAYOUTS["pp2"], source)

    found = loaded(client, converted, tmp_path / "outputs", save=tmp_path / "saved")

    assert (converted.checkpoint / "iter_0000005" / "metadata.json").exists()
    assert found["logits"] <= CLOSE
    back = {"target": str(tmp_path / "back"), "target_format": "hf", "reference": str(source / "hf")}
    run_here(source=str(tmp_path / "saved"), **back)
    assert_published_alike(tmp_path / "back", source / "hf")


TOLD: Mapping[str, Mapping[str, object]] = {
    "qwen2_tied": {"add_qkv_bias": True, "untie_embeddings_and_output_weights": False, "num_experts": None},
    "glm4_moe": {"moe_layer_freq": [0, 1, 1, 1], "moe_router_enable_expert_bias": True, "rotary_percent": 0.5},
    "deepseek_v3": {"group_query_attention": False, "moe_router_score_function": "sigmoid", "kv_channels": None},
}


@pytest.mark.parametrize("model", TOLD)
def test_training_takes_over_its_arguments(
    model: str, language_models: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """As `--use-checkpoint-args` does, and compares them as `--load` does."""
    packages, output = packages_beside("0.19.2"), tmp_path / "arguments.json"
    program = Path(__file__).with_name("megatron_arguments.py")
    run_python(program, written(model), output, seconds=90, PYTHONPATH=str(packages))
    found, config = json.loads(output.read_text()), json.loads((language_models / model / "hf/config.json").read_text())
    same = {"num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "ffn_hidden_size": "intermediate_size"}
    same |= {"num_attention_heads": "num_attention_heads", "padded_vocab_size": "vocab_size"}
    assert {name: found[name] for name in same} == {name: config[field] for name, field in same.items()}
    assert {name: found.get(name) for name in TOLD[model]} == TOLD[model]
    assert (found["swiglu"], found["normalization"], found["position_embedding_type"]) == (True, "RMSNorm", "rope")
