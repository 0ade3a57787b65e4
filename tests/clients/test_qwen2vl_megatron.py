"""A converted Qwen2-VL computes in a Megatron training program what it computes in transformers.

Each layout is converted by the command line, loaded strictly by megatron-core in one process per rank, and run; the
logits and the image features must be those of the source. The same client must refuse checkpoints that are damaged in
ways in which converters are wrong: otherwise its consent to the others would mean nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import DIFFERENT, SAME, Convert, Layout, MegatronClient, damaged, editing, loaded, refusal

LAYOUTS = {
    "one_process": Layout(text=[[4]], vision=[[4]], source="untied"),
    "tp2": Layout(tp=2, text=[[4]], vision=[[4]], source="untied"),
    "pp2": Layout(text=[[2, 2]], vision=[[2, 2]], source="untied"),
    "tp2_pp2_uneven": Layout(tp=2, text=[[1, 3]], vision=[[4, 0]], source="untied"),
    "pp4_zero_first_and_between": Layout(text=[[0, 1, 0, 3]], vision=[[0, 3, 1, 0]], source="untied"),
    "pp2_vpp2": Layout(text=[[1, 1], [1, 1]], vision=[[2, 2], [0, 0]], source="untied"),
    "tp2_pp2_vpp2_zeros": Layout(tp=2, text=[[0, 1], [1, 2]], vision=[[0, 0], [1, 3]], source="untied"),
    # tied: the head is a second copy of the embedding where it is in another stage, and does not exist where it is not
    "tied_one_process": Layout(text=[[4]], vision=[[4]], source="tied"),
    "tied_tp2_pp2": Layout(tp=2, text=[[3, 1]], vision=[[1, 3]], source="tied"),
    "tied_pp2_one_stage": Layout(text=[[0, 4]], vision=[[4, 0]], source="tied"),
    "tied_pp2_vpp2_one_rank": Layout(text=[[1, 1], [2, 0]], vision=[[4, 0], [0, 0]], source="tied"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_computes_what_the_source_computes(
    name: str, converted: Convert, megatron_client: MegatronClient, tmp_path: Path
) -> None:
    found = loaded(megatron_client, converted(LAYOUTS[name]), tmp_path / "outputs")
    assert found["logits"] <= SAME
    assert found["image_features"] <= SAME


LAYER = "text_decoder.decoder.layers.1."
QKV = LAYER + "self_attention.linear_qkv."
FC1 = LAYER + "mlp.linear_fc1.weight"
EMBEDDING = "text_decoder.embedding.word_embeddings.weight"
HEAD = "text_decoder.output_layer.weight"


def heads_of_groups(qkv: Tensor) -> Tensor:
    """Two groups of two queries, one key and one value."""
    return qkv.view(2, 4, -1, *qkv.shape[1:])


def gate_and_up_swapped(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        model = content["model"]
        model[FC1] = torch.cat(model[FC1].chunk(2)[::-1])


def gate_and_up_cut_as_one(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00") as first, editing(checkpoint, "mp_rank_01") as second:
        (gate_0, up_0), (gate_1, up_1) = (content["model"][FC1].chunk(2) for content in (first, second))
        first["model"][FC1] = torch.cat([gate_0, gate_1])
        second["model"][FC1] = torch.cat([up_0, up_1])


def query_and_key_swapped(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        model = content["model"]
        for name in (QKV + "weight", QKV + "bias"):
            model[name] = heads_of_groups(model[name])[:, [2, 1, 0, 3]].flatten(0, 2)


def text_qkv_not_grouped(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        model = content["model"]
        for name in (QKV + "weight", QKV + "bias"):
            heads = heads_of_groups(model[name])
            model[name] = torch.cat([heads[:, kind].flatten(0, 2) for kind in ([0, 1], [2], [3])])


def one_bias_element_changed(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        content["model"][QKV + "bias"][0] += 0.5


def norms_exchanged(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        model = content["model"]
        names = LAYER + "input_layernorm.weight", LAYER + "pre_mlp_layernorm.weight"
        model[names[0]], model[names[1]] = model[names[1]], model[names[0]]


def tied_head_of_another_order(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        content["model"][HEAD] = content["model"][HEAD].roll(1, dims=0)


def vision_qkv_not_regrouped(checkpoint: Path) -> None:
    """As in the source: all queries, all keys, all values, where the encoder reads them head by head."""
    with editing(checkpoint, "mp_rank_00_000") as content:
        model = content["model"]
        for name in model:
            if name.startswith("image_encoder.encoder.blocks") and "linear_qkv" in name:
                model[name] = model[name].unflatten(0, (4, 3, -1)).transpose(0, 1).flatten(0, 2)


@pytest.mark.parametrize(
    ("damage", "layout", "output"),
    [
        (gate_and_up_swapped, "pp2", "logits"),
        (gate_and_up_cut_as_one, "tp2", "logits"),
        (query_and_key_swapped, "pp2", "logits"),
        (text_qkv_not_grouped, "pp2", "logits"),
        (one_bias_element_changed, "pp2", "logits"),
        (norms_exchanged, "pp2", "logits"),
        (tied_head_of_another_order, "tied_tp2_pp2", "logits"),
        (vision_qkv_not_regrouped, "pp2", "image_features"),
    ],
)
def test_a_wrong_value_shows(
    damage: Callable[[Path], None],
    layout: str,
    output: str,
    converted: Convert,
    megatron_client: MegatronClient,
    tmp_path: Path,
) -> None:
    result = damaged(damage, converted(LAYOUTS[layout]), tmp_path)
    found = loaded(megatron_client, result, tmp_path / "outputs")
    assert found.pop(output) > DIFFERENT
    assert all(difference <= SAME for difference in found.values())


def missing_tensor(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        del content["model"][QKV + "bias"]


def extra_tensor(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        content["model"][LAYER + "self_attention.linear_proj.bias"] = torch.zeros(64)


def wrong_shape(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        content["model"][FC1] = content["model"][FC1][:-1]


def wrong_type(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        content["model"][FC1] = content["model"][FC1].bfloat16()


def layers_numbered_through(checkpoint: Path) -> None:
    """The second stage goes on where the first ends."""
    with editing(checkpoint, "mp_rank_00_001") as content:
        content["model"] = {
            re.sub(r"(?<=text_decoder\.decoder\.layers\.)\d+", lambda number: str(int(number[0]) + 2), name): tensor
            for name, tensor in content["model"].items()
        }


def missing_vision_tensor(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        del content["model"]["image_encoder.projector.layernorm.bias"]


def unknown_part(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        content["model"]["model.norm.weight"] = torch.ones(64)


def tied_head_beside_its_embedding(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        content["model"][HEAD] = content["model"][EMBEDDING]


def tied_head_left_out(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_01_001") as content:
        del content["model"][HEAD]


def tensor_on_a_stage_without_layers(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        content["model"][EMBEDDING] = torch.zeros(128, 64)


def no_version(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        del content["checkpoint_version"]


def missing_rank(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "release" / "mp_rank_00_001")


@pytest.mark.parametrize(
    ("damage", "layout", "reason"),
    [
        (missing_tensor, "pp2", "(?s)Missing key.*layers.1.self_attention.linear_qkv.bias"),
        (extra_tensor, "pp2", "(?s)Unexpected key.*layers.1.self_attention.linear_proj.bias"),
        (wrong_shape, "pp2", r"(?s)size mismatch for decoder.layers.1.mlp.linear_fc1.weight.*\[191, 64\]"),
        (wrong_type, "pp2", "dtype mismatch for decoder.layers.1.mlp.linear_fc1.weight: torch.bfloat16"),
        (layers_numbered_through, "pp2", "(?s)Missing key.*layers.0.*Unexpected key.*layers.2"),
        (
            missing_vision_tensor,
            "pp2",
            "(?s)rank 1, virtual stage 0, image_encoder.*Missing key.*projector.layernorm.bias",
        ),
        (unknown_part, "pp2", "of no part: .*model.norm.weight"),
        (tied_head_beside_its_embedding, "tied_pp2_one_stage", "(?s)Unexpected key.*output_layer.weight"),
        (tied_head_left_out, "tied_tp2_pp2", "(?s)rank 3, .*Missing key.*output_layer.weight"),
        (
            tensor_on_a_stage_without_layers,
            "tied_pp2_one_stage",
            "has no layers here.*embedding.word_embeddings.weight",
        ),
        (no_version, "pp2", "checkpoint_version"),
        (missing_rank, "pp2", "holds .*mp_rank_00_000"),
    ],
)
def test_what_does_not_fit_is_refused(
    damage: Callable[[Path], None],
    layout: str,
    reason: str,
    converted: Convert,
    megatron_client: MegatronClient,
    tmp_path: Path,
) -> None:
    result = damaged(damage, converted(LAYOUTS[layout]), tmp_path)
    answer = refusal(megatron_client, result, tmp_path / "outputs")
    assert re.search(reason, answer), answer
