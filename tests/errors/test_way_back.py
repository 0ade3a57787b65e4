"""What a user meets who got something wrong on the way back: one clear message, and nothing in the world has changed.

The tables are the specification, as in `test_errors.py`. Every job runs in a directory of its own, which holds what
`checkpoints` makes, and would make `back`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from distconv.errors import InputError
from tests.checkpoints import load_case, overrides, write_source
from tests.errors.damage import Damage, deleted, written
from tests.errors.test_errors import LINES_OF_A_SCREEN, everything, rows
from tests.errors.trained import (
    FILE,
    MARK,
    Malicious,
    copied,
    fields,
    halved,
    metadata,
    removed,
    replaced,
    saved,
    tensor,
    with_entry,
    with_tensor,
    without_tensor,
)
from tests.here import run_here

RANK = "mm/release/mp_rank_01_000"
NORM = "text_decoder.decoder.layers.0.input_layernorm.weight"
FC1 = "text_decoder.decoder.layers.0.mlp.linear_fc1.weight"
EMBEDDING = "text_decoder.embedding.word_embeddings.weight"
HEAD = "text_decoder.output_layer.weight"
TRACKER = "latest_checkpointed_iteration.txt"
CHUNKS = "dcp/release/__0_0.distcp"
METADATA = "dcp/release/.metadata"
ENTRY = "model.module.model.norm.weight"
# Of the same length.
OTHER = ENTRY.replace("weight", "wwight")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """How something comes to be wrong, and fragments that the message must have, or must never have.

    An option of `None` is left out.
    """

    files: Sequence[Damage] = ()
    options: Mapping[str, str | None] = field(default_factory=dict)
    says: Sequence[str]
    never: Sequence[str] = ()


JOB: Mapping[str, str | None] = {"source": "mm", "reference": "hf", "target": "back", "target_format": "hf"}
TIED = {"source": "tied", "reference": "tied_hf"}
PUBLISHED_DCP = {"source": "dcp"}
# The vision encoder of a mixture of experts, on both of two ranks.
VISION = {"source": "vision", "reference": "moe_hf", "target_format": "megatron"}
NO_REFERENCE: Mapping[str, str | None] = {"reference": None}

# An empty file of safetensors.
SAFETENSORS = "\2\0\0\0\0\0\0\0{}"

REFERENCES = {
    "nothing says what the model was": Refusal(
        files=[deleted("mm/release/distconv.json")],
        options=NO_REFERENCE,
        says=["reference is missing", "reference=DIR", "mm/release", "config.json"],
    ),
    "the remembered reference is gone": Refusal(
        files=[written("mm/release/distconv.json", '{"model": "qwen2vl", "reference": "/nowhere/hf"}')],
        options=NO_REFERENCE,
        says=["mm/release/distconv.json: ", "/nowhere/hf: no such directory", "reference=DIR"],
    ),
    "what is remembered is damaged": Refusal(
        files=[written("mm/release/distconv.json", "{")],
        options=NO_REFERENCE,
        says=["mm/release/distconv.json: not valid JSON"],
    ),
    "no such reference": Refusal(
        options={"reference": "nowhere"}, says=["reference=nowhere: no such directory"], never=["remembers"]
    ),
    "the reference is in the cache": Refusal(
        files=[written("cache/snapshots/abc/config.json", "{}")],
        options={"reference": "cache"},
        says=["reference=cache: is a directory of the Hugging Face cache", "one snapshot"],
    ),
    "the reference is an adapter": Refusal(
        files=[written("adapter/adapter_config.json", "{}"), written("adapter/adapter_model.safetensors", SAFETENSORS)],
        options={"reference": "adapter"},
        says=["adapter: is an adapter, and the source is qwen2vl, which has none", "give the directory of the model"],
    ),
    "the reference is an adapter, and nothing is remembered": Refusal(
        files=[
            deleted("mm/release/distconv.json"),
            written("adapter/adapter_config.json", "{}"),
            written("adapter/adapter_model.safetensors", SAFETENSORS),
        ],
        options={"reference": "adapter"},
        says=["adapter: is an adapter", "+model=NAME_lora"],
    ),
    "the reference has no config.json": Refusal(
        files=[deleted("hf/config.json")], says=["hf/config.json: no such file", "reference"]
    ),
    "the reference is another model": Refusal(
        options={"reference": "moe_hf"},
        says=["moe_hf/config.json", "'qwen3_vl_moe'", "qwen2vl", "mm/release/distconv.json"],
        never=["+model=qwen2vl is for"],
    ),
    "the reference is another model, and nothing is remembered": Refusal(
        files=[deleted("mm/release/distconv.json")],
        options={"reference": "moe_hf"},
        says=[
            "24 tensors are missing: ",
            "q_layernorm.weight",
            "has shape [40, 48], expected [80, 48]",
            "in config.json",
        ],
    ),
    "the reference has more layers": Refusal(
        files=[fields("hf/config.json", num_hidden_layers=7)],
        says=["mm/release: its stages hold [2,4] text layers", "config.json says that the model has 7"],
    ),
    "the reference is wider": Refusal(
        files=[fields("hf/config.json", hidden_size=96)], says=["hidden_size in config.json", "96", "48"]
    ),
    "the reference has a larger vocabulary than its weights and the source": Refusal(
        files=[fields("hf/config.json", vocab_size=4096)],
        says=["104", "4096", "rows", "reference=hf", "vocab_size=104"],
    ),
    "the reference is tied, the source is not": Refusal(
        options={"reference": "tied_hf"},
        says=[f"mp_rank_01_001/{FILE}: {HEAD} differs from {EMBEDDING} in ", "tie_word_embeddings", "tied_head=keep"],
    ),
    "the reference holds a single file beside its index": Refusal(
        files=[written("hf/model.safetensors", "")],
        says=["hf: holds model.safetensors beside model.safetensors.index.json", "does not name it"],
    ),
    "the reference names tensors that the source does not have": Refusal(
        options={"select": "[vision]"},
        says=["reference=hf: names", "the source does not have", "model.", "fill_from_reference=true"],
    ),
    "fill from a reference without weights": Refusal(
        files=[deleted(f"hf/model-0000{number}-of-00005.safetensors") for number in range(1, 6)],
        options={"select": "[vision]", "fill_from_reference": "true"},
        says=["reference=hf: names", "no weights to fill in from"],
    ),
    "the target is the reference": Refusal(
        options={"target": "hf", "overwrite": "true"}, says=["target=hf", "reference=hf"]
    ),
    "the target is the source": Refusal(options={"target": "mm", "overwrite": "true"}, says=["target=mm", "source=mm"]),
    "the result is there already": Refusal(
        files=[written("back/config.json", "{}")], says=["target=back: back is already there", "overwrite=true"]
    ),
}

MEGATRON = {
    "a rank is missing": Refusal(
        files=[removed(RANK)], says=["mm/release: mp_rank_01_000 is missing", "up to mp_rank_01_001"]
    ),
    "the last stage is missing": Refusal(
        files=[removed("mm/release/mp_rank_00_001", "mm/release/mp_rank_01_001")],
        says=["stages hold [2] text layers", "config.json says that the model has 6"],
    ),
    "a rank without its file": Refusal(files=[deleted(f"{RANK}/{FILE}")], says=[f"{RANK}: holds no {FILE}"]),
    "a stray directory": Refusal(
        files=[written("mm/release/mp_rank_01_000.bak/note", "")],
        says=["mp_rank_01_000.bak: expected a directory named mp_rank_TP"],
    ),
    "ranks of two layouts": Refusal(
        files=[copied(RANK, "mm/release/mp_rank_02")],
        says=["mp_rank_02 and mp_rank_00_000", "different numbers of ranks", "two checkpoints"],
    ),
    "ranks of two iterations": Refusal(
        files=[with_entry("mm/release/mp_rank_*", iteration=100), with_entry(RANK, iteration=200)],
        says=["different checkpoints", "mp_rank_00_000", "iteration 100", f"{RANK}/{FILE} has iteration 200"],
    ),
    "ranks that disagree about a shape": Refusal(
        files=[tensor(RANK, FC1, lambda each: each[:8].clone())],
        says=[f"{RANK}/{FILE}: model/{FC1} has shape [8, 48], expected [88, 48], one of 2 pieces", "intermediate_size"],
    ),
    "ranks that disagree about an element type": Refusal(
        files=[tensor(RANK, NORM, lambda each: each.float())],
        says=[f"{RANK}/{FILE}: model/{NORM} is float32, but other pieces of the parameter are bfloat16"],
    ),
    "tensors that are missing": Refusal(
        files=[without_tensor("mm/release/mp_rank_*_000", NORM, FC1)],
        says=[f"{RANK}/{FILE}: 2 tensors are missing: ", NORM, FC1, "mp_rank_00_000"],
    ),
    "a tensor that no rule knows": Refusal(
        files=[with_tensor(RANK, "text_decoder.adapter.weight", torch.ones(2))],
        says=[f"{RANK}/{FILE}: 1 tensor that no rule", "qwen2vl", "model/text_decoder.adapter.weight"],
    ),
    "replicas that differ": Refusal(
        files=[tensor(RANK, NORM, lambda each: each + 1)],
        says=[f"{RANK}/{FILE}: its copy of {NORM} differs from the one in ", f"mp_rank_00_000/{FILE}", "must agree"],
    ),
    "a head that is not the embedding it is tied to": Refusal(
        files=[tensor("tied/release/mp_rank_00_001", HEAD, lambda each: each + 1)],
        options=TIED,
        says=[f"tied/release/mp_rank_00_001/{FILE}: {HEAD} differs from {EMBEDDING} in ", "tie_word_embeddings"],
        never=["its copy"],
    ),
    "another tp than that of the files": Refusal(
        options={"source_layout.tp": "4"}, says=["source_layout.tp=4", "mm/release are cut into 2 pieces"]
    ),
    "another pp than that of the files": Refusal(
        options={"source_layout.pp": "4"}, says=["source_layout.pp=4: ", "mm/release has pp 2"]
    ),
    "other stages than those of the files": Refusal(
        options={"source_layout.stages.text": "[3,3]"},
        says=["source_layout.stages.text=[3,3]", "hold [2,4] text layers"],
    ),
    "another placement than that of the files": Refusal(
        options={"source_layout.placement": "u_shape"}, says=["source_layout.placement=u_shape", "sequential"]
    ),
    "stages of a modality that the model does not have": Refusal(
        options={"source_layout.stages.audio": "[1]"}, says=["source_layout.stages.audio", "text, vision"]
    ),
    "pipeline or expert parallel ranks": Refusal(
        files=[deleted("vision/release/distconv.json")],
        options=VISION,
        says=["vision/release", "mp_rank_00_001", "source_layout.pp=2", "source_layout.ep=2"],
    ),
    "an iteration that is not there": Refusal(
        options={"iteration": "20"}, says=["iteration=20", "iter_0000020", "holds release"]
    ),
    "a tracker that names what is not there": Refusal(
        files=[written(f"mm/{TRACKER}", "30\n")], says=[f"mm/{TRACKER}", "iter_0000030", "holds release"]
    ),
    "a tracker that says nothing": Refusal(
        files=[written(f"mm/{TRACKER}", "")], says=[f"mm/{TRACKER}: expected release or the number of an iteration"]
    ),
    "several iterations and no tracker": Refusal(
        files=[copied("mm/release", "mm/iter_0000010"), deleted(f"mm/{TRACKER}")],
        says=["source=mm: holds 2 iterations", "iter_0000010, release", "iteration=NUMBER"],
    ),
    "a directory that holds nothing": Refusal(
        files=[removed("mm/release"), written("mm/release/readme", "")], says=["mm/release: holds no mp_rank_*"]
    ),
    "a file in the format before torch 1.6": Refusal(
        files=[saved(RANK, lambda content: content, _use_new_zipfile_serialization=False)],
        says=[f"{RANK}/{FILE}: ", "torch >= 1.6", "saved again with torch.save"],
    ),
    "a file that is cut in half": Refusal(files=[halved(f"{RANK}/{FILE}")], says=[f"{RANK}/{FILE}: truncated"]),
    "another order of qkv": Refusal(
        files=[with_entry("mm/release/mp_rank_*", checkpoint_version=1.0)],
        says=[f"{FILE}: checkpoint_version is 1.0, expected 3.0", "qkv"],
    ),
    "no model in the file": Refusal(
        files=[saved(RANK, lambda content: {"state_dict": content["model"]})],
        says=[f"{RANK}/{FILE}: expected model", "found state_dict"],
    ),
    "a quantised tensor": Refusal(
        files=[tensor("mm/release/mp_rank_*_000", FC1, lambda each: each.char())],
        says=[f"{RANK}/{FILE}: model/{FC1} is int8", "quantised"],
    ),
    "a program instead of a tensor": Refusal(
        files=[with_tensor(RANK, NORM, Malicious())],
        says=[f"{RANK}/{FILE}: model/{NORM}", "expected a tensor"],
        never=["Inert"],
    ),
    "a program instead of the dictionary": Refusal(
        files=[with_entry(RANK, model=Malicious())], says=[f"{RANK}/{FILE}: model", "expected"], never=["Inert"]
    ),
}


def listed_twice(found):
    chunks = found.state_dict_metadata[ENTRY].chunks
    chunks.append(chunks[0])


def named_twice(found):
    """Two keys of one name, which no dictionary has in memory."""
    index = next(each for each in found.storage_data if each.fqn == ENTRY)
    found.storage_data[replace(index, fqn=OTHER)] = replace(found.storage_data[index], offset=0)


def elsewhere(found):
    index = next(each for each in found.storage_data if each.fqn == ENTRY)
    found.storage_data[index] = replace(found.storage_data[index], relative_path="../other.distcp")


DCPS = {
    "no metadata": Refusal(files=[deleted(METADATA)], says=["dcp/release: holds no .metadata", "interrupted"]),
    "a file is missing": Refusal(files=[deleted(CHUNKS)], says=[f"{CHUNKS}: no such file", ".metadata"]),
    "a file is truncated": Refusal(
        files=[halved(CHUNKS)], says=[f"{CHUNKS}: truncated", "module."], never=["more of the same kind"]
    ),
    "metadata that are truncated": Refusal(files=[halved(METADATA)], says=[f"{METADATA}: truncated"]),
    "metadata that name an entry twice": Refusal(
        files=[metadata(METADATA, named_twice), replaced(METADATA, OTHER, ENTRY)],
        says=[f"{METADATA}: tensor {ENTRY}: ", "is named 2 times"],
    ),
    "metadata that list a chunk twice": Refusal(
        files=[metadata(METADATA, listed_twice)], says=[f"{METADATA}: tensor {ENTRY}: ", "its chunks"]
    ),
    "metadata that name a file elsewhere": Refusal(
        files=[metadata(METADATA, elsewhere)], says=[f"{METADATA}: refers to the file '../other.distcp'"]
    ),
    "metadata that are a program": Refusal(
        files=[metadata(METADATA, lambda _: Malicious())],
        says=[f"{METADATA}: names posix.system", "nothing of the file was executed"],
    ),
    "metadata that hold a program": Refusal(
        files=[metadata(METADATA, lambda found: setattr(found, "planner_data", Malicious()))],
        says=[f"{METADATA}: names posix.system", "nothing of the file was executed"],
    ),
    "a tensor of the model is missing": Refusal(
        files=[metadata(METADATA, lambda found: found.state_dict_metadata.pop(ENTRY) and None)],
        says=[
            "reference=hf: names 1 tensor that the source does not have: model.norm.weight",
            "is the source complete",
        ],
        never=["fill_from_reference"],
    ),
    "a tensor of another shape": Refusal(
        files=[fields("hf/config.json", intermediate_size=80)],
        options={"target_format": "megatron"},
        says=["dcp/release/__0_", "mlp.gate_proj.weight has shape [88, 48], expected [80, 48]"],
    ),
    "a prefix that does not fit": Refusal(
        options={"name_prefix": "module."}, says=["name_prefix=module.", "expected name_prefix=model.module."]
    ),
    "a prefix that is empty, and should not be": Refusal(
        options={"name_prefix": "''"}, says=["name_prefix=", "expected name_prefix=model.module."]
    ),
    "a dialect that is not there": Refusal(
        options={"source_dialect": "verl"}, says=["source_dialect=verl: no such dialect; known: published, mm_fsdp2"]
    ),
    "another model": Refusal(
        options={"reference": "moe_hf", "+model": "qwen3vl_moe"},
        says=["reference=moe_hf: does not name 141 tensors of the source", "is it the model that training began with?"],
    ),
    "an iteration that is not there": Refusal(options={"iteration": "20"}, says=["iteration=20", "it holds release"]),
    "nothing says what the model was": Refusal(
        files=[deleted("dcp/release/distconv.json")],
        options=NO_REFERENCE,
        says=["reference is missing", "dcp/release", "reference=DIR"],
    ),
}

ORIGINAL: Mapping[str, str | None] = {"source": "hf", "reference": None}
OPTIONS = {
    "Hugging Face to Hugging Face": Refusal(
        options=ORIGINAL,
        says=["target_format=hf: source=hf is a Hugging Face directory already; dtype=bfloat16, say, makes another"],
    ),
    "a reference for what needs none": Refusal(
        options={**ORIGINAL, "reference": "moe_hf", "target_format": "megatron"},
        says=["reference: goes with a Megatron, torch_dist or DCP source", "source=hf"],
    ),
    "a source layout for what has none": Refusal(
        options={**ORIGINAL, "target_format": "megatron", "source_layout.tp": "2"},
        says=["source_layout: goes with a Megatron source; source=hf is a Hugging Face directory"],
    ),
    "a source layout for a DCP": Refusal(
        options={**PUBLISHED_DCP, "source_layout.tp": "2"},
        says=["source_layout: goes with a Megatron source; source=dcp is a torch.distributed.checkpoint"],
    ),
    "a prefix where there are no names to put it before": Refusal(
        options={"name_prefix": "module."}, says=["name_prefix: goes with a DCP; source=mm is a Megatron checkpoint"]
    ),
    "a layout for a Hugging Face directory": Refusal(
        options={"layout.tp": "2", "layout.pp": "2"},
        says=["layout.tp: target_format=hf holds whole tensors; leave it out", "layout.pp: "],
    ),
    "a dialect for a Hugging Face directory": Refusal(
        options={"dialect": "mm_fsdp2"}, says=["dialect: goes with target_format=megatron, torch_dist or dcp"]
    ),
    "a size of shards that is none": Refusal(
        options={"shard_size": "5PB"}, says=["shard_size=5PB: expected a positive size in bytes, such as 5GB"]
    ),
    "names for a Hugging Face directory": Refusal(
        options={"naming": "hf"}, says=["naming: goes with target_format=dcp"]
    ),
    "packed experts for a Hugging Face directory": Refusal(
        options={"packed_experts": "keep"}, says=["packed_experts: goes with target_format=dcp"]
    ),
    "a head of an untied model for a Hugging Face directory": Refusal(
        options={"tied_head": "write"}, says=["tied_head=write: ", "not known to be tied"]
    ),
    "filling what is no Hugging Face directory": Refusal(
        options={"target_format": "megatron", "fill_from_reference": "true"},
        says=["fill_from_reference: goes with target_format=hf"],
    ),
    "what goes with a Hugging Face source": Refusal(
        options={"text_source": "hf", "projector": "keep", "lora_only": "true"},
        says=["text_source: goes with a Hugging Face source", "projector: goes", "lora_only: goes"],
    ),
    "a modality that the model does not have": Refusal(options={"select": "[audio]"}, says=["select", "text, vision"]),
    "another qkv than there is": Refusal(
        options={"source_layout.vision_qkv": "whole"}, says=["source_layout.vision_qkv=whole", "heads, fused"]
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Good checkpoints: Hugging Face directories, and what training has of them."""
    root = tmp_path_factory.mktemp("checkpoints")

    def convert(source: str, target: str, *options: str) -> None:
        run_here(*options, source=str(root / source), target=str(root / target), io__fsync=False)

    for name, source, target in (
        ("qwen2vl__tp2_pp2", "hf", "mm"),
        ("qwen2vl__tied_pp2", "tied_hf", "tied"),
    ):
        write_source(root / source, load_case(name))
        convert(source, target, *overrides(load_case(name)))
    write_source(root / "moe_hf", load_case("qwen3vl_moe__ep2"))
    convert(
        "moe_hf",
        "vision",
        "+model=qwen3vl_moe",
        "select=[vision]",
        "layout.stages.text=[3,3]",
        "layout.stages.vision=[5]",
    )
    convert("hf", "dcp", "target_format=dcp", "naming=hf", "name_prefix=module.")
    return root


