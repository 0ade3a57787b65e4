"""What transformers' own classes save converts completely, and every tensor comes back bit for bit.

Each result is put together again by the few lines below, which share nothing with distconv: they say for each family
which parameters of the training side hold which tensor, as `torch.cat` and `torch.chunk` say it. A definition that
exchanges two tensors, or cuts one in a way that training does not, cannot pass; nor can one that leaves anything out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

LAYERS_OF = re.compile(r"(?P<modality>text|image|audio)_(?:de|en)coder\..*?layers\.(?P<number>\d+)\.")
EXPERT = re.compile(r"local_experts\.(\d+)\.")
MODALITY_OF = {"text": "text", "image": "vision", "audio": "audio"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`stages` gives the layers of each modality per pipeline rank; left out, there is one rank."""

    tp: int = 1
    ep: int = 1
    stages: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def pp(self) -> int:
        return max(map(len, self.stages.values()), default=1)

    def overrides(self) -> list[str]:
        lists = [f"layout.stages.{modality}={layers}".replace(" ", "") for modality, layers in self.stages.items()]
        return [f"layout.tp={self.tp}", f"layout.ep={self.ep}", *lists] if self != Layout() else []


STAGES = {"text": [1, 3], "vision": [3, 1]}
# with as many text layers on the first stage as there are deepstack layers
DEEPSTACK = {"text": [3, 1], "vision": [3, 1]}
TP2_PP2 = Layout(tp=2, stages=STAGES)
ONE_TOWER = Layout(tp=2, stages={"text": [1, 3], "vision": [4, 0]})
WITH_AUDIO = Layout(tp=2, stages={**STAGES, "audio": [1, 2]})
# each model with the definition that must be chosen for it, and the layout that divides it
FAMILIES = {
    "qwen2_5vl": ("qwen2_5vl", TP2_PP2),
    "qwen2_5vl_tied": ("qwen2_5vl", TP2_PP2),
    "qwen2_5omni": ("qwen2_5omni", WITH_AUDIO),
    "qwen2_5omni_thinker": ("qwen2_5omni", WITH_AUDIO),
    "qwen2_5omni_thinker_tied": ("qwen2_5omni", WITH_AUDIO),
    "qwen3vl": ("qwen3vl", Layout(tp=2, stages=DEEPSTACK)),
    "qwen3vl_tied": ("qwen3vl", Layout(tp=2, stages=DEEPSTACK)),
    "qwen3vl_moe": ("qwen3vl_moe", Layout(tp=2, ep=2, stages=DEEPSTACK)),
    "glm4_1v": ("glm4_1v", ONE_TOWER),
}


