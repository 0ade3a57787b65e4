"""The text of a converted Qwen3-VL-MoE computes in a Megatron training program what it computes in transformers.

As in `test_qwen2vl_megatron.py`, and the same client must refuse damages; here the layers have experts, which expert
parallel ranks divide among them, and to which each rank sends its own tokens.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import DIFFERENT, SAME, Convert, Layout, MegatronClient, damaged, editing, loaded, refusal

LAYOUTS = {
    "one_process": Layout(text=[[4]], source="experts"),
    "tp2": Layout(tp=2, text=[[4]], source="experts"),
    "ep2": Layout(ep=2, text=[[4]], source="experts"),
    "ep4": Layout(ep=4, text=[[4]], source="experts"),
    "pp2": Layout(text=[[2, 2]], source="experts"),
    "tp2_ep2": Layout(tp=2, ep=2, text=[[4]], source="experts"),
    "tp2_pp2_vpp2": Layout(tp=2, text=[[0, 1], [2, 1]], source="experts"),
    "ep2_pp2_uneven": Layout(ep=2, text=[[1, 3]], source="experts"),
    "tp2_ep2_pp2": Layout(tp=2, ep=2, text=[[2, 2]], source="experts"),
    # where the dense layers are counts from the first layer of the model, not of the stage
    "dense_layer": Layout(text=[[4]], source="experts_but_in_one_layer"),
    "dense_layer_tp2_ep2_pp2": Layout(tp=2, ep=2, text=[[1, 3]], source="experts_but_in_one_layer"),
    "dense_layers_ep2_pp2_vpp2": Layout(ep=2, text=[[1, 1], [0, 2]], source="experts_every_second_layer"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_computes_what_the_source_computes(
    name: str, converted: Convert, megatron_client: MegatronClient, tmp_path: Path
) -> None:
    found = loaded(megatron_client, converted(LAYOUTS[name]), tmp_path / "outputs")
    assert found["logits"] <= SAME


@pytest.mark.parametrize("name", sorted({layout.source for layout in LAYOUTS.values()}))
def test_the_tokens_go_to_different_experts(name: str, sources: Path) -> None:
    """Otherwise a layout with a misplaced expert could compute the same."""
    experts = json.loads((sources / name / "model.json").read_text())["text_decoder"]["experts"]
    top = experts["moe_router_topk"]
    routing: dict[str, Tensor] = torch.load(sources / name / "routing.pt", weights_only=True)
    assert len(routing) == sum(experts["moe_layer_freq"])
    for logits in routing.values():
        best = logits.topk(top + 1)
        chosen = torch.zeros_like(logits).scatter_(1, best.indices[:, :top], 1)
        uses = chosen.sum(dim=0)
        assert uses.min() > 0
        assert uses.max() < len(logits)
        # of the most expert parallel ranks, each sends tokens to each
        assert chosen.view(4, -1, 4, len(uses) // 4).sum(dim=(1, 3)).min() > 0
        # rounding does not choose another expert
        assert (best.values[:, top - 1] - best.values[:, top]).min() > 10 * SAME


LAYER = "text_decoder.decoder.layers.1."
ROUTER = LAYER + "mlp.router.weight"
EXPERT = LAYER + "mlp.experts.local_experts.{}."
FC1, FC2 = (EXPERT + f"linear_{each}.weight" for each in ("fc1", "fc2"))
EXPERT_PARALLEL_RANKS = "mp_rank_00_000", "mp_rank_00_001"


def renumbered(model: dict[str, Any], first: int) -> dict[str, Any]:
    """The experts of the layer with numbers from `first` on."""
    pattern = re.compile(re.escape(LAYER) + r"mlp\.experts\.local_experts\.(\d+)\.")
    return {pattern.sub(lambda found: EXPERT.format(first + int(found[1])), name): model[name] for name in model}


def exchange_experts(first: dict[str, Any], one: int, second: dict[str, Any], other: int) -> None:
    for name in (FC1, FC2):
        here, there = name.format(one), name.format(other)
        first[here], second[there] = second[there], first[here]


def two_experts_exchanged(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as content:
        exchange_experts(content["model"], 0, content["model"], 3)


def experts_of_the_other_rank(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as first, editing(checkpoint, "mp_rank_00_001") as second:
        for expert in range(4):
            exchange_experts(first["model"], expert, second["model"], expert)


def experts_dealt_in_turn(checkpoint: Path) -> None:
    """0, 2, 4, 6 and 1, 3, 5, 7, where the ranks hold 0 to 3 and 4 to 7."""
    with editing(checkpoint, "mp_rank_00_000") as first, editing(checkpoint, "mp_rank_00_001") as second:
        models = first["model"], second["model"]
        for name in (FC1, FC2):
            experts = [model[name.format(number)] for model in models for number in range(4)]
            for rank, model in enumerate(models):
                model.update({name.format(number): experts[2 * number + rank] for number in range(4)})


def gate_and_up_swapped(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        content["model"][FC1.format(2)] = torch.cat(content["model"][FC1.format(2)].chunk(2)[::-1])


def gate_and_up_cut_as_one(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as first, editing(checkpoint, "mp_rank_01_001") as second:
        name = FC1.format(2)
        (gate_0, up_0), (gate_1, up_1) = (content["model"][name].chunk(2) for content in (first, second))
        first["model"][name] = torch.cat([gate_0, gate_1])
        second["model"][name] = torch.cat([up_0, up_1])


def reshaped_instead_of_transposed(name: str, checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        right = content["model"][name]
        content["model"][name] = right.T.reshape(right.shape)


def fc1_reshaped(checkpoint: Path) -> None:
    reshaped_instead_of_transposed(FC1.format(2), checkpoint)


def fc2_reshaped(checkpoint: Path) -> None:
    reshaped_instead_of_transposed(FC2.format(2), checkpoint)


def router_of_another_order(checkpoint: Path) -> None:
    for directory in EXPERT_PARALLEL_RANKS:
        with editing(checkpoint, directory) as content:
            content["model"][ROUTER] = content["model"][ROUTER].roll(1, dims=0)


def query_and_key_norms_exchanged(checkpoint: Path) -> None:
    for directory in EXPERT_PARALLEL_RANKS:
        with editing(checkpoint, directory) as content:
            model = content["model"]
            query, key = (f"{LAYER}self_attention.{letter}_layernorm.weight" for letter in "qk")
            model[query], model[key] = model[key], model[query]


def one_expert_parallel_rank_with_another_router(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        content["model"][ROUTER] = content["model"][ROUTER].roll(1, dims=0)


@pytest.mark.parametrize(
    ("damage", "layout"),
    [
        (two_experts_exchanged, "ep2"),
        (experts_of_the_other_rank, "ep2"),
        (experts_dealt_in_turn, "ep2"),
        (gate_and_up_swapped, "ep2"),
        (gate_and_up_cut_as_one, "tp2_ep2"),
        (fc1_reshaped, "ep2"),
        (fc2_reshaped, "ep2"),
        (router_of_another_order, "ep2"),
        (query_and_key_norms_exchanged, "ep2"),
        (one_expert_parallel_rank_with_another_router, "ep2"),
    ],
)
def test_a_wrong_value_shows(
    damage: Callable[[Path], None],
    layout: str,
    converted: Convert,
    megatron_client: MegatronClient,
    tmp_path: Path,
) -> None:
    result = damaged(damage, converted(LAYOUTS[layout]), tmp_path)
    found = loaded(megatron_client, result, tmp_path / "outputs")
    assert found["logits"] > DIFFERENT


def missing_expert(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        del content["model"][FC2.format(3)]


def experts_of_all_ranks(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_000") as first, editing(checkpoint, "mp_rank_00_001") as second:
        first["model"] = renumbered(second["model"], 4) | first["model"]


def experts_numbered_through(checkpoint: Path) -> None:
    """The second rank goes on where the first ends."""
    with editing(checkpoint, "mp_rank_00_001") as content:
        content["model"] = renumbered(content["model"], 4)


def not_transposed(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00_001") as content:
        content["model"][FC1.format(2)] = content["model"][FC1.format(2)].T.contiguous()


def dense_layer_one_too_early(checkpoint: Path) -> None:
    with editing(checkpoint, "mp_rank_00") as content:
        content["model"] = {
            re.sub(r"(?<=layers\.)[01](?=\.mlp\.)", lambda number: str(1 - int(number[0])), name): tensor
            for name, tensor in content["model"].items()
        }


def missing_expert_parallel_rank(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "release" / "mp_rank_00_001")


@pytest.mark.parametrize(
    ("damage", "layout", "reason"),
    [
        (missing_expert, "ep2", r"(?s)rank 1, .*Missing key.*layers\.1\.mlp\.experts\.local_experts\.3\.linear_fc2"),
        (experts_of_all_ranks, "ep2", r"(?s)rank 0, .*Unexpected key.*layers\.1\.mlp\.experts\.local_experts\.4\."),
        (experts_numbered_through, "ep2", r"(?s)Missing key.*local_experts\.0\..*Unexpected key.*local_experts\.4\."),
        (not_transposed, "ep2", r"(?s)size mismatch for \S*local_experts\.2\.linear_fc1\.weight.*\[64, 80\]"),
        (
            dense_layer_one_too_early,
            "dense_layer",
            r"(?s)Missing key.*layers\.0\.mlp\.router.*Unexpected key.*layers\.0\.mlp\.linear_fc1",
        ),
        (missing_expert_parallel_rank, "ep2", r"holds \['mp_rank_00_000'\], not"),
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