@pytest.fixture
def world(checkpoints, tmp_path, monkeypatch):
    """The directory of a job, in which it runs."""
    directory = tmp_path / "world"
    shutil.copytree(checkpoints, directory)
    monkeypatch.chdir(directory)
    return directory


def refused(row: Refusal, directory: Path, defaults: Mapping[str, str | None]) -> None:
    for damage in row.files:
        damage(directory)
    before = everything(directory)

    with pytest.raises(InputError) as caught:
        run_here(*given(row, defaults))

    message = str(caught.value)
    assert len(message.splitlines()) <= LINES_OF_A_SCREEN
    assert [fragment for fragment in row.says if fragment not in message] == [], message
    assert [fragment for fragment in row.never if fragment in message] == [], message
    assert everything(directory) == before
    assert not (directory / MARK).exists()


def given(row: Refusal, defaults: Mapping[str, str | None]) -> list[str]:
    options = {**defaults, **row.options}
    return [f"{key}={value}" for key, value in options.items() if value is not None]


@rows({**REFERENCES, **MEGATRON, **OPTIONS})
def test_refused(row, world):
    refused(row, world, JOB)


@rows(DCPS)
def test_a_dcp_is_refused(row, world):
    refused(row, world, {**JOB, **PUBLISHED_DCP})


@pytest.mark.parametrize(
    "row", [MEGATRON["replicas that differ"], DCPS["metadata that hold a program"]], ids=["late", "early"]
)
def test_the_command_line_ends_with_2(row, world, distconv):
    for damage in row.files:
        damage(world)
    before = everything(world)
    outcome = distconv(*given(row, {**JOB, "source": "dcp" if row in DCPS.values() else "mm"}))
    assert outcome.status == 2
    assert outcome.err.count("distconv: ") == 1
    assert "Traceback" not in outcome.err
    assert everything(world) == before


def test_a_program_beside_the_model_is_not_run(world):
    """Training saves objects of its own; those that would do something are as inert as all others."""
    with_entry(RANK, args=Malicious(), rng_state=[Malicious()])(world)
    run_here(*given(Refusal(says=[]), JOB))
    assert (world / "back" / "config.json").exists()
    assert not (world / MARK).exists()
