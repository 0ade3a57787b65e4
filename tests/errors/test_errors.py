"""What a user meets who got something wrong: one clear message, and nothing in the world has changed.

The tables below are the specification. A row says what is wrong, how it comes about (changes of a good checkpoint,
damage to its files, options), and what the message must say. Every job runs in a directory of its own that holds the
checkpoint `hf`; its result would be `mm`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.checkpoints import load_case, write_source
from tests.errors.damage import (
    CONFIG,
    FIRST,
    INDEX,
    SHARD,
    Change,
    Damage,
    config,
    deleted,
    entry,
    header_length,
    index,
    longer,
    renamed,
    sized,
    sparse,
    typed,
    with_tensors,
    without,
    written,
)

LINES_OF_A_SCREEN = 24
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4000000000\n"
JOB = {"+model": "qwen2vl", "source": "hf", "target": "mm"}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """How something comes to be wrong, and fragments that the message must have, or must never have.

    An option of `None` is left out.
    """

    model: Sequence[Change] = ()
    files: Sequence[Damage] = ()
    options: Mapping[str, str | None] = field(default_factory=dict)
    says: Sequence[str]
    never: Sequence[str] = ()


# What is said of tensors that no rule could use because of another problem would be false.
FALSE = ["beyond the number of layers", "no rule"]

SOURCES = {
    "no such source": Refusal(options={"source": "nowhere"}, says=["source=nowhere: no such directory"]),
    "no source, no target": Refusal(
        options={"source": None, "target": None}, says=["source is missing", "target is missing"]
    ),
    "the source is a file": Refusal(
        options={"source": SHARD}, says=[f"source={SHARD}", "expected a directory, found a file"]
    ),
    "the source is a GGUF file": Refusal(
        files=[written("model.gguf", "GGUF")],
        options={"source": "model.gguf"},
        says=["source=model.gguf: expected a directory, found a GGUF file", "llama.cpp", "in safetensors"],
    ),
    "the source is no checkpoint": Refusal(
        files=[written("other/notes.txt", "")],
        options={"source": "other", "target_format": "dcp", "naming": "hf"},
        says=["source=other: is none of: a Hugging Face directory", "it holds notes.txt"],
        never=["reference", "already"],
    ),
    "the source holds a GGUF file": Refusal(
        files=[written("other/model.gguf", "")],
        options={"source": "other"},
        says=["source=other: is a directory with a GGUF file (model.gguf); ", "in safetensors"],
    ),
    "the source is empty": Refusal(
        files=[written("other/gone", ""), deleted("other/gone")],
        options={"source": "other"},
        says=["source=other: is empty: "],
    ),
    "the source is above a checkpoint": Refusal(
        files=[written("run/checkpoint-20/config.json", "{}"), written("run/trainer_state.json", "{}")],
        options={"source": "run"},
        says=["source=run: is no checkpoint itself; it holds one, checkpoint-20: give source=run/checkpoint-20"],
    ),
    "the source is above checkpoints": Refusal(
        files=[written(f"run/checkpoint-{each}/config.json", "{}") for each in (9, 20, 100)],
        options={"source": "run"},
        says=[
            "it holds 3: checkpoint-9, checkpoint-20, checkpoint-100; give one of them, such as",
            "source=run/checkpoint-100; sources= converts several",
        ],
    ),
    "the source is two above a checkpoint": Refusal(
        files=[written("runs/a/checkpoint-20/config.json", "{}"), written("runs/b/log.txt", "")],
        options={"source": "runs"},
        says=["it holds one, a/checkpoint-20: give source=runs/a/checkpoint-20"],
    ),
    "the source is the name of a model on the hub": Refusal(
        options={"source": "Qwen/Qwen2-VL-7B"},
        says=["source=Qwen/Qwen2-VL-7B: no such directory; if it is the name of", "hf download Qwen/Qwen2-VL-7B"],
    ),
    "the source is above a checkpoint of another program": Refusal(
        files=[written("run/global_step10/mp_rank_00_model_states.pt", ""), written("run/latest", "global_step10")],
        options={"source": "run"},
        says=["source=run: is a checkpoint of DeepSpeed", "zero_to_fp32.py"],
    ),
    "the source is above one of another program": Refusal(
        files=[written("runs/a/global_step10/mp_rank_00_model_states.pt", ""), written("runs/a/latest", "")],
        options={"source": "runs"},
        says=["source=runs/a: is a checkpoint of DeepSpeed"],
    ),
    "the language model is in the cache": Refusal(
        files=[written("cache/snapshots/abc/config.json", "{}")],
        options={"text_source": "cache"},
        says=["text_source=cache: is a directory of the Hugging Face cache"],
    ),
    "the source holds no shard": Refusal(
        files=[written("empty/config.json", "{}")], options={"source": "empty"}, says=["empty: holds no"]
    ),
    "several shards without an index": Refusal(files=[deleted(INDEX)], says=["hf: holds 5", Path(INDEX).name]),
    "no config.json": Refusal(files=[deleted(CONFIG)], says=[f"{CONFIG}: no such file"]),
    "config.json is not JSON": Refusal(
        files=[written(CONFIG, "{'hidden_size': 48}")], says=[f"{CONFIG}: not valid JSON", "line 1 column 2"]
    ),
    "config.json is a list": Refusal(
        files=[written(CONFIG, "[]")], says=[f"{CONFIG}: expected a JSON object, found list"]
    ),
    "config.json lacks a field": Refusal(
        model=[config("num_key_value_heads", None)],
        says=[f"{CONFIG}: no field", "num_key_value_heads"],
        never=FALSE,
    ),
    "config.json lacks two fields": Refusal(
        model=[config("num_key_value_heads", None), config("intermediate_size", None)],
        says=["num_key_value_heads", "intermediate_size"],
        never=FALSE,
    ),
    "config.json has a size of the wrong type": Refusal(
        model=[config("hidden_size", "48")],
        says=[f"{CONFIG}: hidden_size: expected", "integer", "found '48'"],
        never=FALSE,
    ),
    "heads do not divide the width": Refusal(
        model=[config("num_attention_heads", 7)],
        says=["hidden (48, hidden_size in config.json)", "heads (7, num_attention_heads in config.json)"],
        never=FALSE,
    ),
    "the index names a missing shard": Refusal(files=[deleted(SHARD)], says=[f"{SHARD}: no such file"]),
    "the index names two missing shards": Refusal(
        files=[deleted(SHARD), deleted("hf/model-00004-of-00005.safetensors")],
        says=["model-00003-of-00005.safetensors: no such file", "model-00004-of-00005.safetensors: no such file"],
    ),
    "the index names a tensor that no shard holds": Refusal(
        files=[index(lambda shards: shards.update({"model.extra": Path(SHARD).name}))],
        says=[f"{INDEX}: names the tensor model.extra"],
    ),
    "a shard holds a tensor that the index does not name": Refusal(
        files=[index(lambda shards: shards.pop(FIRST))], says=[f"{INDEX}: does not name", FIRST]
    ),
    "the index names a shard elsewhere": Refusal(
        files=[index(lambda shards: shards.update({FIRST: "../model.safetensors"}))],
        says=[INDEX, FIRST, "'../model.safetensors'"],
    ),
    "a single file beside an index that does not name it": Refusal(
        files=[written("hf/model.safetensors", "")],
        says=["hf: holds model.safetensors beside model.safetensors.index.json", "does not name it", "remove"],
    ),
    "the same in the directory of the language model": Refusal(
        files=[
            written("text/config.json", "{}"),
            written("text/pytorch_model.bin.index.json", '{"weight_map": {"a": "b.bin"}}'),
            written("text/pytorch_model.bin", ""),
        ],
        options={"text_source": "text"},
        says=["text: holds pytorch_model.bin beside pytorch_model.bin.index.json"],
    ),
    "a shard is a byte too short": Refusal(files=[longer(SHARD, -1)], says=[f"{SHARD}: ", "truncated"]),
    "a shard is cut in half": Refusal(files=[longer(SHARD, -50_000)], says=[f"{SHARD}: ", "truncated"]),
    "a shard is a byte too long": Refusal(files=[longer(SHARD, 1)], says=[f"{SHARD}: expected", "data after the end"]),
    "a shard is empty": Refusal(files=[written(SHARD, "")], says=[f"{SHARD}: 0 bytes long"]),
    "a shard is a pointer of git lfs": Refusal(
        files=[written(SHARD, POINTER)],
        says=[f"{SHARD}: ", "Git LFS", "git lfs pull"],
    ),
    "the configuration is a pointer of git lfs": Refusal(
        files=[written(CONFIG, POINTER)], says=[f"{CONFIG}: ", "Git LFS", "git lfs pull"], never=["JSON"]
    ),
    "a state dict is a pointer of git lfs": Refusal(
        files=[written("bin/pytorch_model.bin", POINTER), written("bin/config.json", '{"model_type": "qwen2_vl"}')],
        options={"source": "bin"},
        says=["bin/pytorch_model.bin: ", "Git LFS", "git lfs pull"],
        never=["zip"],
    ),
    "a side file is a pointer of git lfs": Refusal(
        files=[written("hf/tokenizer.json", POINTER)],
        options={"+model": None, "target_format": "hf", "dtype": "float16", "dtype_overflow": "allow"},
        says=["hf/tokenizer.json: ", "Git LFS", "git lfs pull"],
    ),
    "a header of 2^60 bytes": Refusal(files=[header_length(SHARD, 2**60)], says=[f"{SHARD}: ", str(2**60), "header"]),
    "a header that is not JSON": Refusal(files=[header_length(SHARD, 100)], says=[f"{SHARD} (header): not valid JSON"]),
    "tensors that overlap": Refusal(files=[entry(SHARD, FIRST, data_offsets=[2, 98])], says=[SHARD, "overlaps"]),
    "a tensor beyond the end of its shard": Refusal(
        files=[entry(SHARD, FIRST, data_offsets=[10**9, 10**9 + 96])],
        says=[SHARD, FIRST, "ends at byte"],
    ),
    "a tensor whose bytes do not fit its shape": Refusal(
        files=[entry(SHARD, FIRST, shape=[47])], says=[SHARD, FIRST, "94", "96"]
    ),
    "a tensor of negative size": Refusal(files=[entry(SHARD, FIRST, shape=[-48])], says=[SHARD, FIRST, "[-48]"]),
    "an element type that safetensors does not have": Refusal(
        files=[entry(SHARD, FIRST, dtype="F17")], says=[SHARD, FIRST, "'F17'"]
    ),
    "a tensor of the wrong shape": Refusal(
        model=[sized("model.layers.2.mlp.up_proj.weight", rows=80)],
        says=["model.layers.2.mlp.up_proj.weight has shape [80, 48], expected [88, 48]", "intermediate_size"],
    ),
    "a tensor of the wrong element type": Refusal(
        model=[typed("model.layers.2.mlp.down_proj.weight", "int8")],
        says=["model.layers.2.mlp.down_proj.weight is int8", "bfloat16"],
    ),
    "sources of one parameter of different element types": Refusal(
        model=[typed("model.layers.2.mlp.up_proj.weight", "float16")],
        says=["gate_proj.weight is bfloat16", "up_proj.weight is float16"],
    ),
    "tensors that no rule knows": Refusal(
        model=[with_tensors("model.layers.0.mlp.extra.weight", "visual.pos_embed")],
        says=["model.layers.0.mlp.extra.weight", "visual.pos_embed", "no rule", "qwen2vl"],
    ),
    "more layers than config.json says": Refusal(
        model=[config("num_hidden_layers", 5)], says=["model.layers.5.", "config.json"]
    ),
    "fewer layers than config.json says": Refusal(
        model=[config("num_hidden_layers", 7)], says=["model.layers.6.input_layernorm.weight is missing"]
    ),
    "missing tensors": Refusal(
        model=[without("model.layers.3.self_attn.q_proj.weight"), without("model.norm.weight")],
        says=["model.layers.3.self_attn.q_proj.weight is missing", "model.norm.weight is missing"],
    ),
    "an untied model without a head": Refusal(model=[without("lm_head.weight")], says=["lm_head.weight is missing"]),
    "the names of a wrapped model": Refusal(
        model=[renamed("module._orig_mod.{}")],
        says=["hf: module._orig_mod. is in front of the names of", "'model.renamed_prefixes=[[module._orig_mod.,"],
        never=["no rule", "is missing"],
    ),
    "names with modules that wrap others": Refusal(
        model=[renamed("{}", old="mlp.", new="mlp._checkpoint_wrapped_module.")],
        says=["_checkpoint_wrapped_module, are in the names of", "save the state dict of the model without them"],
        never=["no rule", "is missing"],
    ),
    "the vision encoder is missing": Refusal(
        model=[without("visual.*")],
        says=["hf: holds nothing of the vision modality", "visual.patch_embed.proj.weight", "select=[text]"],
        never=["visual.blocks.1."],
    ),
    "quantised weights with their scales": Refusal(
        model=[typed("*_proj.weight", "float8_e4m3fn"), with_tensors("model.layers.0.mlp.up_proj.weight_scale_inv")],
        says=["proj.weight is float8_e4m3fn", "of quantised weights, config.json must say how they are"],
        never=["no rule"],
    ),
    "one tensor in two spellings": Refusal(
        model=[with_tensors("model.language_model.norm.weight")],
        says=["model.norm.weight", "model.language_model.norm.weight"],
    ),
}

MODELS = {
    "unknown model": Refusal(options={"+model": "qwen2v1"}, says=["+model=qwen2v1", "did you mean +model=qwen2vl?"]),
    "unknown model, like no other": Refusal(options={"+model": "zzz"}, says=["+model=zzz", "known:", "qwen2vl"]),
    "model without plus": Refusal(options={"+model": None, "model": "qwen2vl"}, says=["+model="]),
    "config.json contradicts the model": Refusal(
        model=[config("model_type", "llava")], says=[CONFIG, "'llava'", "+model=qwen2vl", "qwen2_vl"]
    ),
    "config.json names an unknown model": Refusal(
        model=[config("model_type", "qwen2_vll")],
        options={"+model": None},
        says=[CONFIG, "'qwen2_vll'", "+model=qwen2vl"],
    ),
    "config.json names no model": Refusal(
        model=[config("model_type", None)],
        options={"+model": None},
        says=[CONFIG, "model_type", "+model=NAME", "qwen2vl"],
    ),
}

LAYOUTS = {
    "text stages do not add up": Refusal(
        options={"layout.stages.text": "[3,2]"}, says=["layout.stages.text=[3,2]", "5 layers", "6 text layers"]
    ),
    "vision stages do not add up": Refusal(
        options={"layout.stages.vision": "[6]"}, says=["layout.stages.vision=[6]", "6 layers", "5 vision layers"]
    ),
    "tp does not divide the KV heads": Refusal(
        model=[config("num_key_value_heads", 1), sized("*.self_attn.[kv]_proj.*", rows=8)],
        options={"layout.tp": "2"},
        says=["layout.tp=2", "kv_heads (1, num_key_value_heads in config.json)", "that fit all of this model: 1"],
    ),
    "tp does not divide the vision heads": Refusal(
        model=[config("vision_config.num_heads", 1)],
        options={"layout.tp": "2"},
        says=["layout.tp=2", "vision_heads (1, vision_config.num_heads in config.json)"],
    ),
    "tp does not divide the intermediate size": Refusal(
        model=[
            config("intermediate_size", 87),
            sized("*.mlp.gate_proj.weight", rows=87),
            sized("*.mlp.up_proj.weight", rows=87),
            sized("*.mlp.down_proj.weight", columns=87),
        ],
        options={"layout.tp": "2"},
        says=["layout.tp=2", "87", "intermediate_size"],
    ),
    "tp does not divide the vocabulary": Refusal(
        model=[
            config("vocab_size", 103),
            sized("model.embed_tokens.weight", rows=103),
            sized("lm_head.weight", rows=103),
        ],
        options={"layout.tp": "2"},
        says=["layout.tp=2", "103", "vocab_size"],
    ),
    "tp divides nothing": Refusal(
        options={"layout.tp": "3"}, says=["layout.tp=3", "layout.tp: sizes that fit all of this model: 1, 2\n"]
    ),
    "more pipeline ranks than layers": Refusal(
        options={"layout.pp": "12"},
        says=["layout.pp=12", "12 stages, but the model has 11 layers; lower one of the two"],
    ),
    "encoder tp does not divide the vision heads": Refusal(
        options={"layout.modality_tp.vision": "3"},
        says=["layout.modality_tp.vision=3", "vision_heads (4, vision_config.num_heads in config.json)"],
    ),
    "encoder tp and tp do not divide": Refusal(
        options={"layout.tp": "2", "layout.modality_tp.vision": "3"}, says=["layout.tp=2", "3"]
    ),
    "encoder stages longer than the text stages": Refusal(
        options={"layout.stages.text": "[3,3]", "layout.stages.vision": "[5,0,0]"},
        says=["layout.stages.vision=[5,0,0]", "3 entries", "2 pipeline ranks"],
    ),
    "encoder without virtual stages": Refusal(
        options={"layout.stages.text": "[[1,2],[2,1]]", "layout.stages.vision": "[5,0]"},
        says=["layout.stages.vision=[5,0]", "1 virtual stages, expected 2"],
    ),
    "virtual stages of different lengths": Refusal(
        options={"layout.stages.text": "[[1,2],[3]]"},
        says=["layout.stages.text=[[1,2],[3]]", "the same number of entries"],
    ),
    "pp contradicts the stages": Refusal(
        options={"layout.stages.text": "[3,3]", "layout.pp": "3"}, says=["layout.pp=3", "[3,3]", "pp 2"]
    ),
    "vpp contradicts the stages": Refusal(
        options={"layout.stages.text": "[3,3]", "layout.vpp": "2"}, says=["layout.vpp=2", "[3,3]", "vpp 1"]
    ),
    "experts of a dense model": Refusal(options={"layout.ep": "2"}, says=["layout.ep=2", "no experts"]),
    "a modality that the model does not have": Refusal(
        options={"layout.stages.audio": "[1]"}, says=["layout.stages.audio", "text, vision"]
    ),
    "selection of a modality that the model does not have": Refusal(
        options={"select": "[audio]"}, says=["select", "audio", "text, vision"]
    ),
}

OPTIONS = {
    "unknown option in an unknown group": Refusal(
        options={"layot.tp": "2"}, says=["layot.tp", "did you mean layout.tp?"]
    ),
    "unknown option": Refusal(options={"layout.tpp": "2"}, says=["layout.tpp", "did you mean layout.tp?"]),
    "unknown option with a plus": Refusal(options={"+sorce": "x"}, says=["sorce", "did you mean", "source"]),
    "tp is a word": Refusal(options={"layout.tp": "two"}, says=["layout.tp=two", "integer"]),
    "tp is zero": Refusal(options={"layout.tp": "0"}, says=["layout.tp=0", "integer"]),
    "tp is beyond all reason": Refusal(options={"layout.tp": str(10**12)}, says=[f"layout.tp={10**12}"]),
    "tp is empty": Refusal(options={"layout.tp": ""}, says=["layout.tp=", "integer"]),
    "unknown action": Refusal(options={"action": "convrt"}, says=["action=convrt", "convert, plan, verify"]),
    "stages of words": Refusal(options={"layout.stages.text": "[1,x]"}, says=["layout.stages.text=", "[1,10,10,7]"]),
    "stages without brackets": Refusal(
        options={"layout.stages.text": "6"}, says=["layout.stages.text=6", "[1,10,10,7]"]
    ),
    "stages of two depths": Refusal(
        options={"layout.stages.text": "[[3],3]"}, says=["layout.stages.text=", "[1,10,10,7]"]
    ),
    "stages without end": Refusal(options={"layout.stages.text": "[3,3"}, says=["layout.stages.text=[3,3"]),
    "stages of no modality": Refusal(
        options={"layout.stages": "[3,3]"}, says=["layout.stages=[3,3]", "text, vision, audio"]
    ),
    "a value for a group of options": Refusal(
        options={"layout": "2"}, says=["layout=2", "tp, ep, expert_tp, stages"], never=["None"]
    ),
    "a value without an option": Refusal(options={"": "2"}, says=["=2"]),
    "an empty path": Refusal(options={"source": ""}, says=["source=: expected a path"], never=["source is missing"]),
    "a source that is no list of one": Refusal(options={"source": "[hf]"}, says=["source=[hf]: no such directory"]),
    "unknown option with a value that Hydra cannot read": Refusal(
        options={"sorce": "hf/模型"}, says=["unknown option sorce; did you mean source?"]
    ),
    "negative iteration": Refusal(options={"iteration": "-1"}, says=["iteration=-1", "release"]),
    "unknown modality": Refusal(options={"select": "[visoin]"}, says=["select=", "visoin", "text, vision, audio"]),
    "overwrite is neither true nor false": Refusal(
        options={"overwrite": "maybe"}, says=["overwrite=maybe", "true or false"]
    ),
    "no threads": Refusal(options={"io.threads": "0"}, says=["io.threads=0", "integer"]),
    "number of processes of a conversion": Refusal(options={"processes": "2"}, says=["processes", "action=plan"]),
    "a value that needs quotes": Refusal(
        options={"name_prefix": "a(b"}, says=["name_prefix=a(b: ", "needs quotes of its own", """'name_prefix="a(b"'"""]
    ),
    "two wrong values": Refusal(options={"layout.tp": "0", "action": "convrt"}, says=["layout.tp=0", "action=convrt"]),
    "a report where there is no directory": Refusal(
        options={"report": "nowhere/report.json"}, says=["report=nowhere/report.json", "directory"]
    ),
    "a report that is a file of the source": Refusal(
        options={"action": "plan", "report": "hf/config.json"}, says=["report=hf/config.json: is there already"]
    ),
    "a report that is a directory": Refusal(options={"report": "hf"}, says=["report=hf", "file"]),
    "no such text source": Refusal(options={"text_source": "nowhere"}, says=["text_source=nowhere: no such directory"]),
    "the text source is the source": Refusal(
        options={"text_source": "hf/../hf"}, says=["text_source=hf/../hf", "same directory as source"]
    ),
    "a text source for the vision alone": Refusal(
        options={"text_source": "hf", "select": "[vision]"}, says=["text_source=hf", "select=", "vision"]
    ),
}

DCP = {"target_format": "dcp"}
PUBLISHED = {**DCP, "naming": "hf"}
DCPS = {
    "unknown target format": Refusal(
        options={"target_format": "safetensors"}, says=["target_format=safetensors", "dcp"]
    ),
    "unknown naming": Refusal(options={**DCP, "naming": "huggingface"}, says=["naming=huggingface", "megatron, hf"]),
    "unknown choice for packed experts": Refusal(
        options={**PUBLISHED, "packed_experts": "split"}, says=["packed_experts=split", "auto, flatten, keep"]
    ),
    "a prefix that is no text": Refusal(options={**DCP, "name_prefix": "[model.]"}, says=["name_prefix=", "text"]),
    "a layout for whole tensors": Refusal(
        options={**DCP, "layout.tp": "2", "layout.stages.text": "[3,3]"},
        says=["layout.tp: ", "layout.stages: ", "holds whole tensors", "leave it out", "target_format=dcp"],
    ),
    "names for a Megatron directory": Refusal(options={"naming": "hf"}, says=["naming: goes with target_format=dcp"]),
    "packed experts under Megatron names": Refusal(
        options={**DCP, "packed_experts": "keep"}, says=["packed_experts: goes with target_format=dcp and naming=hf"]
    ),
    "a dialect that is not there": Refusal(
        options={**PUBLISHED, "dialect": "transformers"},
        says=["dialect=transformers: no such dialect; the nearest is transformers5", "mm_fsdp2, mm_wrapped"],
    ),
    "a dialect of Megatron names": Refusal(
        options={**DCP, "dialect": "mm_fsdp2"},
        says=["dialect=mm_fsdp2: names published tensors; give target_format=dcp and naming=hf"],
    ),
    "a dialect of a source that has none": Refusal(
        options={**PUBLISHED, "source_dialect": "mm_fsdp2"},
        says=["source_dialect: goes with a Megatron, torch_dist or DCP source; source=hf is a Hugging Face directory"],
    ),
    "a size of shards for what has none": Refusal(
        options={**PUBLISHED, "shard_size": "5GB"}, says=["shard_size: goes with target_format=hf"]
    ),
    "another vocabulary where there is none": Refusal(
        options={"vocab_size": "128", "select": "[vision]"},
        says=["vocab_size=128: nothing that is converted has a vocabulary"],
    ),
    "a head written for an untied model, published names": Refusal(
        options={**PUBLISHED, "tied_head": "write"}, says=["tied_head=write", "tied"]
    ),
    "a head of an untied model left out, published names": Refusal(
        options={**PUBLISHED, "tied_head": "omit"}, says=["tied_head=omit", "tied"]
    ),
    "a head of an untied model left out, Megatron names": Refusal(
        options={**DCP, "tied_head": "omit"}, says=["tied_head=omit", "not tied"]
    ),
    "a tied model without the embedding that its head is written from": Refusal(
        model=[config("tie_word_embeddings", True), without("model.embed_tokens.weight"), without("lm_head.weight")],
        options={**PUBLISHED, "tied_head": "write"},
        says=["source tensor model.embed_tokens.weight is missing", "head"],
    ),
    "tensors that no rule knows, under Megatron names": Refusal(
        model=[with_tensors("model.layers.0.mlp.extra.weight")],
        options=DCP,
        says=["model.layers.0.mlp.extra.weight", "no rule", "qwen2vl"],
    ),
}

# These are found after planning.
TARGETS = {
    "the target is the source": Refusal(options={"target": "hf"}, says=["target=hf", "source=hf"]),
    "the target is inside the source": Refusal(options={"target": "hf/mm"}, says=["target=hf/mm", "source=hf"]),
    "the source is inside the result": Refusal(
        files=[lambda directory: shutil.copytree(directory / "hf", directory / "mm/release/hf")],
        options={"source": "mm/release/hf", "overwrite": "true"},
        says=["source=mm/release/hf", "mm/release"],
    ),
    "the target is the source, by another path": Refusal(
        files=[lambda directory: (directory / "same").symlink_to("hf")],
        options={"target": "same", "overwrite": "true"},
        says=["target=same", "source=hf"],
    ),
    "the report is in the source, by another path": Refusal(
        files=[lambda directory: (directory / "same").symlink_to("hf")],
        options={"action": "plan", "report": "same/report.json"},
        says=["report=same/report.json: is inside source=hf"],
    ),
    "the report is in the result": Refusal(
        files=[written("mm/release/x", "kept")],
        options={"action": "plan", "report": "mm/release/report.json"},
        says=["report=mm/release/report.json: is inside target=mm/release"],
    ),
    "the target is a file": Refusal(files=[written("mm", "a file")], says=["target=mm", "not a directory"]),
    "the target is below a file": Refusal(
        files=[written("file", "a file")], options={"target": "file/a/mm"}, says=["target=file/a/mm", "not a directory"]
    ),
    "the result is there already": Refusal(
        files=[written("mm/release/mp_rank_00/model_optim_rng.pt", "kept")],
        says=["target=mm: release is already there", "overwrite=true"],
    ),
    "another result is there already": Refusal(
        files=[written("mm/latest_checkpointed_iteration.txt", "1000")],
        says=["target=mm: latest_checkpointed_iteration.txt is already there", "overwrite=true"],
    ),
    "a DCP is there already": Refusal(
        files=[written("mm/release/.metadata", "kept")],
        options=DCP,
        says=["target=mm: release is already there", "overwrite=true"],
    ),
    "nothing to verify": Refusal(options={"action": "verify"}, says=["target=mm: holds no release to verify"]),
    "the disk is too small": Refusal(
        model=[config("vocab_size", 150_000_000_000)],
        files=[
            sparse("hf/model-00002-of-00005.safetensors", "model.embed_tokens.weight", 150_000_000_000),
            sparse("hf/model-00005-of-00005.safetensors", "lm_head.weight", 150_000_000_000),
        ],
        says=["target=mm: needs 28,800,000,", "bytes", "free"],
    ),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, distconv):
    """Run the job of a row; the standard output, once everything about the refusal has been checked."""
    monkeypatch.chdir(tmp_path)

    def run(row: Refusal) -> str:
        case = load_case("qwen2vl__tp1_pp1")
        for change in row.model:
            change(case)
        write_source(tmp_path / "hf", case)
        for damage in row.files:
            damage(tmp_path)
        before = everything(tmp_path)

        options = {**JOB, **row.options}
        outcome = distconv(*(f"{key}={value}" for key, value in options.items() if value is not None))

        assert outcome.status == 2, outcome
        assert outcome.err.startswith("distconv: "), outcome.err
        assert "Traceback" not in outcome.err
        assert len(outcome.err.splitlines()) <= LINES_OF_A_SCREEN
        assert [fragment for fragment in row.says if fragment not in outcome.err] == [], outcome.err
        assert [fragment for fragment in row.never if fragment in outcome.err] == [], outcome.err
        assert everything(tmp_path) == before
        return outcome.out

    return run


def everything(directory: Path) -> dict[str, tuple[int, int] | bytes]:
    """All that is in a directory: files with their content, or where that is huge with size and time of change."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        if path.is_file() and path.stat().st_size < 10**6
        else (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
    }


def rows(table: Mapping[str, Refusal]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", table.values(), ids=table)


@rows({**SOURCES, **MODELS, **LAYOUTS, **OPTIONS, **DCPS})
def test_refused_before_anything_is_said(row, refused):
    assert refused(row) == ""


@rows(TARGETS)
def test_refused_after_planning(row, refused):
    assert "wrote" not in refused(row)