@pytest.fixture
def convert(distconv: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Convert without naming the model; gives the report."""

    def run(source: Path, target: Path, layout: Layout) -> dict[str, Any]:
        report = tmp_path / "report.json"
        outcome = distconv(f"source={source}", f"target={target}", f"report={report}", *layout.overrides())
        assert outcome.status == 0, outcome.err
        content: dict[str, Any] = json.loads(report.read_text())
        return content

    return run


@pytest.mark.parametrize("cut", ["whole", "divided"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_comes_back(
    name: str, cut: str, families: Path, convert: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    source = families / name / "hf"
    stored, config = stored_tensors(source), json.loads((source / "config.json").read_text())
    speech = {each for each in stored if each.startswith(("talker.", "token2wav."))}
    definition, layout = FAMILIES[name]
    layout = layout if cut == "divided" else Layout()

    report = convert(source, tmp_path / "mm", layout)

    assert report["model"] == definition
    assert {each["name"] for each in report["not_converted"]} == speech
    assert bool(speech) == (name == "qwen2_5omni")
    trained = Trained(tmp_path / "mm", layout)
    came_back = BACK[definition](trained, config)
    assert trained.untouched() == set()
    assert set(came_back) == set(stored) - speech
    different = [each for each, tensor in came_back.items() if not same_bits(tensor, stored[each])]
    assert different == []


def test_the_other_spelling_of_the_names_gives_the_same_files(
    families: Path, convert: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    source = families / "qwen2_5vl"
    as_saved, in_memory = stored_names(source / "hf"), stored_names(source / "hf_memory")
    assert len(in_memory) == len(as_saved)
    assert in_memory & as_saved == {"lm_head.weight"}

    for spelling in ("hf", "hf_memory"):
        report = convert(source / spelling, tmp_path / spelling, TP2_PP2)
        assert report["not_converted"] == []

    assert contents(tmp_path / "hf") == contents(tmp_path / "hf_memory")


def test_a_tied_head_in_a_state_dict_is_written_once_as_a_copy_of_the_embedding(
    families: Path, convert: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    tied = families / "qwen2_5vl_tied"
    assert len(stored_names(tied / "hf_memory")) == len(stored_names(tied / "hf")) + 1

    convert(tied / "hf", tmp_path / "hf", TP2_PP2)
    report = convert(tied / "hf_memory", tmp_path / "hf_memory", TP2_PP2)

    assert [each["name"] for each in report["not_converted"]] == ["lm_head.weight"]
    assert contents(tmp_path / "hf") == contents(tmp_path / "hf_memory")


class Trained:
    """A converted checkpoint as one: its parameters by name with global numbers of layers and experts."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self._parts: dict[str, dict[int, Tensor]] = {}
        self._taken: set[str] = set()
        files = sorted(directory.glob("release/mp_rank_*/model_optim_rng.pt"))
        assert len(files) == layout.tp * layout.pp * layout.ep
        for path in files:
            numbers = list(map(int, path.parent.name.removeprefix("mp_rank_").split("_")))
            tp_rank = numbers.pop(0)
            pp_rank = numbers.pop(0) if layout.pp > 1 else 0
            ep_rank = numbers.pop(0) if layout.ep > 1 else 0
            local = torch.load(path, weights_only=True)["model"]
            experts = {match[1] for name in local if (match := EXPERT.search(name))}
            for name, tensor in local.items():
                name_of_all = with_global_numbers(name, layout, pp_rank, ep_rank * len(experts))
                parts = self._parts.setdefault(name_of_all, {})
                # only expert parallel ranks may hold the same
                assert tp_rank not in parts or (ep_rank and same_bits(parts[tp_rank], tensor)), name_of_all
                parts[tp_rank] = tensor
        assert all(set(parts) == set(range(layout.tp)) for parts in self._parts.values())

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def parts(self, name: str) -> list[Tensor]:
        """What each tensor parallel rank holds."""
        self._taken.add(name)
        return list(self._parts[name].values())

    def whole(self, name: str) -> Tensor:
        """A parameter that every rank holds."""
        first, *others = self.parts(name)
        assert all(same_bits(first, other) for other in others), name
        return first

    def rows(self, name: str) -> Tensor:
        """A parameter of which each rank holds consecutive rows."""
        return torch.cat(self.parts(name))

    def columns(self, name: str) -> Tensor:
        """A parameter of which each rank holds consecutive columns."""
        return torch.cat(self.parts(name), dim=1)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Two tensors, of each of which every rank holds consecutive rows, the first's before the second's."""
        first, second = zip(*(part.chunk(2) for part in self.parts(name)), strict=True)
        return torch.cat(first), torch.cat(second)

    def untouched(self) -> set[str]:
        """Parameters that nothing has asked for."""
        return set(self._parts) - self._taken


def with_global_numbers(name: str, layout: Layout, pp_rank: int, first_expert: int) -> str:
    if match := LAYERS_OF.match(name):
        counts = layout.stages.get(MODALITY_OF[match["modality"]], [0])
        number = [0, *accumulate(counts)][pp_rank] + int(match["number"])
        name = f"{name[: match.start('number')]}{number}{name[match.end('number') :]}"
    return EXPERT.sub(lambda match: f"local_experts.{first_expert + int(match[1])}.", name)


Back = dict[str, Tensor]


def back_to_qwen2_5vl(trained: Trained, config: Mapping[str, Any]) -> Back:
    vision = config["vision_config"]
    back = gated_vision(trained, vision)
    for layer in range(vision["depth"]):
        for kind in ("weight", "bias"):
            fused = trained.rows(f"image_encoder.encoder.blocks.layers.{layer}.self_attention.linear_qkv.{kind}")
            back[f"visual.blocks.{layer}.attn.qkv.{kind}"] = torch.cat(ungrouped(fused, vision["num_heads"]))
    return back | qwen2_text(trained, config["text_config"])


def back_to_qwen2_5omni(trained: Trained, config: Mapping[str, Any]) -> Back:
    whole = "thinker_config" in config
    config = config["thinker_config"] if whole else config
    vision = config["vision_config"]
    back = gated_vision(trained, vision)
    for layer in range(vision["depth"]):
        for kind in ("weight", "bias"):
            fused = trained.rows(f"image_encoder.encoder.blocks.layers.{layer}.self_attention.linear_qkv.{kind}")
            for letter, part in zip("qkv", ungrouped(fused, vision["num_heads"]), strict=True):
                back[f"visual.blocks.{layer}.attn.{letter}.{kind}"] = part
    back |= audio(trained, config["audio_config"]) | qwen2_text(trained, config["text_config"])
    return {f"thinker.{name}": tensor for name, tensor in back.items()} if whole else back


def back_to_qwen3vl(trained: Trained, config: Mapping[str, Any]) -> Back:
    vision, text = config["vision_config"], config["text_config"]
    encoder = "image_encoder.encoder"
    back = {
        **linear(trained.whole, f"{encoder}.patch_embed.proj", "model.visual.patch_embed.proj"),
        "model.visual.pos_embed.weight": trained.whole(f"{encoder}.pos_embed.weight"),
        **linear(trained.whole, "image_encoder.projector.layernorm", "model.visual.merger.norm"),
        **plain_mlp(trained, "image_encoder.projector.encoder", "model.visual.merger"),
    }
    for layer in range(vision["depth"]):
        here, there = f"{encoder}.blocks.layers.{layer}", f"model.visual.blocks.{layer}"
        back |= linear(trained.whole, f"{here}.input_layernorm", f"{there}.norm1")
        back |= linear(trained.whole, f"{here}.pre_mlp_layernorm", f"{there}.norm2")
        back |= row_parallel(trained, f"{here}.self_attention.linear_proj", f"{there}.attn.proj")
        back |= plain_mlp(trained, f"{here}.mlp", f"{there}.mlp")
        for kind in ("weight", "bias"):
            fused = trained.rows(f"{here}.self_attention.linear_qkv.{kind}")
            back[f"{there}.attn.qkv.{kind}"] = torch.cat(ungrouped(fused, vision["num_heads"]))
    for number, layer in enumerate(vision["deepstack_visual_indexes"]):
        here = f"{encoder}.blocks.layers.{layer}.deepstack_layer"
        there = f"model.visual.deepstack_merger_list.{number}"
        back |= linear(trained.whole, f"{here}.layernorm", f"{there}.norm")
        back |= plain_mlp(trained, f"{here}.encoder", there)

    back |= decoder_ends(trained, "model.language_model.", tied=text.get("tie_word_embeddings", False))
    for layer in range(text["num_hidden_layers"]):
        here, there = f"text_decoder.decoder.layers.{layer}", f"model.language_model.layers.{layer}"
        back |= text_attention(trained, text, here, there, kinds=("weight",))
        for letter in "qk":
            norm = trained.whole(f"{here}.self_attention.{letter}_layernorm.weight")
            back[f"{there}.self_attn.{letter}_norm.weight"] = norm
        if f"{here}.mlp.router.weight" in trained:
            back |= packed_experts(trained, here, there, text["num_experts"])
        else:
            back |= gated_mlp(trained, f"{here}.mlp", f"{there}.mlp", kinds=("weight",))
    return back


def back_to_glm4_1v(trained: Trained, config: Mapping[str, Any]) -> Back:
    """Every rank holds the whole vision encoder, but for the MLP of its layers."""
    vision, text = config["vision_config"], config["text_config"]
    encoder, projector = "image_encoder.encoder", "image_encoder.projector"
    post_norm = "post_projection_norm"
    back = {
        **linear(trained.whole, f"{encoder}.patch_embed.proj", "model.visual.patch_embed.proj"),
        **linear(trained.whole, f"{encoder}.downsample", "model.visual.downsample"),
        **linear(trained.whole, f"{projector}.{post_norm}", f"model.visual.merger.{post_norm}"),
        "model.visual.post_layernorm.weight": trained.whole(f"{encoder}.blocks.final_layernorm.weight"),
    }
    for name in ("post_conv_layernorm.weight", "embeddings.position_embedding.weight"):
        back[f"model.visual.{name}"] = trained.whole(f"{encoder}.{name}")
    for name in ("proj.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight"):
        back[f"model.visual.merger.{name}"] = trained.whole(f"{projector}.{name}")
    for layer in range(vision["depth"]):
        here, there = f"{encoder}.blocks.layers.{layer}", f"model.visual.blocks.{layer}"
        back |= gated_mlp(trained, f"{here}.mlp", f"{there}.mlp", kinds=("weight",))
        for ours, theirs in (
            ("input_layernorm", "norm1"),
            ("pre_mlp_layernorm", "norm2"),
            ("self_attention.qkv", "attn.qkv"),
            ("self_attention.proj", "attn.proj"),
        ):
            back[f"{there}.{theirs}.weight"] = trained.whole(f"{here}.{ours}.weight")

    back |= decoder_ends(trained, "model.language_model.", tied=False)
    for layer in range(text["num_hidden_layers"]):
        here, there = f"text_decoder.decoder.layers.{layer}", f"model.language_model.layers.{layer}"
        back |= text_attention(trained, text, here, there, kinds=("weight", "bias"))
        for norm in ("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"):
            back[f"{there}.{norm}"] = trained.whole(f"{here}.{norm}")
        back[f"{there}.mlp.gate_up_proj.weight"] = torch.cat(trained.pair(f"{here}.mlp.linear_fc1.weight"))
        back[f"{there}.mlp.down_proj.weight"] = trained.columns(f"{here}.mlp.linear_fc2.weight")
    return back


def gated_vision(trained: Trained, vision: Mapping[str, Any]) -> Back:
    """The vision encoder and the projector of Qwen2.5-VL and Qwen2.5-Omni, but for q, k and v."""
    back = {
        "visual.patch_embed.proj.weight": trained.whole("image_encoder.encoder.patch_embed.proj.weight"),
        "visual.merger.ln_q.weight": trained.whole("image_encoder.projector.layernorm.weight"),
        **linear(trained.rows, "image_encoder.projector.encoder.linear_fc1", "visual.merger.mlp.0"),
        **row_parallel(trained, "image_encoder.projector.encoder.linear_fc2", "visual.merger.mlp.2"),
    }
    for layer in range(vision["depth"]):
        here, there = f"image_encoder.encoder.blocks.layers.{layer}", f"visual.blocks.{layer}"
        back[f"{there}.norm1.weight"] = trained.whole(f"{here}.input_layernorm.weight")
        back[f"{there}.norm2.weight"] = trained.whole(f"{here}.pre_mlp_layernorm.weight")
        back |= row_parallel(trained, f"{here}.self_attention.linear_proj", f"{there}.attn.proj")
        back |= gated_mlp(trained, f"{here}.mlp", f"{there}.mlp", kinds=("weight", "bias"))
    return back


def audio(trained: Trained, sizes: Mapping[str, Any]) -> Back:
    back = {"audio_tower.audio_bos_eos_token.weight": trained.whole("audio_encoder.encoder.audio_bos_eos_token.weight")}
    for name in ("conv1", "conv2", "ln_post", "proj"):
        back |= linear(trained.whole, f"audio_encoder.encoder.{name}", f"audio_tower.{name}")
    for layer in range(sizes["encoder_layers"]):
        here, there = f"audio_encoder.encoder.blocks.layers.{layer}", f"audio_tower.layers.{layer}"
        back |= linear(trained.whole, f"{here}.input_layernorm", f"{there}.self_attn_layer_norm")
        back |= linear(trained.whole, f"{here}.pre_mlp_layernorm", f"{there}.final_layer_norm")
        back |= row_parallel(trained, f"{here}.self_attention.linear_proj", f"{there}.self_attn.out_proj")
        back |= linear(trained.rows, f"{here}.mlp.linear_fc1", f"{there}.fc1")
        back |= row_parallel(trained, f"{here}.mlp.linear_fc2", f"{there}.fc2")
        for kind in ("weight", "bias"):
            fused = trained.rows(f"{here}.self_attention.linear_qkv.{kind}")
            query, key, value = ungrouped(fused, sizes["encoder_attention_heads"])
            back |= {f"{there}.self_attn.q_proj.{kind}": query, f"{there}.self_attn.v_proj.{kind}": value}
            if kind == "weight":
                back[f"{there}.self_attn.k_proj.weight"] = key
            else:
                # this attention adds nothing to k
                assert same_bits(key, torch.zeros_like(key))
    return back


def qwen2_text(trained: Trained, text: Mapping[str, Any]) -> Back:
    back = decoder_ends(trained, "model.", tied=text.get("tie_word_embeddings", False))
    for layer in range(text["num_hidden_layers"]):
        here, there = f"text_decoder.decoder.layers.{layer}", f"model.layers.{layer}"
        back |= text_attention(trained, text, here, there, kinds=("weight", "bias"))
        back |= gated_mlp(trained, f"{here}.mlp", f"{there}.mlp", kinds=("weight",))
    return back


def decoder_ends(trained: Trained, prefix: str, *, tied: bool) -> Back:
    """Embedding, final norm and head; of a tied model the head, where there is one, is the embedding again."""
    embedding = trained.rows("text_decoder.embedding.word_embeddings.weight")
    back = {
        f"{prefix}embed_tokens.weight": embedding,
        f"{prefix}norm.weight": trained.whole("text_decoder.decoder.final_layernorm.weight"),
    }
    head = "text_decoder.output_layer.weight"
    if not tied:
        return {**back, "lm_head.weight": trained.rows(head)}
    if head in trained:
        assert same_bits(trained.rows(head), embedding)
    return back


def text_attention(trained: Trained, text: Mapping[str, Any], here: str, there: str, *, kinds: tuple[str, ...]) -> Back:
    """Attention and the two norms that all families have."""
    back = {
        f"{there}.input_layernorm.weight": trained.whole(f"{here}.input_layernorm.weight"),
        f"{there}.post_attention_layernorm.weight": trained.whole(f"{here}.pre_mlp_layernorm.weight"),
        f"{there}.self_attn.o_proj.weight": trained.columns(f"{here}.self_attention.linear_proj.weight"),
    }
    groups = text["num_key_value_heads"]
    for kind in kinds:
        fused = trained.rows(f"{here}.self_attention.linear_qkv.{kind}")
        for letter, part in zip("qkv", ungrouped(fused, groups, text["num_attention_heads"] // groups), strict=True):
            back[f"{there}.self_attn.{letter}_proj.{kind}"] = part
    return back


def packed_experts(trained: Trained, here: str, there: str, count: int) -> Back:
    gates_and_ups, downs = [], []
    for expert in range(count):
        linears = f"{here}.mlp.experts.local_experts.{expert}"
        gates_and_ups.append(torch.cat(trained.pair(f"{linears}.linear_fc1.weight")).T)
        downs.append(trained.columns(f"{linears}.linear_fc2.weight").T)
    return {
        f"{there}.mlp.gate.weight": trained.whole(f"{here}.mlp.router.weight"),
        f"{there}.mlp.experts.gate_up_proj": torch.stack(gates_and_ups),
        f"{there}.mlp.experts.down_proj": torch.stack(downs),
    }


def gated_mlp(trained: Trained, here: str, there: str, *, kinds: tuple[str, ...]) -> Back:
    back = {f"{there}.down_proj.weight": trained.columns(f"{here}.linear_fc2.weight")}
    for kind in kinds:
        gate, up = trained.pair(f"{here}.linear_fc1.{kind}")
        back |= {f"{there}.gate_proj.{kind}": gate, f"{there}.up_proj.{kind}": up}
    if "bias" in kinds:
        back[f"{there}.down_proj.bias"] = trained.whole(f"{here}.linear_fc2.bias")
    return back


def plain_mlp(trained: Trained, here: str, there: str) -> Back:
    return linear(trained.rows, f"{here}.linear_fc1", f"{there}.linear_fc1") | row_parallel(
        trained, f"{here}.linear_fc2", f"{there}.linear_fc2"
    )


def linear(joined: Callable[[str], Tensor], here: str, there: str) -> Back:
    """Weight and bias, both joined in the same way."""
    return {f"{there}.{kind}": joined(f"{here}.{kind}") for kind in ("weight", "bias")}


def row_parallel(trained: Trained, here: str, there: str) -> Back:
    """A weight cut by columns, and a bias that every rank holds."""
    return {f"{there}.weight": trained.columns(f"{here}.weight"), f"{there}.bias": trained.whole(f"{here}.bias")}


def ungrouped(fused: Tensor, groups: int, queries: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a tensor that holds for each group its query heads, then one k, then one v."""
    heads = fused.unflatten(0, (groups, queries + 2, -1))
    query, key, value = heads.split([queries, 1, 1], dim=1)
    return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)


BACK: dict[str, Callable[[Trained, Mapping[str, Any]], Back]] = {
    "qwen2_5vl": back_to_qwen2_5vl,
    "qwen2_5omni": back_to_qwen2_5omni,
    "qwen3vl": back_to_qwen3vl,
    "qwen3vl_moe": back_to_qwen3vl,
    "glm4_1v": back_to_glm4_1v,
}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equality of dtype, shape and every bit; comparing as numbers would not tell 0 from -0."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def stored_tensors(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 - it is no dictionary
    return tensors


def stored_names(directory: Path) -> set[str]:
    return set(stored_tensors(directory))


def contents(directory: Path) -> dict[str, bytes]:
    """What a result holds but the name of the source that it remembers."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "distconv.json"
    }
