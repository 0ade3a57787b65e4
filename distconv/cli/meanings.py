"""What a word may mean that is no key of an option: the nearest keys, and the names of other programs for them.

Owns the names that Megatron's and other converters give to what is an option here. Refuses nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from distconv.fields import ByName, keys_of
from distconv.formats.registry import Options
from distconv.kinds import Kind

MODEL = "+model"
# The names of other programs, by key; their last part counts, so that `cfg.mm_dir` is `mm_dir`.
_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "source": ("load", "load_dir", "input", "input_dir", "from", "src", "hf_path", "hf_dir", "hf_model", "model_path"),
    "target": ("save", "save_dir", "output", "output_dir", "out", "to", "dst", "dest", "mm_dir", "save_path"),
    "target_format": ("format", "ckpt_format", "output_format", "save_format"),
    "layout.tp": ("tp_size", "tensor_model_parallel_size", "tensor_parallel_size", "target_tensor_parallel_size"),
    "layout.pp": (
        "pp_size", "pipeline_model_parallel_size", "pipeline_parallel_size", "target_pipeline_parallel_size",
    ),
    "layout.vpp": ("vpp_size", "virtual_pipeline_model_parallel_size"),
    "layout.ep": ("ep_size", "expert_model_parallel_size", "expert_parallel_size", "target_expert_parallel_size"),
    "layout.expert_tp": ("etp", "expert_tensor_parallel_size"),
    "layout.stages.text": ("pp_layers", "llm_pp_layers", "pipeline_num_layers", "num_layer_list"),
    "layout.stages.vision": ("vit_pp_layers",),
    "layout.stages.audio": ("audio_pp_layers",),
    "vocab_multiple": ("make_vocab_size_divisible_by",),
    "vocab_size": ("padded_vocab_size", "true_vocab_size"),
    "dtype": ("torch_dtype", "params_dtype", "precision"),
    "shard_size": ("max_shard_size",),
    "overwrite": ("force",),
    "action": ("command", "mode"),
    MODEL: ("model", "model_name", "model_type"),
}  # fmt: skip
_KEY_ELSEWHERE = {name: key for key, names in _ELSEWHERE.items() for name in names}
_NEAR = 3


def kinds() -> dict[str, Kind[Any]]:
    """Dotted key → kind of its value, of all options."""
    found = {key: each.kind for key, each in keys_of(Options)}
    return {key: kind.kind if isinstance(kind, ByName) else kind for key, kind in found.items()}


def nearest(word: str) -> list[str]:
    """The keys that a word may stand for, the likeliest first."""
    known = list(kinds())
    name = word.lstrip("+").replace("-", "_").lower()
    last = name.rpartition(".")[2]
    found = [key for key in known if key == name]
    found += [key for each in (name, last) if (key := _KEY_ELSEWHERE.get(each))]
    found += [key for key in known if key.endswith(f".{name}")]
    found += difflib.get_close_matches(name, known, _NEAR)
    if not found:
        # Of a key that is misspelt without its group.
        ends = {key.rpartition(".")[2]: key for key in reversed(known)}
        found = [ends[each] for each in difflib.get_close_matches(last, ends, 1)]
    return list(dict.fromkeys(found))[:_NEAR]


def unknown_option(word: str) -> str:
    """The problem of a key that is none, with the nearest ones."""
    near = nearest(word)
    if not near:
        return f"unknown option {word}; distconv --help lists the options"
    others = f" or {', '.join(near[1:])}?" if near[1:] else ""
    return f"unknown option {word}; did you mean {near[0]}?{others}"
