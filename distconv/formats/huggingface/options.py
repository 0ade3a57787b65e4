"""The options of a job that apply to Hugging Face directories alone. Owns their words; reads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from distconv.fields import option
from distconv.kinds import Number, Truth
from distconv.options import CommonOptions


@dataclass(frozen=True, kw_only=True)
class HuggingFaceOptions(CommonOptions):
    """The options of adapters in a Hugging Face result."""

    merge_lora: bool = option(
        Truth(),
        False,
        "with `target_format=hf`: merge LoRA adapters into their base, the reference or the weights beside them",
    )
    lora_alpha: float | None = option(
        Number(), None, "with `target_format=hf`: the alpha of training", unset="what `adapter_config.json` says"
    )
