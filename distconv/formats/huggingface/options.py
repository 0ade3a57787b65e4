"""The options of a job that apply to Hugging Face directories alone. Owns their words; reads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from distconv.fields import option
from distconv.kinds import Bytes, Number, Truth
from distconv.options import CommonOptions


@dataclass(frozen=True, kw_only=True)
class HuggingFaceOptions(CommonOptions):
    """The options of a Hugging Face result: its shards, and adapters in it."""

    shard_size: int | None = option(
        Bytes(),
        None,
        "with `target_format=hf`: the size up to which tensors share a file, such as `5GB`, `500MB` or `2GiB`",
        unset="the files of the reference; 5GB where it names none",
    )
    merge_lora: bool = option(
        Truth(),
        False,
        "with `target_format=hf`: merge LoRA adapters into their base, the reference or the weights beside them",
    )
    lora_alpha: float | None = option(
        Number(), None, "with `target_format=hf`: the alpha of training", unset="what `adapter_config.json` says"
    )
